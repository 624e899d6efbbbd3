"""The panels of the paper's own figures, from what was read off its plots (paper.json)."""

import functools
import json
from importlib import resources
from typing import Any

from cai_jax.laboratory.panels import ACCURACY, RUNS, Panel, exact


@functools.cache
def digitised() -> dict[str, Any]:
    """What was read off the paper's plots, and its source."""
    text = resources.files("cai_jax.laboratory").joinpath("paper.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def frontier() -> list[Panel]:
    """Figure 2 of the paper."""
    found = digitised()["fig2_fig8_elo_vs_rl"]
    curves = []
    for name, title in RUNS.items():
        helpful, harmless = zip(*found[name].values())
        curves.append(exact(title, helpful, harmless))
    return [Panel("Harmlessness Elo along RL", "helpfulness Elo", curves)]


def along_training() -> list[Panel]:
    """Figure 8 of the paper."""
    found = digitised()["fig2_fig8_elo_vs_rl"]
    return [
        Panel(
            f"{what} Elo along RL",
            "million sequences of RL",
            [
                exact(title, map(float, found[name]), [e[i] for e in found[name].values()])
                for name, title in RUNS.items()
            ],
        )
        for i, what in enumerate(("Helpfulness", "Harmlessness"))
    ]


def by_size() -> list[Panel]:
    """Figure 3 of the paper."""
    found = digitised()["fig3_elo_vs_size"]
    return [
        Panel(
            f"{what.capitalize()} Elo by size",
            "billion parameters",
            [exact(title, found["sizes_b"], found[what][name]) for name, title in RUNS.items()],
            log_x=True,
        )
        for what in ("helpfulness", "harmlessness")
    ]


def identification() -> list[Panel]:
    """Figure 4 of the paper."""
    found = digitised()["fig4_hhh_438_accuracy"]
    named = {
        "pretrained_multiple_choice": "multiple choice",
        "chain_of_thought": "chain of thought",
        "ensembled_chain_of_thought_5": "ensemble of five",
        "hh_preference_model": "HH preference model",
    }
    curves = [exact(title, found["sizes_b"], found[name]) for name, title in named.items()]
    title = "Accuracy on 438 HHH comparisons"
    return [Panel(title, "billion parameters", curves, y_range=ACCURACY, log_x=True)]


def revisions() -> list[Panel]:
    """Figure 5 of the paper."""
    found = digitised()["fig5_pm_score_vs_revision"]
    return [
        Panel(
            f"PM score of {what}",
            "revision (0: the response)",
            [exact(f"{size}B", range(5), scores) for size, scores in found[key].items()],
        )
        for key, what in (
            ("harmlessness", "harmlessness"),
            ("helpfulness", "helpfulness"),
            ("hh", "HH"),
        )
    ]


def absolute_harm() -> list[Panel]:
    """Figure 10 of the paper."""
    found = digitised()["fig10_absolute_harm_0_to_4"]
    curves = [exact(title, range(5), found[name]) for name, title in RUNS.items()]
    return [Panel("Harmfulness from 0 to 4, T = 1", "along RL (five points)", curves)]
