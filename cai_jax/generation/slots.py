"""The compiled half of the slot engine: prompts written into slots, and decode steps of all slots.

A slot holds the keys and values of one text from column 0 on, so that a text can be cut, continued
and copied without moving anything. A chunk of decode steps writes its columns into a small cache of
its own, all rows at the same column, and reads both; the columns go into the slots at the end.
Texts that begin with the trunk have its keys and values from there, and hold what follows alone.

Axes: B slots, F rows written at a time, T tokens of them, C steps of a chunk, S columns of a slot,
E stop tokens.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from cai_jax.generation import slot_rows
from cai_jax.generation.distribution import Filter, Mode, draw, uniforms
from cai_jax.generation.placing import split_cache, split_past, split_trunk
from cai_jax.models import attention_kernels, transformer
from cai_jax.models.cache import Arrays, Cache, Past, Trunk, init_cache
from cai_jax.models.config import ModelConfig

BLOCK = 64  # columns of keys side by side in a chunk, on a CPU
NO_TOKEN = -1  # in Chunk.tokens, where nothing was generated


def chunk_steps() -> int:
    """C: decode steps between two looks at what is finished, which an accelerator waits for."""
    return 32 if jax.default_backend() == "gpu" else 16


class Slots(NamedTuple):
    """What the requests in the slots are about to do; the host keeps it, and knows it."""

    token: jax.Array  # [B] the last token, whose keys and values are not there yet
    position: jax.Array  # [B] of that token in its text: columns of the slot that are in use
    generated: jax.Array  # [B] tokens so far
    done: jax.Array  # [B] bool: finished, or empty
    budget: jax.Array  # [B] tokens to generate at most
    keys: jax.Array  # [B, W] uint32: the bits of the request's random key
    filters: Filter  # [B] each
    stop_ids: jax.Array  # [B, E] tokens that end the request, and are kept
    base: jax.Array | None = None  # [B] tokens of the trunk that the text begins with; None: 0

    @property
    def column(self) -> jax.Array:
        """[B] of the last token in its slot."""
        return self.position if self.base is None else self.position - self.base


class Chunk(NamedTuple):
    """What a chunk of steps generated: NO_TOKEN, and 0, after a request's end."""

    tokens: jax.Array  # [B, C]
    logprobs: jax.Array  # [B, C] under the model
    tempered: jax.Array  # [B, C] under the sampled distribution
    steps: jax.Array  # []: steps that were taken


def empty(config: ModelConfig, batch: int, span: int, eight_bits: bool = False) -> Past:
    """Slots of S = `span` columns, without tokens."""
    arrays = init_cache(config, batch, span, by_layer=transformer.unrolls(config))
    if not eight_bits:
        return Past(arrays.keys, arrays.values, None)

    def whole(arrays):
        return jax.tree.map(lambda array: array.astype(jnp.int8), arrays)

    def factors():
        return jax.tree.map(lambda array: array[..., 0].astype(jnp.float32), arrays.values)

    return Past(whole(arrays.keys), whole(arrays.values), None, (factors(), factors()))


def prefill(
    params: transformer.Params, config: ModelConfig, tokens: jax.Array, counts: jax.Array
) -> Cache:
    """The cache [F, T] of texts, padded on the right, of which counts [F] tokens are there."""
    return _read(params, config, tokens, counts, jnp.zeros_like(counts), None)


def extend(
    params: transformer.Params,
    config: ModelConfig,
    past: Past,
    rows: jax.Array,
    kept: jax.Array,
    tokens: jax.Array,
    counts: jax.Array,
    trunk: Trunk | None = None,
    base: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> Past:
    """The slots with more tokens in some of them.

    Args:
        params: of the model.
        config: its shape.
        past: B slots.
        rows: [F] slots; one may stand there twice, with the same tokens.
        kept: [F] columns that stay.
        tokens: [F, T] what follows them, padded on the right.
        counts: [F] tokens of them.
        trunk: of some of them.
        base: [F] tokens of the trunk, or 0; None: 0.
        mesh: splits the slots.
    """
    position = kept if base is None else kept + base
    before = slot_rows.take(past, rows, mesh)._replace(lengths=position, trunk=trunk, base=base)
    cache = _read(params, config, tokens, counts, position, before)
    return write(past, cache, rows, kept, mesh)


def write(
    past: Past,
    cache: Cache,
    rows: jax.Array | None,
    firsts: jax.Array,
    mesh: Mesh | None = None,
) -> Past:
    """The slots `rows` [F] with the columns of a cache [F, T] from columns firsts [F] on.

    What would go past the last column is left out: there are no tokens. None: all slots [B].
    """
    if past.scales is None:
        return slot_rows.put(past, Past(cache.keys, cache.values, None), rows, firsts, mesh)
    keys, of_keys = _in_eight_bits(cache.keys, -2)
    values, of_values = _in_eight_bits(cache.values, -1)
    new = Past(keys, values, None, (of_keys, of_values))
    return slot_rows.put(past, new, rows, firsts, mesh)


def copy(past: Past, sources: jax.Array, rows: jax.Array, mesh: Mesh | None = None) -> Past:
    """The slots, of which `rows` [F] are copies of what the slots `sources` [F] were."""
    taken = slot_rows.take(past, sources, mesh)
    return slot_rows.put(past, taken, rows, jnp.zeros_like(rows), mesh)


def resized(past: Past, span: int) -> Past:
    """The slots with more columns, or without their last ones."""

    def resize(array, axes):
        axis = axes[1]
        if array.shape[axis] >= span:
            return lax.slice_in_dim(array, 0, span, axis=axis)
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, span - array.shape[axis])
        return jnp.pad(array, widths)

    return slot_rows.each(resize, past)


def in_blocks(past: Past, config: ModelConfig) -> Past:
    """The slots with keys [B, K, C, H, 64] on a CPU, for a chunk of steps.

    There XLA's product of few queries and more than 128 columns takes half the time with them, to
    the same bits.
    """
    span = jax.tree.leaves(past.values)[0].shape[-2]
    fits = past.scales is None and span > 2 * BLOCK and span % BLOCK == 0
    if not (transformer.unrolls(config) and jax.default_backend() == "cpu" and fits):
        return past

    def cut(keys):
        # A third of the time that a transposition takes.
        return jnp.stack(jnp.split(keys, span // BLOCK, axis=-1), axis=-3)

    return past._replace(keys=jax.tree.map(cut, past.keys))


def decode(
    params: transformer.Params,
    config: ModelConfig,
    past: Past,
    slots: Slots,
    limit: jax.Array,
    until: jax.Array,
    mode: Mode,
    steps: int,
    trunk: Trunk | None = None,
    mesh: Mesh | None = None,
) -> tuple[Cache, Chunk]:
    """Decodes up to `limit` tokens, or until as many as `until` slots are done.

    Args:
        params: of the model.
        config: its shape.
        past: what the slots hold.
        slots: the requests.
        limit: [] at most C.
        until: [] 1 to B.
        mode: what the filters need; see `distribution.mode_of`.
        steps: C.
        trunk: of the slots whose `base` is not 0.
        mesh: splits the slots.

    Returns:
        The columns [B, C] that follow what the slots hold, and the tokens.
    """
    batch = slots.token.shape[0]
    reading = attention_kernels.reading(config, past.values, mesh)
    # A kernel reads nothing for those that are done.
    lengths = slots.position if reading is None else jnp.where(slots.done, 0, slots.position)
    past = in_blocks(past, config) if reading is None else past
    past = past._replace(lengths=lengths, trunk=trunk, base=slots.base, reading=reading)
    if mode == "greedy":
        numbers = jnp.zeros((batch, steps), jnp.float32)
    else:
        numbers = uniforms(jax.random.wrap_key_data(slots.keys), steps, slots.generated)
    chunk = Chunk(
        tokens=jnp.full((batch, steps), NO_TOKEN, jnp.int32),
        logprobs=jnp.zeros((batch, steps), jnp.float32),
        tempered=jnp.zeros((batch, steps), jnp.float32),
        steps=jnp.zeros((), jnp.int32),
    )

    def unfinished(state):
        _, slots, chunk = state
        return (chunk.steps < limit) & (jnp.sum(slots.done) < until)

    def advance(state):
        cache, slots, chunk = state
        hidden, cache = transformer.forward(
            params,
            config,
            slots.token[:, None],
            positions=slots.position[:, None],
            cache=cache,
            past=past,
        )
        number = lax.dynamic_index_in_dim(numbers, chunk.steps, axis=1, keepdims=False)
        logits = transformer.logits(params, config, hidden[:, 0])
        drawn = draw(logits, number, slots.filters, mode)

        def record(array, column, nothing):
            column = jnp.where(slots.done, nothing, column)[:, None]
            return lax.dynamic_update_slice_in_dim(array, column, chunk.steps, axis=1)

        chunk = Chunk(
            tokens=record(chunk.tokens, drawn.token, NO_TOKEN),
            logprobs=record(chunk.logprobs, drawn.logprob, 0.0),
            tempered=record(chunk.tempered, drawn.tempered, 0.0),
            steps=chunk.steps + 1,
        )
        generated = slots.generated + ~slots.done
        ended = jnp.any(drawn.token[:, None] == slots.stop_ids, axis=-1)
        slots = slots._replace(
            token=drawn.token,
            position=slots.position + 1,
            generated=generated,
            done=slots.done | ended | (generated >= slots.budget),
        )
        return cache, slots, chunk

    params, cache = _prepared(params, config, batch, steps)
    state = (cache, slots, chunk)
    cache, _, chunk = lax.while_loop(unfinished, advance, state)
    return cache, chunk


def _read(
    params: transformer.Params,
    config: ModelConfig,
    tokens: jax.Array,
    counts: jax.Array,
    kept: jax.Array,
    before: Past | None,
) -> Cache:
    rows, length = tokens.shape
    columns = jnp.arange(length)
    params, cache = _prepared(params, config, rows, length)
    _, filled = transformer.forward(
        params,
        config,
        tokens,
        positions=kept[:, None] + columns,
        segments=(columns < counts[:, None]).astype(jnp.int32),
        cache=cache,
        past=before,
    )
    assert filled is not None
    return filled


def _prepared(
    params: transformer.Params, config: ModelConfig, batch: int, span: int
) -> tuple[transformer.Params, Cache]:
    """Parameters and an empty cache, by layer where layers are computed one by one."""
    one_by_one = transformer.unrolls(config)
    params = transformer.by_layer(params, config) if one_by_one else params
    return params, init_cache(config, batch, span, by_layer=one_by_one)


def _in_eight_bits(arrays: Arrays, axis: int) -> tuple[Arrays, Arrays]:
    """Whole numbers -127 to 127, and the factors along an axis that give them back, rounded."""

    def factors_of(array):
        wide = jnp.abs(array.astype(jnp.float32))
        return jnp.max(wide, axis=axis, keepdims=True) / 127

    def whole(array, factor):
        return jnp.round(array.astype(jnp.float32) / jnp.maximum(factor, 1e-30)).astype(jnp.int8)

    factors = jax.tree.map(factors_of, arrays)
    squeezed = jax.tree.map(lambda factor: jnp.squeeze(factor, axis), factors)
    return jax.tree.map(whole, arrays, factors), squeezed


@functools.partial(jax.jit, static_argnames=("config", "batch", "span", "eight_bits", "mesh"))
def empty_jit(config, batch, span, eight_bits=False, mesh=None) -> Past:
    """`empty`, on its devices."""
    return split_past(empty(config, batch, span, eight_bits), mesh)


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def prefill_jit(params, config, tokens, counts, mesh=None) -> Cache:
    """`prefill`, compiled once for each shape, whatever the slots are."""
    return split_cache(prefill(params, config, tokens, counts), mesh)


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="past")
def write_jit(past, cache, rows, firsts, mesh=None) -> Past:
    """`write`, in place."""
    return split_past(write(past, cache, rows, firsts, mesh), mesh)


@functools.partial(jax.jit, static_argnames=("config", "mesh"), donate_argnames="past")
def extend_jit(
    params, config, past, rows, kept, tokens, counts, mesh=None, trunk=None, base=None
) -> Past:
    """`extend`, in place, compiled once for each shape."""
    longer = extend(params, config, past, rows, kept, tokens, counts, trunk, base, mesh)
    return split_past(longer, mesh)


@functools.partial(jax.jit, static_argnames=("span", "mesh"))
def trunk_jit(past, span, mesh=None) -> Trunk:
    """The trunk that is what the first slot holds in its first columns."""
    first = resized(slot_rows.take(past, jnp.zeros((1,), jnp.int32), mesh), span)
    return split_trunk((first.keys, first.values), mesh)


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="past")
def copy_jit(past, sources, rows, mesh=None) -> Past:
    """`copy`, in place."""
    return split_past(copy(past, sources, rows, mesh), mesh)


@functools.partial(jax.jit, static_argnames=("span", "mesh"))
def resize_jit(past, span, mesh=None) -> Past:
    """`resized`, compiled once for each number of columns before and after."""
    return split_past(resized(past, span), mesh)


@functools.partial(
    jax.jit, static_argnames=("config", "mode", "steps", "mesh"), donate_argnames="past"
)
def decode_jit(
    params, config, past, slots, limit, until, mode, steps, mesh=None, trunk=None
) -> tuple[Past, Chunk]:
    """A chunk of `decode`, written into the slots, in place; once for each shape and mode."""
    cache, chunk = decode(params, config, past, slots, limit, until, mode, steps, trunk, mesh)
    return split_past(write(past, cache, None, slots.column, mesh), mesh), chunk


@functools.partial(jax.jit, static_argnames="config")
def _cut_jit(params, config) -> transformer.Params:
    return transformer.by_layer(params, config)


def by_layer_jit(
    params: transformer.Params, config: ModelConfig, mesh: Any = None
) -> transformer.Params:
    """The parameters as a chunk wants them: one tree for each layer if these are not in a loop."""
    alone = mesh is None or mesh.size == 1
    return _cut_jit(params, config) if transformer.unrolls(config) and alone else params
