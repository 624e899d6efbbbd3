import json
import math

import numpy as np
import pytest

from cai_jax.algorithms.preference_measures import measures


def logit(p):
    return math.log(p / (1 - p))


def test_literal_values():
    """Margins log 3, -log 3, 0 and 2 against the labels 0.75, 0.75, 0 and 0.5."""
    a, b = np.array([logit(0.75), 1.0, 0.0, 2.5]), np.array([0.0, 1.0 + math.log(3), 0.0, 0.5])
    found = measures(a, b, np.array([0.75, 0.75, 0.0, 0.5]))
    assert (found["n"], found["decided"]) == (4, 3)
    assert found["accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    losses = [
        entropy,
        -0.75 * math.log(0.25) - 0.25 * math.log(0.75),
        math.log(2),
        0.5 * math.log(1 + math.exp(-2)) + 0.5 * math.log(1 + math.exp(2)),
    ]
    assert found["log_loss"] == pytest.approx(np.mean(losses))
    assert found["label_entropy"] == pytest.approx((2 * entropy + math.log(2)) / 4)
    assert found["excess_loss"] == pytest.approx(found["log_loss"] - found["label_entropy"])
    assert found["mean_margin"] == pytest.approx(0.0)  # log 3, - log 3 and 0
    edges, counts = found["margins"]["edges"], found["margins"]["counts"]
    assert (edges[0], edges[-1], len(counts)) == (-2.0, 2.0, 20)
    assert [(round(edges[i], 6), n) for i, n in enumerate(counts) if n] == [
        (-1.2, 1),
        (0.0, 1),
        (1.0, 1),
    ]


def test_calibration_counts_each_comparison_from_both_sides():
    """Three quarters predicted, which three of four labels bear out; and the other way round."""
    a, b = np.full(4, logit(0.75)), np.zeros(4)
    found = measures(a, b, np.array([1.0, 1.0, 1.0, 0.0]))
    assert found["calibration_error"] == pytest.approx(0.0, abs=1e-12)
    assert found["calibration"] == {
        "probability": pytest.approx([0.25, 0.75]),
        "frequency": pytest.approx([0.25, 0.75]),
        "cases": [4, 4],
    }
    assert measures(a, b, np.array([1.0, 0.0, 0.0, 0.0]))["calibration_error"] == pytest.approx(0.5)


def test_exchanged_sides_give_the_same_numbers():
    rng = np.random.default_rng(0)
    a, b, p = rng.normal(size=50), rng.normal(size=50), rng.uniform(size=50)
    one, other = measures(a, b, p), measures(b, a, 1 - p)
    assert one["margins"] == other["margins"]
    for name in ("accuracy", "log_loss", "label_entropy", "calibration_error", "mean_margin"):
        assert one[name] == pytest.approx(other[name], abs=1e-12)


def test_certain_scores_have_finite_losses_and_all_is_json():
    found = measures(np.array([900.0, 900.0]), np.zeros(2), np.array([1.0, 0.0]))
    assert found["log_loss"] == pytest.approx(450)
    assert found["margins"]["edges"][-1] == 900
    json.dumps(found, allow_nan=False)


def test_without_decided_labels_or_without_any():
    found = measures(np.array([1.0]), np.array([0.0]), np.array([0.5]))
    assert found["accuracy"] is None and found["mean_margin"] is None and "margins" not in found
    assert measures(*np.zeros((3, 0))) == {"n": 0}
