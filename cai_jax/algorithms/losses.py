"""Losses, as pure functions of arrays."""

import jax
import jax.numpy as jnp
from jax import lax

# Logits held at a time, in numbers: bounds memory, and keeps them in a CPU's cache.
CHUNK_LOGITS = 2**20


def lm_cross_entropy(
    hidden: jax.Array, unembed: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Weighted next-token cross-entropy, without ever holding all logits.

    The logits are made a chunk of T at a time, and the gradients with respect to `hidden` and
    `unembed` in the same pass, while the chunk is at hand: three matrix products in all, and no
    [B, T, V] array in memory.

    Args:
        hidden: [..., T, D] after the final norm.
        unembed: [D, V].
        targets: [..., T] ids to predict.
        weights: [..., T] non-negative weights; 0 leaves a position out.

    Returns:
        (sum over positions of weight x loss in nats, sum of weights), float32 scalars. Divide the
        sums, not the means, where batches or devices are added up.
    """
    return _weighted_loss(hidden, unembed, targets, weights), jnp.sum(weights, dtype=jnp.float32)


@jax.custom_vjp
def _weighted_loss(hidden, unembed, targets, weights):
    def add_chunk(total, chunk):
        hidden, targets, weights = chunk
        _, losses, _ = _token_losses(hidden, unembed, targets)
        return total + jnp.sum(losses * weights), None

    return lax.scan(add_chunk, jnp.float32(0), _chunks(hidden, unembed, targets, weights))[0]


def _loss_forward(hidden, unembed, targets, weights):
    def add_chunk(carry, chunk):
        total, unembed_gradient = carry
        hidden, targets, weights = chunk
        logits, losses, normalizer = _token_losses(hidden, unembed, targets)
        hits = _hits(targets, logits.shape[-1])
        slopes = (jnp.exp(logits - normalizer[..., None]) - hits) * weights[..., None]
        slopes = slopes.astype(hidden.dtype)
        hidden_gradient = jnp.einsum("...v,dv->...d", slopes, unembed.astype(hidden.dtype))
        unembed_gradient += jnp.einsum(
            "td,tv->dv",
            hidden.reshape(-1, hidden.shape[-1]),
            slopes.reshape(-1, slopes.shape[-1]),
            preferred_element_type=jnp.float32,
        )
        return (total + jnp.sum(losses * weights), unembed_gradient), (hidden_gradient, losses)

    start = (jnp.float32(0), jnp.zeros(unembed.shape, jnp.float32))
    chunks = _chunks(hidden, unembed, targets, weights)
    (total, unembed_gradient), (hidden_gradients, losses) = lax.scan(add_chunk, start, chunks)
    hidden_gradient = _join(hidden_gradients, -2).reshape(hidden.shape)
    unembed_gradient = unembed_gradient.astype(unembed.dtype)
    return total, (hidden_gradient, unembed_gradient, _join(losses, -1).reshape(weights.shape))


def _loss_backward(residuals, gradient):
    hidden_gradient, unembed_gradient, losses = residuals
    return (
        hidden_gradient * gradient.astype(hidden_gradient.dtype),
        unembed_gradient * gradient.astype(unembed_gradient.dtype),
        None,
        losses * gradient,
    )


_weighted_loss.defvjp(_loss_forward, _loss_backward)


def _token_losses(hidden, unembed, targets):
    """Logits [..., T, V], losses [..., T] and log-normalizers [..., T], float32."""
    logits = jnp.einsum(
        "...d,dv->...v",
        hidden,
        unembed.astype(hidden.dtype),
        preferred_element_type=jnp.float32,
    )
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    # A sum over the vocabulary, not a gather, so that a split vocabulary stays split.
    chosen = jnp.sum(jnp.where(_hits(targets, logits.shape[-1]), logits, 0.0), axis=-1)
    return logits, normalizer - chosen, normalizer


def _hits(targets, vocab_size):
    return targets[..., None] == jnp.arange(vocab_size)


def _chunks(hidden, unembed, targets, weights):
    """Cuts T into pieces, on a new leading axis; B stays whole, since devices split it."""
    length = targets.shape[-1]
    others = targets.size // length
    pieces = _pieces(length, max(1, CHUNK_LOGITS // (others * unembed.shape[1])))
    return _cut(hidden, pieces, -2), _cut(targets, pieces, -1), _cut(weights, pieces, -1)


def _pieces(length: int, wanted: int) -> int:
    """The smallest divisor of `length` that makes pieces of at most `wanted`."""
    return next(n for n in range(1, length + 1) if length % n == 0 and length // n <= wanted)


def _cut(x, pieces, axis):
    axis = x.ndim + axis
    shape = (*x.shape[:axis], pieces, x.shape[axis] // pieces, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _join(x, axis):
    return jnp.moveaxis(x, 0, x.ndim - 1 + axis)
