"""Grouped-query attention, and who may see whom.

Axes: B batch, T query positions, S key positions, N query heads, K key/value heads, G = N/K,
H head dim, D width, L layers.
"""

import functools
import operator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cai_jax.models import attention_kernels, causal_attention
from cai_jax.models.attention_kernels import Sight
from cai_jax.models.cache import Past
from cai_jax.models.config import ModelConfig
from cai_jax.models.layers import norm_scale, normalize, project, with_adapter
from cai_jax.models.placing import gathered
from cai_jax.models.rotary import rotate

MASKED = -1e30  # added to the attention logits of what may not be seen; finite, so no NaN arises


class Seen(NamedTuple):
    """Who sees whom where a kernel reads the slots, in the place of a bias [B, 1, P + S + C]."""

    others: jax.Array  # the bias [B, 1, P + C] of a trunk and of a cache
    blocks: Any  # the columns of the slots, as `decode_kernel.Blocks`


class Attention(nn.Module):
    """Grouped-query attention; `state` holds the cached keys and values of all layers."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, state, layer, rotation, bias, start, past=None, last=None):
        c = self.config
        batch, length, _ = x.shape
        # The head dim counts into the fan-in: attention starts smaller by H^0.5 and near uniform.
        into = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=0, out_axis=1)
        # Two residual branches a layer add up: each starts with 1/2L of the variance.
        out_of = nn.initializers.variance_scaling(
            0.5 / c.layers, "fan_in", "normal", in_axis=(0, 1), out_axis=2
        )
        query_kernel = self._kernel("query", into, (c.width, c.heads, c.head_dim))
        key_kernel = self._kernel("key", into, (c.width, c.kv_heads, c.head_dim))
        value_kernel = self._kernel("value", into, (c.width, c.kv_heads, c.head_dim))
        out_kernel = self._kernel("out", out_of, (c.heads, c.head_dim, c.width))

        asking = x
        if last is None:
            projected = project(x, query_kernel, key_kernel, value_kernel)
        else:
            length, asking, bias = last, x[:, -last:], bias[:, -last:]
            projected = project(asking, query_kernel) + project(x, key_kernel, value_kernel)
        # [B, N, T, H], [B, K, S, H], [B, K, S, H]
        queries, keys, values = (jnp.swapaxes(made, 1, 2) for made in projected)
        into_heads = "btd,dr->btr", "btr,rnh->bnth"
        queries = with_adapter(self, "query", asking, queries, *into_heads)
        keys = with_adapter(self, "key", x, keys, *into_heads)
        values = with_adapter(self, "value", x, values, *into_heads)
        if c.qkv_bias:
            queries += self._bias("query_bias", (c.heads, c.head_dim))[:, None]
            keys += self._bias("key_bias", (c.kv_heads, c.head_dim))[:, None]
            values += self._bias("value_bias", (c.kv_heads, c.head_dim))[:, None]
        if c.query_key_norm != "none":
            queries = HeadNorm(c, name="query_norm")(queries)
            keys = HeadNorm(c, name="key_norm")(keys)
        if rotation is not None:
            cosine, sine = rotation
            queries = rotate(queries, (cosine[:, :, -length:], sine[:, :, -length:]))
            keys = rotate(keys, rotation)
        queries = queries * (c.query_scalar or c.head_dim) ** -0.5
        new = keys, values
        keys = jnp.swapaxes(keys, 2, 3)  # [B, K, H, S]
        if state is not None:
            keys, values, state = _cached(keys, values, state, layer, start)

        by_group = queries.reshape(batch, c.kv_heads, c.groups, length, c.head_dim)
        if isinstance(bias, Sight):
            attended = attention_kernels.attend(queries, *new, bias, c)
        elif state is None and c.attention_soft_cap is None:
            attended = causal_attention.attend(by_group, *new, bias)
        elif isinstance(bias, Seen):
            attended = _decode(by_group, keys, values, bias, c.attention_soft_cap, past, layer)
        else:
            attended = _attend(by_group, keys, values, bias, c.attention_soft_cap, past)
        attended = attended.reshape(batch, c.heads, length, c.head_dim)
        beside = jnp.swapaxes(attended, 1, 2).reshape(batch, length, -1)  # [B, T, N H]
        (made,) = project(beside, out_kernel.reshape(-1, c.width))
        made = with_adapter(self, "out", attended, made, "bnth,nhr->btr", "btr,rd->btd")
        if c.out_bias:
            made += self._bias("out_bias", (c.width,))
        return made, state

    def _kernel(self, name: str, init: Any, shape: tuple[int, ...]) -> jax.Array:
        kernel = self.param(name, init, shape, jnp.float32).astype(self.config.dtype)
        return gathered(kernel, name)

    def _bias(self, name: str, shape: tuple[int, ...]) -> jax.Array:
        init = nn.initializers.zeros
        return self.param(name, init, shape, jnp.float32).astype(self.config.dtype)


def _cached(keys, values, state, layer, start):
    """Keys [B, K, H, S] and values [B, K, S, H] of the layer with the new ones; the new state.

    The state is of all layers, or, where `layer` is None, of this one.
    """
    zero = jnp.zeros((), jnp.int32)
    if layer is None:
        keys = lax.dynamic_update_slice(state[0], keys, (zero, zero, zero, start))
        values = lax.dynamic_update_slice(state[1], values, (zero, zero, start, zero))
        return keys, values, (keys, values)
    all_keys = lax.dynamic_update_slice(state[0], keys[None], (layer, zero, zero, zero, start))
    all_values = lax.dynamic_update_slice(state[1], values[None], (layer, zero, zero, start, zero))
    keys = lax.dynamic_index_in_dim(all_keys, layer, keepdims=False)
    values = lax.dynamic_index_in_dim(all_values, layer, keepdims=False)
    return keys, values, (all_keys, all_values)


def _attend(queries, keys, values, bias, soft_cap, past=None):
    """[B, K, G, T, H] of scaled queries, keys [B, K, H, S], values [B, K, S, H], bias [B, T, S].

    With a past, of one layer, its columns come first in the bias, and those of its trunk before.
    """
    batch, kv_heads, groups, length, head_dim = queries.shape
    # The G heads of a group are more rows of one matrix product with their shared keys.
    rows = queries.reshape(batch, kv_heads, groups * length, head_dim)
    shared = 0 if past is None else past.trunk_span
    alike, bias = bias[..., :shared], bias[..., shared:]
    weights = _products(rows, keys)
    if past is not None:
        before = _products(rows, past.keys.astype(rows.dtype))
        if past.scales is not None:
            before = before * past.scales[0][:, :, None]
        weights = jnp.concatenate([before, weights], axis=-1)
    weights = _seen(weights, bias, soft_cap)
    if not shared:
        weights = jax.nn.softmax(weights, axis=-1)
    else:
        weights, highest, total = _relative(weights)
    weights = weights.astype(values.dtype)
    if past is None:
        return jnp.einsum("bkts,bksh->bkth", weights, values).reshape(queries.shape)
    before, weights = jnp.split(weights, [past.values.shape[-2]], axis=-1)
    if past.scales is not None:
        before = (before * past.scales[1][:, :, None]).astype(values.dtype)
    attended = jnp.einsum("bkts,bksh->bkth", weights, values)
    attended += jnp.einsum("bkts,bksh->bkth", before, past.values.astype(values.dtype))
    if shared:
        there = _attend_to_trunk(rows, past.trunk, alike, soft_cap)
        attended = _joined(there, (attended, highest, total)).astype(values.dtype)
    return attended.reshape(queries.shape)


def _decode(queries, keys, values, seen, soft_cap, past, layer):
    """`_attend` of one position, T = 1, where a kernel reads the columns of the slots."""
    from cai_jax.models import decode_kernel

    batch, kv_heads, groups, _, head_dim = queries.shape
    rows = queries.reshape(batch, kv_heads, groups, head_dim)
    alike, bias = jnp.split(seen.others, [past.trunk_span], axis=-1)
    weights = _seen(_products(rows, keys), bias, soft_cap)
    weights, highest, total = _relative(weights)
    new = jnp.einsum(
        "bkts,bksh->bkth",
        weights.astype(values.dtype),
        values,
        preferred_element_type=jnp.float32,
    )
    held = past.keys, past.values, past.scales
    if layer is None:
        held, layer = jax.tree.map(lambda array: array[None], held), 0
    there = decode_kernel.attend(rows, *held, layer, seen.blocks, soft_cap, past.reading.mesh)
    parts = [there, (new, highest, total)]
    if past.trunk is not None:
        parts.append(_attend_to_trunk(rows, past.trunk, alike, soft_cap))
    return _joined(*parts).astype(values.dtype).reshape(queries.shape)


def _relative(weights: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights of logits [..., S], relative to the highest; those, and the sums of weights."""
    highest = jnp.max(weights, axis=-1, keepdims=True)
    weights = jnp.exp(weights - highest)
    return weights, highest, jnp.sum(weights, axis=-1, keepdims=True)


def _seen(weights: jax.Array, bias: jax.Array, soft_cap: float | None) -> jax.Array:
    """Attention logits [..., G T, S] with the cap, and the bias [B, T, S] for the heads of each."""
    if soft_cap is not None:
        weights = soft_cap * jnp.tanh(weights / soft_cap)
    batch, length, span = bias.shape
    by_query = weights.reshape(batch, -1, length, span) + bias[:, None]
    return by_query.reshape(weights.shape)


def _attend_to_trunk(rows, trunk, bias, soft_cap):
    """What queries [B, K, G T, H] find in a trunk: as `_joined` wants it.

    The texts are more rows of one product with what they share.
    """
    batch, kv_heads, length, head_dim = rows.shape

    def of_head(queries, keys, values):
        weights = jnp.dot(
            queries.reshape(-1, head_dim), keys, preferred_element_type=jnp.float32
        ).reshape(batch, length, -1)
        weights = _seen(weights, bias, soft_cap)
        weights, highest, total = _relative(weights)
        found = jnp.dot(weights.astype(values.dtype).reshape(batch * length, -1), values)
        return found.reshape(batch, length, head_dim), highest, total

    keys, values = (jnp.squeeze(array, 0) for array in trunk)  # [K, H, P], [K, P, H]
    if jax.default_backend() != "cpu" or bias.shape[1] == 1:
        return jax.vmap(of_head, in_axes=(1, 0, 0), out_axes=1)(rows, keys, values)
    # Of many queries XLA's product with a batch axis takes longer on a CPU than one for each head.
    heads = [of_head(rows[:, head], keys[head], values[head]) for head in range(kv_heads)]
    return tuple(jnp.stack(parts, axis=1) for parts in zip(*heads))


def _joined(*parts):
    """The softmax over sets of columns, of (weighted sum, highest logit, sum of weights) each.

    Weights are relative to the highest of their set.
    """
    highest = functools.reduce(jnp.maximum, (part[1] for part in parts))
    scales = [jnp.exp(part[1] - highest) for part in parts]
    total = functools.reduce(operator.add, (s * part[2] for s, part in zip(scales, parts)))
    return functools.reduce(operator.add, (s * part[0] for s, part in zip(scales, parts))) / total


def _products(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """[B, K, T, S] in float32, of keys [B, K, H, S], or in blocks [B, K, C, H, S / C]."""
    if keys.ndim == 4:
        return jnp.einsum("bkth,bkhs->bkts", queries, keys, preferred_element_type=jnp.float32)
    batch, kv_heads, blocks, _, width = keys.shape
    alike = jnp.broadcast_to(queries[:, :, None], (batch, kv_heads, blocks, *queries.shape[2:]))
    weights = jnp.einsum("bkcth,bkchs->bkcts", alike, keys, preferred_element_type=jnp.float32)
    return jnp.swapaxes(weights, 2, 3).reshape(batch, kv_heads, -1, blocks * width)


class HeadNorm(nn.Module):
    """The norm of queries or keys [B, N, T, H]: of each head, or of all heads of a token."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        if self.config.query_key_norm == "head":
            return normalize(x, norm_scale(self, (x.shape[-1],)), self.config)
        scale = norm_scale(self, (x.shape[1], x.shape[-1]))
        return normalize(x, scale[:, None], self.config, axes=(1, 3))


def segment_bias(
    segments: jax.Array,
    positions: jax.Array | None = None,
    window: int | None = None,
    parents: jax.Array | None = None,
) -> jax.Array:
    """[B, T, T]: 0 where position t may see position s, else MASKED."""
    slots = jnp.arange(segments.shape[1])
    causal = slots[:, None] >= slots[None, :]
    same = segments[:, :, None] == segments[:, None, :]
    if parents is not None:
        same |= parents[:, :, None] == segments[:, None, :]
    seen = causal & same
    if window is not None:
        assert positions is not None
        seen &= positions[:, :, None] - positions[:, None, :] < window
    return jnp.where(seen, 0.0, MASKED)


def with_past(past: Past, positions: jax.Array, window: int | None, bias: jax.Array) -> Any:
    """The bias [B, T, P + S + C] of tokens that see a past and, by `bias`, a cache; or `Seen`."""
    before = past_bias(past, positions, window)
    if past.reading is None:
        return jnp.concatenate([before, bias], axis=-1)
    from cai_jax.models import decode_kernel

    assert past.lengths is not None
    base = jnp.zeros_like(past.lengths) if past.base is None else past.base
    span = past.span - past.trunk_span
    starts, ends = jnp.zeros_like(base), jnp.clip(past.lengths - base, 0, span)
    if window is not None:
        starts = jnp.maximum(positions[:, 0] - window + 1 - base, 0)
    blocks = decode_kernel.blocks(starts, ends, span, past.reading.columns, past.reading.mesh)
    return Seen(jnp.concatenate([before[..., : past.trunk_span], bias], axis=-1), blocks)


def past_bias(past: Past, positions: jax.Array, window: int | None = None) -> jax.Array:
    """[B, T, P + S]: 0 where the token at a position [B, T] may see a column of a past.

    Column s of row b holds the token at position base[b] + s, if that is less than lengths[b]. The
    P columns of a trunk come first, and hold the first base[b] tokens.
    """
    assert past.lengths is not None
    shared = past.trunk_span
    base = jnp.zeros_like(past.lengths) if past.base is None else past.base
    columns = jnp.arange(past.span)[None]
    held = jnp.where(columns < shared, columns, columns - shared + base[:, None])  # [B, P + S]
    ends = jnp.where(columns < shared, base[:, None], past.lengths[:, None])
    seen = jnp.broadcast_to((held < ends)[:, None], (*positions.shape, past.span))
    if window is not None:
        seen &= positions[:, :, None] - held[:, None] < window
    return jnp.where(seen, 0.0, MASKED)


def cache_bias(
    valid: jax.Array, start: jax.Array | int, length: int, window: int | None = None
) -> jax.Array:
    """[B, T, S]: 0 where the token at slot start + t may see slot s, else MASKED."""
    slots = jnp.arange(valid.shape[1])
    own = start + jnp.arange(length)
    seen = (slots <= own[:, None]) & valid[:, None, :]
    if window is not None:
        # A window counts the tokens of the text: the slots that are valid.
        counts = jnp.cumsum(valid, axis=1)
        seen &= (
            lax.dynamic_slice_in_dim(counts, start, length, axis=1)[:, :, None] - counts[:, None, :]
            < window
        )
    return jnp.where(seen, 0.0, MASKED)
