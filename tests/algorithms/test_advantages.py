from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.algorithms.advantages import (
    gae,
    group_normalized,
    kl_estimate,
    kl_shaped_rewards,
    others_mean,
    whiten,
)
from cai_jax.errors import InputError

FIXTURES = Path(__file__).parents[1] / "fixtures"


def example(seed=0, batch=5, length=7):
    rng = np.random.default_rng(seed)
    lengths = np.array([7, 1, 4, 6, 3])[:batch]
    mask = np.arange(length) < lengths[:, None]
    kl, values, rewards = rng.normal(size=(3, batch, length)).astype(np.float32)
    return rng.normal(size=batch).astype(np.float32), kl, values, rewards, mask


def rewards_of(scores, log_ratio, mask, kl_coef, kind="k1"):
    """Any two log-probabilities with this difference."""
    ref = jnp.full(log_ratio.shape, -2.0)
    return kl_shaped_rewards(
        scores, ref + log_ratio, ref, jnp.array(mask), kl_coef=kl_coef, kind=kind
    )


def test_rewards_hold_the_penalty_of_each_token_and_the_score_at_the_last():
    log_ratio = np.array([[0.5, -1.0, 2.0], [0.25, 9.0, 9.0]])
    mask = np.array([[True, True, True], [True, False, False]])
    rewards = rewards_of(jnp.array([0.7, -2.0]), log_ratio, mask, 0.1)
    np.testing.assert_allclose(rewards, [[-0.05, 0.1, 0.5], [-2.025, 0, 0]], atol=1e-7)


def test_a_score_of_0_7_stays_0_7():
    mask = jnp.ones((1, 2), bool)
    rewards = rewards_of(jnp.array([0.7]), jnp.zeros((1, 2)), mask, 0.1)
    assert rewards.dtype == jnp.float32
    np.testing.assert_allclose(rewards, [[0.0, 0.7]], atol=1e-7)
    halves = jnp.zeros((1, 2), jnp.float16)
    rewards = kl_shaped_rewards(jnp.array([3]), halves, halves, mask, kl_coef=0.1, kind="k3")
    assert rewards.dtype == jnp.float32 and rewards.tolist() == [[0, 3]]


def test_kl_estimates_by_hand():
    logp, ref = jnp.log(jnp.array([[0.5, 0.2, 0.4]])), jnp.log(jnp.array([[0.25, 0.4, 0.4]]))
    log2 = np.log(2)
    np.testing.assert_allclose(kl_estimate(logp, ref, kind="k1"), [[log2, -log2, 0]], atol=1e-6)
    k3 = kl_estimate(logp, ref, kind="k3")
    np.testing.assert_allclose(k3, [[0.5 - 1 + log2, 2 - 1 - log2, 0]], atol=1e-6)
    with pytest.raises(InputError, match="expected k1 or k3, found 'abs'"):
        kl_estimate(logp, ref, kind="abs")


def test_both_kl_estimates_are_unbiased_and_k3_is_never_negative():
    """The expectation under the policy is a sum here: no sampling noise."""
    rng = np.random.default_rng(0)
    logits, ref_logits = rng.normal(size=(2, 3, 8))
    logp, ref = (jax.nn.log_softmax(jnp.array(x)) for x in (logits, ref_logits))
    exact = np.sum(np.exp(logp) * (logp - ref), axis=1)
    for kind in ("k1", "k3"):
        estimate = kl_estimate(logp, ref, kind=kind)
        np.testing.assert_allclose(np.sum(np.exp(logp) * estimate, axis=1), exact, atol=1e-6)
    assert kl_estimate(logp, ref, kind="k3").min() >= 0 > kl_estimate(logp, ref, kind="k1").min()
    # The mean of sizes is no divergence.
    assert abs(np.sum(np.exp(logp) * abs(logp - ref), axis=1) - exact).min() > 0.01


def test_what_an_estimate_in_the_reward_does_to_the_policy():
    """The gradient of E[sg(kl) log p], against those of the exact divergences."""
    rng = np.random.default_rng(1)
    logits, ref = rng.normal(size=8), jax.nn.log_softmax(rng.normal(size=8))

    def penalty(logits, kind):
        logp = jax.nn.log_softmax(logits)
        fixed = jax.lax.stop_gradient(logp)
        kl = kl_estimate(fixed[None], ref[None], kind=kind)[0]
        return jnp.sum(jnp.exp(fixed) * kl * logp)

    def forward(logits):
        logp = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(logp) * (logp - ref))

    def reverse(logits):
        return jnp.sum(jnp.exp(ref) * (ref - jax.nn.log_softmax(logits)))

    of_forward, of_reverse = jax.grad(forward)(logits), jax.grad(reverse)(logits)
    np.testing.assert_allclose(jax.grad(penalty)(logits, "k1"), of_forward, atol=1e-5)
    np.testing.assert_allclose(jax.grad(penalty)(logits, "k3"), of_forward - of_reverse, atol=1e-5)


def test_the_baseline_is_the_mean_of_the_others():
    scores = jnp.array([1.0, 2.0, 6.0, 0.0, -1.0, 4.0])
    np.testing.assert_allclose(others_mean(scores, 3), [4, 3.5, 1.5, 1.5, 2, -0.5], atol=1e-6)
    np.testing.assert_allclose(others_mean(scores, 2), [2, 1, 0, 6, 4, -1], atol=1e-6)


def test_group_normalised_rewards():
    found = group_normalized(jnp.array([1.0, 2.0, 6.0, 4.0, 4.0, 4.0]), 3)
    deviation = np.sqrt(14 / 3)  # of 1, 2, 6 around 3
    expected = [-2 / deviation, -1 / deviation, 3 / deviation, 0, 0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


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
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=gae_lambda)
    np.testing.assert_allclose(advantages, expected, atol=1e-5)
    np.testing.assert_allclose(returns, np.where(mask, expected + values, 0), atol=1e-5)


def test_with_lambda_1_returns_are_the_rewards_to_come():
    _, _, values, rewards, mask = example()
    _, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_come = np.cumsum(np.where(mask, rewards, 0)[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(returns, np.where(mask, to_come, 0), atol=1e-5)


def test_whitened_has_mean_0_and_variance_1_over_tokens_alone():
    _, _, _, rewards, mask = example()
    tokens = rewards[mask].astype(np.float64)
    expected = (tokens - tokens.mean()) / tokens.std(ddof=1)
    found = whiten(jnp.array(rewards), jnp.array(mask))
    np.testing.assert_allclose(np.asarray(found)[mask], expected, atol=1e-5)
    assert not np.asarray(found)[~mask].any()


def test_whitening_that_keeps_the_mean():
    _, _, _, rewards, mask = example()
    tokens = rewards[mask].astype(np.float64)
    expected = (tokens - tokens.mean()) / tokens.std(ddof=1) + tokens.mean()
    found = whiten(jnp.array(rewards), jnp.array(mask), shift_mean=False)
    np.testing.assert_allclose(np.asarray(found)[mask], expected, atol=1e-5)
    assert not np.asarray(found)[~mask].any()


def test_other_rows_and_their_order_do_not_matter():
    scores, kl, values, rewards, mask = example()
    order = np.array([3, 0, 4, 1, 2])
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.95)
    for rows in (order, order[:2]):
        found = gae(rewards[rows], values[rows], mask[rows], gamma=0.9, lam=0.95)
        np.testing.assert_array_equal(found[0], advantages[rows])
        np.testing.assert_array_equal(found[1], returns[rows])
        np.testing.assert_array_equal(
            rewards_of(scores[rows], kl[rows], mask[rows], 0.1),
            rewards_of(scores, kl, mask, 0.1)[rows],
        )
    white = whiten(rewards[order], mask[order])
    np.testing.assert_allclose(white, whiten(rewards, mask)[order], atol=1e-6)


def test_masked_positions_might_as_well_not_be_there():
    """Each row alone, cut to its length, gives what it gives in the batch."""
    scores, kl, values, rewards, mask = example()
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.95)
    shaped = rewards_of(scores, kl, mask, 0.1)
    for row, length in enumerate(mask.sum(axis=1)):
        cut = [x[row : row + 1, :length] for x in (rewards, values, mask, kl)]
        alone = gae(*cut[:3], gamma=0.9, lam=0.95)
        np.testing.assert_allclose(alone[0][0], advantages[row, :length], atol=1e-6)
        np.testing.assert_allclose(alone[1][0], returns[row, :length], atol=1e-6)
        reward = rewards_of(scores[row : row + 1], cut[3], cut[2], 0.1)
        np.testing.assert_allclose(reward[0], shaped[row, :length], atol=1e-6)
    # Anywhere in a row, with masks of numbers too.
    rng = np.random.default_rng(1)
    holes = (rng.random((6, 9)) < 0.6).astype(np.float32)
    holes[:, rng.integers(9)] = 1
    values, rewards, log_ratio = rng.normal(size=(3, 6, 9)).astype(np.float32)
    scores = rng.normal(size=6).astype(np.float32)
    found = (*gae(rewards, values, holes, gamma=0.9, lam=0.95),)
    found += (rewards_of(scores, log_ratio, holes, 0.1),)
    for row in range(6):
        there = holes[row] > 0
        cut = [x[row : row + 1, there] for x in (rewards, values, log_ratio)]
        whole = np.ones_like(cut[0], bool)
        alone = (*gae(*cut[:2], whole, gamma=0.9, lam=0.95),)
        alone += (rewards_of(scores[row : row + 1], cut[2], whole, 0.1),)
        for one, other in zip(alone, found):
            np.testing.assert_allclose(one[0], np.asarray(other)[row, there], atol=1e-6)
            assert not np.asarray(other)[row, ~there].any()
    _, _, values, rewards, mask = example()
    flat = np.asarray(rewards[mask])[None]
    np.testing.assert_allclose(
        whiten(flat, np.ones_like(flat, bool))[0], whiten(rewards, mask)[mask], atol=1e-5
    )


def test_what_stands_in_padding_changes_nothing():
    scores, kl, values, rewards, mask = example()

    def everything(noise):
        padded = [np.where(mask, x, noise) for x in (kl, values, rewards)]
        advantages = gae(padded[2], padded[1], mask, gamma=1.0, lam=0.95)
        return (
            rewards_of(scores, padded[0], mask, 0.1),
            rewards_of(scores, padded[0], mask, 0.1, "k3"),
            *advantages,
            whiten(padded[2], mask),
            whiten(padded[2], mask, shift_mean=False),
        )

    for one, other in zip(everything(0.0), everything(np.float32(1e6))):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["k1", "k3_whitened_rewards"])
def test_a_ppo_step_of_trl(name):
    """TRL gives a response one position more than its tokens, where it puts the score."""
    trl = np.load(FIXTURES / f"ppo_trl_1.12_{name}.npz")
    mask, mask_p1 = ~trl["padding_mask"], ~trl["padding_mask_p1"]
    log_ratio = jnp.where(mask, trl["logprobs"] - trl["ref_logprobs"], 0)  # none at the extra one
    rewards = rewards_of(trl["scores"], log_ratio, mask_p1, 0.05, name[:2])
    if name == "k3_whitened_rewards":
        rewards = whiten(rewards, mask_p1, shift_mean=False)
    np.testing.assert_allclose(rewards, trl["rewards"], atol=1e-5)
    advantages, returns = gae(rewards, trl["values"], mask_p1, gamma=1.0, lam=0.95)
    np.testing.assert_allclose(advantages, trl["adv_raw"], atol=1e-5)
    np.testing.assert_allclose(returns, trl["returns"], atol=1e-5)
    np.testing.assert_allclose(whiten(advantages, mask), trl["adv_whitened"], atol=1e-5)


def test_is_compiled_and_differentiable():
    _, _, values, rewards, mask = example()
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(gae(rewards, v, mask, gamma=1.0, lam=1.0)[0])))(
        values
    )
    np.testing.assert_allclose(gradient, np.where(mask, -1.0, 0.0), atol=1e-6)
