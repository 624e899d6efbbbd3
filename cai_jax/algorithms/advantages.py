"""From scores and KL to advantages: what PPO learns from (Schulman et al. 2016, 2017).

Arrays are [B, T]: B responses, T token positions. A mask is True (or not 0) for the tokens of a
response; a position that is masked out, wherever it stands, might as well not be there.
"""

import jax
import jax.numpy as jnp
from jax import lax

from cai_jax.errors import InputError

KL_ESTIMATES = ("k1", "k3")


def kl_estimate(logp: jax.Array, ref_logp: jax.Array, *, kind: str) -> jax.Array:
    """Estimates of the KL divergence of the policy from the reference, one of each sampled token.

    With x = logp - ref_logp, k1 is x: unbiased, of either sign. k3 is exp(-x) - 1 + x (Schulman
    2020): unbiased too, never negative, and of less variance while the two are close. Neither is
    |x|, whose mean is no divergence. As part of a reward k1 gives the gradient of
    KL(policy || reference); k3 gives that of KL(policy || reference) - KL(reference || policy),
    which vanishes to first order where the two are close: it holds the policy by far less.

    Args:
        logp: [B, T] log-probabilities (nats) of the sampled tokens under the policy that sampled
            them, at the temperature of sampling.
        ref_logp: [B, T] under the reference, at the same temperature.
        kind: "k1" or "k3".

    Returns:
        [B, T] float32, nats.

    Raises:
        InputError: another kind.
    """
    log_ratio = jnp.asarray(logp, jnp.float32) - jnp.asarray(ref_logp, jnp.float32)
    if kind == "k1":
        return log_ratio
    if kind == "k3":
        return jnp.expm1(-log_ratio) + log_ratio
    raise InputError(f"kind of KL estimate: expected {' or '.join(KL_ESTIMATES)}, found {kind!r}")


def kl_shaped_rewards(
    scores: jax.Array,
    logp: jax.Array,
    ref_logp: jax.Array,
    mask: jax.Array,
    *,
    kl_coef: float | jax.Array,
    kind: str,
) -> jax.Array:
    """The reward of each token: -beta x KL, and the response's score at its last token.

    With k1 their sum over a response is r_PM - beta x log(policy / reference), the reward of Bai et
    al. 2022a (section 4.1).

    Args:
        scores: [B] of whole responses.
        logp: [B, T] log-probabilities (nats) of the sampled tokens under the policy.
        ref_logp: [B, T] under the reference.
        mask: [B, T] True for the tokens of a response, an end token included; a row has at least
            one.
        kl_coef: beta, in units of score a nat.
        kind: of the estimate, see `kl_estimate`.

    Returns:
        [B, T] float32, 0 where masked.

    Raises:
        InputError: another kind.
    """
    last, scores = last_tokens(mask), jnp.asarray(scores, jnp.float32)
    penalties = -kl_coef * kl_estimate(logp, ref_logp, kind=kind)
    return jnp.where(mask, penalties + jnp.where(last, scores[:, None], 0), 0)


def last_tokens(mask: jax.Array) -> jax.Array:
    """[B, T] True at the last token of each response."""
    mask = jnp.asarray(mask, bool)
    remaining = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]
    return mask & (remaining == 1)


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


def group_normalized(rewards: jax.Array, samples: int) -> jax.Array:
    """Rewards [B] of whole responses at mean 0 and deviation 1 among those to the same prompt.

    The advantage of GRPO (Shao et al. 2024, section 4.1.2); the deviation is that of the samples as
    a population. A prompt whose responses are all worth the same teaches nothing: 0.

    Args:
        rewards: [B], those of one prompt next to each other.
        samples: responses to a prompt, at least 2; divides B.
    """
    groups = rewards.reshape(-1, samples)
    centred = groups - jnp.mean(groups, axis=1, keepdims=True)
    deviation = jnp.sqrt(jnp.mean(centred**2, axis=1, keepdims=True))
    return (centred / (deviation + 1e-6)).reshape(rewards.shape)


def gae(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, *, gamma: float, lam: float
) -> tuple[jax.Array, jax.Array]:
    """Generalized advantage estimates (Schulman et al. 2016, equation 16) and returns.

    A_t = delta_t + gamma x lambda x A_{t+1}, with delta_t = r_t + gamma V_{t+1} - V_t. After its
    last token a response is over: value and advantage are 0 there.

    Args:
        rewards: [B, T].
        values: [B, T] what is expected before each token is chosen, in units of reward.
        mask: [B, T].
        gamma: discount a token; 1 for texts.
        lam: lambda: 0 trusts the values, 1 the rewards that came.

    Returns:
        (advantages, returns) [B, T] float32, 0 where masked. Returns, the targets of the values,
        are advantages + values.
    """
    mask = jnp.asarray(mask, bool)
    rewards, values = (jnp.where(mask, x, 0).astype(jnp.float32) for x in (rewards, values))
    nothing = jnp.zeros_like(values[:, 0])

    def pass_on(later, column):
        value, present = column
        return jnp.where(present, value, later), later

    _, following = lax.scan(pass_on, nothing, (values.T, mask.T), reverse=True)
    deltas = rewards + gamma * following.T - values

    def step(later, column):
        delta, present = column
        advantage = delta + gamma * lam * later
        return jnp.where(present, advantage, later), advantage

    _, advantages = lax.scan(step, nothing, (deltas.T, mask.T), reverse=True)
    advantages = jnp.where(mask, advantages.T, 0)
    return advantages, advantages + values


def whiten(x: jax.Array, mask: jax.Array, *, shift_mean: bool = True) -> jax.Array:
    """`x` at variance 1 over the masked-in positions of all rows, and at mean 0; 0 elsewhere.

    The rows of all devices count: inside one jitted program the sums are over the global batch.

    Args:
        x: [B, T].
        mask: [B, T]; at least two positions are True.
        shift_mean: False keeps the mean, as one does with rewards.

    Returns:
        [B, T] float32. The variance is the unbiased one (divided by n - 1), plus 1e-8 so that equal
        numbers stay finite.
    """
    count = jnp.sum(mask)
    mean = jnp.sum(jnp.where(mask, x, 0)) / count
    centred = jnp.where(mask, x - mean, 0)
    variance = jnp.sum(centred**2) / jnp.maximum(count - 1, 1)
    white = centred * lax.rsqrt(variance + 1e-8)
    return white if shift_mean else jnp.where(mask, white + mean, 0)
