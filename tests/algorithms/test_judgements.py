import math

import numpy as np
import pytest

from cai_jax.algorithms.judgements import judgement_measures

NAN = math.nan


def measures(p_first, a_is_first, known=None, labels=None):
    """Of questions whose choices have these probabilities at (A) and the rest at (B)."""
    p = np.array(p_first, float)
    labels = np.full(len(p), 0.5) if labels is None else np.array(labels)
    known = np.full(len(p), NAN) if known is None else np.array(known)
    return judgement_measures(np.log(np.stack([p, 1 - p], -1)), np.array(a_is_first), labels, known)


def test_bias_is_of_the_place_and_not_of_the_response():
    # Two pairs in both placements: A is better by 0.7 and 0.3 wherever it stands.
    found = measures([[0.7, 0.3], [0.3, 0.7]], [[True, False]] * 2)
    assert found["position_bias"] == pytest.approx(0)
    assert found["flip_rate"] == 0 and found["confidence"] == pytest.approx(0.7)
    # The place alone decides: 0.9 at (A).
    found = measures([[0.9, 0.9]], [[True, False]])
    assert found["position_bias"] == pytest.approx(0.4)
    assert found["flip_rate"] == 1 and found["confidence"] == pytest.approx(0.5)


def test_placements_of_several_questions_are_averaged_before_they_are_compared():
    # A first: 0.9 and 0.2 of A, so A by 0.55; second: 0.4 and 0.7 of A, A again.
    ways = [[True, True, False, False]]
    assert measures([[0.9, 0.2, 0.6, 0.3]], ways)["flip_rate"] == 0
    assert measures([[0.9, 0.2, 0.6, 0.5]], ways)["flip_rate"] == 1  # 0.4 and 0.5: B
    assert measures([[0.5, 0.5, 0.9, 0.9]], ways)["flip_rate"] == 0  # a tie is no flip


def test_what_cannot_be_known_is_left_out():
    one_way = measures([[0.8], [0.8]], [[True], [True]])
    assert set(one_way) == {"choice_mass", "confidence", "label_entropy"}
    random = measures([[0.8], [0.6]], [[True], [False]])
    assert random["position_bias"] == pytest.approx(0.2) and "flip_rate" not in random
    assert random["choice_mass"] == pytest.approx(1)


def test_agreement_with_known_labels():
    found = measures(
        [[0.9], [0.9], [0.2], [0.5], [0.7]],
        [[True]] * 5,
        known=[1.0, 0.0, 0.0, 1.0, NAN],
    )
    # Right, wrong, right, and half for the tie.
    assert found["known"] == 4 and found["accuracy"] == pytest.approx(2.5 / 4)
    # Bins 0.9: half of two; 0.2: none of one; 0.5: one of one.
    assert found["calibration_error"] == pytest.approx((2 * 0.4 + 0.2 + 0.5) / 4)
    ties = measures([[0.9]], [[True]], known=[0.5])
    assert "accuracy" not in ties and ties["calibration_error"] == pytest.approx(0.4)


def test_mass_and_entropy():
    logps = np.log([[[0.2, 0.3], [0.1, 0.1]]])
    found = judgement_measures(logps, np.array([[True, True]]), np.array([0.25]), np.array([NAN]))
    assert found["choice_mass"] == pytest.approx((0.5 + 0.2) / 2)
    assert found["label_entropy"] == pytest.approx(0.56233514)
    assert found["confidence"] == pytest.approx(1 - (0.4 + 0.5) / 2)
