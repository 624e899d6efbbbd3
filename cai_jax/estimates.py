"""A program compiled for devices that are not there: bytes, costs, and an estimate of its time."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

from cai_jax.core import topology

ASSUMPTIONS = (
    "estimated_seconds: instructions one after the other, each as long as its FLOPs take at the "
    "chip's peak or its bytes at the bandwidth of HBM, whatever is longer; all collectives beside "
    "them, at the bandwidth of all links of a chip, and so free until they take longer",
    "seconds_without_overlap: the collectives added instead",
    "seconds_by_resource: as if each were alone; the longest bounds what a compiler can do",
    "HBM: every instruction that is not fused reads its operands and writes its result once",
    "collectives: (n - 1) / n of the payload leaves each of n devices, twice that in an all-reduce",
    "attention kernels: the blocks that their masks leave, as if each row were one document; keys "
    "and values read again for each block of queries; in decoding all columns of the slots, of "
    "which a TPU reads the live ones",
    "MFU: 6 FLOPs a parameter and token trained, 2 forward; no attention, nothing for "
    "rematerialisation",
    "loops that end when all rows have: as long as max_new_tokens allows",
)


def compiled(program: Any, described: topology.Topology, arrays: bool) -> dict[str, Any]:
    """Compiles one program; FLOPs and bytes are of one device, `useful_flops` of all."""
    import jax

    from cai_jax.core import abstract, hlo_costs, sharding

    placed = [a for a in program.arguments if abstract.is_placed(a)]
    if arrays:
        print(f"{program.name}:\n{sharding.array_table(placed)}", file=sys.stderr, flush=True)
    held = abstract.device_bytes(program.held)
    result: dict[str, Any] = {
        "name": program.name,
        "arguments_bytes": abstract.device_bytes(placed),
        "outputs_bytes": 0,
        "temporaries_bytes": 0,
        "held_bytes": held,
        "tokens": program.tokens,
        "useful_flops": program.useful_flops,
        "required_sent_bytes": program.required_bytes,
    }
    empty = dict.fromkeys(
        ("flops", "hbm_bytes", "sent_bytes", "seconds_without_overlap", "estimated_seconds")
    )
    start = time.perf_counter()
    with progress(program.name):
        try:
            executable = program.function.lower(*program.arguments).compile()
        except jax.errors.JaxRuntimeError as error:
            message = str(error)
            if "RESOURCE_EXHAUSTED" not in message and "memory" not in message:
                raise
            needed = out_of_memory(message)
            return (
                result
                | empty
                | {
                    "fits": False,
                    "peak_bytes": needed + held,
                    "collective_bytes": {},
                    "compiler_says": " ".join(message.split())[:300],
                    "compile_seconds": time.perf_counter() - start,
                }
            )
    seconds = time.perf_counter() - start
    memory = executable.memory_analysis()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = memory.argument_size_in_bytes + new + memory.temp_size_in_bytes
    peak += memory.generated_code_size_in_bytes + held
    chip = described.chip
    rates = hlo_costs.Rates(chip.flops, chip.bandwidth) if chip else None
    costs = hlo_costs.Module(executable.as_text()).costs(program.loop_trips, rates)
    return result | {
        "arguments_bytes": memory.argument_size_in_bytes,
        "outputs_bytes": memory.output_size_in_bytes,
        "temporaries_bytes": memory.temp_size_in_bytes,
        "peak_bytes": peak,
        "fits": peak <= chip.memory if chip else True,
        "flops": costs.flops,
        "hbm_bytes": costs.hbm_bytes,
        "collective_bytes": costs.moved,
        "sent_bytes": costs.sent,
        **roofline(costs, chip),
        "compile_seconds": seconds,
    }


def roofline(costs: Any, chip: topology.Chip | None) -> dict[str, Any]:
    """Seconds, as ASSUMPTIONS says; None for simulated devices."""
    if chip is None:
        return {"estimated_seconds": None, "seconds_without_overlap": None}
    linked = costs.sent / chip.links
    return {
        "seconds_by_resource": {
            "arithmetic": costs.flops / chip.flops,
            "hbm": costs.hbm_bytes / chip.bandwidth,
            "collectives": linked,
        },
        "estimated_seconds": max(costs.seconds, linked),
        "seconds_without_overlap": costs.seconds + linked,
    }


def out_of_memory(message: str) -> int:
    """The bytes that the compiler says it would need; 0 where it does not."""
    found = re.search(r"Used ([\d.]+)([KMG]?) of", message)
    scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
    return int(float(found[1]) * scale[found[2]]) if found else 0


@contextlib.contextmanager
def progress(name: str) -> Iterator[None]:
    """A line on stderr, if it is a terminal, while the compiler is silent for minutes."""
    shown = sys.stderr.isatty()
    if shown:
        print(f"compiling {name} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    yield
    if shown:
        print(f"compiled {name} in {time.perf_counter() - start:.0f} s", file=sys.stderr)
