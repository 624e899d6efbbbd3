"""From scores and KL to advantages: what PPO learns from (Schulman et al. 2016, 2017).

Arrays are [B, T]: B responses, T token positions, counted from the first token of the response. A
mask is True for the tokens of a response, which begin at position 0 and have no gap.
"""

import jax
import jax.numpy as jnp
from jax import lax


def token_rewards(
    scores: jax.Array, kl: jax.Array, mask: jax.Array, kl_coefficient: float
) -> jax.Array:
    """The reward of each token: -beta x KL, and the response's score at its last token.

    Their sum over a response is r_PM - beta x KL, the reward of Bai et al. 2022a (section 4.1).

    Args:
        scores: [B] of whole responses.
        kl: [B, T] log-probability (nats) of each token under the policy that sampled it, minus that
            under the reference. Signed: its mean is the KL divergence, that of its size is not.
        mask: [B, T]; a row has at least one token.
        kl_coefficient: beta.

    Returns:
        [B, T] float32, 0 where masked.
    """
    after = jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
    last = mask & ~after
    penalties = -kl_coefficient * kl.astype(jnp.float32)
    return jnp.where(mask, penalties + jnp.where(last, scores.astype(jnp.float32)[:, None], 0), 0)


def others_mean(scores: jax.Array, samples: int) -> jax.Array:
    """The mean score [B] of the other responses to the same prompt.

    A baseline that does not depend on the response itself, and so biases no gradient (Kool et al.
    2019; Ahmadian et al. 2024). A preference model is trained on comparisons of responses to one
    prompt: how it ranks a prompt above another means nothing, and is taken out here.

    Args:
        scores: [B], those of one prompt next to each other.
        samples: responses to a prompt, at least 2; divides B.
    """
    groups = scores.reshape(-1, samples)
    others = jnp.sum(groups, axis=1, keepdims=True) - groups
    return (others / (samples - 1)).reshape(scores.shape)


def generalized_advantages(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, gamma: float, gae_lambda: float
) -> tuple[jax.Array, jax.Array]:
    """Generalized advantage estimates (Schulman et al. 2016, equation 16) and returns.

    A_t = delta_t + gamma x lambda x A_{t+1}, with delta_t = r_t + gamma V_{t+1} - V_t. After its
    last token a response is over: value and advantage are 0 there.

    Args:
        rewards: [B, T].
        values: [B, T] what is expected before each token is chosen.
        mask: [B, T].
        gamma: discount a token; 1 for texts.
        gae_lambda: 0 trusts the values, 1 the rewards that came.

    Returns:
        (advantages, returns) [B, T] float32, 0 where masked. Returns, the targets of the values,
        are advantages + values.
    """
    rewards, values = (jnp.where(mask, x, 0).astype(jnp.float32) for x in (rewards, values))
    following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    deltas = rewards + gamma * following - values

    def step(later, delta):
        advantage = delta + gamma * gae_lambda * later
        return advantage, advantage

    # Behind the end of a row deltas are 0, so nothing enters it from there.
    _, advantages = lax.scan(step, jnp.zeros_like(deltas[:, 0]), deltas.T, reverse=True)
    return advantages.T, advantages.T + values


def whiten(x: jax.Array, mask: jax.Array) -> jax.Array:
    """`x` [B, T] at mean 0 and variance 1 over the masked-in positions of all rows; 0 elsewhere.

    The variance is the unbiased one (divided by n - 1).
    """
    count = jnp.sum(mask)
    mean = jnp.sum(jnp.where(mask, x, 0)) / count
    centred = jnp.where(mask, x - mean, 0)
    variance = jnp.sum(centred**2) / jnp.maximum(count - 1, 1)
    return centred * lax.rsqrt(variance + 1e-8)
