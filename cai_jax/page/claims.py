"""The paper's claims and our figures, from the claims.json of `python -m cai_jax.reproduce`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cai_jax.page.markup import Html, element, join, table
from cai_jax.page.plots import Series, line_plot, number


def claims_table(found: Mapping[str, Any]) -> Html:
    """One row a claim: the verdict, and each quantity with its interval and what was asked."""
    claims = found["claims"]
    rows = []
    for claim in claims:
        name = f"{claim['number']}. {claim['claim']}"
        measured = [element("small", _part(part)) for part in claim["parts"]]
        if claim["reason"]:
            measured.append(element("small", claim["reason"]))
        rows.append([name, claim["verdict"], claim["figure"], join(measured)])
    held = sum(claim["verdict"] == "held" for claim in claims)
    tested = sum(claim["verdict"] != "not tested" for claim in claims)
    caption = f"{held} of {tested} claims that could be tested held. {found['about']}"
    headings = ["claim", "verdict", "figure", "measured: mean over seeds, interval; what was asked"]
    return element("div", table(headings, rows, caption), class_="claims")


def figures(found: Mapping[str, Any]) -> Iterator[Html]:
    """Each figure's panels, with intervals over seeds."""
    for name, panels in found["figures"].items():
        if panels:
            heading = f"Figure {name}" if name.isdecimal() else name.capitalize()
            plots = element("div", *map(_panel, panels), class_="plots")
            yield element("div", element("h3", heading), plots)


def _part(part: Mapping[str, Any]) -> str:
    value, low, high = _interval(part["interval"])
    ends = " to ".join("?" if end is None else number(end) for end in (low, high))
    verdict = "yes" if part["holds"] else "no"
    return f"{part['name']}: {number(value)} ({ends}); {part['asked']}: {verdict}"


def _panel(panel: Mapping[str, Any]) -> Html:
    series = []
    for curve in panel["curves"]:
        intervals = [_interval(y) for y in curve["y"]]
        known = [(x, *of) for x, of in zip(curve["x"], intervals) if of[0] is not None]
        ends = [(low, high) for *_, low, high in known if low is not None and high is not None]
        whole = ends if len(ends) == len(known) else None
        series.append(Series(curve["name"], [(x, y) for x, y, *_ in known], whole))
    return line_plot(panel["title"], series, x_label=panel["x_label"], markers=True)


def _interval(of: Mapping[str, Any]) -> Sequence[Any]:
    return of["value"], of["low"], of["high"]
