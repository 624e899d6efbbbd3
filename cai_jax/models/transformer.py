"""The decoder-only transformer: rotary positions, grouped-query attention, gated MLP, RMS norms.

Used functionally: `forward(params, config, tokens)` is a pure function of plain nested dicts. The
L layers are one layer scanned over stacked parameters, so compile time does not grow with L.

Axes: B batch, T query positions, S key positions, N query heads, K key/value heads, G = N/K,
H head dim, D width, F hidden width, V vocabulary, L layers.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cai_jax.models.cache import Cache
from cai_jax.models.config import ModelConfig

MASKED = -1e30  # added to the attention logits of what may not be seen; finite, so no NaN arises
ONE_HOT_VOCABULARY = 4096  # up to here the gradient of the embedding is a product, not a scatter

Params = dict[str, Any]


def forward(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    *,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
    cache: Cache | None = None,
) -> tuple[jax.Array, Cache | None]:
    """Runs the model on tokens [B, T], and returns the hidden states after the final norm.

    Without a cache, attention is causal inside equal segment ids, so packed documents do not see
    each other; segment 0 is padding, which no other token sees. With a cache, the T tokens are
    written at slots `cache.length` and following, `segments` (0 or 1) marks the valid ones, and
    each attends to the valid slots up to its own.

    Args:
        params: as `init_params` makes them.
        config: the model's shape.
        tokens: [B, T] ids in 0..V-1.
        positions: [B, T] of each token in its document; by default its index in the row, which
            gives the same result, since only differences of positions matter.
        segments: [B, T] document ids, 0 for padding; by default all 1.
        cache: what earlier calls returned, or `init_cache`; it must have T free slots.

    Returns:
        (hidden [B, T, D] in the compute dtype, the cache with the new tokens, or None).
    """
    result: Any = Transformer(config).apply({"params": params}, tokens, positions, segments, cache)
    return result


def logits(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Next-token logits [..., V] in float32 from hidden states [..., D]."""
    return jnp.einsum(
        "...d,dv->...v",
        hidden,
        unembedding(params, config).astype(hidden.dtype),
        preferred_element_type=jnp.float32,
    )


def unembedding(params: Params, config: ModelConfig) -> jax.Array:
    """The matrix [D, V] from hidden states to logits."""
    if config.tied_embeddings:
        return params["embedder"]["embedding"].T
    return params["unembedder"]["kernel"]


def scores(params: Params, hidden: jax.Array) -> jax.Array:
    """The preference model's score, or a value, [...] in float32 from hidden states [..., D]."""
    return hidden.astype(jnp.float32) @ params["score_head"]["kernel"]


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Random float32 parameters: a plain nested dict, layers stacked on axis 0."""
    body_key, head_key = jax.random.split(key)
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = dict(Transformer(config).init(body_key, tokens)["params"])
    if not config.tied_embeddings:
        scale = config.width**-0.5
        shape = (config.width, config.vocab_size)
        params["unembedder"] = {"kernel": scale * jax.random.normal(head_key, shape)}
    return params


def add_score_head(params: Params, config: ModelConfig, key: jax.Array | None = None) -> Params:
    """`params` with a score head: zeros, or of unit score variance when a key is given."""
    kernel = jnp.zeros((config.width,))
    if key is not None:
        kernel = config.width**-0.5 * jax.random.normal(key, (config.width,))
    return {**params, "score_head": {"kernel": kernel}}


class Transformer(nn.Module):
    """Embedding, L layers and the final norm; the heads are plain functions on its output."""

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens, positions=None, segments=None, cache=None):
        config = self.config
        batch, length = tokens.shape
        start = 0 if cache is None else cache.length
        if positions is None:
            positions = start + jnp.arange(length)[None]
        if segments is None:
            segments = jnp.ones((batch, length), jnp.int32)
        rotation = _rotation(positions, config)
        if cache is None:
            bias = _segment_bias(segments)
            state = None
        else:
            valid = lax.dynamic_update_slice(cache.valid, segments != 0, (0, start))
            bias = _cache_bias(valid, start, length)
            state = (cache.keys, cache.values)

        x = Embedder(config, name="embedder")(tokens)
        (x, state), _ = _scanned_layers(config)(
            (x, state), jnp.arange(config.layers), rotation, bias, start
        )
        hidden = Norm(config, name="final_norm")(x)
        if cache is not None:
            cache = Cache(state[0], state[1], valid, start + length)
        return hidden, cache


def _scanned_layers(config: ModelConfig) -> nn.Module:
    layer: Any = Layer
    if config.remat != "none":
        dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        kept = dots if config.remat == "dots" else None
        layer = nn.remat(Layer, prevent_cse=False, policy=kept)
    unroll = config.scan_unroll or (config.layers if jax.default_backend() == "cpu" else 1)
    scanned = nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
        length=config.layers,
        unroll=unroll,
    )
    return scanned(config, name="layers")


class Embedder(nn.Module):
    """Token embeddings [V, D]."""

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens):
        shape = (self.config.vocab_size, self.config.width)
        init = nn.initializers.normal(self.config.width**-0.5)
        table = self.param("embedding", init, shape, jnp.float32)
        return _lookup(table, tokens).astype(self.config.dtype)


@jax.custom_vjp
def _lookup(table, tokens):
    """Rows of `table` [V, D] at `tokens` [B, T]."""
    return jnp.take(table, tokens, axis=0)


def _lookup_forward(table, tokens):
    return _lookup(table, tokens), (tokens, table.shape[0])


def _lookup_backward(residuals, gradient):
    tokens, vocab_size = residuals
    flat = gradient.reshape(-1, gradient.shape[-1])
    if vocab_size <= ONE_HOT_VOCABULARY:
        one_hot = jax.nn.one_hot(tokens.reshape(-1), vocab_size, dtype=flat.dtype)
        return jnp.einsum("tv,td->vd", one_hot, flat), None
    return jnp.zeros((vocab_size, flat.shape[-1]), flat.dtype).at[tokens.reshape(-1)].add(
        flat
    ), None


_lookup.defvjp(_lookup_forward, _lookup_backward)


class Norm(nn.Module):
    """Root-mean-square norm over D, in float32 (Zhang and Sennrich 2019)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (self.config.width,), jnp.float32)
        x32 = x.astype(jnp.float32)
        variance = jnp.mean(x32 * x32, axis=-1, keepdims=True)
        return (x32 * lax.rsqrt(variance + self.config.norm_eps) * scale).astype(x.dtype)


class Layer(nn.Module):
    """Attention, then MLP, each on a normed input and added to the residual stream."""

    config: ModelConfig

    @nn.compact
    def __call__(self, carry, layer, rotation, bias, start):
        x, state = carry
        normed = Norm(self.config, name="attention_norm")(x)
        attended, state = Attention(self.config, name="attention")(
            normed, state, layer, rotation, bias, start
        )
        x = x + attended
        x = x + MLP(self.config, name="mlp")(Norm(self.config, name="mlp_norm")(x))
        return (x, state), None


class Attention(nn.Module):
    """Grouped-query attention; `state` holds the cached keys and values of all layers."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, state, layer, rotation, bias, start):
        c = self.config
        batch, length, _ = x.shape
        # The head dim counts into the fan-in: attention starts smaller by H^0.5 and near uniform.
        project = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=0, out_axis=1)
        # Two residual branches a layer add up: each starts with 1/2L of the variance.
        project_out = nn.initializers.variance_scaling(
            0.5 / c.layers, "fan_in", "normal", in_axis=(0, 1), out_axis=2
        )
        query_kernel = self._kernel("query", project, (c.width, c.heads, c.head_dim))
        key_kernel = self._kernel("key", project, (c.width, c.kv_heads, c.head_dim))
        value_kernel = self._kernel("value", project, (c.width, c.kv_heads, c.head_dim))
        out_kernel = self._kernel("out", project_out, (c.heads, c.head_dim, c.width))

        queries = _rotate(jnp.einsum("btd,dnh->bnth", x, query_kernel), rotation)
        keys = _rotate(jnp.einsum("bsd,dkh->bksh", x, key_kernel), rotation)
        keys = jnp.swapaxes(keys, 2, 3)  # [B, K, H, S]
        values = jnp.einsum("bsd,dkh->bksh", x, value_kernel)
        if state is not None:
            zero = jnp.zeros((), jnp.int32)
            all_keys = lax.dynamic_update_slice(
                state[0], keys[None], (layer, zero, zero, zero, start)
            )
            all_values = lax.dynamic_update_slice(
                state[1], values[None], (layer, zero, zero, start, zero)
            )
            keys = lax.dynamic_index_in_dim(all_keys, layer, keepdims=False)
            values = lax.dynamic_index_in_dim(all_values, layer, keepdims=False)
            state = (all_keys, all_values)

        # The G heads of a group are more rows of one matrix product with their shared keys.
        queries = queries.reshape(batch, c.kv_heads, c.groups * length, c.head_dim)
        scale = c.head_dim**-0.5
        weights = jnp.einsum(
            "bkth,bkhs->bkts", queries * scale, keys, preferred_element_type=jnp.float32
        )
        weights = weights.reshape(batch, c.kv_heads, c.groups, length, -1) + bias[:, None, None]
        weights = jax.nn.softmax(weights, axis=-1).astype(c.dtype)
        weights = weights.reshape(batch, c.kv_heads, c.groups * length, -1)
        attended = jnp.einsum("bkts,bksh->bkth", weights, values)
        attended = attended.reshape(batch, c.heads, length, c.head_dim)
        return jnp.einsum("bnth,nhd->btd", attended, out_kernel), state

    def _kernel(self, name, init, shape):
        return self.param(name, init, shape, jnp.float32).astype(self.config.dtype)


class MLP(nn.Module):
    """The gated MLP: down(silu(gate x) * up x) (Shazeer 2020)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        c = self.config
        into = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        out_of = nn.initializers.variance_scaling(0.5 / c.layers, "fan_in", "normal")
        gate = self.param("gate", into, (c.width, c.hidden), jnp.float32).astype(c.dtype)
        up = self.param("up", into, (c.width, c.hidden), jnp.float32).astype(c.dtype)
        down = self.param("down", out_of, (c.hidden, c.width), jnp.float32).astype(c.dtype)
        return (jax.nn.silu(x @ gate) * (x @ up)) @ down


def _rotation(positions: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine [B, 1, T, H/2] of each position's angles (Su et al. 2021), in float32."""
    exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequencies = config.rope_theta**-exponents
    angles = positions[:, None, :, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (i, i + H/2) of x [B, N, T, H]."""
    cosine, sine = rotation
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def _segment_bias(segments: jax.Array) -> jax.Array:
    """[B, T, T]: 0 where position t may see position s, else MASKED."""
    positions = jnp.arange(segments.shape[1])
    causal = positions[:, None] >= positions[None, :]
    same = segments[:, :, None] == segments[:, None, :]
    return jnp.where(causal & same, 0.0, MASKED)


def _cache_bias(valid: jax.Array, start: jax.Array | int, length: int) -> jax.Array:
    """[B, T, S]: 0 where the token at slot start + t may see slot s, else MASKED."""
    slots = jnp.arange(valid.shape[1])
    own = start + jnp.arange(length)
    return jnp.where((slots <= own[:, None]) & valid[:, None, :], 0.0, MASKED)
