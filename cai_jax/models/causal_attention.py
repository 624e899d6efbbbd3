"""Attention of a text to itself, where no token sees a later one, with its gradient written out.

Axes: B batch, T positions of queries, S of keys, K key/value heads, G query heads for each of them,
H head dim.
"""

import jax
import jax.numpy as jnp

BLOCKS = 4  # of the queries; each is multiplied with the keys up to its own end alone
SHORTEST = 32  # queries in a block, at least


@jax.custom_vjp
def attend(queries: jax.Array, keys: jax.Array, values: jax.Array, bias: jax.Array) -> jax.Array:
    """softmax(queries keys^T + bias) values, three eighths of whose products are left out.

    The backward pass needs the weights and what came out: the sum over s of a weight and its
    gradient is the product of what came out and its gradient (Dao et al. 2022, appendix B.4), and
    so no second array of the weights' size is made.

    Args:
        queries: [B, K, G, T, H], scaled, of the last T positions of S.
        keys: [B, K, S, H].
        values: [B, K, S, H].
        bias: [B, T, S] float32, added to the logits; it hides, at least, later positions. It has no
            gradient.

    Returns:
        [B, K, G, T, H] in the dtype of `values`; softmax and gradients are in float32.
    """
    return _forward(queries, keys, values, bias)[0]


def _blocks(length: int, span: int) -> list[tuple[slice, slice]]:
    """Of T, from the first to the last, and of the S positions that each sees.

    One only where they would be short or unequal.
    """
    blocks = BLOCKS if length % BLOCKS == 0 and length >= BLOCKS * SHORTEST else 1
    size, before = length // blocks, span - length
    starts = range(0, length, size)
    return [(slice(start, start + size), slice(0, before + start + size)) for start in starts]


def _forward(queries, keys, values, bias):
    weights, outs = [], []
    for block, seen in _blocks(queries.shape[3], keys.shape[2]):
        of_block = queries[:, :, :, block]
        logits = _product("bkth,bksh->bkts", of_block, keys[:, :, seen], jnp.float32)
        masked = logits + bias[:, None, None, block, seen]
        weights.append(jax.nn.softmax(masked, axis=-1).astype(values.dtype))
        outs.append(_product("bkts,bksh->bkth", weights[-1], values[:, :, seen], values.dtype))
    out = jnp.concatenate(outs, axis=3)
    return out, (queries, keys, values, weights, out)


def _backward(residuals, gradient):
    queries, keys, values, weights, out = residuals
    dtype = values.dtype
    means = jnp.sum(gradient.astype(jnp.float32) * out, axis=-1, keepdims=True)  # [B, K, G, T, 1]
    of_queries = []
    of_keys, of_values = jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32)
    blocks = _blocks(queries.shape[3], keys.shape[2])
    for (block, seen), shares in zip(blocks, weights, strict=True):
        there = gradient[:, :, :, block]
        of_shares = _product("bkth,bksh->bkts", there, values[:, :, seen], jnp.float32)
        of_logits = (shares * (of_shares - means[:, :, :, block])).astype(dtype)
        of_queries.append(_product("bkts,bksh->bkth", of_logits, keys[:, :, seen], dtype))
        of_keys = of_keys.at[:, :, seen].add(_sum(of_logits, queries[:, :, :, block]))
        of_values = of_values.at[:, :, seen].add(_sum(shares, there))
    return jnp.concatenate(of_queries, axis=3), of_keys.astype(dtype), of_values.astype(dtype), None


attend.defvjp(_forward, _backward)


def _product(axes, x, y, dtype):
    """x [B, K, G, T, .] times y of each key/value head: G and T are rows of one matrix product."""
    batch, kv_heads, groups, length, _ = x.shape
    rows = x.reshape(batch, kv_heads, groups * length, -1)
    product = jnp.einsum(axes, rows, y, preferred_element_type=dtype)
    return product.reshape(batch, kv_heads, groups, length, -1)


def _sum(x, y):
    """x [B, K, G, T, S] times y [B, K, G, T, H], over the queries: [B, K, S, H]."""
    rows = (z.reshape(*z.shape[:2], -1, z.shape[-1]) for z in (x, y))
    return jnp.einsum("bkts,bkth->bksh", *rows, preferred_element_type=jnp.float32)
