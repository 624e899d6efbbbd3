"""Steps of a run as sections of the page, each from the plain data that its artifact holds."""

from collections.abc import Mapping, Sequence
from typing import Any

from cai_jax.page import choices
from cai_jax.page import evaluation as tables
from cai_jax.page.markup import Html, element, fold, join, table
from cai_jax.page.plots import number
from cai_jax.page.preference import by_source
from cai_jax.page.training import curves
from cai_jax.page.watch import verdict, watch

FEW = 6  # parts of a section that stand open


def parts(named: Sequence[tuple[str, Html]]) -> list[Html]:
    """Parts of a section under their names; many, each behind its name."""
    if len(named) <= FEW:
        return [element("div", element("h3", name), part) for name, part in named]
    return [element("div", *(fold(*one, class_="step") for one in named), class_="steps")]


def evaluation(found: Mapping[str, Any]) -> Html:
    """Models on held-out prompts, and what else an `evaluate` step measured."""
    shown: list[Html] = []
    if found["models"]:
        shown.append(tables.models_table(found))
    revisions = found.get("chains", {}).get("revisions", [])
    plots = [tables.elo_plot(found), *(tables.revision_plots(revisions) if revisions else ())]
    shown.append(element("div", *plots, class_="plots"))
    if revisions:
        shown.append(tables.revision_table(revisions))
    if "critiques" in found:
        caption = "Critiques and revisions on held-out prompts, round by round"
        shown.append(tables.measures_table({"share": found["critiques"]}, caption))
    if found.get("feedback"):
        shown.append(tables.measures_table(found["feedback"], "Feedback on held-out pairs"))
    if "preference" in found:
        caption = "Preference model on held-out comparisons"
        shown.append(tables.numbers_table(found["preference"], caption))
    if "refusals" in found:
        shown.append(choices.refusal_tables(found["refusals"]))
    return join(shown)


def multiple_choice(found: Mapping[str, Any]) -> Html:
    """Each evaluation of an `evaluate_choices` step."""
    shown: list[Html] = []
    for name, modes in found["sets"].items():
        shown.append(element("h4", f"{name.replace('_', ' ')}, multiple choice"))
        shown += choices.choice_tables(modes, found["level"])
    return join(shown)


def ratings(found: Mapping[str, Any]) -> Html:
    """Elo from pairwise judgements, of an `elo` step."""
    return join(choices.rating_tables(found))


EVALUATIONS = {"evaluate": evaluation, "evaluate_choices": multiple_choice, "elo": ratings}


def training(
    kind: str,
    lines: Sequence[Mapping[str, Any]],
    measured: Mapping[str, Any] | None,
    counts: Mapping[str, Any],
    phrases: Sequence[Mapping[str, Any]],
) -> Html:
    """Curves, what a preference model is worth by source, and the watch of an RL step.

    Args:
        kind: of step.
        lines: of metrics.jsonl.
        measured: its evaluation.json, if it has one.
        counts: of the manifest.
        phrases: of phrases.json.
    """
    return join(
        [
            curves(kind, lines),
            by_source(measured) if kind == "preference" and measured else Html(""),
            watch(counts, phrases) if kind == "ppo" else Html(""),
        ]
    )


def reinforced(steps: Sequence[tuple[str, Mapping[str, Any]]]) -> Html:
    """A line for each RL step: score, KL, and what the watch says; nothing without any."""
    rows = [
        [
            name,
            *(number(counts.get(count)) for count in ("first_score", "score", "kl")),
            verdict(counts),
        ]
        for name, counts in steps
    ]
    if not rows:
        return Html("")
    headings = ["RL step", "first score", "last score", "KL", "watch"]
    caption = (
        "Score: the preference model's mean, which RL maximizes. KL: nats a response to where RL "
        "began. Watch: whether another judge fell while that score rose."
    )
    inner = table(headings, rows, caption)
    return inner if len(rows) <= FEW else fold(f"All {len(rows)} RL steps", inner)


def taken(steps: Sequence[tuple[str, str, Mapping[str, Any]]]) -> Html:
    """What each step took: its name, kind and manifest."""
    rows = [
        [name, kind, *(number(of.get(count)) for count in ("records", "tokens", "seconds"))]
        for name, kind, of in steps
    ]
    headings = ["step", "kind", "records", "tokens", "seconds"]
    inner = table(headings, rows, "What each step took")
    return inner if len(rows) <= 4 * FEW else fold(f"All {len(rows)} steps", inner)
