"""Rows of the slots' keys and values, read and written where they are.

On a mesh each device writes the rows that it holds. Without being told so the compiler would send
all slots to all devices for every row that is written.

Axes: B slots, F rows read or written at a time, T columns of them, S columns of a slot.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cai_jax.generation.placing import ROWS, past_specs, unsplit_rows
from cai_jax.models.cache import Past

FEW_COLUMNS = 64  # those of a chunk, and of no longer piece of a prompt


def take(past: Past, rows: jax.Array, mesh: Mesh | None) -> Past:
    """The slots `rows` [F], on all devices that split the slots."""

    def taken(past: Past, rows: jax.Array) -> Past:
        return each(lambda array, axes: jnp.take(array, rows, axis=axes[0]), past)

    def taken_here(past: Past, rows: jax.Array) -> Past:
        rows, held = _own(past, rows)

        def only_held(array: jax.Array, axes: tuple[int, int]) -> jax.Array:
            shape = [1] * array.ndim
            shape[axes[0]] = -1
            # Of all devices one has it, and the others give 0.
            return lax.psum(jnp.where(held.reshape(shape), array, 0), ROWS)

        return each(only_held, taken(past, rows))

    if mesh is None:
        return taken(past, rows)
    split = past_specs(past, mesh)
    return _on_each_device(taken_here, mesh, (split, P()), unsplit_rows(split))(past, rows)


def put(
    past: Past, new: Past, rows: jax.Array | None, firsts: jax.Array, mesh: Mesh | None
) -> Past:
    """The slots, with those of `new` [F, T] in the rows [F] from columns firsts [F] on.

    None: in all rows, of which `new` has as many. What has no place after the last column is left
    out.
    """

    def put_all(past: Past, new: Past, firsts: jax.Array) -> Past:
        rows = jnp.arange(firsts.shape[0])
        return _put(past, new, rows, rows >= 0, firsts)

    def put_own(past: Past, new: Past, rows: jax.Array, firsts: jax.Array) -> Past:
        return _put(past, new, *_own(past, rows), firsts)

    if mesh is None:
        if rows is None:
            return put_all(past, new, firsts)
        return _put(past, new, rows, rows >= 0, firsts)
    split, of_new = past_specs(past, mesh), past_specs(new, mesh)
    if rows is None:
        return _on_each_device(put_all, mesh, (split, of_new, P(ROWS)), split)(past, new, firsts)
    given = (split, unsplit_rows(of_new), P(), P())
    return _on_each_device(put_own, mesh, given, split)(past, new, rows, firsts)


def each(change: Callable[..., jax.Array], past: Past, *others: Past) -> Past:
    """`change(array, (axis of the rows, axis of the columns), *others')` of each array."""

    def of(axes: tuple[int, int], *arrays: Any) -> Any:
        def changed(array, *more):
            return change(array, tuple(axis + array.ndim for axis in axes), *more)

        return jax.tree.map(changed, *arrays)

    both = (past, *others)
    scales = None
    if past.scales is not None:
        scales = of((-3, -1), *(one.scales for one in both))
    keys = of((-4, -1), *(one.keys for one in both))
    return Past(keys, of((-4, -2), *(one.values for one in both)), past.lengths, scales)


def _own(past: Past, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows [F] as the device numbers them, and whether it has them; others are any of its own."""
    values = jax.tree.leaves(past.values)[0]
    count = values.shape[values.ndim - 4]
    rows = rows - lax.axis_index(ROWS) * count
    return jnp.clip(rows, 0, count - 1), (rows >= 0) & (rows < count)


def _put(past: Past, new: Past, rows: jax.Array, held: jax.Array, firsts: jax.Array) -> Past:
    """In place; rows that are not held stay."""
    few = jax.tree.leaves(new.values)[0].shape[-2] <= FEW_COLUMNS
    at_once = few and jax.default_backend() == "gpu"
    return (_scattered if at_once else _row_by_row)(past, new, rows, held, firsts)


def _scattered(past: Past, new: Past, rows: jax.Array, held: jax.Array, firsts: jax.Array) -> Past:
    """All numbers at once: for few columns, where a program for each row costs more than them."""

    def put(array: jax.Array, axes: tuple[int, int], theirs: jax.Array) -> jax.Array:
        row, axis = axes
        columns = firsts[:, None] + jnp.arange(theirs.shape[axis])  # [F, T]
        place: list[Any] = [slice(None)] * array.ndim
        place[row] = rows[:, None]
        place[axis] = jnp.where(held[:, None], columns, array.shape[axis])  # past the end: dropped
        return array.at[tuple(place)].set(jnp.moveaxis(theirs, axes, (0, 1)), mode="drop")

    return each(put, past, new)


def _row_by_row(past: Past, new: Past, rows: jax.Array, held: jax.Array, firsts: jax.Array) -> Past:
    """One row after the other: for many columns, and where a scatter is slow."""

    def put_row(number: jax.Array, past: Past) -> Past:
        def put(array: jax.Array, axes: tuple[int, int], theirs: jax.Array) -> jax.Array:
            row, axis = axes
            span, width = array.shape[axis], theirs.shape[axis]
            first = jnp.clip(firsts[number], 0, span - width)
            shift = firsts[number] - first  # more than 0 where the last columns have no place
            part = lax.dynamic_slice_in_dim(theirs, number, 1, axis=row)
            place: list[Any] = [jnp.zeros((), jnp.int32)] * array.ndim
            place[row], place[axis] = rows[number], first
            there = lax.dynamic_slice(array, place, part.shape)
            shape = [1] * array.ndim
            shape[axis] = width
            stays = ((jnp.arange(width) < shift) | ~held[number]).reshape(shape)
            part = jnp.where(stays, there, jnp.roll(part, shift, axis))
            return lax.dynamic_update_slice(array, part, place)

        return each(put, past, new)

    return lax.fori_loop(0, rows.shape[0], put_row, past)


def _on_each_device(function: Callable[..., Past], mesh: Mesh, given: Any, made: Any) -> Any:
    return jax.shard_map(function, mesh=mesh, in_specs=given, out_specs=made, check_vma=False)
