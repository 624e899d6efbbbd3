"""The key/value cache: explicit, in and out of the model."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cai_jax.models.attention_kernels import Reading
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


Trunk = tuple[Arrays, Arrays]
"""Keys [L, 1, K, H, P], rotated, and values [L, 1, K, P, H] of what several texts begin with."""


class Past(NamedTuple):
    """Keys and values of texts of unequal length, each from column 0 on: only read by the model.

    In 8 bits, each column of a head has a factor; a column is its whole numbers times that. Texts
    that begin with the same P tokens may share one trunk of these, and hold what follows alone.
    """

    keys: Arrays  # [L, B, K, H, S], rotated
    values: Arrays  # [L, B, K, S, H]
    lengths: jax.Array | None  # [B] int32: tokens of the text, those of its trunk included
    scales: tuple[Arrays, Arrays] | None = None  # [L, B, K, S] of keys and values, float32
    trunk: Trunk | None = None
    base: jax.Array | None = None  # [B] int32: tokens of the trunk that the text begins with, or 0
    reading: Reading | None = None  # by a kernel, which a step of one token a text may use

    @property
    def trunk_span(self) -> int:
        """P; 0 without a trunk."""
        return 0 if self.trunk is None else jax.tree.leaves(self.trunk[1])[0].shape[-2]

    @property
    def span(self) -> int:
        """P + S: the columns that a text may see."""
        return self.trunk_span + jax.tree.leaves(self.values)[0].shape[-2]


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
