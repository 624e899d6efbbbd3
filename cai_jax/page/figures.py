"""Figures of `python -m cai_jax.reproduce`: our panels beside the paper's, from claims.json.

A figure is a dict: `title`; `ours` and `paper`, lists of panels, the n-th of each beside each
other; `note`, what to know to read it; `missing`, why there are no panels of ours. A panel is a
dict: `title` (which says what y is), `x_label`, `y_range` or None, `log_x`, and `curves` of
`name`, `x` and `y`, each y an interval {"value", "low", "high"} whose ends may be None.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from cai_jax.page.drawing import svg_file
from cai_jax.page.evaluation import COLUMNS, digits
from cai_jax.page.markup import Html, element, join, table
from cai_jax.page.plots import (
    HEIGHT,
    NUM_COLOURS,
    WIDTH,
    Series,
    legend,
    line_drawing,
    line_plot,
    number,
)

OURS, PAPER = "Ours", "The paper's"
GAP, LINE, LETTER = 28, 16, 7.6  # of a file: between panels, a line, a letter's width
UNREAD = "The paper's own plot of this was not read off."
TINY = "Ours: tiny models in a templated world. They say nothing about real language models."


def heading(name: str, figure: Mapping[str, Any]) -> str:
    """ "Figure 2: ..."; findings that have no figure in the paper have their title alone."""
    title: str = figure["title"]
    return f"Figure {name}: {title}" if name.isdecimal() else title


def anchor(name: str) -> str:
    """Where a figure stands in the page."""
    return f"figure-{name}"


def shown(name: str, figure: Mapping[str, Any]) -> Html:
    """A figure for the page: the n-th panel of ours beside the n-th of the paper's."""
    parts = [element("h3", heading(name, figure))]
    if figure["note"]:
        parts.append(element("p", figure["note"], class_="note"))
    if figure["missing"]:
        parts.append(element("p", figure["missing"], class_="note"))
        return element("div", *parts, id=anchor(name))
    names = shared_names(figure)
    if names:
        parts.append(element("p", *legend(names), class_="legend"))
    keys = not names
    ours = [_plot(panel, OURS, keys) for panel in figure["ours"]]
    paper = [_plot(panel, PAPER, keys) for panel in figure["paper"]]
    if paper:
        pairs = itertools.zip_longest(ours, paper, fillvalue=element("div"))
        parts.append(element("div", *(one for pair in pairs for one in pair), class_="beside"))
    else:
        parts.append(element("div", *ours, class_="plots"))
        parts.append(element("p", UNREAD, class_="note"))
    return element("div", *parts, id=anchor(name))


def shared_names(figure: Mapping[str, Any]) -> list[str]:
    """The legend of all panels, if each has its first names; else nothing."""
    panels = [[c["name"] for c in p["curves"]] for p in (*figure["ours"], *figure["paper"])]
    longest = max(panels, key=len, default=[])
    return longest if all(names == longest[: len(names)] for names in panels) else []


def variants_table(variants: Mapping[str, Mapping[str, Any]]) -> Html:
    """All variants of RL-CAI and SL-CAI down, measures across."""
    measures = list(dict.fromkeys(name for of in variants.values() for name in of))
    rows = [
        [name, *(interval(of[measure], measure) for measure in measures)]
        for name, of in variants.items()
    ]
    headings = ["model", *(COLUMNS[measure] for measure in measures)]
    return table(headings, rows, "Means, and 95 % intervals over seeds.")


def interval(of: Mapping[str, Any], measure: str = "") -> Html:
    """A mean with its interval below, for a cell of a table."""
    return join([_digits(of["value"], measure), element("small", ends(of, measure))])


def ends(of: Mapping[str, Any], measure: str = "") -> str:
    """ "0.31 to 0.53"; an end that is not known is a question mark."""
    return " to ".join("?" if of[e] is None else _digits(of[e], measure) for e in ("low", "high"))


def _digits(value: float | None, measure: str) -> str:
    return digits(value, measure) if measure else number(value)


def file(name: str, figure: Mapping[str, Any]) -> str:
    """The figure as an SVG file: ours on the left, the paper's on the right, row by row."""
    names = shared_names(figure)
    width = 2 * WIDTH + GAP
    parts = [element("text", heading(name, figure), x=8, y=22, class_="title")]
    keys, top = _keys(names, width, 22)
    parts += keys
    top += GAP / 2
    for row in itertools.zip_longest(figure["ours"], figure["paper"]):
        panels = [(column, panel) for column, panel in enumerate(row) if panel]
        drawn, below = [], [float(LINE)]
        for column, panel in panels:
            title = f"{(OURS, PAPER)[column]}: {panel['title']}"
            keys, end = _keys([] if names else [c["name"] for c in panel["curves"]], WIDTH, LINE)
            texts = [element("text", title, x=8, y=LINE, class_="name"), *keys]
            drawn.append((column * (WIDTH + GAP), texts, panel))
            below.append(end)
        for left, texts, panel in drawn:
            lines = line_drawing(_series(panel), **_axes(panel))
            inside = element("g", lines, transform=f"translate(0 {max(below) + 6})")
            parts.append(element("g", *texts, inside, transform=f"translate({left} {top})"))
        top += max(below) + 6 + HEIGHT + GAP / 2
    parts.append(element("text", TINY, x=8, y=top + 4))
    return svg_file(parts, width, top + LINE)


def _keys(names: Sequence[str], width: float, top: float) -> tuple[list[Html], float]:
    """The legend in lines of this width below `top`, and where its last line stands."""
    x, y, keys = 8.0, top + LINE, []
    for i, name in enumerate(names):
        taken = LETTER * len(name) + LINE  # as wide as it may be; nobody can measure it here
        if x > 8 and x + taken > width:
            x, y = 8.0, y + LINE
        keys.append(element("text", name, x=x, y=y, class_=f"name s{i % NUM_COLOURS}"))
        x += taken
    return (keys, y) if len(names) > 1 else ([], top)


def _plot(panel: Mapping[str, Any], whose: str, keys: bool) -> Html:
    title = f"{whose}: {panel['title']}"
    return line_plot(title, _series(panel), **_axes(panel), markers=True, keys=keys)


def _axes(panel: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "x_label": panel["x_label"],
        "y_range": tuple(panel["y_range"]) if panel["y_range"] else None,
        "log_x": panel["log_x"],
    }


def _series(panel: Mapping[str, Any]) -> Sequence[Series]:
    """Curves as lines; without an interval where its ends are not known, or all are points."""
    series = []
    for curve in panel["curves"]:
        known = [(x, y) for x, y in zip(curve["x"], curve["y"]) if y["value"] is not None]
        spans = [
            None if y["low"] is None or y["high"] is None else (y["low"], y["high"])
            for _, y in known
        ]
        wide = any(span and span[1] > span[0] for span in spans)
        points = [(x, y["value"]) for x, y in known]
        series.append(Series(curve["name"], points, spans if wide else None))
    return series
