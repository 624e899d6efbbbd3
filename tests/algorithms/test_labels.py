import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.algorithms.labels import (
    averaged_label,
    clamped_label,
    hard_label,
    label_entropy,
    placed_label,
    soft_label,
)


def test_worked_example_of_the_paper():
    assert float(soft_label(-0.3, -1.6)) == pytest.approx(0.786, abs=5e-4)
    assert float(soft_label(-1.6, -0.3)) == pytest.approx(1 - 0.786, abs=5e-4)


def test_soft_label_is_the_normalised_quotient_and_does_not_underflow():
    a, b = np.log([0.02, 0.5, 0.7]), np.log([0.06, 0.5, 0.1])
    np.testing.assert_allclose(soft_label(a, b), [0.25, 0.5, 0.875], rtol=1e-6)
    # exp(-300) is 0 in f32: the quotient would be 0 / 0.
    np.testing.assert_allclose(soft_label(-300.0, -301.0), 0.73105857, rtol=1e-6)


def test_placement_is_undone():
    p = placed_label(jnp.array([0.8, 0.8]), jnp.array([True, False]))
    np.testing.assert_allclose(p, [0.8, 0.2], rtol=1e-6)


def test_clamp_to_the_papers_range():
    p = jnp.array([0.0, 0.39, 0.4, 0.5, 0.61, 1.0])
    np.testing.assert_allclose(clamped_label(p, 0.4, 0.6), [0.4, 0.4, 0.4, 0.5, 0.6, 0.6])
    np.testing.assert_allclose(clamped_label(p, 0.2, 0.8), [0.2, 0.39, 0.4, 0.5, 0.61, 0.8])


def test_hard_labels_keep_the_side_and_an_exact_half():
    np.testing.assert_array_equal(
        hard_label(jnp.array([0.0, 0.49, 0.5, 0.51, 1.0])), [0, 0, 0.5, 1, 1]
    )


def test_entropy_in_nats():
    entropy = label_entropy(jnp.array([0.0, 0.25, 0.5, 1.0]))
    np.testing.assert_allclose(entropy, [0.0, 0.56233514, 0.69314718, 0.0], rtol=1e-6)


def test_the_mean_of_clamped_answers():
    # Of response A: 0.9, 0.8 (it stood at (B)) and 0.1; and one pair without an opinion.
    p_first = np.array([[0.9, 0.2, 0.1], [0.5, 0.5, 0.5]])
    logps = np.log(np.stack([p_first, 1 - p_first], -1))
    a_is_first = np.array([[True, False, True]] * 2)
    found = averaged_label(logps, a_is_first, 0.0, 1.0)
    np.testing.assert_allclose(found, [0.6, 0.5], rtol=1e-6)
    found = averaged_label(logps, a_is_first, 0.4, 0.6)
    np.testing.assert_allclose(found, [(0.6 + 0.6 + 0.4) / 3, 0.5], rtol=1e-6)
    found = averaged_label(logps, a_is_first, 0.2, 0.8, hard=True)
    np.testing.assert_allclose(found, [0.8, 0.5], rtol=1e-6)


def test_labels_of_one_answer_are_its_clamped_probability():
    p = np.linspace(0.01, 0.99, 21)
    logps = np.log(np.stack([p, 1 - p], -1))[:, None]
    found = averaged_label(logps, np.ones((21, 1), bool), 0.3, 0.7)
    np.testing.assert_allclose(found, np.clip(p, 0.3, 0.7), rtol=1e-5)
