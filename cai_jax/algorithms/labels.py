"""Soft preference labels from the feedback model's two log-probabilities (paper section 4.1).

Every function is elementwise on arrays [B]; probabilities are of "response A is the better one".
"""

import jax
import jax.numpy as jnp


def soft_label(logp_first: jax.Array, logp_second: jax.Array) -> jax.Array:
    """The probability of the first choice, normalised over the two.

    Whatever mass the model gave to other continuations cancels; log-probabilities of -0.3 and -1.6
    give 0.7408 / (0.7408 + 0.2019) = 0.786.

    Args:
        logp_first: log-probability (nats) of " (A)", [B].
        logp_second: log-probability (nats) of " (B)", [B].

    Returns:
        P(first) [B] in [0, 1], f32.
    """
    # The sigmoid of the difference is that quotient, without the underflow of exp(-200).
    first, second = jnp.asarray(logp_first, jnp.float32), jnp.asarray(logp_second, jnp.float32)
    return jax.nn.sigmoid(first - second)


def placed_label(p_first: jax.Array, a_is_first: jax.Array) -> jax.Array:
    """P(response A is better) [B] from P(the response at (A) is better) and who stood there."""
    return jnp.where(a_is_first, p_first, 1.0 - p_first)


def clamped_label(p: jax.Array, low: float, high: float) -> jax.Array:
    """Clamps labels into [low, high]; 0.4..0.6 in the paper, with chain of thought (section 4.1).

    Reasoning makes the model nearly certain of its answer, right or wrong; the clamp keeps which
    side it took and takes back the certainty.
    """
    return jnp.clip(p, low, high)


def hard_label(p: jax.Array) -> jax.Array:
    """1 or 0, whichever side of a half the label is on; an exact half stays a half (no answer)."""
    return jnp.where(p > 0.5, 1.0, jnp.where(p < 0.5, 0.0, 0.5))


def label_entropy(p: jax.Array) -> jax.Array:
    """Entropy (nats) of each label [B]: the least log-loss that any preference model can reach."""
    # xlogy(0, 0) is 0, the limit.
    return -(jax.scipy.special.xlogy(p, p) + jax.scipy.special.xlogy(1.0 - p, 1.0 - p))
