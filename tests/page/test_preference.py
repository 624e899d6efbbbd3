import re

from cai_jax.page import preference

SOURCES = {
    "training/feedback": {
        "n": 40,
        "weight": 2.0,
        "accuracy": 0.9,
        "log_loss": 0.5,
        "label_entropy": 0.375,
        "excess_loss": 0.125,
        "calibration_error": 0.0625,
        "calibration": {"probability": [0.25, 0.75], "frequency": [0.2, 0.8], "cases": [40, 40]},
        "mean_margin": 1.5,
        "margins": {"edges": [-2.0, 0.0, 2.0], "counts": [10, 30]},
    },
    "<held & out>": {"n": 0},
}


def cells(html):
    return re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", str(html))


def test_all_sources_are_rows_and_missing_numbers_dashes():
    found = cells(preference.by_source({"sources": SOURCES}))
    assert found[:3] == ["source", "comparisons", "weight in training"]
    row = found.index("training/feedback")
    assert found[row + 1 : row + 9] == [
        "40", "2", "0.9", "0.5", "0.375", "0.125", "0.0625", "1.5",
    ]  # fmt: skip
    empty = found.index("&lt;held &amp; out&gt;")
    assert found[empty + 1 :] == ["0", *["–"] * 7]


def test_margins_are_shares_at_the_middles_of_their_bins():
    assert preference._shares(**SOURCES["training/feedback"]["margins"]) == [
        (-1.0, 0.25),
        (1.0, 0.75),
    ]


def test_plots_are_of_the_sources_with_cases_and_nothing_is_drawn_of_older_files():
    html = str(preference.by_source({"sources": SOURCES}))
    assert html.count("<svg") == 2 and "perfect" in html
    assert str(preference.by_source({"sources": {"a": {"n": 0}}})).count("<svg") == 0
    assert preference.by_source({"training_accuracy": 0.9}) == ""
