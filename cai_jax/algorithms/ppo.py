"""One update of PPO (Schulman et al. 2017), as a pure function of what was sampled.

Axes: B responses, P prompt positions (padded on the left), R response positions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cai_jax.algorithms import advantages, losses

Evaluate = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""(params, tokens [B, P + R], mask) -> (log-probabilities, values) [B, R] of the response."""


class Experience(NamedTuple):
    """Sampled responses, and what policy, reference and preference model made of them."""

    tokens: jax.Array  # [B, P + R] int32: prompt and response
    mask: jax.Array  # [B, P + R] int32: 1 for a token
    response: jax.Array  # [B, R] bool: True for generated tokens, the end token included
    logprobs: jax.Array  # [B, R] of the response (nats) under the policy that sampled it
    ref_logprobs: jax.Array  # [B, R] under the reference
    values: jax.Array  # [B, R]: the return expected before each token
    scores: jax.Array  # [B] of the preference model
    ended: jax.Array  # [B] bool: the response has its end token


def make_update(
    config: Any, evaluate: Evaluate, apply_gradients: Callable[[Any, Any], Any]
) -> Callable[[Any, Experience, jax.Array, jax.Array], tuple[Any, dict[str, jax.Array]]]:
    """The pure program update(state, experience, offset, key) -> (state, metrics).

    It makes `epochs` passes over the responses, in `minibatches` updates each, always against the
    log-probabilities and values of the sampling policy. `offset` is taken off all scores; `key`
    shuffles the responses into minibatches.

    Args:
        config: the parameters of the ppo step.
        evaluate: what the parameters `state.params` think of a batch.
        apply_gradients: (state, gradients) -> state.
    """

    def loss(params, batch):
        experience, of_tokens, returns = batch
        logprobs, values = evaluate(params, experience.tokens, experience.mask)
        surrogate = (logprobs, experience.logprobs, of_tokens, experience.response)
        policy_loss = losses.ppo_policy(*surrogate, clip=config.clip_ratio)
        clip_fraction = losses.ppo_clip_fraction(*surrogate, clip=config.clip_ratio)
        value_loss = losses.ppo_value(
            values, experience.values, returns, experience.response, clip=config.value_clip
        )
        return policy_loss + config.value_coefficient * value_loss, {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "clip_fraction": clip_fraction,
        }

    def update(state, experience, offset, key):
        batch = (experience, *advantages_of(config, experience, offset))

        def step(state, rows):
            minibatch = jax.tree.map(lambda array: array[rows], batch)
            (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(
                state.params, minibatch
            )
            metrics["gradient_norm"] = optax.tree.norm(gradients)
            return apply_gradients(state, gradients), metrics

        orders = jax.vmap(lambda key: jax.random.permutation(key, experience.scores.shape[0]))(
            jax.random.split(key, config.epochs)
        )
        orders = orders.reshape(config.epochs * config.minibatches, -1)
        state, metrics = jax.lax.scan(step, state, orders)
        return state, sampled_metrics(experience) | jax.tree.map(jnp.mean, metrics)

    return update


def advantages_of(
    config: Any, experience: Experience, offset: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """Advantages and returns [B, R] of sampled responses; no gradient passes them.

    With several samples a prompt, in rows that follow one another, `offset` cancels.
    """
    scores = experience.scores - offset - config.missing_eos_penalty * ~experience.ended
    if config.samples_per_prompt > 1:
        scores = scores - advantages.others_mean(scores, config.samples_per_prompt)
    rewards = advantages.kl_shaped_rewards(
        scores,
        experience.logprobs,
        experience.ref_logprobs,
        experience.response,
        kl_coef=config.kl_coefficient,
        kind="k1",
    )
    found, returns = advantages.gae(
        rewards,
        experience.values,
        experience.response,
        gamma=config.gamma,
        lam=config.gae_lambda,
    )
    if config.whiten_advantages:
        found = advantages.whiten(found, experience.response)
    return found, returns


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
        "missing_eos": jnp.mean(~experience.ended),
    }
