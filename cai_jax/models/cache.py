"""The key/value cache: explicit, in and out of the model."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cai_jax.models.config import ModelConfig


class Cache(NamedTuple):
    """What the model keeps of the tokens it has seen.

    All rows are written at the same slot, so prompts of unequal length are padded on the left and
    `valid` marks what may be attended to.
    """

    keys: jax.Array  # [L, B, K, H, S], rotated; the layout of the product with the queries
    values: jax.Array  # [L, B, K, S, H]
    valid: jax.Array  # [B, S] bool
    length: jax.Array  # [] int32: slots written so far, padding included


def init_cache(config: ModelConfig, batch: int, span: int) -> Cache:
    """An empty cache of S = `span` slots for B = `batch` rows, in the compute dtype."""
    shape = (config.layers, batch, config.kv_heads)
    return Cache(
        keys=jnp.zeros((*shape, config.head_dim, span), config.dtype),
        values=jnp.zeros((*shape, span, config.head_dim), config.dtype),
        valid=jnp.zeros((batch, span), bool),
        length=jnp.zeros((), jnp.int32),
    )
