"""The contrast in one glance: models on one scale, and what each answers to the same prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

from cai_jax.page.evaluation import COLUMNS, digits
from cai_jax.page.markup import Html, element, fold, join, table
from cai_jax.page.plots import NUM_COLOURS, Estimate, strip
from cai_jax.page.records import verdict_tags

MEASURES = ("harmlessness_elo", "helpfulness_elo", "evasive_rate")
MOST = 8  # models; an evaluation of more is no glance
WARNING = "What each of them answers. The words may be offensive or harmful; open to read"


def of_evaluation(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Model -> title and intervals of MEASURES, from an evaluation.json; {} if it is no card."""
    models = found.get("models", {})
    if not 1 < len(models) <= MOST or any(
        of.get(measure) is None for of in models.values() for measure in MEASURES
    ):
        return {}
    return {
        name: {"title": name} | {measure: _interval(of, measure) for measure in MEASURES}
        for name, of in models.items()
    }


def card(
    models: Mapping[str, Mapping[str, Any]], cases: Sequence[Sequence[Any]], caption: str
) -> Html:
    """A row a model: each measure with its interval on a scale that all share.

    Args:
        models: name in the answers -> title and intervals, as `of_evaluation`.
        cases: answers of all models to a prompt, for each prompt that is shown.
        caption: what the numbers are.
    """
    scales = {measure: _scale(models, measure) for measure in MEASURES}
    rows = [
        [
            element("span", of["title"], class_=f"model s{i % NUM_COLOURS}"),
            *(_cell(of[name], name, scales[name], f"s{i % NUM_COLOURS}") for name in MEASURES),
        ]
        for i, of in enumerate(models.values())
    ]
    headings = ["model", *(COLUMNS[measure] for measure in MEASURES)]
    shown = join(_case(models, answers) for answers in cases)
    answers = fold(WARNING, shown) if cases else Html("")
    return element("div", table(headings, rows, caption), answers, class_="card")


def _cell(
    of: Mapping[str, float | None], name: str, scale: tuple[float, float], colour: str
) -> Html:
    value, low, high = of["value"], of["low"], of["high"]
    if value is None:
        return Html("\u2013")
    ends = f"{digits(low, name)} to {digits(high, name)}"
    estimate = Estimate(value, value if low is None else low, value if high is None else high)
    return join([digits(value, name), element("small", ends), strip(estimate, *scale, colour)])


def _scale(models: Mapping[str, Mapping[str, Any]], measure: str) -> tuple[float, float]:
    if measure == "evasive_rate":
        return 0.0, 1.0
    ends = [end for of in models.values() for end in of[measure].values() if end is not None]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    return (low, high) if high > low else (low - 1, high + 1)


def _case(models: Mapping[str, Mapping[str, Any]], answers: Sequence[Any]) -> Html:
    by_model = {answer.model: answer for answer in answers}
    turns = [
        element("p", element("b", f"{turn.role.capitalize()}: "), turn.text)
        for turn in answers[0].dialogue
    ]
    said = []
    for i, (name, of) in enumerate(models.items()):
        if name in by_model:
            tags = [
                element("span", text, class_=f"tag {kind}")
                for text, kind in verdict_tags(by_model[name].verdict)
            ]
            said.append(
                element(
                    "div",
                    element("h4", of["title"], class_=f"model s{i % NUM_COLOURS}"),
                    element("p", by_model[name].response, class_="words"),
                    *tags,
                )
            )
    kind = answers[0].prompt_set.replace("_", "-")
    heading = element("h3", f"To the first {kind} prompt")
    return element("div", heading, *turns, element("div", *said, class_="answers"))


def _interval(of: Mapping[str, Any], measure: str) -> dict[str, float | None]:
    low, high = of.get("intervals", {}).get(measure, (None, None))
    return {"value": of[measure], "low": low, "high": high}
