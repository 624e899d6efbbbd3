"""From logits [B, V] to one token a row: temperature, top-k, top-p, min-p, and an exact draw.

The draw inverts the cumulative distribution at one uniform number a row. On a CPU this costs a
tenth of Gumbel noise for every token of the vocabulary (`jax.random.categorical`).
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Mode = Literal["greedy", "sample", "filter"]
"""What is compiled: argmax only, sampling, or sampling with top-k, top-p and min-p."""

BLOCK = 32  # tokens summed at a time by the draw


class Draw(NamedTuple):
    """One token a row and its log-probabilities (nats, float32)."""

    token: jax.Array  # [B] int32
    logprob: jax.Array  # [B] under softmax(logits)
    tempered: jax.Array  # [B] under what was sampled from; 0 where temperature is 0


class Filter(NamedTuple):
    """The sampling settings that are data of the compiled program."""

    temperature: jax.Array  # [B] or [], as all of them; 0: argmax
    top_k: jax.Array  # int32; V or more: off
    top_p: jax.Array  # float32; 1: off
    min_p: jax.Array | float = 0.0  # float32; 0: off


def uniforms(keys: jax.Array, count: int, first: jax.Array | None = None) -> jax.Array:
    """Uniform numbers [B, count] in [0, 1): number t of a row depends on its key and t alone.

    It is the first word of `fold_in(key, t)`; nothing else is drawn from that folded key. The row
    begins with number first [B]; by default 0.
    """

    def draw(key, index):
        word = jax.random.key_data(jax.random.fold_in(key, index))[0]
        return (word >> 8).astype(jnp.float32) * 2.0**-24

    over_tokens = jax.vmap(draw, in_axes=(None, 0))
    if first is None:
        return jax.vmap(over_tokens, in_axes=(0, None))(keys, jnp.arange(count))
    return jax.vmap(over_tokens)(keys, first[:, None] + jnp.arange(count))


def draw(logits: jax.Array, uniform: jax.Array, filters: Filter, mode: Mode) -> Draw:
    """Draws one token a row.

    Args:
        logits: [B, V] float32.
        uniform: [B] in [0, 1), from `uniforms`.
        filters: temperature, top-k, top-p and min-p, of all rows or of each.
        mode: which of them can matter; `mode_of` tells.

    Returns:
        The tokens and their log-probabilities.
    """
    highest = jnp.max(logits, axis=-1, keepdims=True)
    below = highest - logits  # [B, V], >= 0
    partition = jnp.sum(jnp.exp(-below), axis=-1)
    # Not the first that equals the highest: XLA may compute logits again for each use, round the
    # tanh of a soft cap another way each time, and find none.
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    tempered = jnp.zeros_like(partition)
    if mode != "greedy":
        temperature = jnp.broadcast_to(filters.temperature, uniform.shape)
        sampled = temperature > 0
        below_tempered = below / jnp.where(sampled, temperature, 1.0)[:, None]
        weights = jnp.exp(-below_tempered)
        if mode == "filter":
            weights = keep_top(below_tempered, weights, filters.top_k, filters.top_p)
            # The highest weight is 1 (Nguyen et al. 2024).
            least = jnp.broadcast_to(filters.min_p, uniform.shape)
            weights = jnp.where(weights >= least[:, None], weights, 0.0)
        token = jnp.where(sampled, invert_cumulative(weights, uniform), token)
        tempered = jnp.where(
            sampled, -_at(below_tempered, token) - jnp.log(jnp.sum(weights, axis=-1)), 0.0
        )
    return Draw(token, -_at(below, token) - jnp.log(partition), tempered)


def mode_of(temperature: float, top_k: int, top_p: float, min_p: float = 0.0) -> Mode:
    """The smallest program that serves these settings."""
    if temperature == 0:
        return "greedy"
    return "filter" if top_k > 0 or top_p < 1 or min_p > 0 else "sample"


def keep_top(below: jax.Array, weights: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """`weights` with those outside the top k, then those outside the top p, set to 0.

    Args:
        below: [B, V] >= 0: how far each logit lies below the row's highest.
        weights: [B, V] exp(-below).
        top_k: [] or [B]: how many to keep; ties of the last are kept too.
        top_p: [] or [B]: the mass to keep, as a share of what top-k left (Holtzman et al. 2019).
    """

    def within_k(weights):
        needed = jnp.full(weights.shape[:1], top_k, weights.dtype)
        return jnp.where(_nearest(below, jnp.ones_like(weights), needed), weights, 0.0)

    def within_p(weights):
        needed = jnp.where(top_p < 1, top_p * jnp.sum(weights, axis=-1), jnp.inf)
        return jnp.where(_nearest(below, weights, needed), weights, 0.0)

    # What no row asks for is not computed.
    weights = lax.cond(jnp.any(top_k < weights.shape[1]), within_k, lambda same: same, weights)
    return lax.cond(jnp.any(top_p < 1), within_p, lambda same: same, weights)


def _nearest(below: jax.Array, mass: jax.Array, needed: jax.Array) -> jax.Array:
    """[B, V]: True up to the smallest `below` at which the mass so far reaches `needed` [B].

    Bisects on the bit patterns, which order as the floats do when these are not negative: exact in
    31 passes, without a sort.
    """
    bits = lax.bitcast_convert_type(below, jnp.int32)
    infinity = jnp.int32(0x7F800000)

    def halve(_, bounds):
        low, high = bounds  # the answer is in [low, high]
        middle = low + (high - low) // 2
        reached = jnp.sum(jnp.where(bits <= middle[:, None], mass, 0.0), axis=-1) >= needed
        return jnp.where(reached, low, middle + 1), jnp.where(reached, middle, high)

    low = jnp.zeros(below.shape[:1], jnp.int32)
    _, threshold = lax.fori_loop(0, 31, halve, (low, jnp.full_like(low, infinity)))
    return bits <= threshold[:, None]


def invert_cumulative(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """The tokens [B] at which the cumulative sum of weights [B, V] passes uniform [B] x total.

    First the block of tokens, then the token in it. A token of weight 0 is never drawn.
    """
    batch, vocabulary = weights.shape
    blocks = -(-vocabulary // BLOCK)
    weights = jnp.pad(weights, ((0, 0), (0, blocks * BLOCK - vocabulary)))
    weights = weights.reshape(batch, blocks, BLOCK)
    totals = jnp.sum(weights, axis=-1)
    block, rest = _crossing(totals, uniform * jnp.sum(totals, axis=-1))
    inside = jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0]
    token, _ = _crossing(inside, rest)
    return block * BLOCK + token


def _crossing(weights: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the cumulative sum of weights [B, n] passes target [B], and what is left of it there.

    Rounding may put the target at or past the end: then it is the last positive weight.
    """
    indices = jnp.arange(weights.shape[1])
    # A product with a triangle of ones: a quarter of the program that a parallel scan is.
    triangle = (indices[:, None] <= indices).astype(weights.dtype)
    cumulative = jnp.dot(weights, triangle, precision=lax.Precision.HIGHEST)
    positive = weights > 0
    last = jnp.max(jnp.where(positive, indices, 0), axis=-1)
    crossing = jnp.minimum(_first((cumulative > target[:, None]) & positive), last)
    before = _at(cumulative, crossing) - _at(weights, crossing)
    return crossing, target - before


def _first(flags: jax.Array) -> jax.Array:
    """The index [B] of the first True of flags [B, n]; n - 1 if there is none.

    Two plain reductions: an argmax is not vectorized on CPU.
    """
    count = flags.shape[1]
    return jnp.min(jnp.where(flags, jnp.arange(count), count - 1), axis=-1)


def _at(values: jax.Array, index: jax.Array) -> jax.Array:
    """values[b, index[b]] for each row."""
    return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]
