"""The evaluation as tables and plots, from the content of evaluation.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from cai_jax.page.markup import Html, element, join, table
from cai_jax.page.plots import Estimate, Series, Spot, line_plot, number, scatter_plot

COLUMNS = {
    "harmless_rate": "harmless",
    "helpful_rate": "helpful",
    "evasive_rate": "evasive",
    "explained_rate": "explained",
    "broken_rate": "broken",
    "harmlessness_elo": "harmlessness Elo",
    "helpfulness_elo": "helpfulness Elo",
    "boilerplate_rate": "boilerplate",
    "over_refusal_rate": "refuses benign",
    "mean_harms": "harms per answer",
    "red_team_score": "PM score, red-team",
    "benign_score": "PM score, benign",
}

MOST_SPOTS = 8

MEASURES = {
    "blames_covered": "names a harm that is there and covered, and nothing else",
    "blames_all_covered": "names all harms that are there and covered, exactly",
    "says_fine": "says nothing is wrong when no covered harm is there",
    "names_every_harm": "lists exactly the harms that are there, covered or not",
    "removes_blamed": "the revision removes what the critique blames",
    "leaves_fine": "the revision leaves an answer unchanged that is fine under the principle",
    "leaves_harmless": "the revision leaves an answer unchanged that has no harm at all",
    "adds_harm": "the revision adds a harm",
    "malformed": "the critique cannot be read",
    "starts_broken": "the round starts from a broken answer (left out of the rest)",
    "accuracy": "accuracy: covered pairs of equal numbers of harms",
    "confidence": "confidence there, before clamping",
    "label_confidence": "confidence there, of the label",
    "accuracy_all": "accuracy: all covered pairs",
    "uncovered_distance": "|p - 1/2| where the principle covers neither side (should be 0)",
    "both_covered_distance": "|p - 1/2| where it covers harms of both sides",
}

JUDGEMENTS = {
    "confidence": "probability of the likelier response, before clamping",
    "label_entropy": "entropy of the labels (nats)",
    "position_bias": "probability of whatever stands at (A), less 1/2",
    "flip_rate": "share of pairs whose preferred response changes with the placement",
    "choice_mass": "probability given to (A) and (B) together",
    "known": "pairs whose label is known",
    "accuracy": "accuracy there, ties left out",
    "calibration_error": "expected calibration error there, before clamping",
}


def models_table(evaluation: Mapping[str, Any]) -> Html:
    """The headline: one row a model, each number with its interval below it."""
    models = evaluation["models"]
    shown = [c for c in COLUMNS if any(of.get(c) is not None for of in models.values())]
    rows = [[name, *(cell(of, column) for column in shown)] for name, of in models.items()]
    level = 100 * evaluation.get("level", 0.95)
    anchor = evaluation.get("anchor")
    zero = f"Elo 0 is {anchor}" if anchor else "Elo 0 is the mean of the models"
    caption = f"In small print: {level:.0f} % bootstrap intervals over prompts. {zero}."
    return table(["model", *(COLUMNS[c] for c in shown)], rows, caption)


def elo_plot(evaluation: Mapping[str, Any]) -> Html:
    """Harmlessness against helpfulness; nothing for models without both, or too many to name."""
    spots = []
    for name, of in evaluation["models"].items():
        helpful, harmless = _estimate(of, "helpfulness_elo"), _estimate(of, "harmlessness_elo")
        if helpful and harmless:
            spots.append(Spot(name, helpful, harmless))
    if not 1 < len(spots) <= MOST_SPOTS:
        return Html("")
    return scatter_plot(
        "Elo with intervals", spots, x_label="helpfulness Elo", y_label="harmlessness Elo"
    )


def revision_plots(revisions: Sequence[Mapping[str, Any]]) -> list[Html]:
    """What becomes of responses over revisions 0..N."""
    rates = {"harmless": "harmless_rate", "explained": "explained_rate", "broken": "broken_rate"}
    return [
        line_plot(
            "Share of answers by revision",
            [_by_revision(label, revisions, column) for label, column in rates.items()],
            x_label="revision (0: the response)",
            y_range=(0.0, 1.0),
            markers=True,
        ),
        line_plot(
            "Harms per answer by revision",
            [_by_revision("harms", revisions, "mean_harms")],
            x_label="revision (0: the response)",
            markers=True,
        ),
    ]


def revision_table(revisions: Sequence[Mapping[str, Any]]) -> Html:
    """The same numbers, by revision."""
    columns = [c for c in COLUMNS if any(of.get(c) is not None for of in revisions)]
    rows = [[str(i), *(cell(of, c) for c in columns)] for i, of in enumerate(revisions)]
    headings = ["revision", *(COLUMNS[c] for c in columns)]
    return table(headings, rows, "Answers by revision; 0 is the response before any")


def measures_table(named: Mapping[str, Mapping[str, Any]], caption: str) -> Html:
    """Measures down, their subjects across; each cell with interval and number of cases."""
    measures = [m for m in MEASURES if any(m in of for of in named.values())]
    rows = [[MEASURES[m], *(cell(of, m, cases=True) for of in named.values())] for m in measures]
    return table(["measure", *named], rows, caption)


def judgements_table(counts: Mapping[str, Mapping[str, Any]]) -> Html:
    """How feedback steps judged, by the counts of their manifests; nothing if they do not say."""
    measures = [name for name in JUDGEMENTS if any(name in of for of in counts.values())]
    rows = [[step, *(number(of.get(name)) for name in measures)] for step, of in counts.items()]
    headings = ["step", *(JUDGEMENTS[name] for name in measures)]
    return table(headings, rows, "How the feedback model judged") if measures else Html("")


def numbers_table(values: Mapping[str, Any], caption: str) -> Html:
    """Plain numbers by name."""
    rows = [
        [name.replace("_", " "), number(value)]
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return table(["measure", "value"], rows, caption)


def cell(of: Mapping[str, Any], name: str, *, cases: bool = False) -> Html:
    """A number, its interval, and (if asked) the number of cases behind it."""
    ends = of.get("intervals", {}).get(name)
    small = [" to ".join(digits(end, name) for end in ends)] if ends else []
    if cases and name in of.get("n", {}):
        small.append(f"n = {of['n'][name]}")
    value = digits(of.get(name), name)
    return join([value, element("small", ", ".join(small))] if small else [value])


def digits(value: float | None, name: str) -> str:
    """A measure of COLUMNS for people: Elo to a point, everything else to a thousandth."""
    if value is None:
        return "–"
    return f"{value:.0f}" if name.endswith("_elo") else f"{value:.3f}"


def _by_revision(label: str, revisions: Sequence[Mapping[str, Any]], column: str) -> Series:
    found = [(i, _estimate(of, column)) for i, of in enumerate(revisions)]
    kept = [(float(i), estimate) for i, estimate in found if estimate]
    return Series(label, [(i, e.value) for i, e in kept], [(e.low, e.high) for _, e in kept])


def _estimate(of: Mapping[str, Any], name: str) -> Estimate | None:
    value = of.get(name)
    if value is None:
        return None
    return Estimate(value, *of.get("intervals", {}).get(name, (value, value)))
