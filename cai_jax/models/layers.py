"""What a layer is made of besides attention: embeddings, norms and MLPs.

Axes: B batch, T positions, D width, F hidden width, V vocabulary.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cai_jax.models.config import ModelConfig
from cai_jax.models.placing import gathered

ONE_HOT_VOCABULARY = 4096  # up to here the gradient of the embedding is a product, not a scatter

ACTIVATIONS: dict[str, Any] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def with_adapter(
    module: nn.Module, name: str, x: jax.Array, product: jax.Array, into: str, out_of: str
) -> jax.Array:
    """The product of `x` with the projection `name`, and LoRA's share of it where there is one.

    Args:
        module: whose params may have "<name>_adapter" beside the projection (models/lora.py).
        name: of the projection.
        x: what it is applied to.
        product: what came out, without the adapter.
        into: einsum of x and the factor a, to [B, T, R].
        out_of: einsum of that and the factor b, to the shape of `product`.
    """
    key = f"{name}_adapter"
    if not module.has_variable("params", key):
        return product
    factors: Any = module.get_variable("params", key)
    a, b = (factors[side].astype(x.dtype) for side in ("a", "b"))
    return product + jnp.einsum(out_of, jnp.einsum(into, x, a), b)


def project(x: jax.Array, *kernels: jax.Array) -> list[jax.Array]:
    """x [..., D] times each kernel [D, ...], to [..., ...], as products of two matrices.

    With the tokens of all rows as one axis, the gradient by a kernel is such a product too; of
    three axes XLA on a CPU would write both of its operands once more, transposed. Kernels of one
    call keep one copy of x for that gradient.
    """
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    products = [rows @ kernel.reshape(width, -1) for kernel in kernels]
    return [
        product.reshape(*x.shape[:-1], *kernel.shape[1:])
        for product, kernel in zip(products, kernels, strict=True)
    ]


class Embedder(nn.Module):
    """Token embeddings [V, D]."""

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens):
        c = self.config
        table = _table(self, c.vocab_size)
        x = lookup(table, tokens).astype(c.dtype)
        return x * jnp.asarray(c.width**0.5, c.dtype) if c.scaled_embeddings else x


class PositionEmbedder(nn.Module):
    """Learned positions [max_positions, D]; those past the end, of padding, are the last one's."""

    config: ModelConfig

    @nn.compact
    def __call__(self, positions):
        rows = self.config.max_positions
        table = _table(self, rows)
        return lookup(table, jnp.minimum(positions, rows - 1)).astype(self.config.dtype)


def _table(module: nn.Module, rows: int) -> jax.Array:
    width = module.config.width
    init = nn.initializers.normal(width**-0.5)
    return module.param("embedding", init, (rows, width), jnp.float32)


@jax.custom_vjp
def lookup(table, tokens):
    """Rows of `table` [V, D] at `tokens` [B, T]."""
    return jnp.take(table, tokens, axis=0)


def _lookup_forward(table, tokens):
    return lookup(table, tokens), (tokens, table.shape[0])


def _lookup_backward(residuals, gradient):
    tokens, vocab_size = residuals
    flat = gradient.reshape(-1, gradient.shape[-1])
    if vocab_size <= ONE_HOT_VOCABULARY:
        one_hot = jax.nn.one_hot(tokens.reshape(-1), vocab_size, dtype=flat.dtype)
        return jnp.einsum("tv,td->vd", one_hot, flat), None
    return jnp.zeros((vocab_size, flat.shape[-1]), flat.dtype).at[tokens.reshape(-1)].add(
        flat
    ), None


lookup.defvjp(_lookup_forward, _lookup_backward)


class Norm(nn.Module):
    """The norm over D: root-mean-square (Zhang and Sennrich 2019), or layer norm."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        c = self.config
        scale = norm_scale(self, (c.width,))
        if c.norm == "rms":
            return normalize(x, scale, c)
        bias = self.param("bias", nn.initializers.zeros, (c.width,), jnp.float32)
        return normalize(x, scale, c, bias)


def norm_scale(module: nn.Module, shape: tuple[int, ...]) -> jax.Array:
    """What a norm multiplies by: a parameter "scale" of `module`, or 1 more than it."""
    if module.config.unit_offset:
        return 1 + module.param("scale", nn.initializers.zeros, shape, jnp.float32)
    return module.param("scale", nn.initializers.ones, shape, jnp.float32)


def normalize(
    x: jax.Array,
    scale: jax.Array,
    config: ModelConfig,
    bias: jax.Array | None = None,
    axes: int | tuple[int, ...] = -1,
) -> jax.Array:
    """`x` at unit mean square over `axes`, times `scale`, in float32; with a bias at mean 0 too."""
    x32 = x.astype(jnp.float32)
    if bias is not None:
        x32 = x32 - jnp.mean(x32, axis=axes, keepdims=True)
    variance = jnp.mean(x32 * x32, axis=axes, keepdims=True)
    x32 = x32 * lax.rsqrt(variance + config.norm_eps) * scale
    return (x32 if bias is None else x32 + bias).astype(x.dtype)


class MLP(nn.Module):
    """down(act(gate x) * up x), the gated MLP (Shazeer 2020), or down(act(up x))."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        c = self.config
        act = ACTIVATIONS[c.activation]
        into = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        out_of = nn.initializers.variance_scaling(0.5 / c.layers, "fan_in", "normal")
        if c.gated:
            gate = self._kernel("gate", into, (c.width, c.hidden))
        up = self._kernel("up", into, (c.width, c.hidden))
        down = self._kernel("down", out_of, (c.hidden, c.width))
        into_hidden = "btd,dr->btr", "btr,rf->btf"
        if c.gated:
            gates, upwards = project(x, gate, up)
            gates = with_adapter(self, "gate", x, gates, *into_hidden)
        else:
            (upwards,) = project(x, up)
        upwards = self._biased(with_adapter(self, "up", x, upwards, *into_hidden), "up_bias")
        inside = act(self._biased(gates, "gate_bias")) * upwards if c.gated else act(upwards)
        (made,) = project(inside, down)
        made = with_adapter(self, "down", inside, made, "btf,fr->btr", "btr,rd->btd")
        return self._biased(made, "down_bias")

    def _kernel(self, name: str, init: Any, shape: tuple[int, ...]) -> jax.Array:
        kernel = self.param(name, init, shape, jnp.float32).astype(self.config.dtype)
        return gathered(kernel, name)

    def _biased(self, x: jax.Array, name: str) -> jax.Array:
        if not self.config.mlp_bias:
            return x
        return x + self.param(name, nn.initializers.zeros, x.shape[-1:], jnp.float32).astype(
            x.dtype
        )
