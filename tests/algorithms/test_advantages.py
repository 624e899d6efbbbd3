from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.algorithms.advantages import (
    generalized_advantages,
    others_mean,
    token_rewards,
    whiten,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"


def example(seed=0, batch=5, length=7):
    rng = np.random.default_rng(seed)
    lengths = np.array([7, 1, 4, 6, 3])[:batch]
    mask = np.arange(length) < lengths[:, None]
    kl, values, rewards = rng.normal(size=(3, batch, length)).astype(np.float32)
    return rng.normal(size=batch).astype(np.float32), kl, values, rewards, mask


def test_rewards_hold_the_penalty_of_each_token_and_the_score_at_the_last():
    kl = np.array([[0.5, -1.0, 2.0], [0.25, 9.0, 9.0]])
    mask = np.array([[True, True, True], [True, False, False]])
    rewards = token_rewards(jnp.array([0.7, -2.0]), jnp.array(kl), jnp.array(mask), 0.1)
    np.testing.assert_allclose(rewards, [[-0.05, 0.1, 0.5], [-2.025, 0, 0]], atol=1e-7)


def test_scores_are_not_cut_to_integers():
    mask = jnp.ones((1, 2), bool)
    rewards = token_rewards(jnp.array([0.7]), jnp.zeros((1, 2), jnp.int32), mask, 0.1)
    assert rewards.dtype == jnp.float32
    np.testing.assert_allclose(rewards, [[0.0, 0.7]], atol=1e-7)


def test_the_baseline_is_the_mean_of_the_others():
    scores = jnp.array([1.0, 2.0, 6.0, 0.0, -1.0, 4.0])
    np.testing.assert_allclose(others_mean(scores, 3), [4, 3.5, 1.5, 1.5, 2, -0.5], atol=1e-6)
    np.testing.assert_allclose(others_mean(scores, 2), [2, 1, 0, 6, 4, -1], atol=1e-6)


def slow_advantages(rewards, values, mask, gamma, gae_lambda):
    """The definition: sum over k of (gamma lambda)^k delta_{t+k}, row by row."""
    advantages = np.zeros(rewards.shape)
    for row, length in enumerate(mask.sum(axis=1)):
        v = np.append(values[row, :length].astype(np.float64), 0.0)
        delta = rewards[row, :length] + gamma * v[1:] - v[:-1]
        for t in range(length):
            for k in range(length - t):
                advantages[row, t] += (gamma * gae_lambda) ** k * delta[t + k]
    return advantages


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.8), (1.0, 0.0)])
def test_advantages_are_the_discounted_sums(gamma, gae_lambda):
    _, _, values, rewards, mask = example()
    expected = slow_advantages(rewards, values, mask, gamma, gae_lambda)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma, gae_lambda)
    np.testing.assert_allclose(advantages, expected, atol=1e-5)
    np.testing.assert_allclose(returns, np.where(mask, expected + values, 0), atol=1e-5)


def test_with_lambda_1_returns_are_the_rewards_to_come():
    _, _, values, rewards, mask = example()
    _, returns = generalized_advantages(rewards, values, mask, 1.0, 1.0)
    to_come = np.cumsum(np.where(mask, rewards, 0)[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(returns, np.where(mask, to_come, 0), atol=1e-5)


def test_whitened_has_mean_0_and_variance_1_over_tokens_alone():
    _, _, _, rewards, mask = example()
    tokens = rewards[mask].astype(np.float64)
    expected = (tokens - tokens.mean()) / tokens.std(ddof=1)
    found = whiten(jnp.array(rewards), jnp.array(mask))
    np.testing.assert_allclose(np.asarray(found)[mask], expected, atol=1e-5)
    assert not np.asarray(found)[~mask].any()


def test_what_stands_in_padding_changes_nothing():
    scores, kl, values, rewards, mask = example()

    def everything(noise):
        padded = [np.where(mask, x, noise) for x in (kl, values, rewards)]
        advantages = generalized_advantages(padded[2], padded[1], mask, 1.0, 0.95)
        return token_rewards(scores, padded[0], mask, 0.1), *advantages, whiten(padded[2], mask)

    for one, other in zip(everything(0.0), everything(np.float32(1e6))):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["k1", "k3_whitened_rewards"])
def test_a_ppo_step_of_trl(name):
    """TRL gives a response one position more than its tokens, where it puts the score."""
    trl = np.load(FIXTURES / f"ppo_trl_1.12_{name}.npz")
    mask, mask_p1 = ~trl["padding_mask"], ~trl["padding_mask_p1"]
    log_ratio = trl["logprobs"] - trl["ref_logprobs"]
    if name == "k1":
        rewards = token_rewards(trl["scores"], jnp.where(mask, log_ratio, 0), mask_p1, 0.05)
    else:
        k3 = jnp.where(mask, np.exp(-log_ratio) - 1 + log_ratio, 0)
        raw = token_rewards(trl["scores"], k3, mask_p1, 0.05)
        rewards = jnp.where(mask_p1, whiten(raw, mask_p1) + raw[mask_p1].mean(), 0)
    np.testing.assert_allclose(rewards, trl["rewards"], atol=1e-5)
    advantages, returns = generalized_advantages(rewards, trl["values"], mask_p1, 1.0, 0.95)
    np.testing.assert_allclose(advantages, trl["adv_raw"], atol=1e-5)
    np.testing.assert_allclose(returns, trl["returns"], atol=1e-5)
    np.testing.assert_allclose(whiten(advantages, mask), trl["adv_whitened"], atol=1e-5)


def test_is_compiled_and_differentiable():
    _, _, values, rewards, mask = example()
    gradient = jax.jit(
        jax.grad(lambda v: jnp.sum(generalized_advantages(rewards, v, mask, 1.0, 1.0)[0]))
    )(values)
    np.testing.assert_allclose(gradient, np.where(mask, -1.0, 0.0), atol=1e-6)
