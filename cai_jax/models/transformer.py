"""The decoder-only transformer of all families; `ModelConfig` says what a layer consists of.

Used functionally: `forward(params, config, tokens)` is a pure function of plain nested dicts. The
L layers are one layer scanned over stacked parameters, so compile time does not grow with L.

Axes: B batch, T query positions, S key positions, N query heads, K key/value heads, G = N/K,
H head dim, D width, F hidden width, V vocabulary, L layers.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cai_jax.models import attention_kernels
from cai_jax.models.attention import Attention, cache_bias, segment_bias, with_past
from cai_jax.models.cache import Cache, Past
from cai_jax.models.config import ModelConfig
from cai_jax.models.layers import MLP, Embedder, Norm, PositionEmbedder
from cai_jax.models.placing import gathered, split_rows
from cai_jax.models.rotary import rotation

Params = dict[str, Any]
LOSS_POSITIONS = 2048


def forward(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    *,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
    parents: jax.Array | None = None,
    cache: Cache | None = None,
    past: Past | None = None,
    last: int | None = None,
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
            gives the same result where positions are rotations: only their differences matter.
        segments: [B, T] document ids, 0 for padding; by default all 1.
        parents: [B, T], without a cache: of each token a second document that it sees and goes on
            from, earlier in the row (so that two responses share a prompt); by default its own.
        cache: what earlier calls returned, or `init_cache`; it must have T free slots.
        past: what stands before all that is in the cache, and is read alone.
        last: how many positions at the end are asked for; by default all T. Without a cache, and
            where layers are computed one by one, the last layer computes no others.

    Returns:
        (hidden [B, T, D], or [B, last, D], in the compute dtype, the cache with the new tokens, or
        None).
    """
    if config.learned_positions and positions is None and not (segments is None and cache is None):
        raise ValueError("a model with learned positions must be told the positions of its tokens")
    if parents is not None and (positions is None or cache is not None):
        raise ValueError("documents with parents need their positions, and have no cache")
    if past is not None and (positions is None or cache is None):
        raise ValueError("tokens that follow a past need their positions, and a cache")
    if last is not None and cache is None and unrolls(config) and config.remat == "none":
        params = by_layer(params, config)
    layers = params.get("layers")
    layers = layers if isinstance(layers, tuple) else None
    params = {name: tree for name, tree in params.items() if name != "layers" or layers is None}
    arguments = tokens, positions, segments, cache, parents, past, layers, last
    result: Any = Transformer(config).apply({"params": params}, *arguments)
    return result


def logits(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Next-token logits [..., V] in float32 from hidden states [..., D]."""
    result = jnp.einsum(
        "...d,dv->...v",
        hidden,
        unembedding(params, config).astype(hidden.dtype),
        preferred_element_type=jnp.float32,
    )
    if config.logits_soft_cap is not None:
        cap = config.logits_soft_cap
        # The clip changes nothing, but keeps a compiler from joining the product with a difference
        # that follows it, rounded once: then the highest logit is not equal to itself.
        result = jnp.clip(cap * jnp.tanh(result / cap), -cap, cap)
    return result


def unembedding(params: Params, config: ModelConfig) -> jax.Array:
    """The matrix [D, V] from hidden states to logits, before `config.logits_soft_cap`."""
    if config.tied_embeddings:
        kernel = params["embedder"]["embedding"].T
    else:
        kernel = params["unembedder"]["kernel"]
    return gathered(kernel.astype(config.dtype), "unembedding")


def loss_positions(config: ModelConfig) -> int:
    """The argument `positions` of losses of this model; 0: as the loss finds best on a CPU."""
    return config.loss_positions or (0 if jax.default_backend() == "cpu" else LOSS_POSITIONS)


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
    def __call__(
        self,
        tokens,
        positions=None,
        segments=None,
        cache=None,
        parents=None,
        past=None,
        layers=None,
        last=None,
    ):
        config = self.config
        batch, length = tokens.shape
        start = 0 if cache is None else cache.length
        if positions is None:
            positions = start + jnp.arange(length)[None]
        if segments is None:
            segments = jnp.ones((batch, length), jnp.int32)
        rotations = _rotations(positions, config)
        windows, span = _windows(config), None if cache is None else cache.valid.shape[1]
        if past is not None:
            span = past.span + cache.valid.shape[1]
        kernel = attention_kernels.choose(config, length, span, parents)
        biases: list[Any]
        if cache is None:
            state = None
            biases = [segment_bias(segments, positions, window, parents) for window in windows]
        else:
            state = (cache.keys, cache.values)
            valid = lax.dynamic_update_slice(cache.valid, segments != 0, (0, start))
            biases = [cache_bias(valid, start, length, window) for window in windows]
        if past is not None:
            both = zip(windows, biases)
            biases = [with_past(past, positions, window, bias) for window, bias in both]
        if kernel != "plain":
            near = [jnp.asarray(window is not None) for window in windows]
            biases = [attention_kernels.Sight(segments, of_layer, kernel) for of_layer in near]

        x = split_rows(Embedder(config, name="embedder")(tokens))
        if config.learned_positions:
            x = x + PositionEmbedder(config, name="position_embedder")(positions)
        read = None if past is None else past._replace(lengths=None, base=None)
        if layers is None:
            (x, state), _ = _scanned_layers(config, read)(
                (x, state), jnp.arange(config.layers), rotations, biases, start, read
            )
        else:
            narrow = last if cache is None and kernel == "plain" else None
            x, state = _each_layer(
                layers, config, (x, state), rotations, biases, start, read, narrow
            )
        if last is not None:
            x = x[:, -last:]
        hidden = split_rows(Norm(config, name="final_norm")(x))
        if cache is not None:
            cache = Cache(state[0], state[1], valid, start + length)
        return hidden, cache


def _each_layer(
    layers: Sequence[Params],
    config: ModelConfig,
    carry: Any,
    rotations: list[Any],
    biases: list[Any],
    start: Any,
    past: Past | None,
    last: int | None,
) -> tuple[jax.Array, Any]:
    """What `_scanned_layers` computes, of parameters and caches that are `by_layer`.

    With `last`, the last layer gives that many positions at the end; the others are keys alone.
    """
    x, state = carry
    states = [None] * config.layers if state is None else list(zip(*state))
    for number, params in enumerate(layers):
        near = len(biases) > 1 and number in config.windowed_layers
        of_layer = None
        if past is not None:
            of_layer = jax.tree.map(
                lambda arrays: arrays[number],  # noqa: B023
                past,
                is_leaf=lambda node: type(node) is tuple and hasattr(node[0], "ndim"),
            )
        (x, states[number]), _ = Layer(config, parent=None).apply(
            {"params": params},
            (x, states[number]),
            None,
            [rotations[-1] if near else rotations[0]],
            [biases[-1] if near else biases[0]],
            start,
            of_layer,
            last if number == config.layers - 1 else None,
        )
    return x, None if state is None else tuple(zip(*states))


def by_layer(params: Params, config: ModelConfig) -> Params:
    """The parameters with a tree for each layer: a loop of many steps need not cut them out again.

    `forward` takes them as it takes the others, with caches that are by layer too.
    """
    layers = params["layers"]
    if isinstance(layers, tuple):
        return params
    arrays, tree = jax.tree.flatten(layers)
    # Of a split, not of slices: its gradient joins those of the layers, where theirs would add up.
    pieces = zip(*(lax.split(array, (1,) * config.layers) for array in arrays))
    cut = [jax.tree.unflatten(tree, [piece[0] for piece in of_layer]) for of_layer in pieces]
    return {**params, "layers": tuple(cut)}


def unrolls(config: ModelConfig) -> bool:
    """Whether the layers are computed one by one, not in a loop."""
    return _unroll(config) == config.layers


def _unroll(config: ModelConfig) -> int:
    # A loop copies the weights, keys and values of a layer before it computes it. On a CPU and on
    # one GPU that costs more than it takes longer to compile; of meshes it was not measured.
    alone = jax.default_backend() == "gpu" and jax.device_count() == 1
    whole = jax.default_backend() == "cpu" or alone
    return config.scan_unroll or (config.layers if whole else 1)


def _windows(config: ModelConfig) -> list[int | None]:
    """The windows that layers have: of those without one, then of windowed layers."""
    if config.mixed_layers:
        return [None, config.window]
    return [config.window if config.windowed_layers else None]


def _rotations(positions: jax.Array, config: ModelConfig) -> list[Any]:
    """The rotations that layers have, as `_windows`; none with learned positions."""
    if not config.rotary_dim:
        return [None]
    if config.mixed_layers and config.local_rope_theta is not None:
        return [rotation(positions, config), rotation(positions, config, local=True)]
    return [rotation(positions, config, local=bool(config.windowed_layers))]


def _of_layer(variants: list[Any], config: ModelConfig, layer: jax.Array) -> Any:
    """The one of [for layers without a window, for windowed ones], or the only one."""
    if len(variants) == 1:
        return variants[0]
    windowed = jnp.isin(jnp.arange(config.layers), jnp.asarray(config.windowed_layers))[layer]
    return jax.tree.map(lambda far, near: jnp.where(windowed, near, far), *variants)


def _scanned_layers(config: ModelConfig, past: Past | None) -> nn.Module:
    layer: Any = Layer
    if config.remat != "none":
        dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        kept = dots if config.remat == "dots" else None
        layer = nn.remat(Layer, prevent_cse=False, policy=kept)
    of_past: Any = 0
    if past is not None and past.reading is not None:
        # A kernel takes its layer out of all of them: cut out here, they would be copied.
        whole = {name: nn.broadcast for name in ("keys", "values", "scales")}
        of_past = past._replace(trunk=None if past.trunk is None else 0, **whole)  # type: ignore
    scanned = nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, of_past),
        length=config.layers,
        unroll=_unroll(config),
    )
    return scanned(config, name="layers")


class Layer(nn.Module):
    """Attention and MLP, each with its norms and added to the residual stream."""

    config: ModelConfig

    @nn.compact
    def __call__(self, carry, layer, rotations, biases, start, past=None, last=None):
        c = self.config
        x, state = carry
        x = split_rows(x)
        rotation, bias = _of_layer(rotations, c, layer), _of_layer(biases, c, layer)
        normed = x if c.norms == "after" else Norm(c, name="attention_norm")(x)
        attended, state = Attention(c, name="attention")(
            normed, state, layer, rotation, bias, start, past, last
        )
        if last is not None:
            x = x[:, -last:]
        if c.norms != "before":
            attended = Norm(c, name="attention_post_norm")(attended)
        beside = x
        x = x + attended
        if not c.parallel_residual:
            beside = x
        normed = beside if c.norms == "after" else Norm(c, name="mlp_norm")(beside)
        made = MLP(c, name="mlp")(normed)
        if c.norms != "before":
            made = Norm(c, name="mlp_post_norm")(made)
        return (split_rows(x + made), state), None
