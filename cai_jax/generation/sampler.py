"""The compiled half of sampling: prefill of a batch of prompts, and the decode loop.

Prompts are padded on the left, so that all rows write the same cache slot. The prefill computes all
tokens of a prompt but the last; the decode loop begins with that last one. So the prefill program
needs no vocabulary product, and a row of one token needs no prefill.

Axes: B rows, P prompt tokens but the last, R tokens to generate, S = P + R cache slots.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cai_jax.generation.distribution import Filter, Mode, draw
from cai_jax.models import transformer
from cai_jax.models.cache import Cache, init_cache
from cai_jax.models.config import ModelConfig

ROWS = ("data", "fsdp")  # the mesh axes that split a batch
NO_TOKEN = -1  # in Decoding.tokens, where nothing was generated


class Decoding(NamedTuple):
    """The decode loop between two tokens."""

    cache: Cache  # of S slots
    token: jax.Array  # [B] not yet in the cache
    position: jax.Array  # [B] of that token in its text
    done: jax.Array  # [B] bool: rows that have stopped
    step: jax.Array  # [] int32: tokens generated so far
    tokens: jax.Array  # [B, R] generated; NO_TOKEN after a row's end
    logprobs: jax.Array  # [B, R] under the model
    tempered: jax.Array  # [B, R] under the sampled distribution


def fill_cache(
    params: transformer.Params, config: ModelConfig, tokens: jax.Array, mask: jax.Array, room: int
) -> Cache:
    """A cache of the tokens [B, P] where mask [B, P] is 1, with `room` free slots after them.

    Args:
        params: of the model.
        config: its shape.
        tokens: ids, padded on the left.
        mask: 1 for a token, 0 for padding.
        room: how many slots to leave for tokens to come.
    """
    batch, length = tokens.shape
    cache = init_cache(config, batch, length or room)
    if not length:
        return cache
    _, filled = transformer.forward(
        params, config, tokens, positions=_positions(mask), segments=mask, cache=cache
    )
    assert filled is not None

    def widen(arrays, axis):
        return jax.tree.map(lambda array: _pad(array, axis, room), arrays)

    return Cache(
        keys=widen(filled.keys, -1),  # [..., H, S]
        values=widen(filled.values, -2),  # [..., S, H]
        valid=widen(filled.valid, -1),
        length=filled.length,
    )


def start(
    params: transformer.Params,
    config: ModelConfig,
    tokens: jax.Array,
    mask: jax.Array,
    done: jax.Array,
    room: int,
) -> Decoding:
    """Prefills prompts [B, P + 1], padded on the left; the last column is a token in every row.

    Rows of `done` [B] generate nothing; `room` is R.
    """
    mask = mask.astype(jnp.int32)
    shape = (tokens.shape[0], room)
    return Decoding(
        cache=fill_cache(params, config, tokens[:, :-1], mask[:, :-1], room),
        token=tokens[:, -1].astype(jnp.int32),
        position=_positions(mask)[:, -1],
        done=done,
        step=jnp.zeros((), jnp.int32),
        tokens=jnp.full(shape, NO_TOKEN, jnp.int32),
        logprobs=jnp.zeros(shape, jnp.float32),
        tempered=jnp.zeros(shape, jnp.float32),
    )


def decode(
    params: transformer.Params,
    config: ModelConfig,
    state: Decoding,
    uniform: jax.Array,
    filters: Filter,
    stop_ids: jax.Array,
    limit: jax.Array,
    mode: Mode,
) -> Decoding:
    """Generates until every row is done, or `limit` tokens a row are there.

    Args:
        params: of the model.
        config: its shape.
        state: from `start`, or from an earlier call with a smaller limit.
        uniform: [B, R], one number in [0, 1) for each token; see `distribution.uniforms`.
        filters: temperature, top-k, top-p.
        stop_ids: [E] tokens that end a row; they are kept.
        limit: [] at most R.
        mode: see `distribution.mode_of`.
    """

    def unfinished(state: Decoding):
        return (state.step < limit) & ~jnp.all(state.done)

    def advance(state: Decoding) -> Decoding:
        hidden, cache = transformer.forward(
            params,
            config,
            state.token[:, None],
            positions=state.position[:, None],
            cache=state.cache,
        )
        assert cache is not None
        logits = transformer.logits(params, config, hidden[:, 0])
        number = lax.dynamic_index_in_dim(uniform, state.step, axis=1, keepdims=False)
        token, logprob, tempered = draw(logits, number, filters, mode)

        def write(array, column, empty):
            column = jnp.where(state.done, empty, column)[:, None]
            return lax.dynamic_update_slice_in_dim(array, column, state.step, axis=1)

        return Decoding(
            cache=cache,
            token=token,
            position=state.position + 1,
            done=state.done | jnp.any(token[:, None] == stop_ids, axis=-1),
            step=state.step + 1,
            tokens=write(state.tokens, token, NO_TOKEN),
            logprobs=write(state.logprobs, logprob, 0.0),
            tempered=write(state.tempered, tempered, 0.0),
        )

    return lax.while_loop(unfinished, advance, state)


@functools.partial(jax.jit, static_argnames=("config", "room", "mesh"))
def start_jit(params, config, tokens, mask, done, room, mesh=None) -> Decoding:
    """`start`, compiled once for each shape; on a mesh, rows and heads are split over it."""
    return _split(start(params, config, tokens, mask, done, room), mesh)


@functools.partial(jax.jit, static_argnames=("config", "mode", "mesh"), donate_argnames="state")
def decode_jit(
    params, config, state, uniform, filters, stop_ids, limit, mode, mesh=None
) -> Decoding:
    """`decode`, compiled once for each shape and mode; takes over the memory of `state`."""
    return _split(decode(params, config, state, uniform, filters, stop_ids, limit, mode), mesh)


def rows_sharding(mesh: Mesh | None) -> NamedSharding | None:
    """Where arrays [B, ...] go: split over the mesh, or the default device."""
    return None if mesh is None else NamedSharding(mesh, P(ROWS))


def _pad(array: jax.Array, axis: int, room: int) -> jax.Array:
    """`array` with `room` zeros at the end of `axis`."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, room)
    return jnp.pad(array, widths)


def _positions(mask: jax.Array) -> jax.Array:
    """The position of each token in its text, 0 for padding on its left."""
    return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)


def _split(state: Decoding, mesh: Mesh | None) -> Decoding:
    """Pins the layout, so that a second call with the result compiles nothing new."""
    if mesh is None:
        return state
    layouts = {name: P() if name == "step" else P(ROWS) for name in Decoding._fields}
    fixed = {
        name: lax.with_sharding_constraint(array, NamedSharding(mesh, layouts[name]))
        for name, array in state._asdict().items()
        if name != "cache"
    }
    return state._replace(cache=split_cache(state.cache, mesh), **fixed)


def split_cache(cache: Cache, mesh: Mesh | None) -> Cache:
    """Pins the layout of a cache: rows and heads are split over the mesh."""
    if mesh is None:
        return cache

    def place(array):  # [..., B, K, H, S] or [..., B, K, S, H]
        heads = "tensor" if array.shape[-3] % mesh.shape["tensor"] == 0 else None
        spec = P(*[None] * (array.ndim - 4), ROWS, heads)
        return lax.with_sharding_constraint(array, NamedSharding(mesh, spec))

    return Cache(
        keys=jax.tree.map(place, cache.keys),
        values=jax.tree.map(place, cache.values),
        valid=lax.with_sharding_constraint(cache.valid, NamedSharding(mesh, P(ROWS))),
        length=lax.with_sharding_constraint(cache.length, NamedSharding(mesh, P())),
    )
