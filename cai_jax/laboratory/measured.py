"""Numbers of runs, and what is asked of them: a mean, or a side of zero at 95 %, over seeds."""

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cai_jax.algorithms.intervals import Interval, student_interval

Run = Mapping[str, Any]
"""One seed: step -> the content of its evaluation.json."""

ONE_SIDED = 0.90  # the level whose either end is one-sided at 95 %


class Missing(Exception):
    """A run has no such number: a step that makes it was not run."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One quantity of a claim: its 95 % interval over seeds, what was asked of it, and whether."""

    name: str
    interval: Interval
    asked: str
    holds: bool


def number(run: Run, step: str, *path: Any) -> float:
    """A number of a step's evaluation.

    Raises:
        Missing: it is not there, or there were no cases to measure it on.
    """
    value: Any = run.get(step)
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            value = None
    if value is None:
        raise Missing(step)
    return float(value)


def of_model(run: Run, step: str, model: str, measure: str) -> float:
    """A measure of a model in an `evaluate` step."""
    return number(run, step, "models", model, measure)


def score(run: Run, step: str, chains: str, revision: int, judge: str = "harmless") -> float:
    """A preference model's mean score of revision n of some chains."""
    return number(run, step, "chains", chains, revision, judge)


def accuracy(run: Run, size: str, labels: str) -> float:
    """Of labels on decided pairs of equally many harms."""
    return number(run, f"judged_labels_{size}", "feedback", labels, "accuracy")


def elo(run: Run, a: str, b: str, *, step: str = "variants", of: str = "harmlessness") -> float:
    """How many Elo points model a is above model b."""
    measure = f"{of}_elo"
    return of_model(run, step, a, measure) - of_model(run, step, b, measure)


def stock_share(run: Run, model: str) -> float:
    """Of answers that explain, the share with the world's stock sentence."""
    explained = of_model(run, "variants", model, "explained_rate")
    if not explained:
        raise Missing("variants")
    return of_model(run, "variants", model, "explained_boilerplate_rate") / explained


def ratio(part: float, whole: float) -> float:
    """The quotient; nan where there is no whole, of which no claim holds."""
    return part / whole if whole else float("nan")


Measure = Callable[[Run], float]


def values_of(runs: Sequence[Run], of: Measure) -> np.ndarray:
    """The measure of each run, [n]."""
    return np.array([of(run) for run in runs])


def above(runs: Sequence[Run], name: str, of: Measure, least: float = 0.0) -> Part:
    """The mean is above `least`, one-sided at 95 %."""
    values = values_of(runs, of)
    holds = student_interval(values, ONE_SIDED).low > least
    return Part(name, student_interval(values), f"above {least:g}", bool(holds))


def below(runs: Sequence[Run], name: str, of: Measure, most: float = 0.0) -> Part:
    """The mean is below `most`, one-sided at 95 %."""
    values = values_of(runs, of)
    holds = student_interval(values, ONE_SIDED).high < most
    return Part(name, student_interval(values), f"below {most:g}", bool(holds))


COMPARED = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}


def mean(runs: Sequence[Run], name: str, of: Measure, sign: str, bound: float) -> Part:
    """The mean alone is compared with a bound."""
    interval = student_interval(values_of(runs, of))
    holds = COMPARED[sign](interval.value, bound)
    return Part(name, interval, f"mean {sign} {bound:g}", bool(holds))
