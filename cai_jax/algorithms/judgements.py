"""How a feedback model judged: sureness, position bias, and agreement with known labels.

n pairs, Q questions about each: under one or several principles, in one placement or both, after
one or several reasonings.
"""

import numpy as np

from cai_jax.algorithms import calibration


def judgement_measures(
    logps: np.ndarray, a_is_first: np.ndarray, labels: np.ndarray, known: np.ndarray
) -> dict[str, float]:
    """Means over the pairs; a measure that the questions cannot give is left out.

    - choice_mass: the probability that the model gave to " (A)" and " (B)" together.
    - confidence: the mean probability of the likelier response, before clamping.
    - label_entropy: of the labels, nats.
    - position_bias: the mean probability of whatever stands at (A), less 1/2. Where each pair is
      asked in both placements the responses' own worth cancels; at random it does in expectation.
    - flip_rate: the share of pairs asked in both placements whose preferred response is another in
      each. A tie in one of them is no flip.
    - known: the pairs whose label is known; accuracy: of those that are decided (p = 1/2 is half
      right); calibration_error: expected calibration error there (paper Fig 9). Before clamping.

    Args:
        logps: log-probabilities (nats) of " (A)" and " (B)", [n, Q, 2].
        a_is_first: whether response A stood at (A), [n, Q].
        labels: P(response A is better), [n].
        known: the same from elsewhere, [n]; nan where it is not known.
    """
    logps, a_is_first = np.asarray(logps, np.float64), np.asarray(a_is_first, bool)
    p_first = 0.5 * (1 + np.tanh(0.5 * (logps[..., 0] - logps[..., 1])))
    p_a = np.where(a_is_first, p_first, 1 - p_first)
    p = p_a.mean(axis=1)
    found = {
        "choice_mass": np.exp(logps).sum(-1).mean(),
        "confidence": np.maximum(p, 1 - p).mean(),
        "label_entropy": calibration.binary_entropy(labels).mean(),
    }
    if a_is_first.any() and not a_is_first.all():
        found["position_bias"] = p_first.mean() - 0.5
    both = a_is_first.any(axis=1) & ~a_is_first.all(axis=1)
    if both.any():
        found["flip_rate"] = _flipped(p_a[both], a_is_first[both]).mean()
    is_known = ~np.isnan(known)
    if is_known.any():
        of_known, truth = p[is_known], known[is_known]
        found["known"] = int(is_known.sum())
        found["calibration_error"] = calibration.expected_calibration_error(of_known, truth)
        decided = truth != 0.5
        if decided.any():
            right = np.sign(of_known - 0.5) * np.sign(truth - 0.5)  # -1, 0 or 1
            found["accuracy"] = (0.5 + 0.5 * right[decided]).mean()
    return {name: value if name == "known" else float(value) for name, value in found.items()}


def _flipped(p_a: np.ndarray, a_is_first: np.ndarray) -> np.ndarray:
    """Whether each of [n] pairs, asked in both placements, prefers another response in each."""
    sides = [
        np.sign((p_a * placed).sum(axis=1) / placed.sum(axis=1) - 0.5)
        for placed in (a_is_first, ~a_is_first)
    ]
    return sides[0] * sides[1] < 0
