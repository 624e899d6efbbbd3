"""Accelerators that are described, not there: what compilers may be asked about without them."""

import importlib.util
import math
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
    # NVIDIA's data sheet of the H100 SXM: dense bfloat16, and NVLink's 900 GB/s of both directions;
    # the memory is what a program of one device is shown of the 80 GB.
    "h100": Chip("H100 SXM 80 GB", 989e12, 79 * 2**30, 3.35e12, 450e9),
}
# What XLA must know of a GPU that is not there.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 core_count: 132 fpus_per_core: 128
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84825604096 cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_CUDA = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
# Cores that work as one device, where that is not what the compiler assumes by itself.
_OPTIONS: dict[str, dict[str, Any]] = {"v4": {"chip_config_name": "megacore"}}


class Topology(NamedTuple):
    """Devices to compile for."""

    name: str  # as it was asked for
    devices: list[Any]
    chip: Chip | None  # None: simulated
    attention: str  # the kernel that they have, as in models/config.py


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """("v5p", (4, 4, 4)) of "v5p:4x4x4".

    Raises:
        InputError: it is no generation and sizes, or they are of another number of dimensions.
    """
    generation, _, text = name.partition(":")
    known = {CPU: 1, "v4": 3, "v5p": 3, "v5e": 2, "v6e": 2, "h100": 2}
    sizes = (
        tuple(int(size) for size in text.split("x")) if re.fullmatch(r"\d+(x\d+)*", text) else ()
    )
    if generation not in known or len(sizes) != known[generation] or 0 in sizes:
        raise InputError(
            f"topology {name!r}: expected v4:AxBxC, v5p:AxBxC, v5e:AxB or v6e:AxB, numbers of "
            "chips, as v5p:4x4x4 and v6e:4x4; h100:HOSTSxGPUS; or cpu:N, of N simulated devices"
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
    # libtpu would let one process at a time in, as there is one TPU, and leave a lock file behind.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # Of others too, as many as make a difference: what is chosen by the number of devices is chosen
    # as it would be there.
    count = sizes[0] if generation == CPU else min(math.prod(sizes), 2)
    flag = "--xla_force_host_platform_device_count"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={count}".strip()


def describe(name: str) -> Topology:
    """The devices of a topology, by libtpu or CUDA's plugin; see `prepare_environment`.

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
        return Topology(name, devices[: sizes[0]], None, "plain")
    if generation == "h100":
        return Topology(name, _gpus(name, sizes), CHIPS[generation], "cudnn")
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
    return Topology(name, described.devices, CHIPS[generation], "splash")


def _gpus(name: str, sizes: tuple[int, ...]) -> list[Any]:
    from jax.experimental import topologies

    if importlib.util.find_spec("jax_plugins") is None or not any(
        importlib.util.find_spec(plugin) for plugin in _CUDA
    ):
        raise InputError(
            f"topology {name}: its compiler is in jax's CUDA plugin, which is not installed; "
            "pip install 'cai_jax[cuda]' (no GPU is needed), or name cpu:N"
        )
    slices = f"1x{sizes[0]}x{sizes[1]}"
    return topologies.get_topology_desc("", "cuda", target_config=_H100, topology=slices).devices
