"""Panels of curves, which figures are made of."""

from typing import Any, NamedTuple

from cai_jax.algorithms.intervals import Interval

RUNS = {
    "helpful_rlhf": "helpful RLHF",
    "hh_rlhf": "HH RLHF",
    "rl_cai": "RL-CAI",
    "rl_cai_cot": "RL-CAI with CoT",
}
ACCURACY = (0.4, 1.0)  # the axis that ours and the paper's share
PEOPLE = {"harmless": "harmlessness", "helpful": "helpfulness", "hh": "HH"}


class Curve(NamedTuple):
    """A named line: x, and y with its interval over seeds."""

    name: str
    x: list[float]
    y: list[Interval]


class Panel(NamedTuple):
    """Curves over one pair of axes; the title says what y is."""

    title: str
    x_label: str
    curves: list[Curve]
    y_range: tuple[float, float] | None = None  # None: as far as the values reach
    log_x: bool = False


def exact(name: str, x: Any, y: Any) -> Curve:
    """A curve without intervals; points that are None are left out."""
    points = [(float(a), float(b)) for a, b in zip(x, y) if b is not None]
    return Curve(name, [a for a, _ in points], [Interval(b, b, b) for _, b in points])
