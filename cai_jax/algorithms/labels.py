"""Soft preference labels from the feedback model's two log-probabilities (paper section 4.1).

Every function but `averaged_label` is elementwise on arrays [B]; probabilities are of "response A
is the better one".
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


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


def averaged_label(
    logps: ArrayLike, a_is_first: ArrayLike, low: float, high: float, *, hard: bool = False
) -> jax.Array:
    """The labels of B pairs from Q questions about each: placements, reasonings, principles.

    Each answer is clamped, and then the mean is taken. What the clamp takes back is the certainty
    of a single chain of thought, which is spurious; that several agree is evidence, and stays in
    the label: three sure answers for and two against give 0.52 within 0.4..0.6, where the clamped
    mean would be 0.6 however many agree. The paper clamps "the CoT probabilities" (section 4.1),
    and averages samples only where nothing is clamped (Fig 4).

    Args:
        logps: log-probabilities (nats) of " (A)" and " (B)", [B, Q, 2].
        a_is_first: whether response A stood at (A), [B, Q].
        low: the least that an answer and a label may be.
        high: the most.
        hard: the mean becomes 1 or 0, and is clamped again.
    """
    first, second = jnp.moveaxis(jnp.asarray(logps), -1, 0)
    p = placed_label(soft_label(first, second), jnp.asarray(a_is_first))
    p = clamped_label(p, low, high).mean(axis=-1)
    # Of a soft label this takes no more than a rounding error.
    return clamped_label(hard_label(p) if hard else p, low, high)


def label_entropy(p: jax.Array) -> jax.Array:
    """Entropy (nats) of each label [B]: the least log-loss that any preference model can reach."""
    # xlogy(0, 0) is 0, the limit.
    return -(jax.scipy.special.xlogy(p, p) + jax.scipy.special.xlogy(1.0 - p, 1.0 - p))
