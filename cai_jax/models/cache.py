"""The key/value cache: explicit, in and out of the model."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cai_jax.models.config import ModelConfig

Arrays = jax.Array | tuple[jax.Array, ...]
"""Of all layers; or one array each, without L, beside parameters `transformer.by_layer`."""


class Cache(NamedTuple):
    """What the model keeps of the tokens it has seen.

    All rows are written at the same slot, so prompts of unequal length are padded on the left and
    `valid` marks what may be attended to.
    """

    keys: Arrays  # [L, B, K, H, S], rotated; the layout of the product with the queries
    values: Arrays  # [L, B, K, S, H]
    valid: jax.Array  # [B, S] bool
    length: jax.Array  # [] int32: slots written so far, padding included


class Past(NamedTuple):
    """Keys and values of texts of unequal length, each from column 0 on: only read by the model.

    In 8 bits, each column of a head has a factor; a column is its whole numbers times that.
    """

    keys: Arrays  # [L, B, K, H, S], rotated
    values: Arrays  # [L, B, K, S, H]
    lengths: jax.Array | None  # [B] int32: columns that hold a token
    scales: tuple[Arrays, Arrays] | None = None  # [L, B, K, S] of keys and values, float32

    @property
    def span(self) -> int:
        """S."""
        return jax.tree.leaves(self.values)[0].shape[-2]


def init_cache(config: ModelConfig, batch: int, span: int, *, by_layer: bool = False) -> Cache:
    """An empty cache of S = `span` slots for B = `batch` rows, in the compute dtype.

    Args:
        config: of the model.
        batch: B.
        span: S.
        by_layer: an array for each layer.
    """

    def zeros(*shape: int) -> Arrays:
        if by_layer:
            return tuple(jnp.zeros(shape, config.dtype) for _ in range(config.layers))
        return jnp.zeros((config.layers, *shape), config.dtype)

    return Cache(
        keys=zeros(batch, config.kv_heads, config.head_dim, span),
        values=zeros(batch, config.kv_heads, span, config.head_dim),
        valid=jnp.zeros((batch, span), bool),
        length=jnp.zeros((), jnp.int32),
    )
