import functools
import re
from pathlib import Path

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads

from cai_jax.algorithms import losses
from cai_jax.algorithms.labels import label_entropy

FIXTURES = Path(__file__).parents[1] / "fixtures"
BATCH, LENGTH, WIDTH, VOCABULARY = 3, 6, 4, 11


def language_batch(seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
    unembed = rng.normal(size=(WIDTH, VOCABULARY)).astype(np.float32)
    targets = rng.integers(0, VOCABULARY, (BATCH, LENGTH))
    weights = rng.choice([0.0, 1.0, 0.25], (BATCH, LENGTH)).astype(np.float32)
    return hidden, unembed, targets, weights


def torch_losses(hidden, unembed, targets, soft_cap=None):
    logits = hidden @ unembed
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    flat = torch.nn.functional.cross_entropy(
        logits.reshape(-1, VOCABULARY), torch.tensor(targets).reshape(-1), reduction="none"
    )
    return flat.reshape(BATCH, LENGTH)


@pytest.fixture(params=[2**20, 2 * BATCH * VOCABULARY], ids=["whole", "chunks of 2"])
def chunked(request, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_LOGITS", request.param)


@pytest.mark.parametrize("soft_cap", [None, 1.5])
def test_language_loss_and_gradients_are_those_of_torch(chunked, soft_cap):
    hidden, unembed, targets, weights = language_batch()
    h, u = torch.tensor(hidden, requires_grad=True), torch.tensor(unembed, requires_grad=True)
    expected = (torch_losses(h, u, targets, soft_cap) * torch.tensor(weights)).sum()
    expected.backward()

    (total, weight), gradients = jax.value_and_grad(
        functools.partial(losses.lm_cross_entropy, soft_cap=soft_cap), argnums=(0, 1), has_aux=True
    )(hidden, unembed, targets, weights)
    assert float(total) == pytest.approx(expected.item(), abs=1e-4)
    assert float(weight) == weights.sum()
    np.testing.assert_allclose(gradients[0], h.grad, atol=1e-5)
    np.testing.assert_allclose(gradients[1], u.grad, atol=1e-5)


@pytest.fixture(params=["kept", "in chunks"])
def kept_or_chunked(request, monkeypatch):
    if request.param == "in chunks":
        monkeypatch.setattr(losses, "CHUNK_LOGITS", 2 * BATCH * VOCABULARY)
        monkeypatch.setattr(losses, "KEPT_LOGITS", BATCH * LENGTH * VOCABULARY - 1)


@pytest.mark.parametrize("soft_cap", [None, 1.5])
def test_token_logprobs_and_gradients_are_those_of_torch(kept_or_chunked, soft_cap):
    hidden, unembed, targets, slopes = language_batch(1)
    h, u = torch.tensor(hidden, requires_grad=True), torch.tensor(unembed, requires_grad=True)
    expected = -torch_losses(h, u, targets, soft_cap)
    (expected * torch.tensor(slopes)).sum().backward()

    found, pullback = jax.vjp(
        lambda h, u: losses.token_logprobs(h, u, targets, soft_cap=soft_cap), hidden, unembed
    )
    np.testing.assert_allclose(found, expected.detach(), atol=1e-5)
    for gradient, of_torch in zip(pullback(jnp.array(slopes)), (h.grad, u.grad)):
        np.testing.assert_allclose(gradient, of_torch, atol=1e-5)


@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_token_logprobs_and_gradients_at_a_temperature(kept_or_chunked, soft_cap):
    hidden, unembed, targets, slopes = language_batch(1)

    def plain(hidden, unembed):
        logits = hidden @ unembed
        logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
        every = jax.nn.log_softmax(logits / 0.5)
        return jnp.take_along_axis(every, targets[..., None], -1)[..., 0]

    ours = functools.partial(
        losses.token_logprobs, targets=targets, soft_cap=soft_cap, temperature=0.5
    )
    found, back = jax.vjp(ours, hidden, unembed)
    expected, plain_back = jax.vjp(plain, hidden, unembed)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for mine, other in zip(back(jnp.array(slopes)), plain_back(jnp.array(slopes)), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-5)


@pytest.mark.parametrize(("kept", "most"), [(100 * 8 * 64, 100 * 8 * 64), (0, 4 * 8 * 64)])
def test_no_more_logits_are_held_than_are_kept(monkeypatch, kept, most):
    """The largest array of the gradient's program, in numbers: B 8, T 100, V 64, chunks of 4."""
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 4 * 8 * 64)
    monkeypatch.setattr(losses, "KEPT_LOGITS", kept)
    hidden, unembed = jnp.zeros((8, 100, 2)), jnp.zeros((2, 64))
    targets = jnp.zeros((8, 100), int)

    def summed(hidden, unembed):
        return losses.token_logprobs(hidden, unembed, targets).sum()

    program = jax.make_jaxpr(jax.grad(summed, argnums=(0, 1)))(hidden, unembed)
    assert max(sizes(program.jaxpr)) == most


def sizes(program):
    """Of all arrays that a program makes, and those inside it."""
    for equation in program.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
    for inner in jax.extend.core.subjaxprs(program):
        yield from sizes(inner)


def of_margins(margins, p_a):
    """The loss of scores with these differences."""
    return losses.bradley_terry(margins + 1.5, jnp.full_like(margins, 1.5), p_a)


def test_bradley_terry_of_hard_and_soft_labels():
    # sigmoid(log 3) = 3/4.
    margins = jnp.log(jnp.array([3.0, 3.0, 3.0, 1.0]))
    found = of_margins(margins, jnp.array([1.0, 0.0, 0.6, 0.9]))
    right, wrong = -np.log(0.75), -np.log(0.25)
    expected = [right, wrong, 0.6 * right + 0.4 * wrong, np.log(2)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_bradley_terry_is_torchs_and_does_not_overflow():
    rng = np.random.default_rng(0)
    margins = np.append(rng.normal(size=8) * 3, [300.0, -300.0]).astype(np.float32)
    labels = np.append(rng.uniform(size=8), [0.25, 0.25]).astype(np.float32)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(margins), torch.tensor(labels), reduction="none"
    )
    np.testing.assert_allclose(of_margins(margins, labels), expected, rtol=1e-5)
    check_grads(lambda m: of_margins(m, labels[:8]), (margins[:8],), 1, ["rev"])


def test_bradley_terry_is_least_at_the_label_and_the_labels_entropy_there():
    labels = jnp.array([0.5, 0.6, 0.786, 0.99])
    best = jnp.log(labels / (1 - labels))
    np.testing.assert_allclose(of_margins(best, labels), label_entropy(labels), atol=1e-6)
    slopes = jax.grad(lambda m: of_margins(m, labels).sum())(best)
    np.testing.assert_allclose(slopes, 0, atol=1e-6)


def test_exchanging_the_responses_and_the_label_gives_the_same_loss():
    margins, labels = jnp.array([0.3, -2.0, 5.0]), jnp.array([0.2, 0.9, 0.5])
    one = of_margins(margins, labels)
    other = of_margins(-margins, 1 - labels)
    np.testing.assert_allclose(one, other, rtol=1e-6)


def policy_loss(ratios, advantages, mask=None):
    ratios, advantages = np.array([ratios]), np.array([advantages])
    mask = np.ones(ratios.shape, bool) if mask is None else np.array([mask])
    old = np.full(ratios.shape, -1.5)
    batch = (old + np.log(ratios), old, advantages, mask)
    return losses.ppo_policy(*batch, clip=0.2), losses.ppo_clip_fraction(*batch, clip=0.2)


def test_policy_loss_by_hand():
    # Terms: min(1.5 x 2, 1.2 x 2), min(0.5 x 2, 0.8 x 2), min(-1.5, -1.2), min(-0.5, -0.8).
    loss, clipped = policy_loss([1.5, 0.5, 1.5, 0.5], [2.0, 2.0, -1.0, -1.0])
    assert float(loss) == pytest.approx(-(2.4 + 1.0 - 1.5 - 0.8) / 4, abs=1e-6)
    assert float(clipped) == 0.5
    # A clipped term has no slope, so of these four only the second and third teach anything.
    advantages, old, mask = jnp.array([[2.0, 2, -1, -1]]), jnp.zeros((1, 4)), jnp.ones((1, 4), bool)
    slope = jax.grad(lambda x: losses.ppo_policy(x, old, advantages, mask, clip=0.2))(
        jnp.log(jnp.array([[1.5, 0.5, 1.5, 0.5]]))
    )
    np.testing.assert_allclose(slope, [[0, -0.25, 0.375, 0]], atol=1e-6)


def test_value_loss_by_hand():
    values, old = jnp.array([[1.0, 0.1, -1.0]]), jnp.zeros((1, 3))
    returns, mask = jnp.array([[2.0, 1.0, 0.0]]), jnp.ones((1, 3), bool)
    # max(1, 1.8^2), max(0.9^2, 0.9^2), max(1, 0.2^2)
    found = losses.ppo_value(values, old, returns, mask, clip=0.2)
    assert float(found) == pytest.approx((3.24 + 0.81 + 1.0) / 6, abs=1e-6)


@pytest.mark.parametrize("name", ["k1", "k3_whitened_rewards"])
def test_losses_of_a_ppo_step_of_trl(name):
    trl = np.load(FIXTURES / f"ppo_trl_1.12_{name}.npz")
    rows = trl["e1_micro_batch_inds"]
    mask, mask_p1 = ~trl["padding_mask"][rows], ~trl["padding_mask_p1"][rows]
    policy = losses.ppo_policy(
        trl["e1_new_logprobs"], trl["logprobs"][rows], trl["adv_whitened"][rows], mask, clip=0.2
    )
    value = losses.ppo_value(
        trl["e1_vpred"], trl["values"][rows], trl["returns"][rows], mask_p1, clip=0.2
    )
    assert float(policy) == pytest.approx(float(trl["e1_pg_loss"]), abs=1e-5)
    assert float(value) == pytest.approx(float(trl["e1_vf_loss"]), abs=1e-5)


def test_what_stands_in_padding_changes_no_loss_and_no_gradient():
    rng = np.random.default_rng(0)
    mask = np.arange(5) < np.array([[5], [2]])
    arrays = rng.normal(size=(5, 2, 5)).astype(np.float32)

    def both(arrays):
        logprobs, old, advantages, values, returns = arrays
        policy = losses.ppo_policy(logprobs, old, advantages, mask, clip=0.2)
        return policy + losses.ppo_value(values, old, returns, mask, clip=0.2)

    loss, gradient = jax.value_and_grad(both)(arrays)
    disturbed, its_gradient = jax.value_and_grad(both)(np.where(mask, arrays, 1e4 * arrays))
    assert float(loss) == float(disturbed)
    np.testing.assert_array_equal(gradient, its_gradient)
    assert not np.asarray(gradient)[:, ~mask].any() and np.asarray(gradient)[3][mask].any()


def test_policy_and_value_loss_gradients_are_those_of_differences():
    rng = np.random.default_rng(2)
    mask = np.arange(5) < np.array([[5], [2], [4]])
    logprobs, values, advantages, returns = rng.normal(size=(4, 3, 5)).astype(np.float32)
    old = logprobs + rng.choice([-0.5, -0.1, 0.1, 0.5], (3, 5)).astype(np.float32)

    def policy(x):
        return losses.ppo_policy(x, old, advantages, mask, clip=0.2)

    def value(x):
        return losses.ppo_value(x, old, returns, mask, clip=0.2)

    check_grads(policy, (logprobs,), 1, ["rev"], eps=1e-3)
    check_grads(value, (logprobs,), 1, ["rev"], eps=1e-3)


def test_the_order_of_a_batch_changes_no_mean():
    rng = np.random.default_rng(2)
    mask = np.arange(5) < np.array([[5], [2], [4]])
    batch = rng.normal(size=(3, 3, 5)).astype(np.float32)
    order = np.array([2, 0, 1])
    for loss in (losses.ppo_policy, losses.ppo_value, losses.ppo_clip_fraction):
        found = loss(*batch[:, order], mask[order], clip=0.2)
        assert float(found) == pytest.approx(float(loss(*batch, mask, clip=0.2)), abs=1e-6)


def test_masked_positions_might_as_well_not_be_there():
    rng = np.random.default_rng(2)
    mask = np.arange(5) < np.array([[5], [2], [4]])
    batch = rng.normal(size=(3, 3, 5)).astype(np.float32)
    tokens = batch[:, mask][:, None]
    for loss in (losses.ppo_policy, losses.ppo_value, losses.ppo_clip_fraction):
        alone = loss(*tokens, np.ones((1, mask.sum()), bool), clip=0.2)
        assert float(alone) == pytest.approx(float(loss(*batch, mask, clip=0.2)), abs=1e-6)


def test_dpo_by_hand_and_its_special_cases():
    policy_a, policy_b = jnp.array([-3.0, -1.0]), jnp.array([-2.0, -4.0])
    ref_a, ref_b = jnp.array([-4.0, -1.5]), jnp.array([-2.5, -3.0])
    # Margins of log-ratios: (1 - 0.5), (0.5 + 1).
    margins = 0.2 * np.array([0.5, 1.5])
    prefer_a, prefer_b = np.log1p(np.exp(-margins)), np.log1p(np.exp(margins))
    pair = (policy_a, policy_b, ref_a, ref_b)
    for label, expected in (
        (1.0, prefer_a),  # DPO
        (0.0, prefer_b),
        (0.9, 0.9 * prefer_a + 0.1 * prefer_b),  # conservative DPO with e = 0.1
    ):
        found = losses.dpo(*pair, jnp.full(2, label), beta=0.2)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    labels = jnp.array([0.3, 0.8])
    check_grads(lambda a, b: losses.dpo(a, b, ref_a, ref_b, labels, beta=0.2), pair[:2], 1, ["rev"])


def test_dpo_before_the_first_step_is_log_2_for_any_label():
    ref_a, ref_b = jnp.array([-30.0, -1.5, -7.0]), jnp.array([-2.5, -3.0, -90.0])
    found = losses.dpo(ref_a, ref_b, ref_a, ref_b, jnp.array([0.0, 0.37, 1.0]), beta=0.7)
    np.testing.assert_allclose(found, np.log(2), atol=1e-7)


def test_scores_and_implied_rewards_are_trained_to_the_logit_of_the_label():
    """Descent on free numbers: the soft optimum is finite, and it is logit(p)."""
    labels = jnp.array([0.5, 0.6, 0.786, 0.95, 0.1])
    expected = np.log(labels / (1 - labels))
    zeros = jnp.zeros(5)
    beta = 0.5

    def train(loss):
        def step(free, _):
            return free - 2.0 * jax.grad(lambda free: loss(free).sum())(free), None

        return jax.lax.scan(step, jnp.zeros((2, 5)), length=400)[0]

    scores = train(lambda free: losses.bradley_terry(*free, labels))
    np.testing.assert_allclose(scores[0] - scores[1], expected, atol=1e-3)
    logp = train(lambda free: losses.dpo(*free, zeros - 3, zeros - 1, labels, beta=beta))
    np.testing.assert_allclose(beta * ((logp[0] + 3) - (logp[1] + 1)), expected, atol=2e-3)


def test_masked_mean():
    x, mask = jnp.array([1.0, 2.0, jnp.nan]), jnp.array([True, True, False])
    assert float(losses.masked_mean(x, mask)) == 1.5
    assert float(losses.masked_mean(x, jnp.zeros(3, bool))) == 0.0


def test_a_chunk_has_as_many_positions_as_asked():
    hidden, unembed, targets, weights = language_batch()
    assert LENGTH % 2 == 0

    def rounds(positions):
        made = jax.make_jaxpr(functools.partial(losses.lm_cross_entropy, positions=positions))(
            hidden, unembed, targets, weights
        )
        found = re.findall(r"\blength=(\d+)", str(made))
        assert len(set(found)) == 1, found
        return int(found[0])

    # By memory it is one chunk; asked for 2 positions, LENGTH / 2 of them.
    assert (rounds(0), rounds(2), rounds(LENGTH)) == (1, LENGTH // 2, 1)
    whole = losses.lm_cross_entropy(hidden, unembed, targets, weights)
    cut = losses.lm_cross_entropy(hidden, unembed, targets, weights, positions=2)
    np.testing.assert_allclose(cut, whole, rtol=1e-6)
