"""The device mesh: three named axes, the same for one CPU core and for a pod.

`data` replicates the parameters and splits the batch, `fsdp` splits both the parameters and the
batch, `tensor` splits heads, hidden units and the vocabulary.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from cai_jax import hosts
from cai_jax.errors import InputError

if typing.TYPE_CHECKING:
    from jax.sharding import Mesh

AXES = ("data", "fsdp", "tensor")


def default_config() -> ConfigDict:
    """One device. An axis of -1 takes all devices that the other two leave."""
    return ConfigDict({"data": 1, "fsdp": 1, "tensor": 1})


def make_mesh(config: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """Builds the mesh of `config.data` x `config.fsdp` x `config.tensor` devices.

    Axis types are written out as Auto: the default of `jax.make_mesh` is Explicit since JAX 0.10.

    Args:
        config: as `default_config`.
        devices: to choose from, in their order; None: those that this process sees. They may be
            of a topology that is described only (`core/topology.py`).

    Raises:
        InputError: the axes are no positive sizes, or ask for more devices than there are; or, on
            several hosts, for less.
    """
    import jax

    sizes = mesh_shape(config, len(jax.devices() if devices is None else devices))
    if devices is None and math.prod(sizes) < len(jax.devices()) and hosts.count() > 1:
        raise InputError(
            f"mesh: expected all {len(jax.devices())} devices of the {hosts.count()} hosts, found "
            f"{math.prod(sizes)}; give one axis the rest, as --config.mesh.fsdp=-1 does"
        )
    devices = jax.devices() if devices is None else devices
    return jax.sharding.Mesh(
        _arranged(sizes, devices[: math.prod(sizes)]),
        AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
    )


def _arranged(sizes: tuple[int, ...], devices: Sequence[Any]) -> Any:
    """Devices in an array of `sizes`, neighbours on the network beside each other.

    An axis takes whole axes of a TPU's torus where that can be (8 of 2 x 2 x 2), else parts of them
    (8 x 8 of 4 x 4 x 4), whose rings are not closed. Slices, between which the network is slow, lie
    along `data`, whose devices exchange gradients and nothing else.
    """
    from jax.experimental import mesh_utils

    slices = 1
    if devices[0].platform == "tpu":  # hosts of GPUs have numbers too, and a network to split over
        slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes[0] % slices:
        raise InputError(
            f"mesh data={sizes[0]}: expected a multiple of {slices}, the number of slices that the "
            f"{len(devices)} devices are of"
        )
    inside = (sizes[0] // slices, *sizes[1:])

    def arranged(**options: bool) -> Any:
        if slices == 1:
            return mesh_utils.create_device_mesh(sizes, devices, **options)
        between = (slices, *[1] * (len(sizes) - 1))
        return mesh_utils.create_hybrid_device_mesh(inside, between, devices, **options)

    try:
        return arranged()
    except NotImplementedError:
        return arranged(allow_split_physical_axes=True)


def mesh_shape(config: ConfigDict, device_count: int) -> tuple[int, int, int]:
    """The sizes of the three axes, with a -1 resolved against `device_count`."""
    sizes = [config[axis] for axis in AXES]
    asked = "mesh " + " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes))
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise InputError(f"{asked}: expected positive sizes, at most one of them -1 (the rest)")
    if -1 in sizes:
        fixed = math.prod(size for size in sizes if size != -1)
        if device_count % fixed:
            raise InputError(f"{asked}: {fixed} does not divide the {device_count} devices found")
        sizes[sizes.index(-1)] = device_count // fixed
    if math.prod(sizes) > device_count:
        raise InputError(
            f"{asked}: expected {math.prod(sizes)} devices, found {device_count}; "
            "choose a smaller mesh"
        )
    return sizes[0], sizes[1], sizes[2]
