"""The laboratory's page and drawings: claims, and our panels beside the paper's."""

import math
import re
from collections.abc import Mapping, Sequence

from cai_jax.algorithms.intervals import Interval
from cai_jax.laboratory.claims import Result
from cai_jax.laboratory.figures import FIGURES, VARIANT_MEASURES
from cai_jax.laboratory.measured import Part
from cai_jax.laboratory.panels import Panel
from cai_jax.laboratory.paper import digitised
from cai_jax.page.markup import Html, document, element, join, section, table
from cai_jax.page.plots import HEIGHT, WIDTH, Series, line_plot, number
from cai_jax.page.style import STYLE

STATEMENT = (
    "The models behind these numbers are tiny and live in a small templated world with an oracle "
    "that knows the truth. They show how the method behaves there; they say nothing about real "
    "language models, and agreement with the paper's curves is of shape at best."
)
LEGEND_LINE = 16  # height of a line of a drawing's legend
OWN_STYLE = """
.claims td, .claims th { white-space:normal; text-align:left; }
.beside { display:grid; gap:1rem 2rem;
  grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr)); }
"""


def page(
    results: Sequence[Result],
    ours: Mapping[str, Sequence[Panel]],
    reasons: Mapping[str, str],
    variants: Mapping[str, Mapping[str, Interval]],
    checks: Sequence[Part],
    about: str,
) -> str:
    """The whole page, self-contained.

    Args:
        results: of the claims, and of what is required beside them.
        ours: figure -> our panels.
        reasons: figure -> why it has none.
        variants: model -> measure -> interval; of the findings without a figure.
        checks: quantities by which explanations can be checked.
        about: what was run: scale and seeds.
    """
    parts = [section("claims", "Claims", claims_table(results), checks_table(checks))]
    for name, figure in FIGURES.items():
        if name not in ours and name not in reasons:
            continue
        heading = f"Figure {name}: {figure.title}" if name.isdecimal() else figure.title
        if name in reasons:
            shown = [element("p", reasons[name], class_="note")]
        else:
            both = [
                plots("Ours, in the desk-scale world", ours[name]),
                plots("The paper's, read off its plot", figure.paper()),
            ]
            shown = [element("div", *(one for one in both if one), class_="beside")]
            if not name.isdecimal():
                shown = [variants_table(variants)]
        parts.append(section(f"figure-{name}", heading, *shown))
    return document(
        "The paper's figures at desk scale",
        STYLE + OWN_STYLE,
        element("h1", "The paper's figures at desk scale"),
        element("p", STATEMENT, class_="statement"),
        element("p", about),
        *parts,
        element("p", f"The paper's numbers: {digitised()['source']}", class_="note"),
    )


def claims_table(results: Sequence[Result]) -> Html:
    """One row a claim: verdict, and each quantity with its interval and what was asked of it."""
    rows = []
    for result in results:
        measured = [element("small", line_of(part)) for part in result.parts]
        if result.reason:
            measured.append(element("small", result.reason))
        name = f"{result.number}. {result.claim}" if result.number else result.claim
        rows.append([name, result.verdict, result.figure, join(measured)])
    headings = ["claim", "verdict", "figure", "measured: mean over seeds, 95 % interval, asked"]
    held = sum(result.verdict == "held" for result in results if result.number)
    of = sum(result.verdict != "not tested" for result in results if result.number)
    caption = f"{held} of {of} claims that could be tested held; docs/claims.md has each test."
    return element("div", table(headings, rows, caption), class_="claims")


def checks_table(checks: Sequence[Part]) -> Html:
    """What explanations of failing claims can be held against; nothing without any."""
    rows = [[check.name, _with_ends(check.interval)] for check in checks]
    caption = "To check explanations by, with the number of the claim; nothing was asked of these."
    return (
        table(["quantity", "mean over seeds, 95 % interval"], rows, caption) if rows else Html("")
    )


def _with_ends(interval: Interval) -> Html:
    low, high = (number(end) if math.isfinite(end) else "?" for end in interval[1:])
    return join([number(interval.value), element("small", f"{low} to {high}")])


def line_of(part: Part) -> str:
    """A part in words: "harms, end less start: 0.42 (0.31 to 0.53); above 0: yes"."""
    low, high = (number(end) if math.isfinite(end) else "?" for end in part.interval[1:])
    verdict = "yes" if part.holds else "no"
    return f"{part.name}: {number(part.interval.value)} ({low} to {high}); {part.asked}: {verdict}"


def plots(title: str, panels: Sequence[Panel]) -> Html:
    """Panels side by side under a heading; nothing without panels."""
    if not panels:
        return Html("")
    heading = element("h3", title)
    return element("div", heading, element("div", *map(drawn, panels), class_="plots"))


def drawn(panel: Panel) -> Html:
    """A panel as a figure with its legend."""
    series = []
    for one in panel.curves:
        shown = all(math.isfinite(end) for interval in one.y for end in interval)
        whiskers = shown and any(interval.high > interval.low for interval in one.y)
        points = list(zip(one.x, (interval.value for interval in one.y)))
        ends = [(interval.low, interval.high) for interval in one.y] if whiskers else None
        series.append(Series(one.name, points, ends))
    return line_plot(panel.title, series, x_label=panel.x_label, markers=True)


def variants_table(variants: Mapping[str, Mapping[str, Interval]]) -> Html:
    """All variants of RL-CAI and SL-CAI down, measures across."""
    rows = [[name, *map(_with_ends, of.values())] for name, of in variants.items()]
    return table(["model", *VARIANT_MEASURES.values()], rows, "Means and 95 % intervals over seeds")


def drawing(panels: Sequence[Panel]) -> str:
    """Panels below one another as one SVG file that needs nothing else."""
    parts, top = [], 0
    for panel in panels:
        figure = drawn(panel)
        (inside,) = re.findall(r"<svg [^>]*>(.*)</svg>", figure, re.S)
        title = element("text", panel.title, x=8, y=top + 14, class_="name")
        parts.append(title)
        for i, one in enumerate(panel.curves):
            y = top + 14 + LEGEND_LINE * (i + 1)
            parts.append(element("text", one.name, x=8, y=y, class_=f"name s{i % 6}"))
        top += 22 + LEGEND_LINE * len(panel.curves)
        parts.append(element("g", Html(inside), transform=f"translate(0 {top})"))
        top += HEIGHT + 12
    style = element("style", Html(STYLE + "svg { background:var(--paper); }"))
    return element(
        "svg",
        style,
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {top}",
        width=2 * WIDTH,
    )
