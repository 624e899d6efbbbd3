"""Small plots as inline SVG, coloured by the page's style: one drawing serves dark and light.

A line plot also carries its data, from which the page's script shows values under the pointer.
Everything is drawn in a box of WIDTH x HEIGHT units that scales with the page; at a phone's width
one unit is about one pixel, so text stays legible.
"""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from cai_jax.page.markup import Html, element, join

WIDTH, HEIGHT = 320, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 36
NUM_COLOURS = 6
WHISKERS_APART = 4.0  # of several series at the same x
STRIP = 160  # width of a scale in a table


class Series(NamedTuple):
    """A named line through (x, y) points; `ends` are the (low, high) of each y, None if unknown."""

    name: str
    points: Sequence[tuple[float, float]]
    ends: Sequence[tuple[float, float] | None] | None = None


class Estimate(NamedTuple):
    """A value and its interval."""

    value: float
    low: float
    high: float


class Spot(NamedTuple):
    """A named point with an interval along either axis."""

    name: str
    x: Estimate
    y: Estimate


def line_plot(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    log_x: bool = False,
    markers: bool = False,
    keys: bool = True,
) -> Html:
    """Lines over a shared x axis, with whiskers where a series has `ends`, and a legend.

    Args:
        title: says what y is.
        series: whiskers of several at the same x stand beside one another.
        x_label: under the axis.
        y_range: the axis; by default as far as values and ends reach.
        log_x: a logarithmic axis whose ticks are the x of the points.
        markers: a dot at each point; where a line turns back, the last dot of each is larger.
        keys: whether the legend stands here.
    """
    drawn, frame = _lines(series, x_label, y_range, log_x, markers)
    values: dict[str, str | bool] = {
        "data_series": json.dumps(
            [
                {
                    "name": s.name,
                    "points": [
                        [_digits(value) for value in (x, y, *(ends or ()))]
                        for (x, y), ends in zip(s.points, s.ends or [None] * len(s.points))
                    ],
                }
                for s in series
            ],
            ensure_ascii=False,
            separators=(",", ":"),
        ),
        "data_frame": json.dumps(
            [LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM, *frame.x_range], separators=(",", ":")
        ),
        "data_label": x_label,
        "data_log": log_x,
    }
    return _figure(title, drawn, [one.name for one in series] if keys else [], **values)


def line_drawing(
    series: Sequence[Series],
    *,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    log_x: bool = False,
) -> Html:
    """What `line_plot` draws inside its frame of WIDTH x HEIGHT, for a drawing of several."""
    return join(_lines(series, x_label, y_range, log_x, True)[0])


def _lines(
    series: Sequence[Series],
    x_label: str,
    y_range: tuple[float, float] | None,
    log_x: bool,
    markers: bool,
) -> tuple[list[Html], "_Frame"]:
    frame = _Frame(
        [x for s in series for x, _ in s.points],
        [y for s in series for _, y in s.points]
        + [end for s in series for ends in s.ends or () for end in ends or ()],
        y_range,
        log_x,
        0.04 if markers else 0.0,
    )
    drawn = [frame.axes(x_label)]
    turns = any(list(s.points) != sorted(s.points, key=lambda point: point[0]) for s in series)
    whiskered = [one for one in series if one.ends]
    places = [x for one in whiskered for x, _ in one.points]
    apart = WHISKERS_APART if 2 * len(set(places)) <= len(places) else 0.0
    # The first stands on top.
    for number, one in reversed(list(enumerate(series))):
        colour = f"s{number % NUM_COLOURS}"
        aside = apart * (whiskered.index(one) - (len(whiskered) - 1) / 2) if one.ends else 0.0
        at = [(frame.x(x) + aside, frame.y(y)) for x, y in one.points]
        path = "M" + "L".join(f"{_round(x)} {_round(y)}" for x, y in at)
        drawn.append(element("path", d=path, class_=f"line {colour}"))
        for (x, _), ends in zip(at, one.ends or ()):
            if ends:
                low, high = map(frame.y, ends)
                drawn.append(_segment(x, low, x, high, f"whisker {colour}"))
        if markers:
            drawn += [_dot(*point, colour, 2.4 if turns else 3) for point in at[:-1]]
            drawn += [_dot(*point, colour, 5 if turns else 3) for point in at[-1:]]
    return drawn, frame


def strip(estimate: Estimate, low: float, high: float, colour: str) -> Html:
    """One value and its interval on a scale from low to high, with a tick at 0: for a table."""

    def x(value: float) -> float:
        return 5 + (min(max(value, low), high) - low) / (high - low) * (STRIP - 10)

    parts = [_segment(5, 8, STRIP - 5, 8, "grid")]
    if low <= 0 <= high:
        parts.append(_segment(x(0), 2, x(0), 14, "axis"))
    parts.append(_segment(x(estimate.low), 8, x(estimate.high), 8, f"whisker {colour}"))
    parts.append(_dot(x(estimate.value), 8, colour, 4))
    return element("svg", *parts, viewBox=f"0 0 {STRIP} 16", class_="strip", aria_hidden="true")


def scatter_plot(title: str, spots: Sequence[Spot], *, x_label: str, y_label: str) -> Html:
    """Points with crossed intervals, each named beside it."""
    frame = _Frame(
        [end for spot in spots for end in spot.x], [end for spot in spots for end in spot.y]
    )
    drawn = [frame.axes(x_label, y_label)]
    taken: list[tuple[float, float]] = []
    for number, spot in enumerate(spots):
        colour = f"s{number % NUM_COLOURS}"
        x, y = frame.x(spot.x.value), frame.y(spot.y.value)
        drawn.append(_segment(frame.x(spot.x.low), y, frame.x(spot.x.high), y, f"whisker {colour}"))
        drawn.append(_segment(x, frame.y(spot.y.low), x, frame.y(spot.y.high), f"whisker {colour}"))
        drawn.append(_dot(x, y, colour))
        # A name stands on the side with more room, and below any name that is in its way.
        on_left = x > (LEFT + WIDTH) / 2
        label_y = y - 6
        while any(abs(label_y - other) < 12 and abs(x - at) < 110 for at, other in taken):
            label_y += 12
        taken.append((x, label_y))
        drawn.append(
            element(
                "text",
                spot.name,
                x=_round(x - 7 if on_left else x + 7),
                y=_round(label_y),
                class_=f"name {colour}",
                text_anchor="end" if on_left else "start",
            )
        )
    return _figure(title, drawn, [])


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """At most `count` + 1 round numbers (1, 2 or 5 times a power of ten apart) in [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float | None) -> str:
    """A number for people: three significant digits, thousands as k and M, a dash for none."""
    if value is None or math.isnan(value):
        return "–"
    for unit, suffix in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            scale = 1e6 if suffix == "M" else 1e3
            return f"{value / scale:.3g}{suffix}"
    if value == int(value):
        return str(int(value))
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.0e}"


def thin(points: Sequence[tuple[float, float]], limit: int = 150) -> list[tuple[float, float]]:
    """At most `limit` points: the means of consecutive runs of equal length."""
    run = max(math.ceil(len(points) / limit), 1)
    means = []
    for start in range(0, len(points), run):
        group = points[start : start + run]
        means.append((sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)))
    return means


class _Frame:
    """Axes: maps data to the drawing and draws the grid."""

    def __init__(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        y_range: tuple[float, float] | None = None,
        log_x: bool = False,
        x_margin: float = 0.0,
    ):
        self.log_x = log_x
        self.x_ticks = sorted(set(xs)) if log_x else None
        xs = [self._place(x) for x in xs]
        self.x_range = _widened(min(xs, default=0.0), max(xs, default=1.0), x_margin)
        self.y_range = y_range or _widened(min(ys, default=0.0), max(ys, default=1.0), 0.06)

    def _place(self, value: float) -> float:
        return math.log(value) if self.log_x else value

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (self._place(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        inside = min(max(value, low), high)
        return HEIGHT - BOTTOM - (inside - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str, y_label: str = "") -> Html:
        drawn = []
        for tick in nice_ticks(*self.y_range):
            y = self.y(tick)
            drawn.append(_segment(LEFT, y, WIDTH - RIGHT, y, "grid"))
            drawn.append(_text(LEFT - 6, y + 4, number(tick), "end"))
        for tick in self.x_ticks or nice_ticks(*self.x_range):
            drawn.append(_text(self.x(tick), HEIGHT - BOTTOM + 15, number(tick), "middle"))
        floor = HEIGHT - BOTTOM
        drawn.append(_segment(LEFT, floor, WIDTH - RIGHT, floor, "axis"))
        drawn.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_label, "middle"))
        if y_label:
            drawn.append(_text(LEFT + 4, TOP + 8, y_label, "start"))
        return join(drawn)


def _widened(low: float, high: float, margin: float) -> tuple[float, float]:
    """The range with a margin on either side, and never empty."""
    if high - low < 1e-12:
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    return low - margin * (high - low), high + margin * (high - low)


def legend(names: Sequence[str]) -> list[Html]:
    """The names of lines in their colours; nothing for a single one."""
    keys = [element("span", name, class_=f"key s{i % NUM_COLOURS}") for i, name in enumerate(names)]
    return keys if len(keys) > 1 else []


def _figure(title: str, drawn: Sequence[str], names: Sequence[str], **values: str | bool) -> Html:
    caption = element("figcaption", element("b", title), *legend(names))
    svg = element(
        "svg",
        element("title", title),
        *drawn,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        **values,
    )
    return element("figure", caption, svg)


def _segment(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return element(
        "line", x1=_round(x1), y1=_round(y1), x2=_round(x2), y2=_round(y2), class_=class_
    )


def _dot(x: float, y: float, colour: str, radius: float = 3.5) -> Html:
    return element("circle", cx=_round(x), cy=_round(y), r=radius, class_=f"dot {colour}")


def _text(x: float, y: float, text: str, anchor: str) -> Html:
    return element("text", text, x=_round(x), y=_round(y), text_anchor=anchor)


def _digits(value: float) -> float:
    return float(f"{value:.6g}")


def _round(value: float) -> str:
    """A coordinate to a tenth: the same text on every machine, and short."""
    return f"{value:.1f}".removesuffix(".0")
