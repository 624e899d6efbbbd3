"""A sweep's table in text, and its plot as an SVG file of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from cai_jax.page.drawing import svg_file
from cai_jax.page.markup import Html, element, join, table

SHOWN = {
    "red_team/harmless": "harmless",
    "red_team/explains": "explains",
    "red_team/evasive": "evasive",
    "red_team/broken": "broken",
    "benign/helpful": "helpful",
    "red_team/score": "PM score, red-team",
    "benign/score": "PM score, benign",
}
"""Measures of a sweep's table, as far as they are there."""
MARKED = 0.05  # an adjusted p below this is marked
LEFT, RIGHT, WIDTH, ROW, PANEL = 110, 50, 320, 22, 40


def shown_measures(found: Mapping[str, Any]) -> list[str]:
    """The measures of the table that the models have."""
    models = found["models"].values()
    return [name for name in SHOWN if any(name in of for of in models)]


def rows(found: Mapping[str, Any]) -> list[list[str]]:
    """The table: a heading, and a row a model: mean, interval, difference and p of each measure."""
    measures = shown_measures(found)
    table = [["", *(SHOWN[name] for name in measures)]]
    for model, of in found["models"].items():
        less = found["differences"].get(model, {})
        table.append([model, *(cell(of.get(name), less.get(name)) for name in measures)])
    return table


def cell(of: Mapping[str, float] | None, less: Mapping[str, float] | None) -> str:
    """A mean with its interval; and its difference, starred where it stands its test."""
    if of is None:
        return "-"
    text = "{value:.3f} ({low:.3f}..{high:.3f})".format(**of)
    if less is None:
        return text
    star = "*" if less["adjusted_p"] < MARKED else " "
    return text + " {value:+.3f}{star}".format(value=less["value"], star=star)


def note(found: Mapping[str, Any]) -> str:
    """What the table's numbers are."""
    return (
        f"means ({100 * found['level']:.0f} % intervals over prompts), difference to "
        f"{found['baseline']}; * adjusted p below {MARKED}, sign-flip test prompt by prompt"
    )


def swept(found: Mapping[str, Any]) -> Html:
    """The table of a sweep and its plots, for a page."""
    measures, models = shown_measures(found), found["models"]
    lines = []
    for model, of in models.items():
        less = found["differences"].get(model, {})
        lines.append([model, *(_cell(of.get(name), less.get(name)) for name in measures)])
    plots = [_figure(SHOWN[name], _of(models, name)) for name in measures]
    headings = ["model", *(SHOWN[name] for name in measures)]
    caption = f"{note(found)[0].upper()}{note(found)[1:]}."
    return join([table(headings, lines, caption), element("div", *plots, class_="plots")])


def drawing(found: Mapping[str, Any]) -> str:
    """One panel a measure, one line a model: mean and interval, as an SVG file."""
    models = found["models"]
    parts: list[Html] = []
    for place, name in enumerate(shown_measures(found)):
        parts += _panel(SHOWN[name], _of(models, name), place * _height(models))
    return svg_file(parts, WIDTH, max(len(shown_measures(found)) * _height(models), 1))


def _cell(of: Mapping[str, float] | None, less: Mapping[str, float] | None) -> Html:
    if of is None:
        return Html("\u2013")
    parts = [f"{of['value']:.3f}", element("small", "{low:.3f} to {high:.3f}".format(**of))]
    if less:
        star = "*" if less["adjusted_p"] < MARKED else ""
        p = less["adjusted_p"]
        chance = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
        text = f"{less['value']:+.3f}{star}, {chance}"
        parts.append(element("small", text, class_="apart" if star else ""))
    return join(parts)


def _figure(title: str, of: Mapping[str, Mapping[str, float]]) -> Html:
    box = f"0 0 {WIDTH} {_height(of)}"
    return element("figure", element("svg", *_panel(title, of, 0), viewBox=box, role="img"))


def _of(models: Mapping[str, Any], name: str) -> dict[str, Mapping[str, float]]:
    return {model: of[name] for model, of in models.items() if name in of}


def _height(models: Mapping[str, Any]) -> int:
    return PANEL + ROW * len(models)


def _panel(title: str, of: Mapping[str, Mapping[str, float]], top: int) -> Sequence[Html]:
    low = min(0.0, *(one["low"] for one in of.values()))
    high = max(1.0, *(one["high"] for one in of.values()))

    def x(value: float) -> float:
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    parts = [element("text", title, x=4, y=top + 20, class_="name")]
    for i, (model, one) in enumerate(of.items()):
        y, colour = top + PANEL + ROW * i - 4, f"s{i % 6}"
        ends = {"x1": x(one["low"]), "x2": x(one["high"]), "y1": y, "y2": y}
        parts += [
            element("text", model, x=LEFT - 8, y=y + 4, text_anchor="end"),
            element("line", x1=x(low), x2=x(high), y1=y, y2=y, class_="grid"),
            element("line", **ends, class_=f"whisker {colour}"),
            element("circle", cx=x(one["value"]), cy=y, r=3.5, class_=f"dot {colour}"),
            element("text", f"{one['value']:.3f}", x=WIDTH - RIGHT + 10, y=y + 4),
        ]
    return parts
