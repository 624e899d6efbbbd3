"""One update of PPO (Schulman et al. 2017), as a pure function of what was sampled.

Advantages come from a value model ("gae"), or from the other responses to the same prompt: "group"
(GRPO, Shao et al. 2024) and "leave_one_out" (RLOO, Ahmadian et al. 2024) need no value model. In
all of them the KL penalty is part of the reward, and losses are means over tokens: a response is
not divided by its own length, which would favour long wrong ones.

Axes: B responses, P prompt positions (padded on the left), R response positions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cai_jax.algorithms import advantages, losses
from cai_jax.algorithms.ppo_options import evaluated_by_update

ADVANTAGES = ("gae", "group", "leave_one_out")

Evaluate = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""(params, tokens [B, P + R], mask) -> (log-probabilities, values) [B, R] of the response."""


class Experience(NamedTuple):
    """Sampled responses, and what policy, reference and preference model made of them."""

    tokens: jax.Array  # [B, P + R] int32: prompt and response
    mask: jax.Array  # [B, P + R] int32: 1 for a token
    response: jax.Array  # [B, R] bool: True for generated tokens, the end token included
    ref_logprobs: jax.Array  # [B, R] of the response (nats) under the reference
    last_values: jax.Array  # [B]: the return expected after the last token, were it not the last
    scores: jax.Array  # [B] of the preference model
    ended: jax.Array  # [B] bool: the response has its end token
    # Of the policy that sampled; 0 until an update has found them, where `evaluated_by_update`.
    logprobs: jax.Array  # [B, R] of the response, at the reference's temperature
    values: jax.Array  # [B, R]: the return expected before each token


class Controls(NamedTuple):
    """Numbers that change from one iteration to the next; arguments, so that nothing is compiled
    again. Float32 scalars, of JAX or NumPy."""

    offset: Any  # taken off the scores
    scale: Any  # divides them then
    kl_coef: Any  # beta


def make_update(
    config: Any, evaluate: Evaluate, apply_gradients: Callable[[Any, Any], Any]
) -> Callable[[Any, Experience, Controls, jax.Array], tuple[Any, Experience, dict[str, jax.Array]]]:
    """The pure program update(state, experience, controls, key) -> (state, experience, metrics).

    It makes `epochs` passes over the responses, in `minibatches` updates each, always against the
    log-probabilities and values of the sampling policy, which the experience that it returns has;
    `key` shuffles the responses into minibatches. With `kl_stop` the updates end before the first
    one whose minibatch the policy already treats that differently.

    Args:
        config: the parameters of the ppo step.
        evaluate: what the parameters `state.params` think of a batch.
        apply_gradients: (state, gradients) -> state.
    """
    has_values, is_whole = config.advantage == "gae", evaluated_by_update(config)

    def loss(params, batch, controls, is_first):
        experience, of_tokens, returns = batch
        logprobs, values = evaluate(params, experience.tokens, experience.mask)
        if is_whole:
            first = jax.lax.stop_gradient((logprobs, values))
            known = (experience.logprobs, experience.values)
            known = jax.tree.map(lambda new, old: jnp.where(is_first, new, old), first, known)
            experience = experience._replace(logprobs=known[0], values=known[1])
            of_tokens, returns = advantages_of(config, experience, controls)
        surrogate = (logprobs, experience.logprobs, of_tokens, experience.response)
        total = losses.ppo_policy(*surrogate, clip=config.clip_ratio)
        moved = advantages.kl_estimate(experience.logprobs, logprobs, kind="k3")
        metrics = {
            "policy_loss": total,
            "clip_fraction": losses.ppo_clip_fraction(*surrogate, clip=config.clip_ratio),
            "policy_kl": losses.masked_mean(moved, experience.response),
        }
        if has_values:
            metrics["value_loss"] = losses.ppo_value(
                values, experience.values, returns, experience.response, clip=config.value_clip
            )
            total += config.value_coefficient * metrics["value_loss"]
        return total, (metrics, (experience, of_tokens, returns))

    def update(state, experience, controls, key):
        batch = (experience, *advantages_of(config, experience, controls))

        def step(carry, rows):
            state, batch, going, is_first = carry
            minibatch = batch if is_whole else jax.tree.map(lambda array: array[rows], batch)
            (_, (metrics, seen)), gradients = jax.value_and_grad(loss, has_aux=True)(
                state.params, minibatch, controls, is_first
            )
            metrics["gradient_norm"] = optax.tree.norm(gradients)
            after = apply_gradients(state, gradients)
            if config.kl_stop:
                going &= metrics["policy_kl"] <= config.kl_stop
                after = jax.tree.map(lambda new, old: jnp.where(going, new, old), after, state)
                metrics["updates_made"] = going
            return (after, seen if is_whole else batch, going, jnp.array(False)), metrics

        orders = jax.vmap(lambda key: jax.random.permutation(key, experience.scores.shape[0]))(
            jax.random.split(key, config.epochs)
        )
        orders = orders.reshape(config.epochs * config.minibatches, -1)
        carry = (state, batch, jnp.array(True), jnp.array(True))
        (state, (experience, _, returns), _, _), metrics = jax.lax.scan(step, carry, orders)
        metrics = sampled_metrics(experience) | jax.tree.map(jnp.mean, metrics)
        if has_values:
            metrics["explained_variance"] = explained_variance(
                experience.values, returns, experience.response
            )
        return state, experience, metrics

    return update


def advantages_of(
    config: Any, experience: Experience, controls: Controls
) -> tuple[jax.Array, jax.Array]:
    """Advantages and returns [B, R] of sampled responses; no gradient passes them.

    Rows of one prompt follow one another. Where responses are compared with others to the same
    prompt (`baseline` or `advantage`), `controls.offset` cancels.
    """
    response, samples = experience.response, config.samples_per_prompt
    scores = shaped_scores(config, experience, controls)
    if config.advantage == "gae":
        if config.baseline == "leave_one_out":
            scores = scores - advantages.others_mean(scores, samples)
        if config.truncation == "bootstrap":
            # What was cut off is not over: its value takes the place of a score.
            to_come = config.gamma * experience.last_values - config.missing_eos_penalty
            scores = jnp.where(experience.ended, scores, to_come)
    rewards = advantages.kl_shaped_rewards(
        scores,
        experience.logprobs,
        experience.ref_logprobs,
        response,
        kl_coef=controls.kl_coef,
        kind=config.kl_estimate,
    )
    if config.advantage == "gae":
        found, returns = advantages.gae(
            rewards, experience.values, response, gamma=config.gamma, lam=config.gae_lambda
        )
    else:
        totals = jnp.sum(rewards, axis=1)
        if config.advantage == "group":
            of_response = advantages.group_normalized(totals, samples)
        else:
            of_response = totals - advantages.others_mean(totals, samples)
        found = jnp.where(response, of_response[:, None], 0)
        returns = jnp.where(response, totals[:, None], 0)
    if config.whiten_advantages:
        found = advantages.whiten(found, response)
    return found, returns


def shaped_scores(config: Any, experience: Experience, controls: Controls) -> jax.Array:
    """Scores [B] as they enter the reward: normalised, clipped, less the missing-EOS penalty."""
    scores = experience.scores - controls.offset
    if config.score_normalization in ("running", "stored"):
        scores = scores / controls.scale
    if config.score_clip:
        scores = jnp.clip(scores, -config.score_clip, config.score_clip)
    return scores - config.missing_eos_penalty * ~experience.ended


def explained_variance(values: jax.Array, returns: jax.Array, mask: jax.Array) -> jax.Array:
    """1 - var(returns - values) / var(returns) over tokens: 1 is perfect, 0 as good as a constant.

    A float32 scalar; 0 where all returns are the same.
    """

    def variance(x):
        return losses.masked_mean((x - losses.masked_mean(x, mask)) ** 2, mask)

    of_returns = variance(returns)
    share = variance(returns - values) / jnp.maximum(of_returns, 1e-12)
    return jnp.where(of_returns > 1e-12, 1 - share, 0.0)


def sampled_metrics(experience: Experience) -> dict[str, jax.Array]:
    """What a batch of responses is like, as float32 scalars; score, kl and length a response."""
    response = experience.response
    kl = jnp.where(response, experience.logprobs - experience.ref_logprobs, 0)
    return {
        "score": jnp.mean(experience.scores),
        "kl": jnp.mean(jnp.sum(kl, axis=1)),
        "kl_per_token": losses.masked_mean(kl, response),
        "length": jnp.mean(jnp.sum(response, axis=1)),
        # An estimate from the tokens drawn, which costs nothing.
        "entropy": -losses.masked_mean(experience.logprobs, response),
        "eos_rate": jnp.mean(experience.ended),
    }
