"""What a preference model's scores are worth by source, from the step's evaluation.json."""

from collections.abc import Mapping
from typing import Any

from cai_jax.page.markup import Html, element, table
from cai_jax.page.plots import Series, line_plot, number

COLUMNS = {
    "n": "comparisons",
    "weight": "weight in training",
    "accuracy": "accuracy",
    "log_loss": "log-loss (nats)",
    "label_entropy": "its floor: entropy of the labels",
    "excess_loss": "above the floor",
    "calibration_error": "calibration error",
    "mean_margin": "mean margin of the preferred (nats)",
}


def by_source(evaluation: Mapping[str, Any]) -> Html:
    """A table of all sources, and for those with cases the calibration curves and margins."""
    sources = evaluation.get("sources") or {}
    if not sources:
        return Html("")
    columns = [c for c in COLUMNS if any(of.get(c) is not None for of in sources.values())]
    rows = [[name, *(number(of.get(c)) for c in columns)] for name, of in sources.items()]
    caption = "The preference model by source of comparisons"
    parts = [table(["source", *(COLUMNS[c] for c in columns)], rows, caption)]
    curves = [
        Series(name, list(zip(of["calibration"]["probability"], of["calibration"]["frequency"])))
        for name, of in sources.items()
        if of.get("calibration")
    ]
    if curves:
        perfect = Series("perfect", [(0.0, 0.0), (1.0, 1.0)])
        title = "Calibration: frequency of the labels"
        label = "predicted probability of being preferred"
        parts.append(
            line_plot(title, [perfect, *curves], x_label=label, y_range=(0.0, 1.0), markers=True)
        )
    margins = [
        Series(name, _shares(**of["margins"])) for name, of in sources.items() if of.get("margins")
    ]
    if margins:
        title = "Margins: share of the comparisons"
        parts.append(
            line_plot(title, margins, x_label="score of the preferred less the other (nats)")
        )
    return element("div", parts[0], element("div", *parts[1:], class_="plots"))


def _shares(edges: list[float], counts: list[int]) -> list[tuple[float, float]]:
    """(middle of a bin, its share of all cases)."""
    total = sum(counts)
    middles = [(low + high) / 2 for low, high in zip(edges, edges[1:])]
    return [(middle, count / total) for middle, count in zip(middles, counts)]
