import re
import xml.etree.ElementTree as ElementTree

import pytest

from cai_jax.page.plots import (
    Estimate,
    Series,
    Spot,
    line_plot,
    nice_ticks,
    number,
    scatter_plot,
    thin,
)


def test_ticks_are_round_and_inside():
    assert nice_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(-430, 247) == [-400, -200, 0, 200]
    assert nice_ticks(0.00031, 0.00078) == [0.0004, 0.0005, 0.0006, 0.0007]
    assert nice_ticks(3, 3) == [3]


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0"),
        (0.12345, "0.123"),
        (42, "42"),
        (12345, "12.3k"),
        (2_500_000, "2.5M"),
        (3e-7, "3e-07"),
        (-0.5, "-0.5"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_numbers_for_people(value, text):
    assert number(value) == text


def test_thinning_takes_means_of_runs():
    points = [(float(i), float(i % 2)) for i in range(400)]
    thinned = thin(points, limit=100)
    assert thinned[0] == (1.5, 0.5) and len(thinned) == 100
    assert thin(points[:80], limit=100) == points[:80]


def test_a_line_goes_through_its_points():
    figure = line_plot(
        "t", [Series("a", [(0, 0), (1, 1), (2, 0.5)])], x_label="x", y_range=(0.0, 1.0)
    )
    # The box of the data is 44..308 by 10..164, y downwards.
    assert re.search(r'd="([^"]+)"', figure).group(1) == "M44 164L176 10L308 87"


def test_whiskers_markers_and_legend():
    series = [
        Series("one", [(0, 0.5)], [(0.25, 0.75)]),
        Series("<two>", [(1, 0.5)], [(0.5, 2.0)]),
    ]
    figure = line_plot("t", series, x_label="x", y_range=(0.0, 1.0), markers=True)
    # The axis has a margin of 0.04 of its 264 units, in 1.08, on either side.
    assert '<line x1="53.8" y1="125.5" x2="53.8" y2="48.5" class="whisker s0"></line>' in figure
    # Ends beyond the axis are drawn up to it.
    assert '<line x1="298.2" y1="87" x2="298.2" y2="10" class="whisker s1"></line>' in figure
    assert figure.count("<circle") == 2
    assert '<span class="key s1">&lt;two&gt;</span>' in figure
    ElementTree.fromstring(figure)


def test_one_point_and_a_constant_line_can_be_drawn():
    figure = line_plot("t", [Series("a", [(3, 0.0)])], x_label="x")
    assert 'd="M176 87"' in figure
    ElementTree.fromstring(line_plot("t", [Series("a", [(0, 5), (1, 5)])], x_label="x"))


def test_names_of_neighbours_do_not_overlap():
    spots = [
        Spot(name, Estimate(x, x - 1, x + 1), Estimate(y, y - 1, y + 1))
        for name, x, y in [("a", 0, 0), ("b", 0, 0), ("c", 1, 0), ("far", 100, 100)]
    ]
    figure = scatter_plot("t", spots, x_label="x", y_label="y")
    names = re.findall(r'<text x="([^"]+)" y="([^"]+)" class="name', figure)
    heights = sorted(float(y) for _, y in names[:3])
    assert heights[1] - heights[0] >= 12 and heights[2] - heights[1] >= 12
    assert 'text-anchor="end">far' in figure and 'text-anchor="start">a' in figure


def places(figure, colour):
    return [float(x) for x in re.findall(rf'cx="([^"]+)"[^>]*class="dot {colour}"', figure)]


def test_whiskers_at_the_same_x_stand_beside_one_another():
    ends = [(0.0, 1.0), (0.0, 1.0)]
    series = [Series(name, [(0, 0.5), (1, 0.5)], ends) for name in "ab"]
    figure = line_plot("t", series, x_label="x", markers=True)
    apart = [b - a for a, b in zip(places(figure, "s0"), places(figure, "s1"))]
    assert apart == pytest.approx([4.0, 4.0], abs=0.11)
    # Where an interval is not known there is no whisker.
    one = line_plot("t", [Series("a", [(0, 0.5), (1, 0.5)], [None, (0.0, 1.0)])], x_label="x")
    assert one.count("whisker") == 1 and "[0.0,0.5],[1.0,0.5,0.0,1.0]" in one.replace("&quot;", '"')


def test_a_logarithmic_axis_has_its_ticks_at_the_points():
    figure = line_plot("t", [Series("a", [(1, 0), (2, 1), (8, 0)])], x_label="x", log_x=True)
    assert 'd="M44 ' in figure and "L132 " in figure and "L308 " in figure  # 1/3 of the way at 2
    assert re.findall(r'y="179"[^>]*>([^<]+)<', figure) == ["1", "2", "8"]


def test_the_end_of_a_line_that_turns_back_is_larger():
    figure = line_plot("t", [Series("a", [(0, 0), (2, 1), (1, 2)])], x_label="x", markers=True)
    assert re.findall(r' r="([^"]+)"', figure) == ["2.4", "2.4", "5"]
