"""What the scores of a preference model are worth, against the labels of its comparisons."""

import math
from typing import Any

import numpy as np

from cai_jax.algorithms.calibration import (
    binary_entropy,
    expected_calibration_error,
    reliability,
)

MARGIN_BINS = 20
CALIBRATION_BINS = 10


def measures(score_a: np.ndarray, score_b: np.ndarray, p_a: np.ndarray) -> dict[str, Any]:
    """Accuracy, losses, calibration and margins of one source of comparisons, as plain numbers.

    Which response stands as A is an accident, so that each comparison counts from both sides in the
    calibration, and margins are of the response that the label prefers, less the other.

    Args:
        score_a: [n] scores of the responses A.
        score_b: [n] scores of the responses B.
        p_a: [n] labels in [0, 1].

    Returns:
        n; accuracy over the `decided` comparisons, whose label is not a half (None without any; a
        margin of 0 is right by half); log_loss and label_entropy, its floor, in nats;
        excess_loss, what is above it; calibration_error, and the reliability curve behind it
        (bins without cases left out); mean_margin, and the histogram of margins, whose `edges` are
        one more than its `counts`.
    """
    a, b, p = (np.asarray(x, np.float64) for x in (score_a, score_b, p_a))
    if not len(p):
        return {"n": 0}
    margin = a - b
    predicted = 0.5 * (1 + np.tanh(0.5 * margin))
    # The loss from the margin itself: a probability rounds to 1 where a margin does not overflow.
    loss = p * np.logaddexp(0, -margin) + (1 - p) * np.logaddexp(0, margin)
    entropy = binary_entropy(p)
    both, outcomes = np.concatenate([predicted, 1 - predicted]), np.concatenate([p, 1 - p])
    bins = reliability(both, outcomes, CALIBRATION_BINS)
    filled = bins.num_cases > 0
    decided = p != 0.5
    preferred = (margin * np.sign(p - 0.5))[decided]
    right = np.where(preferred == 0, 0.5, preferred > 0)
    found = {
        "n": len(p),
        "decided": int(decided.sum()),
        "accuracy": _mean(right),
        "log_loss": float(loss.mean()),
        "label_entropy": float(entropy.mean()),
        "excess_loss": float((loss - entropy).mean()),
        "calibration_error": expected_calibration_error(both, outcomes, CALIBRATION_BINS),
        "calibration": {
            "probability": bins.mean_probability[filled].tolist(),
            "frequency": bins.frequency[filled].tolist(),
            "cases": bins.num_cases[filled].tolist(),
        },
        "mean_margin": _mean(preferred),
    }
    if len(preferred):
        # A round number at the ends, so that sources and runs can be laid side by side.
        end = float(max(math.ceil(np.abs(preferred).max()), 1))
        counts, edges = np.histogram(preferred, MARGIN_BINS, (-end, end))
        found["margins"] = {"edges": edges.tolist(), "counts": counts.tolist()}
    return found


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
