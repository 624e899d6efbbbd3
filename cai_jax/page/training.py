"""Training curves, from the lines of metrics.jsonl."""

from collections.abc import Mapping, Sequence
from typing import Any

from cai_jax.page.markup import Html, element
from cai_jax.page.plots import Series, line_plot, thin

PANELS: dict[str, dict[str, tuple[str, ...]]] = {
    "finetune": {"loss (nats per token)": ("loss", "held_out_loss")},
    "preference": {
        "loss (nats per comparison)": ("loss", "held_out_loss", "entropy"),
        "accuracy": ("accuracy", "held_out_accuracy"),
    },
    "ppo": {
        "PM score": ("score",),
        "KL to the reference (nats per response)": ("kl",),
        "response length (tokens)": ("length",),
        "entropy (nats per token)": ("entropy",),
        "a judge's score of the same responses": ("judge_score",),
        "shares of responses": ("eos_rate", "evasive", "boilerplate"),
        "growth of the phrase that grew most (nats)": ("phrase_growth",),
        "length against the first responses, less 1": ("length_drift",),
        "distinct bigrams, and phrases said again": ("distinct_2", "repetition"),
        "clipped share of ratios": ("clip_fraction",),
        "KL to the sampling policy (nats per token)": ("policy_kl",),
        "KL coefficient": ("kl_coefficient",),
        "value loss": ("value_loss",),
        "explained variance of the returns": ("explained_variance",),
    },
    "dpo": {
        "loss (nats per comparison)": ("loss", "entropy"),
        "accuracy of the implied rewards": ("accuracy",),
        "margin of the implied rewards towards the label": ("margin",),
    },
}
"""For each kind of step: a plot's title, and the metrics that it shows if they are there."""


def curves(kind: str, metrics: Sequence[Mapping[str, Any]]) -> Html:
    """Plots of a training step; of a kind that is not in PANELS, one plot for each metric."""
    present = {name for line in metrics for name, value in line.items() if _is_number(value)} - {
        "step"
    }
    panels = PANELS.get(kind, {})
    if not any(present & set(names) for names in panels.values()):
        panels = {name.replace("_", " "): (name,) for name in sorted(present)}
    plots = []
    for title, names in panels.items():
        series = [
            Series(name.replace("_", " "), thin(_points(metrics, name)))
            for name in names
            if name in present
        ]
        if series:
            plots.append(line_plot(title, series, x_label="step"))
    return element("div", *plots, class_="plots")


def _points(metrics: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value) where the metric is a number; a value that was not finite is left out."""
    return [
        (float(line["step"]), float(line[name])) for line in metrics if _is_number(line.get(name))
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
