"""How far probabilities can be believed: reliability bins, calibration error, entropies.

All probabilities are of the same binary event, say "response A is the better one" (paper Fig 9).
"""

from typing import NamedTuple

import numpy as np


class Reliability(NamedTuple):
    """Bins of a reliability diagram, each array [num_bins]; empty bins have no cases and nan."""

    mean_probability: np.ndarray
    frequency: np.ndarray
    num_cases: np.ndarray


def reliability(probabilities: np.ndarray, outcomes: np.ndarray, num_bins: int = 10) -> Reliability:
    """Mean probability and observed frequency in bins of equal width over [0, 1].

    Args:
        probabilities: [n] in [0, 1].
        outcomes: [n], 1 where the event happened; a soft outcome in [0, 1] counts as its share.
        num_bins: bin i holds i / num_bins <= p < (i + 1) / num_bins; the last holds 1 too.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(outcomes, np.float64)
    # Looked up, since p * num_bins may round across an edge.
    edges = np.arange(1, num_bins) / num_bins
    bins = np.searchsorted(edges, p, side="right")
    count = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(bins, weights=p, minlength=num_bins) / count
        frequency = np.bincount(bins, weights=y, minlength=num_bins) / count
    return Reliability(mean, frequency, count)


def curve(
    probabilities: np.ndarray, outcomes: np.ndarray, num_bins: int = 10
) -> list[dict[str, float]]:
    """The bins of `reliability` that have cases: probability, frequency and n, ready for JSON."""
    bins = zip(*(of_bin.tolist() for of_bin in reliability(probabilities, outcomes, num_bins)))
    return [{"probability": p, "frequency": y, "n": n} for p, y, n in bins if n]


def expected_calibration_error(
    probabilities: np.ndarray, outcomes: np.ndarray, num_bins: int = 10
) -> float:
    """Mean gap between probability and frequency, each bin weighted by its count."""
    bins = reliability(probabilities, outcomes, num_bins)
    gaps = np.nan_to_num(np.abs(bins.mean_probability - bins.frequency))
    return float((gaps * bins.num_cases).sum() / bins.num_cases.sum())


def binary_entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy of Bernoulli(p) in nats: the least log-loss that any model can have on label p."""
    return binary_cross_entropy(probabilities, probabilities)


def binary_cross_entropy(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Log-loss in nats of predicting `probabilities` when the (soft) labels are `labels`."""
    p, q = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        loss = -np.where(p > 0, p * np.log(q), 0.0) - np.where(p < 1, (1 - p) * np.log1p(-q), 0.0)
    return loss + 0.0
