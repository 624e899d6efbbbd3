"""Accelerators that are described, not there: what compilers may be asked about without them."""

import importlib.util
import os
import re
from typing import Any, NamedTuple

from cai_jax.errors import InputError

CPU = "cpu"  # cpu:8 stands for eight simulated devices: another compiler, the same programs


class Chip(NamedTuple):
    """One device by its maker's numbers, for a roofline."""

    name: str
    flops: float  # a second, dense, in bfloat16
    memory: float  # bytes of HBM
    bandwidth: float  # of HBM, bytes a second
    links: float  # of the interconnect, bytes a second that a chip sends over all its links


# Sources: cloud.google.com/tpu/docs/v4, v5e, v5p and v6e, tables "System architecture": peak
# compute, HBM2 capacity and bandwidth, and interchip bandwidth, which is given there in Gbps of all
# links of a chip together: 2400, 1600, 4800 and 3584.
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * 2**30, 1.228e12, 300e9),
    "v5e": Chip("TPU v5e", 197e12, 16 * 2**30, 0.819e12, 200e9),
    "v5p": Chip("TPU v5p", 459e12, 95 * 2**30, 2.765e12, 600e9),
    "v6e": Chip("TPU v6e", 918e12, 32 * 2**30, 1.638e12, 448e9),
}
# Cores that work as one device, where that is not what the compiler assumes by itself.
_OPTIONS: dict[str, dict[str, Any]] = {"v4": {"chip_config_name": "megacore"}}


class Topology(NamedTuple):
    """Devices to compile for."""

    name: str  # as it was asked for
    devices: list[Any]
    chip: Chip | None  # None: simulated


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """("v5p", (4, 4, 4)) of "v5p:4x4x4".

    Raises:
        InputError: it is no generation and sizes, or they are of another number of dimensions.
    """
    generation, _, text = name.partition(":")
    known = {CPU: 1, "v4": 3, "v5p": 3, "v5e": 2, "v6e": 2}
    sizes = (
        tuple(int(size) for size in text.split("x")) if re.fullmatch(r"\d+(x\d+)*", text) else ()
    )
    if generation not in known or len(sizes) != known[generation] or 0 in sizes:
        raise InputError(
            f"topology {name!r}: expected v4:AxBxC, v5p:AxBxC, v5e:AxB or v6e:AxB, numbers of "
            "chips, as v5p:4x4x4 and v6e:4x4; or cpu:N, of N simulated devices"
        )
    return generation, sizes


def prepare_environment(name: str) -> None:
    """Sets what must stand in the environment before jax is imported, for `describe`.

    No accelerator is touched, not even one that is there, and nobody is asked what this host is.
    """
    generation, sizes = parse(name)
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "none")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    if generation == CPU:
        flag = "--xla_force_host_platform_device_count"
        if flag not in os.environ.get("XLA_FLAGS", ""):
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={sizes[0]}".strip()


def describe(name: str) -> Topology:
    """The devices of a topology, by libtpu; see `prepare_environment`.

    Raises:
        InputError: libtpu is not installed, or knows no such slice.
    """
    import jax
    from jax.experimental import topologies

    generation, sizes = parse(name)
    if generation == CPU:
        devices = jax.devices(CPU)
        if len(devices) < sizes[0]:
            raise InputError(f"topology {name}: expected {sizes[0]} devices, found {len(devices)}")
        return Topology(name, devices[: sizes[0]], None)
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"topology {name}: its compiler is in libtpu, which is not installed; "
            "pip install 'cai_jax[tpu]' (no TPU is needed), or name cpu:N"
        )
    try:
        described = topologies.get_topology_desc(name, "tpu", **_OPTIONS.get(generation, {}))
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"topology {name}: libtpu does not know it: {reason}") from None
    return Topology(name, described.devices, CHIPS[generation])
