"""Multiple-choice evaluations and pairwise ratings as tables and plots."""

from collections.abc import Mapping
from typing import Any

from cai_jax.page.evaluation import cell, models_table
from cai_jax.page.markup import Html, element, join, table
from cai_jax.page.plots import Series, line_plot, number

MODES = {
    "zero_shot": "zero-shot",
    "few_shot": "few-shot",
    "chain_of_thought": "chain of thought",
    "ensembled_chain_of_thought": "ensembled chain of thought",
    "preference_model": "preference model",
}
JUDGES = {
    "preference_model": "a preference model: an opinion, not the truth",
    "feedback_model": "a feedback model: an opinion, not the truth",
    "people": "people who did not see whose answers they were",
}


def choice_tables(modes: Mapping[str, Mapping[str, Any]], level: float) -> list[Html]:
    """One evaluation: accuracy and calibration by mode, accuracy by right answer, and a plot."""
    first = next(iter(modes.values()))
    rows = [
        [
            MODES[mode],
            cell(of, "accuracy", cases=True),
            cell(of, "log_loss"),
            number(of["ece"]),
            number(of["option_ece"]),
            cell(of, "mass"),
        ]
        for mode, of in modes.items()
    ]
    headings = ["asked", "accuracy", "log-loss (nats)", "ECE", "ECE, all options", "on options"]
    caption = (
        f"In small print: {100 * level:.0f} % bootstrap intervals over {first['contexts']} "
        "contexts. ECE: expected calibration error, of the chosen option's probability and of "
        "every option's. On options: the probability that the model gave to the options together."
    )
    answers = list(dict.fromkeys(name for of in modes.values() for name in of["by_answer"]))
    by_answer = [
        [
            name,
            *(cell(of["by_answer"].get(name, {}), "accuracy", cases=True) for of in modes.values()),
        ]
        for name in answers
    ]
    return [
        table(headings, rows, caption),
        calibration_plot(modes),
        table(
            ["right answer", *(MODES[mode] for mode in modes)],
            by_answer,
            "Accuracy by right answer",
        ),
    ]


def calibration_plot(modes: Mapping[str, Mapping[str, Any]]) -> Html:
    """How often an option is right against its probability, as in the paper's Fig 9."""
    series = [Series("calibrated", [(0.0, 0.0), (1.0, 1.0)])]
    for mode, of in modes.items():
        points = [(one["probability"], one["frequency"]) for one in of["option_calibration"]]
        series.append(Series(MODES[mode], points))
    plot = line_plot(
        "Share of options that are right",
        series,
        x_label="probability of the option",
        y_range=(0.0, 1.0),
        markers=True,
    )
    return element("div", plot, class_="plots")


def rating_tables(found: Mapping[str, Any]) -> list[Html]:
    """Elo by judge, what it was made of, and how often judges agree."""
    parts: list[Html] = []
    for judge, of in found["judges"].items():
        parts.append(element("h4", f"Judged by {JUDGES[judge]}"))
        parts.append(models_table({**found, "models": of["models"]}))
        for rating, counts in of["ratings"].items():
            people = f" by {counts['annotators']} people" if counts["annotators"] else ""
            text = (
                f"{rating.replace('_', ' ')}: {counts['judgements']} judgements{people} on "
                f"{counts['prompts']} prompts, of which {counts['ties']} ties, left out."
            )
            parts.append(element("p", text, class_="note"))
    if found["agreement"]:
        rows = [
            [name.replace("_", " ").replace("/", " and "), cell(of, "agreement", cases=True)]
            for name, of in found["agreement"].items()
        ]
        caption = "How often two judges prefer the same answer, where both decide"
        parts.append(table(["judges", "agreement"], rows, caption))
    return parts


def refusal_tables(refusals: Mapping[str, Mapping[str, Any]]) -> Html:
    """XSTest: shares of refusals by model and label, and by type of prompt behind a click."""
    labels = list(dict.fromkeys(label for of in refusals.values() for label in of))
    kinds = ("full_refusal", "partial_refusal")
    headings = [f"{label}: {kind.replace('_', ' ')}" for label in labels for kind in kinds]

    def cells(of: Mapping[str, Any], cases: bool = False) -> list[Html]:
        return [cell(of.get(label, {}), kind, cases=cases) for label in labels for kind in kinds]

    caption = (
        "XSTest: safe prompts that only sound unsafe should be answered, unsafe ones should not. "
        "Refusals are told by a lexicon, which knows their usual wordings alone."
    )
    rows = [[model, *cells(of, cases=True)] for model, of in refusals.items()]
    parts = [table(["model", *headings], rows, caption)]
    for model, of in refusals.items():
        of_types = [
            [name, label, *(cell(shares, kind, cases=True) for kind in kinds)]
            for label in of
            for name, shares in of[label]["by_type"].items()
        ]
        heads = ["type of prompt", "label", *(kind.replace("_", " ") for kind in kinds)]
        inner = table(heads, of_types, "")
        parts.append(element("details", element("summary", f"{model}: by type of prompt"), inner))
    return join(parts)
