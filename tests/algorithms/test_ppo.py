from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.algorithms import ppo

RESPONSE, VOCABULARY = 5, 7


class State(NamedTuple):
    params: dict
    steps: int


def settings(**changes):
    return SimpleNamespace(
        **{
            "kl_coefficient": 0.1,
            "missing_eos_penalty": 0.75,
            "samples_per_prompt": 1,
            "gamma": 1.0,
            "gae_lambda": 1.0,
            "whiten_advantages": True,
            "epochs": 1,
            "minibatches": 1,
            "clip_ratio": 0.2,
            "value_clip": 0.2,
            "value_coefficient": 0.5,
        }
        | changes
    )


def experience_of(params, scores, ended=None, seed=0):
    """Responses of 5, 3, 5, 3 ... tokens after prompts of 2."""
    rng = np.random.default_rng(seed)
    count = len(scores)
    lengths = np.resize([5, 3], count)
    response = np.arange(RESPONSE) < lengths[:, None]
    tokens = rng.integers(0, VOCABULARY, (count, 2 + RESPONSE)).astype(np.int32)
    mask = np.concatenate([np.ones((count, 2)), response], axis=1).astype(np.int32)
    logprobs, values = evaluate(params, tokens, mask)
    return ppo.Experience(
        tokens=tokens,
        mask=mask,
        response=response,
        logprobs=logprobs,
        ref_logprobs=rng.normal(size=(count, RESPONSE)).astype(np.float32),
        values=values,
        scores=np.array(scores, np.float32),
        ended=np.ones(count, bool) if ended is None else np.array(ended),
    )


def evaluate(params, tokens, mask):
    """A policy without memory: one distribution over tokens, and one value."""
    logprobs = jax.nn.log_softmax(params["logits"])[tokens[:, -RESPONSE:]]
    return logprobs, jnp.full(logprobs.shape, params["value"])


def descend(state, gradients):
    """Gradient descent that counts its steps."""
    return State(jax.tree.map(lambda p, g: p - 0.5 * g, state.params, gradients), state.steps + 1)


def start(seed=0):
    logits = np.random.default_rng(seed).normal(size=VOCABULARY).astype(np.float32)
    return State({"logits": jnp.array(logits), "value": jnp.float32(0.3)}, 0)


def test_returns_hold_score_offset_penalties_and_kl():
    experience = experience_of(start().params, [2.0, 2.0], ended=[True, False])
    advantages, returns = ppo.advantages_of(settings(), experience, 0.5)
    kl = np.where(experience.response, experience.logprobs - experience.ref_logprobs, 0).sum(1)
    # Without discounts the return of the first token is the whole reward.
    expected = np.array([2.0 - 0.5, 2.0 - 0.5 - 0.75]) - 0.1 * kl
    np.testing.assert_allclose(returns[:, 0], expected, atol=1e-5)
    tokens = np.asarray(advantages)[experience.response]
    assert tokens.mean() == pytest.approx(0, abs=1e-5)
    assert tokens.std(ddof=1) == pytest.approx(1, abs=1e-4)
    plain, _ = ppo.advantages_of(settings(whiten_advantages=False), experience, 0.5)
    np.testing.assert_allclose(plain[:, 0], expected - 0.3, atol=1e-5)


def test_other_samples_of_the_prompt_are_the_baseline():
    """How a preference model ranks prompts teaches nothing: only how it ranks their responses."""
    config = settings(samples_per_prompt=2, kl_coefficient=0.0)
    scores, ended = [7.0, 5.0, -3.0, -3.5], [True, True, True, False]
    experience = experience_of(start().params, scores, ended=ended)
    advantages, returns = ppo.advantages_of(config, experience, 0.0)
    # The last is 0.5 worse, and without its end 0.75 more.
    np.testing.assert_allclose(returns[:, 0], [2.0, -2.0, 1.25, -1.25], atol=1e-6)
    shifted = experience._replace(scores=experience.scores + np.array([9, 9, -4, -4], np.float32))
    np.testing.assert_allclose(ppo.advantages_of(config, shifted, 1.5)[0], advantages, atol=1e-5)


def test_first_update_is_the_policy_gradient():
    """Where nothing has moved yet nothing is clipped: the gradient has a closed form."""
    state = start()
    experience = experience_of(state.params, [1.0, -1.0, 0.5, 2.0])
    advantages, returns = map(np.asarray, ppo.advantages_of(settings(), experience, 0.0))
    present = experience.response
    probabilities = np.asarray(jax.nn.softmax(state.params["logits"]))
    taken = np.eye(VOCABULARY)[experience.tokens[:, -RESPONSE:]]
    slopes = advantages[..., None] * (taken - probabilities)
    expected = np.asarray(state.params["logits"]) + 0.5 * slopes[present].mean(axis=0)
    value = 0.3 - 0.5 * 0.5 * (0.3 - returns[present]).mean()

    update = jax.jit(ppo.make_update(settings(), evaluate, descend))
    state, metrics = update(state, experience, 0.0, jax.random.key(0))
    np.testing.assert_allclose(state.params["logits"], expected, atol=1e-6)
    assert float(state.params["value"]) == pytest.approx(value, abs=1e-6)
    assert float(metrics["clip_fraction"]) == 0 and int(state.steps) == 1


def test_every_epoch_sees_every_response_against_the_old_policy():
    """The ratio leaves 1 after the first step, and is clipped once it is far enough."""
    scores = np.random.default_rng(3).normal(size=8)
    experience = experience_of(start().params, scores)
    once, often = (
        jax.jit(ppo.make_update(settings(epochs=epochs, minibatches=2), evaluate, descend))(
            start(), experience, 0.0, jax.random.key(0)
        )
        for epochs in (1, 6)
    )
    assert (int(once[0].steps), int(often[0].steps)) == (2, 12)
    assert float(often[1]["clip_fraction"]) > 0.02
    moved = evaluate(often[0].params, experience.tokens, experience.mask)[0]
    ratio = np.exp(moved - experience.logprobs)[experience.response]
    # Unclipped ascent at this rate would go on; the clipped objective stays near 1.
    assert 1.05 < ratio.max() < 1.7


def test_metrics_are_of_responses_and_not_of_padding():
    experience = experience_of(start().params, [1.0, 3.0], ended=[True, False])
    found = ppo.sampled_metrics(experience)
    padded = np.where(experience.response, experience.logprobs, 99.0)
    assert found == ppo.sampled_metrics(experience._replace(logprobs=padded))
    log_ratio = experience.logprobs - experience.ref_logprobs
    total = float(log_ratio[0].sum() + log_ratio[1, :3].sum())
    assert float(found["kl"]) == pytest.approx(total / 2, abs=1e-5)
    assert float(found["kl_per_token"]) == pytest.approx(total / 8, abs=1e-5)
    assert float(found["entropy"]) == pytest.approx(
        -float(experience.logprobs[experience.response].mean()), abs=1e-5
    )
    names = ("score", "length", "missing_eos")
    assert [float(found[name]) for name in names] == [2.0, 4.0, 0.5]
