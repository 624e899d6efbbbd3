"""Compiles a step for accelerators that are not there, and says what it will take.

    python -m cai_jax.compile_ahead --config=configs/X.py --topology=v5p:4x4x4 --step=finetune

Prints one JSON object: bytes on each device and whether they fit, from the compiler; FLOPs, bytes
of HBM and of collectives, counted in the compiled program with every round of its loops; a time and
an MFU by a roofline, with what it assumes. The programs are those that the steps run. It needs
libtpu (pip install 'cai_jax[tpu]'), and no TPU; of GPUs jax's CUDA plugin, and no GPU.
--config.KEY=VALUE changes a key of the config; flags of the compiler are those of launch/env.sh:
". launch/env.sh v5p" first.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cai_jax import estimates, planner, shapes
from cai_jax.core import configuration, mesh, topology
from cai_jax.errors import InputError, exits_on_input_error
from cai_jax.pipeline import Step, read_steps
from cai_jax.resume import Outside
from cai_jax.stages import load_stage

STEPS = ("finetune", "preference", "ppo", "decode")
SAMPLING = ("compare", "critique_revise", "red_team", "evaluate")  # kinds that decode, by choice
MODELS = ("model", "helpful_model")  # keys of a config that name one
BATCH = {
    "finetune": "rows",
    "preference": "pairs",
    "ppo": "prompts_per_iteration",
    "decode": "batch_size",
}
MOST_TENSOR = 16  # devices that a sweep splits heads over
SWEPT_BATCHES = (1, 2, 4, 8)  # rows a device and part, in a sweep


class Asked(NamedTuple):
    """A step of a config, and the shapes of its models."""

    kind: str  # one of STEPS
    step: Step
    model: shapes.Model
    preference_model: shapes.Model | None


def parser() -> argparse.ArgumentParser:
    """The flags."""
    from cai_jax import command_line

    flags = command_line.Parser(prog="python -m cai_jax.compile_ahead", description=__doc__)
    flags.formatter_class = argparse.RawDescriptionHelpFormatter
    flags.add_argument("--config", required=True, metavar="FILE", help="a file of configs/")
    flags.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="chips, as v5p:4x4x4, v4:2x2x4, v5e:4x4 or v6e:16x16; h100:2x8 for two hosts of eight "
        "GPUs; cpu:8 for simulated devices",
    )
    flags.add_argument(
        "--step", default="finetune", metavar="STEP", help=f"{', '.join(STEPS)}, or a step's name"
    )
    flags.add_argument("--arrays", action="store_true", help="list every array on stderr")
    flags.add_argument(
        "--sweep", action="store_true", help="try meshes and batches; print the best that fits"
    )
    return flags


@exits_on_input_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the job."""
    flags = parser()
    options, rest = flags.parse_known_args(arguments)
    unknown = [flag for flag in rest if not flag.startswith("--config.")]
    if unknown:
        flags.error(f"unknown flag {unknown[0]}")
    config = configuration.load_config(options.config)
    configuration.override(config, [flag.removeprefix("--config.") for flag in rest])
    asked = read(config, options.step)
    topology.prepare_environment(options.topology)
    described = topology.describe(options.topology)
    given = any("mesh." in flag.partition("=")[0] for flag in rest)
    if options.sweep:
        result = sweep(asked, described)
    else:
        config = ConfigDict(asked.step.config)
        config.mesh = fitted_mesh(asked, described, given)
        result = measured(asked, config, described, arrays=options.arrays)
    json.dump(result, sys.stdout, indent=1)
    print()


def read(config: ConfigDict, name: str) -> Asked:
    """The step of a config that is meant by a kind, "decode", or a name.

    Raises:
        InputError: the config has none, or the shape of a model is not known.
    """
    for key in config:
        # What a config leaves to the command line and is no model is data, which nothing reads.
        if config[key] == "" and key not in ("hardware", *MODELS):
            config[key] = "data.jsonl"
    steps = read_steps(config, load_stage)
    found = next((step for step in steps if step.name == name), None)
    wanted = SAMPLING if name == "decode" else (name,)
    for kind in wanted:
        found = found or next((step for step in steps if step.kind == kind), None)
    kind = found.kind if found is not None and found.kind in STEPS else "decode"
    if found is None or (kind == "decode" and found.kind not in SAMPLING):
        known = sorted({*STEPS, *(s.name for s in steps if s.kind in (*STEPS, *SAMPLING))})
        raise InputError(f"--step={name}: expected one of {', '.join(known)}, in this config")
    models = planner.known_models(steps, Outside([step.name for step in steps]))

    def of(role: str) -> shapes.Model:
        reference = found.inputs.get(role) or next(iter(found.inputs["models"].values()))
        if reference not in models:
            raise InputError(
                f"step {found.name!r}: {role} {reference!r}: expected a model folder, or a hub id "
                f"whose shape is known ({', '.join(shapes.SHAPES)})"
            )
        return models[reference]

    return Asked(kind, found, of("model"), of("preference_model") if kind == "ppo" else None)


def fitted_mesh(asked: Asked, described: topology.Topology, given: bool) -> dict[str, int]:
    """The config's mesh, where it takes all devices; else the one with the least `tensor` whose
    batches and arrays divide.

    Args:
        asked: the step.
        described: the devices.
        given: whether the mesh was given on the command line, so that it is that or none.
    """
    sizes = ConfigDict(asked.step.config["mesh"])
    count = len(described.devices)
    exact = -1 in sizes.values() or math.prod(sizes.values()) == count
    if given or exact:
        found = mesh.mesh_shape(sizes, count)
        if math.prod(found) < count:
            raise InputError(
                f"config.mesh: {' x '.join(map(str, found))} takes {math.prod(found)} of the "
                f"{count} devices of {described.name}; expected all, as --config.mesh.fsdp=-1 does"
            )
        return dict(zip(mesh.AXES, found))
    reason = ""
    for tensor in divisors(count):
        tried = dict(zip(mesh.AXES, (1, count // tensor, tensor)))
        config = ConfigDict(asked.step.config)
        config.mesh = tried
        try:
            make(asked, config, described)
            return tried
        except InputError as error:
            reason = reason or str(error)
    raise InputError(f"{described.name}: no mesh of {count} devices divides this step: {reason}")


def divisors(number: int) -> list[int]:
    """In rising order."""
    return [n for n in range(1, number + 1) if number % n == 0]


def make(asked: Asked, config: ConfigDict, described: topology.Topology) -> list[Any]:
    """The programs of a step, on the mesh that its config has."""
    from cai_jax import programs

    device_mesh = mesh.make_mesh(config.mesh, described.devices)
    model = programs.on_accelerator(asked.model.config, described.attention)
    if asked.kind == "ppo":
        assert asked.preference_model is not None
        scorer = programs.on_accelerator(asked.preference_model.config, described.attention)
        return programs.ppo_programs(config, model, scorer, device_mesh)
    makers = {
        "finetune": programs.finetune_programs,
        "preference": programs.preference_programs,
        "decode": programs.decode_programs,
    }
    return makers[asked.kind](config, model, device_mesh)


def measured(
    asked: Asked, config: ConfigDict, described: topology.Topology, *, arrays: bool = False
) -> dict[str, Any]:
    """Compiles the programs of a step, one after the other, and adds them up."""
    of_programs = [
        estimates.compiled(program, described, arrays) for program in make(asked, config, described)
    ]
    moved: dict[str, float] = {}
    for of_program in of_programs:
        for kind, size in of_program["collective_bytes"].items():
            moved[kind] = moved.get(kind, 0) + size

    def largest(name: str) -> Any:
        return max(of_program[name] for of_program in of_programs)

    def total(name: str) -> Any:
        values = [of_program[name] for of_program in of_programs]
        return None if None in values else sum(values)

    chip, devices = described.chip, len(described.devices)
    seconds, useful = total("estimated_seconds"), total("useful_flops")
    return {
        "step": asked.step.name,
        "kind": asked.kind,
        "topology": described.name,
        "devices": devices,
        "mesh": dict(config.mesh),
        "batch": {BATCH[asked.kind]: config[BATCH[asked.kind]]},
        "parameters": asked.model.parameters,
        "model_source": asked.model.source,
        **{
            f"{name}_bytes": largest(f"{name}_bytes")
            for name in ("arguments", "outputs", "temporaries", "held", "peak")
        },
        "hbm_capacity_bytes": chip.memory if chip else None,
        "fits": all(of_program["fits"] for of_program in of_programs) if chip else None,
        "flops": total("flops"),
        "useful_flops": useful,
        "hbm_bytes": total("hbm_bytes"),
        "collective_bytes": moved,
        "sent_bytes": total("sent_bytes"),
        "required_sent_bytes": total("required_sent_bytes"),
        "tokens": max(of_program["tokens"] for of_program in of_programs),
        "estimated_seconds": seconds,
        "estimated_mfu": useful / (seconds * devices * chip.flops) if chip and seconds else None,
        "compile_seconds": total("compile_seconds"),
        "chip": chip._asdict() if chip else None,
        "assumptions": list(estimates.ASSUMPTIONS),
        "programs": of_programs,
    }


def sweep(asked: Asked, described: topology.Topology) -> dict[str, Any]:
    """Compiles a step on meshes with fsdp and tensor, at growing batches; a line each on stderr.

    Returns:
        What `measured` says of the one that fits and takes the least time a token (of simulated
        devices: has the least FLOPs a token), with all that were tried under "tried".

    Raises:
        InputError: none fits.
    """
    count = len(described.devices)
    tried: list[dict[str, Any]] = []
    fitting: list[tuple[float, int, dict[str, Any]]] = []
    for tensor in divisors(count):
        if tensor > MOST_TENSOR:
            break
        for rows in SWEPT_BATCHES:
            config = ConfigDict(asked.step.config)
            config.mesh = dict(zip(mesh.AXES, (1, count // tensor, tensor)))
            config[BATCH[asked.kind]] = swept_batch(asked, config, rows)
            try:
                found = measured(asked, config, described)
            except InputError as error:
                print(f"fsdp={count // tensor} tensor={tensor}: {error}", file=sys.stderr)
                break
            cost = found["estimated_seconds"] or found["flops"] or math.inf
            line = {
                "mesh": found["mesh"],
                "batch": found["batch"],
                "fits": found["fits"],
                "peak_bytes": found["peak_bytes"],
                "estimated_seconds": found["estimated_seconds"],
                "estimated_mfu": found["estimated_mfu"],
            }
            print(json.dumps(line), file=sys.stderr, flush=True)
            tried.append(line)
            if found["fits"] is False:
                break
            fitting.append((cost / found["tokens"], len(fitting), found))
    if not fitting:
        raise InputError(f"{described.name}: no mesh fits, of {len(tried)} that were compiled")
    return min(fitting)[2] | {"tried": tried}


def swept_batch(asked: Asked, config: ConfigDict, rows: int) -> int:
    """So many rows on each device that splits a batch, in the unit of the step's batch."""
    parts = config.mesh["data"] * config.mesh["fsdp"]
    if asked.kind == "ppo":
        least = (
            parts
            * config.minibatches
            // math.gcd(parts * config.minibatches, config.samples_per_prompt)
        )
        return rows * least
    return rows * parts * (config.accumulate if "accumulate" in config else 1)


if __name__ == "__main__":
    main()
