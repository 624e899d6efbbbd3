"""Decode attention on a TPU that reads of each slot the columns that are live, by Pallas.

A step of decoding joins three sets of columns: a trunk, what the slots hold, and those of the chunk
(`models/attention.py`). The second is by far the most to read. The plain path reads all S columns
of every slot; this kernel reads blocks of C of them, those that have a column some query may see:
at most C - 1 more on each side of what is live, nothing of a slot without live columns, and nothing
before a window. A step reads of a layer, and a device,

    2 b K H sum over slots of (ceil(end / C) - floor(start / C)) C   bytes, where b are of a number,

and 8 K more a column where columns are in 8 bits, instead of 2 b K H B S. With S = 2048, C = 256
and all lengths from 0 to S equally likely that is 56 % as much. What it takes was not measured.

None of the kernels that come with jax can do it. They return no sums to join with other columns
(paged attention, ragged paged attention), or want, as splash attention does, the keys and values of
one layer, which the compiler would have to copy out of those of all layers in every step, and whom
each head sees as an array of its own.

Axes: L layers, B slots, K key/value heads, G query heads that share one, H head dim, S columns of a
slot, C of a block, M = B S / C blocks.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cai_jax.models.placing import ROWS

LANES = 128  # a block has a multiple of so many columns
MOST_COLUMNS = 512  # of a block: half of one is read in vain, as a mean
BLOCK_BYTES = 2**20  # of keys and values of a block, where 128 columns of them are not more
MOST_BYTES = 2**22  # of those of 128 columns: twice as much has to fit on the chip
MASKED = -1e30
NAME = "decode_slots"


class Blocks(NamedTuple):
    """What a step reads of the slots: a list of blocks, in the order of the slots.

    On a mesh each device has a list of its own slots, and M and B are of a device; the lists stand
    one after the other.
    """

    slots: jax.Array  # [M] int32
    numbers: jax.Array  # [M] int32: of the slot's blocks
    used: jax.Array  # [1] int32: how many of M there are
    starts: jax.Array  # [B] int32: of each slot, the first column that is seen
    ends: jax.Array  # [B] int32: the first one after them


Found = tuple[jax.Array, jax.Array, jax.Array]
"""Weighted sums [B, K, G, H], highest logits and sums of weights [B, K, G, 1], float32."""


def block_columns(span: int, kv_heads: int, head_dim: int, itemsize: int) -> int:
    """C for slots of S = `span` columns; 0 where there is none.

    Args:
        span: S.
        kv_heads: K, of one device.
        head_dim: H.
        itemsize: bytes of a number of the cache.
    """
    column = 2 * kv_heads * head_dim * itemsize
    if span % LANES or LANES * column > MOST_BYTES:
        return 0
    columns = MOST_COLUMNS
    while columns > LANES and (span % columns or columns * column > BLOCK_BYTES):
        columns //= 2
    return columns


def blocks(
    starts: jax.Array, ends: jax.Array, span: int, columns: int, mesh: Mesh | None
) -> Blocks:
    """The blocks of slots that see columns starts <= s < ends [B]; none where starts >= ends.

    Args:
        starts: [B] int32, at least 0.
        ends: [B] int32, at most S.
        span: S.
        columns: C, which divides S.
        mesh: splits the slots.
    """

    def listed(starts: jax.Array, ends: jax.Array) -> Blocks:
        first = starts // columns
        counts = jnp.where(starts < ends, -(-ends // columns) - first, 0)
        after = jnp.cumsum(counts)
        batch, of_slot = starts.shape[0], span // columns
        place = jnp.arange(batch * of_slot, dtype=jnp.int32)[:, None]
        # Of all slots at once, [M, B]: lookups are slow on a TPU. Those past the last are not used.
        slots = jnp.sum(after <= place, axis=1, dtype=jnp.int32)
        its = (after - counts <= place) & (place < after)
        numbers = jnp.sum(jnp.where(its, first + place - (after - counts), 0), axis=1)
        return Blocks(jnp.minimum(slots, batch - 1), numbers, after[-1:], starts, ends)

    if mesh is None:
        return listed(starts, ends)
    rows = P(ROWS)
    return jax.shard_map(listed, mesh=mesh, in_specs=(rows, rows), out_specs=rows, check_vma=False)(
        starts, ends
    )


def attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    scales: tuple[jax.Array, jax.Array] | None,
    layer: jax.Array | int,
    seen: Blocks,
    soft_cap: float | None,
    mesh: Mesh | None,
) -> Found:
    """What the queries find in the columns of their slots; 0, MASKED and 0 where they see none.

    Args:
        queries: [B, K, G, H], divided by the root of H or whatever the model divides by.
        keys: [L, B, K, H, S], in the dtype of the queries or, with scales, int8.
        values: [L, B, K, S, H], likewise.
        scales: [L, B, K, S] of keys and of values, float32.
        layer: [] of L.
        seen: by `blocks`.
        soft_cap: of the logits, as in `ModelConfig`.
        mesh: splits slots and, where they divide, heads.
    """
    function = functools.partial(_attend, soft_cap=soft_cap)
    arguments = queries, keys, values, scales, jnp.asarray(layer, jnp.int32)[None], seen
    if mesh is None:
        return function(*arguments)
    heads = "tensor" if queries.shape[1] % mesh.shape["tensor"] == 0 else None
    by_slot, by_layer = P(ROWS, heads), P(None, ROWS, heads)
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(by_slot, by_layer, by_layer, by_layer, P(), P(ROWS)),
        out_specs=by_slot,
        check_vma=False,
    )(*arguments)


def _attend(queries, keys, values, scales, layer, seen, *, soft_cap) -> Found:
    batch, kv_heads, groups, head_dim = queries.shape
    span = values.shape[-2]
    columns = span * batch // seen.slots.shape[0]
    upright = head_dim % LANES != 0
    if upright:  # as it lies there already: XLA pads no lanes where it can lay S along them
        values = jnp.swapaxes(values, -1, -2)

    def of_slot(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, *shape), lambda i, layer, slots, *_: (slots[i], *[0] * len(shape)))

    def of_block(*shape: int, axis: int) -> pl.BlockSpec:
        def index(i, layer, slots, numbers, *_):
            place = [layer[0], slots[i], *[0] * len(shape)]
            place[axis] = numbers[i]
            return tuple(place)

        return pl.BlockSpec((1, 1, *shape), index)

    of_scales = [of_block(kv_heads, columns, axis=-1)] * 2
    result = pl.pallas_call(
        functools.partial(_kernel, columns=columns, upright=upright, soft_cap=soft_cap),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1 + len(seen),
            # As many rounds as there are blocks to read, however many there could be.
            grid=(jnp.maximum(seen.used[0], 1),),
            in_specs=[
                of_slot(kv_heads, groups, head_dim),
                of_block(kv_heads, head_dim, columns, axis=-1),
                of_block(kv_heads, head_dim, columns, axis=-1)
                if upright
                else of_block(kv_heads, columns, head_dim, axis=-2),
                *([] if scales is None else of_scales),
            ],
            out_specs=[of_slot(kv_heads, groups, head_dim), of_slot(kv_heads, groups, LANES)],
            scratch_shapes=[pltpu.VMEM((kv_heads, groups, 1), jnp.float32)] * 2,
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, kv_heads, groups, size), jnp.float32)
            for size in (head_dim, LANES)
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        name=NAME,
    )(layer, *seen, queries, keys, values, *(scales or ()))
    sums, both = result
    # Slots of which no block is read are not written.
    some = (seen.starts < seen.ends)[:, None, None, None]
    highest, total = both[..., :1], both[..., 1:2]
    return jnp.where(some, sums, 0), jnp.where(some, highest, MASKED), jnp.where(some, total, 0)


def _kernel(layer, slots, numbers, used, starts, ends, *refs, columns, upright, soft_cap):
    """One block of one slot: its part of the running softmax, in the slot's results.

    The highest logit and the sum go out in the lanes 0 and 1 of one array: a TPU gives every array
    with one lane 128 of them anyway.
    """
    queries, keys, values, *scales, sums, both, highest, total = refs
    i = pl.program_id(0)
    slot = slots[i]

    @pl.when((i == 0) | (slots[jnp.maximum(i - 1, 0)] != slot))
    def begin():
        sums[...] = jnp.zeros_like(sums)
        highest[...] = jnp.full_like(highest, MASKED)
        total[...] = jnp.zeros_like(total)

    asked = queries[0]
    logits = _product(asked, keys[0, 0], 1)  # [K, G, C]
    if scales:
        logits = logits * scales[0][0, 0][:, None]
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    column = numbers[i] * columns + lax.broadcasted_iota(jnp.int32, logits.shape, 2)
    logits = jnp.where((column >= starts[slot]) & (column < ends[slot]), logits, MASKED)
    now = jnp.maximum(highest[...], jnp.max(logits, axis=-1, keepdims=True))
    weights, stays = jnp.exp(logits - now), jnp.exp(highest[...] - now)
    highest[...] = now
    total[...] = total[...] * stays + jnp.sum(weights, axis=-1, keepdims=True)
    lane = lax.broadcasted_iota(jnp.int32, both.shape[1:], 2)
    both[0] = jnp.where(lane == 0, now, total[...])
    if scales:
        weights = weights * scales[1][0, 0][:, None]
    found = _product(weights.astype(asked.dtype), values[0, 0], 2 if upright else 1)
    sums[0] = sums[0] * stays + found


def _product(left: jax.Array, right: jax.Array, axis: int) -> jax.Array:
    """Of [K, G, X] and an array [K, ...] with X as its `axis`: in float32."""
    dims = (((2,), (axis,)), ((0,), (0,)))
    return lax.dot_general(left, right.astype(left.dtype), dims, preferred_element_type=jnp.float32)
