"""Where arrays lie: put on their devices piece by piece, or kept split inside a program."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

PART_BYTES = 8 * 2**20  # of a stacked array that are read together: at least one layer

ROWS = ("data", "fsdp")  # the mesh axes that split a batch

# How the kernels of one layer, and the unembedding, are split: as core/sharding.py has it, which a
# test compares. N and K heads, H head dimension, F hidden units, D width, V vocabulary.
KERNELS = {
    **dict.fromkeys(("query", "key", "value"), P("fsdp", "tensor", None)),  # [D, N or K, H]
    "out": P("tensor", None, "fsdp"),  # [N, H, D]
    **dict.fromkeys(("gate", "up"), P("fsdp", "tensor")),  # [D, F]
    "down": P("tensor", "fsdp"),  # [F, D]
    "unembedding": P("fsdp", "tensor"),  # [D, V]
}

Index = tuple[slice, ...]


def place(tree: Any, sharding: jax.sharding.Sharding | None) -> Any:
    """A tree of arrays of this host on devices; every host gives the same, and feeds its part.

    Args:
        tree: NumPy arrays, or small ones of JAX.
        sharding: of every array; None puts all on the default device.
    """
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def placed(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])

    return jax.tree.map(placed, tree)


def held_rows(sharding: jax.sharding.Sharding, rows: int) -> list[int]:
    """Which rows of arrays [rows, ...] the devices of this host hold, ascending."""
    parts = sharding.addressable_devices_indices_map((rows,)).values()
    return sorted({row for part in parts for row in range(rows)[part[0]]})  # type: ignore[index]


def place_rows(tree: Any, sharding: jax.sharding.Sharding, held: list[int], rows: int) -> Any:
    """Arrays of `rows` rows on devices, of which every host has and gives its own.

    Args:
        tree: NumPy arrays [len(held), ...].
        sharding: of every array.
        held: as `held_rows` says.
        rows: on all hosts together.
    """
    if sharding.is_fully_addressable:
        return place(tree, sharding)
    here = {row: i for i, row in enumerate(held)}

    def placed(x: np.ndarray) -> jax.Array:
        def part(index: Index | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(rows)
            return x[here[start] : here[stop - 1] + 1]

        return jax.make_array_from_callback((rows, *x.shape[1:]), sharding, part)

    return jax.tree.map(placed, tree)


def fetch(tree: Any) -> Any:
    """A tree of arrays on devices as NumPy arrays, whole on every host: all must call."""

    def whole(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return x
        assert isinstance(x.sharding, jax.sharding.NamedSharding)
        return _gather(jax.sharding.NamedSharding(x.sharding.mesh, P()))(x)

    return jax.device_get(jax.tree.map(whole, tree))


@functools.cache
def _gather(everywhere: jax.sharding.Sharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=everywhere)


def split_rows(x: jax.Array) -> jax.Array:
    """`x` [B, ...] with its rows split over the devices, in a program that is told its mesh.

    Without that the compiler may split activations along D instead, as the weights are, hold all
    rows on every device, and add up products where it could gather weights: in training, where a
    batch has far more numbers than a layer. See `core/sharding.py`, `on_mesh`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % math.prod(mesh.shape[axis] for axis in ROWS):
        return x
    return lax.with_sharding_constraint(x, P(ROWS, *[None] * (x.ndim - 1)))


def gathered(kernel: jax.Array, name: str) -> jax.Array:
    """A kernel of KERNELS, whole along `fsdp` on every device, in a program told its mesh.

    Left alone, a TPU's compiler multiplies with each device's part as it comes by and adds up the
    products in memory, [B, T, F] numbers read and written once a device; gathering the weights
    first moves far less. The gradient is split as the kernel is: added up and scattered, once.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return kernel if mesh.empty or mesh.shape["fsdp"] == 1 else _gathered(kernel, name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(kernel, name):
    whole = (None if axis == "fsdp" else axis for axis in KERNELS[name])
    return lax.with_sharding_constraint(kernel, P(*whole))


def _gathered_forward(kernel, name):
    return _gathered(kernel, name), None


def _gathered_backward(name, _, gradient):
    return (lax.with_sharding_constraint(gradient, KERNELS[name]),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def put(
    shape: tuple[int, ...],
    dtype: Any,
    sharding: jax.sharding.Sharding | None,
    read: Callable[[Index], np.ndarray],
    *,
    stacked: bool,
) -> jax.Array:
    """An array on its devices, each of which is given what `read` has for its own part.

    On the host there is at most the process's share of the array, or, if it is stacked, of
    PART_BYTES or one layer of it; layers are put together on the devices, in place.

    Args:
        shape: of the whole array.
        dtype: of the array.
        sharding: None puts all on the default device.
        read: index, a slice with bounds for each axis -> that part of the array.
        stacked: the first axis is that of layers.
    """
    layers = shape[0]
    together = max(PART_BYTES // (math.prod(shape[1:]) * np.dtype(dtype).itemsize), 1)
    if not stacked or together >= layers:
        return _put_part(shape, sharding, read, 0)
    empty, put_into = _assembly(sharding)
    array = empty(shape, dtype)
    for first in range(0, layers, together):
        first = min(first, layers - together)  # the last part overlaps: of one shape, one program
        part = _put_part((together, *shape[1:]), sharding, read, first)
        # Waiting frees the host's part before the next one is read.
        array = jax.block_until_ready(put_into(array, part, first))
    return array


def _put_part(
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding | None,
    read: Callable[[Index], np.ndarray],
    first: int,
) -> jax.Array:
    """The array of this shape that begins at `first` on the first axis of what `read` knows."""

    # Devices that hold copies of each other are given the same bytes, read once.
    @functools.cache
    def read_bounds(*bounds: tuple[int, int]) -> np.ndarray:
        (start, stop), *others = bounds
        return read((slice(first + start, first + stop), *(slice(*bound) for bound in others)))

    def part(index: Index | None) -> np.ndarray:
        assert index is not None
        return read_bounds(*(i.indices(size)[:2] for i, size in zip(index, shape)))

    if sharding is None:
        return jax.device_put(part((slice(None),) * len(shape)))
    return jax.make_array_from_callback(shape, sharding, part)


@functools.cache
def _assembly(sharding: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Two programs: an array of zeros, and layers put into an array in place."""
    empty = jax.jit(jax.numpy.zeros, static_argnums=(0, 1), out_shardings=sharding)
    put_into = jax.jit(
        lambda array, part, first: jax.lax.dynamic_update_slice_in_dim(array, part, first, 0),
        donate_argnums=0,
        out_shardings=sharding,
    )
    return empty, put_into
