"""What multiple choices amount to: accuracy, log-loss and calibration (paper Figs 4, 9, 12)."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from cai_jax.algorithms import calibration
from cai_jax.algorithms.intervals import estimates


class ChoiceLike(Protocol):
    """A choice: probabilities over options, the indices of the right and the chosen one.

    Choices of one `context` are not independent; `mass` is the probability of all options together,
    if it is known.
    """

    @property
    def context(self) -> str: ...  # noqa: D102
    @property
    def correct(self) -> int: ...  # noqa: D102
    @property
    def chosen(self) -> int: ...  # noqa: D102
    @property
    def probabilities(self) -> Sequence[float]: ...  # noqa: D102
    @property
    def mass(self) -> float | None: ...  # noqa: D102


def choice_measures(
    choices: Sequence[ChoiceLike],
    names: Sequence[str],
    *,
    seed: int,
    num_resamples: int = 1000,
    level: float = 0.95,
    num_bins: int = 10,
) -> dict[str, Any]:
    """Measures of at least one choice, ready for JSON.

    Args:
        choices: the options of each may be more or fewer.
        names: of the options, for "by_answer".
        seed, num_resamples, level: of the bootstrap over contexts.
        num_bins: of the calibration curves.

    Returns:
        "accuracy", "log_loss" (nats, of the right option) and "mass", with "intervals" and "n";
        "contexts", their number; "ece" and "calibration", of the chosen option's probability;
        "option_ece" and "option_calibration", of every option's (as in Fig 9); "by_answer": name of
        the right option -> its accuracy, and how often it was "chosen".
    """

    def estimated(cases: Mapping[str, list]) -> dict[str, Any]:
        return estimates(cases, seed=seed, num_resamples=num_resamples, level=level)

    right = [float(one.chosen == one.correct) for one in choices]
    cases: dict[str, list] = {
        "accuracy": [(value, one.context) for value, one in zip(right, choices)],
        "log_loss": [(log_loss(one.probabilities[one.correct]), one.context) for one in choices],
    }
    if mass := [(one.mass, one.context) for one in choices if one.mass is not None]:
        cases["mass"] = mass
    found = estimated(cases)
    found["contexts"] = len({one.context for one in choices})
    confidence = np.array([one.probabilities[one.chosen] for one in choices])
    of_options = np.concatenate([one.probabilities for one in choices])
    are_right = np.concatenate([np.arange(len(c.probabilities)) == c.correct for c in choices])
    for prefix, p, y in (("", confidence, np.array(right)), ("option_", of_options, are_right)):
        found[f"{prefix}ece"] = calibration.expected_calibration_error(p, y, num_bins)
        found[f"{prefix}calibration"] = calibration.curve(p, y, num_bins)
    by_answer: dict[str, list] = {name: [] for name in names}
    for case, one in zip(cases["accuracy"], choices):
        by_answer[names[one.correct]].append(case)
    found["by_answer"] = {
        name: estimated({"accuracy": of_answer})
        | {"chosen": sum(names[one.chosen] == name for one in choices)}
        for name, of_answer in by_answer.items()
    }
    return found


def log_loss(probability: float) -> float:
    """Log-loss in nats of an event that was given `probability`; 708 where that is 0."""
    return float(-np.log(max(probability, np.finfo(np.float64).tiny)))
