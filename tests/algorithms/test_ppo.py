from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.algorithms import ppo, ppo_options

RESPONSE, VOCABULARY = 5, 7


class State(NamedTuple):
    params: dict
    steps: int


def settings(**changes):
    return SimpleNamespace(
        **{
            **ppo_options.default_config(),
            "missing_eos_penalty": 0.75,
            "samples_per_prompt": 1,
            "baseline": "none",
            "gae_lambda": 1.0,
            "epochs": 1,
            "minibatches": 1,
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
        last_values=np.zeros(count, np.float32),
        scores=np.array(scores, np.float32),
        ended=np.ones(count, bool) if ended is None else np.array(ended),
    )


def controls(offset=0.0, scale=1.0, kl_coef=0.1):
    return ppo.Controls(offset, scale, kl_coef)


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
    advantages, returns = ppo.advantages_of(settings(), experience, controls(0.5))
    kl = np.where(experience.response, experience.logprobs - experience.ref_logprobs, 0).sum(1)
    # Without discounts the return of the first token is the whole reward.
    expected = np.array([2.0 - 0.5, 2.0 - 0.5 - 0.75]) - 0.1 * kl
    np.testing.assert_allclose(returns[:, 0], expected, atol=1e-5)
    tokens = np.asarray(advantages)[experience.response]
    assert tokens.mean() == pytest.approx(0, abs=1e-5)
    assert tokens.std(ddof=1) == pytest.approx(1, abs=1e-4)
    plain, _ = ppo.advantages_of(settings(whiten_advantages=False), experience, controls(0.5))
    np.testing.assert_allclose(plain[:, 0], expected - 0.3, atol=1e-5)


def test_other_samples_of_the_prompt_are_the_baseline():
    """How a preference model ranks prompts teaches nothing: only how it ranks their responses."""
    config = settings(samples_per_prompt=2, baseline="leave_one_out")
    scores, ended = [7.0, 5.0, -3.0, -3.5], [True, True, True, False]
    experience = experience_of(start().params, scores, ended=ended)
    advantages, returns = ppo.advantages_of(config, experience, controls(kl_coef=0.0))
    # The last is 0.5 worse, and without its end 0.75 more.
    np.testing.assert_allclose(returns[:, 0], [2.0, -2.0, 1.25, -1.25], atol=1e-6)
    shifted = experience._replace(scores=experience.scores + np.array([9, 9, -4, -4], np.float32))
    moved, _ = ppo.advantages_of(config, shifted, controls(1.5, kl_coef=0.0))
    np.testing.assert_allclose(moved, advantages, atol=1e-5)


def test_first_update_is_the_policy_gradient():
    """Where nothing has moved yet nothing is clipped: the gradient has a closed form."""
    state = start()
    experience = experience_of(state.params, [1.0, -1.0, 0.5, 2.0])
    advantages, returns = map(np.asarray, ppo.advantages_of(settings(), experience, controls()))
    present = experience.response
    probabilities = np.asarray(jax.nn.softmax(state.params["logits"]))
    taken = np.eye(VOCABULARY)[experience.tokens[:, -RESPONSE:]]
    slopes = advantages[..., None] * (taken - probabilities)
    expected = np.asarray(state.params["logits"]) + 0.5 * slopes[present].mean(axis=0)
    value = 0.3 - 0.5 * 0.5 * (0.3 - returns[present]).mean()

    update = jax.jit(ppo.make_update(settings(), evaluate, descend))
    state, _, metrics = update(state, experience, controls(), jax.random.key(0))
    np.testing.assert_allclose(state.params["logits"], expected, atol=1e-6)
    assert float(state.params["value"]) == pytest.approx(value, abs=1e-6)
    assert float(metrics["clip_fraction"]) == 0 and int(state.steps) == 1


def test_every_epoch_sees_every_response_against_the_old_policy():
    """The ratio leaves 1 after the first step, and is clipped once it is far enough."""
    scores = np.random.default_rng(3).normal(size=8)
    experience = experience_of(start().params, scores)
    once, often = (
        jax.jit(ppo.make_update(settings(epochs=epochs, minibatches=2), evaluate, descend))(
            start(), experience, controls(), jax.random.key(0)
        )
        for epochs in (1, 6)
    )
    assert (int(once[0].steps), int(often[0].steps)) == (2, 12)
    assert float(often[2]["clip_fraction"]) > 0.02
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
    names = ("score", "length", "eos_rate")
    assert [float(found[name]) for name in names] == [2.0, 4.0, 0.5]


@pytest.mark.parametrize("kind", ["running", "stored"])
def test_scores_are_normalised_then_clipped_then_less_the_penalty(kind):
    experience = experience_of(
        start().params, [5.0, 1.0, -1.0, 2.0], ended=[True, True, True, False]
    )
    config = settings(score_normalization=kind, score_clip=1.25)
    found = ppo.shaped_scores(config, experience, controls(offset=1.0, scale=2.0))
    np.testing.assert_allclose(found, [1.25, 0.0, -1.0, 0.5 - 0.75], atol=1e-6)


def test_group_and_leave_one_out_give_each_token_its_responses_advantage():
    experience = experience_of(start().params, [1.0, 2.0, 6.0, 0.0, 0.0, 0.0])
    kl = np.where(experience.response, experience.logprobs - experience.ref_logprobs, 0).sum(1)
    groups = (np.array([1.0, 2, 6, 0, 0, 0]) - 0.1 * kl).reshape(2, 3)
    centred = groups - groups.mean(1, keepdims=True)
    expected = {
        "group": centred / groups.std(1, keepdims=True),
        "leave_one_out": centred * 3 / 2,  # x - mean of the others
    }
    for name, of_response in expected.items():
        config = settings(advantage=name, samples_per_prompt=3, whiten_advantages=False)
        found, _ = ppo.advantages_of(config, experience, controls(offset=9.0))
        tokens = np.where(experience.response, of_response.reshape(-1)[:, None], 0)
        np.testing.assert_allclose(found, tokens, atol=1e-4)


def test_equal_responses_of_a_group_teach_nothing():
    params = start().params
    experience = experience_of(params, [3.0, 3.0])._replace(ref_logprobs=jnp.zeros((2, RESPONSE)))
    config = settings(advantage="group", samples_per_prompt=2, whiten_advantages=False)
    found, _ = ppo.advantages_of(config, experience, controls(kl_coef=0.0))
    np.testing.assert_array_equal(found, 0)


def test_without_values_only_the_policy_is_trained():
    state = start()
    experience = experience_of(state.params, [1.0, -1.0, 0.5, 2.0])
    config = settings(advantage="leave_one_out", samples_per_prompt=2)
    update = jax.jit(ppo.make_update(config, evaluate, descend))
    after, _, metrics = update(state, experience, controls(), jax.random.key(0))
    assert float(after.params["value"]) == float(state.params["value"])
    assert np.abs(after.params["logits"] - state.params["logits"]).max() > 0.01
    assert not {"value_loss", "explained_variance"} & set(metrics)


def test_a_truncated_response_is_worth_what_would_follow():
    """Bootstrapping: its score, that of half a text, is not read."""
    experience = experience_of(start().params, [2.0, 50.0], ended=[True, False])
    experience = experience._replace(last_values=np.array([7.0, 1.5], np.float32))
    config = settings(truncation="bootstrap", gamma=0.9, whiten_advantages=False)
    advantages, returns = ppo.advantages_of(config, experience, controls(kl_coef=0.0))
    # The rows have 5 and 3 tokens; with lambda 1 the return is the discounted reward at the end.
    ends = np.array([2.0, 0.9 * 1.5 - 0.75])
    np.testing.assert_allclose(returns[:, 0], [0.9**4 * ends[0], 0.9**2 * ends[1]], atol=1e-5)
    np.testing.assert_allclose(advantages[:, 0], np.asarray(returns)[:, 0] - 0.3, atol=1e-5)


def test_an_update_stops_where_the_policy_has_moved_too_far():
    scores = np.random.default_rng(3).normal(size=8)
    experience = experience_of(start().params, scores)

    def run(kl_stop, epochs=6):
        config = settings(epochs=epochs, kl_stop=kl_stop)
        update = jax.jit(ppo.make_update(config, evaluate, descend))
        return update(start(), experience, controls(), jax.random.key(0))

    free, _, metrics = run(0.0)
    assert "updates_made" not in metrics and int(free.steps) == 6
    stopped, _, metrics = run(0.005)
    made = int(stopped.steps)
    assert 1 <= made < 6 and float(metrics["updates_made"]) == pytest.approx(made / 6)
    # What was made before is what a shorter run makes: the stop leaves the state as it was.
    shorter, _, _ = run(0.0, epochs=made)
    np.testing.assert_allclose(stopped.params["logits"], shorter.params["logits"], atol=1e-6)


def test_explained_variance_by_hand():
    mask = np.array([[True, True, True, False]])
    returns = jnp.array([[1.0, 2.0, 3.0, 99.0]])
    assert float(ppo.explained_variance(returns + 5, returns, mask)) == pytest.approx(1)
    assert float(ppo.explained_variance(0 * returns, returns, mask)) == pytest.approx(0)
    # Residuals 0, 1, 2 - of the same variance - and 0, 0.5, 1 - of a quarter.
    half = jnp.array([[1.0, 1.5, 2.0, 0.0]])
    assert float(ppo.explained_variance(half, returns, mask)) == pytest.approx(0.75)
    assert float(ppo.explained_variance(half, 0 * returns, mask)) == 0


@pytest.mark.parametrize("baseline", ["none", "leave_one_out"])
def test_one_minibatch_is_evaluated_by_its_first_pass(baseline):
    """What the rollout did not find out is found, and later passes are held to it."""
    config = settings(epochs=3, samples_per_prompt=2, baseline=baseline)
    state, scores = start(), [1.0, -1.0, 0.5, 2.0]
    known = experience_of(state.params, scores)
    update = jax.jit(ppo.make_update(config, evaluate, descend))
    unknown = known._replace(logprobs=0 * known.logprobs, values=0 * known.values)
    after, experience, metrics = update(state, unknown, controls(), jax.random.key(0))
    np.testing.assert_allclose(experience.logprobs, known.logprobs, atol=1e-6)
    np.testing.assert_allclose(experience.values, known.values, atol=1e-6)

    found, returns = ppo.advantages_of(config, known, controls())
    expected = state
    for _ in range(3):

        def loss(params):
            logprobs, values = evaluate(params, known.tokens, known.mask)
            ratio = jnp.exp(logprobs - known.logprobs)
            gains = jnp.minimum(ratio * found, jnp.clip(ratio, 0.8, 1.2) * found)
            moved = known.values + jnp.clip(values - known.values, -0.2, 0.2)
            errors = jnp.maximum((values - returns) ** 2, (moved - returns) ** 2)
            return jnp.mean((0.25 * errors - gains)[known.response])

        expected = descend(expected, jax.grad(loss)(expected.params))
    np.testing.assert_allclose(after.params["logits"], expected.params["logits"], atol=1e-6)
    np.testing.assert_allclose(after.params["value"], expected.params["value"], atol=1e-6)
    assert float(metrics["kl"]) == pytest.approx(float(ppo.sampled_metrics(known)["kl"]), abs=1e-6)
