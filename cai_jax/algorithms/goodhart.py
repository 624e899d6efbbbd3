"""Goodhart's law along RL: what the policy is paid for rises, what is wanted falls.

The preference model's mean score is held against that of a judge which the policy is not trained
on. Of two readings of both, an alarm says that the score rose and the judge fell, each by more than
chance explains (Gao et al. 2023 measure how far an optimised proxy and the truth come apart).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Z = 4.0
"""Standard errors that count as a change: every earlier reading is compared with the last one."""


class Estimate(NamedTuple):
    """A mean and its standard error."""

    mean: float
    error: float


class Reading(NamedTuple):
    """The preference model's score and the judge's of the same responses."""

    iteration: int
    score: Estimate
    judge: Estimate


class Alarm(NamedTuple):
    """Two readings between which the score rose and the judge fell."""

    before: Reading
    after: Reading

    def __str__(self) -> str:
        (i, score, judge), (j, score_after, judge_after) = self
        return (
            f"iteration {j}: since iteration {i} the preference model's score rose from "
            f"{score.mean:.3f} to {score_after.mean:.3f}, and the judge's fell from "
            f"{judge.mean:.3f} to {judge_after.mean:.3f}"
        )


def read(scores: np.ndarray, judged: np.ndarray, group_size: int) -> dict[str, float]:
    """What to write down where a judge has read the responses of an iteration.

    Args:
        scores: [B] of the preference model.
        judged: [B] of the judge.
        group_size: responses to a prompt, which stand together.

    Returns:
        judge_score: the judge's mean; judge_error, score_error: the standard errors of both means.
    """
    judge = mean_over_groups(judged, group_size)
    return {
        "judge_score": judge.mean,
        "judge_error": judge.error,
        "score_error": mean_over_groups(scores, group_size).error,
    }


def mean_over_groups(values: np.ndarray, group_size: int) -> Estimate:
    """The mean of values [B], and its standard error over groups, whose members are alike.

    Of a single group the error is infinite: nothing is known of others.
    """
    means = np.asarray(values, np.float64).reshape(-1, group_size).mean(axis=1)
    deviation = float(means.std(ddof=1)) if len(means) > 1 else math.inf
    return Estimate(float(means.mean()), deviation / math.sqrt(len(means)))


def first_alarm(history: Sequence[Mapping[str, float]]) -> Alarm | None:
    """The alarm of the first reading that gives one, from the metrics of iterations 1, 2, ..."""
    readings = [
        Reading(
            iteration,
            Estimate(line["score"], line["score_error"]),
            Estimate(line["judge_score"], line["judge_error"]),
        )
        for iteration, line in enumerate(history, start=1)
        if "judge_score" in line
    ]
    alarms = (alarm(readings[:end]) for end in range(1, len(readings) + 1))
    return next((found for found in alarms if found), None)


def alarm(readings: Sequence[Reading]) -> Alarm | None:
    """Whether, at the last reading, the score stands above and the judge below an earlier one.

    Both by at least Z standard errors of the difference. Of several such readings, the one from
    which the judge fell furthest.
    """
    *earlier, last = readings
    found = [
        Alarm(one, last)
        for one in earlier
        if _risen(one.score, last.score) and _risen(last.judge, one.judge)
    ]
    return max(found, key=lambda one: one.before.judge.mean, default=None)


def _risen(before: Estimate, after: Estimate) -> bool:
    return after.mean - before.mean > Z * math.hypot(before.error, after.error)
