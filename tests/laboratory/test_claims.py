"""Each claim's test, on made-up numbers: where it must hold, where it must fail."""

from pathlib import Path

import pytest
from laboratory.made_up import make_runs

from cai_jax.laboratory import claims

ROOT = Path(__file__).parents[2]


def verdicts(runs):
    return {result.number: result.verdict for result in claims.results(runs)}


def test_all_sixteen_hold_where_they_were_made_to():
    assert verdicts(make_runs()) == dict.fromkeys(range(1, 17), "held")
    assert claims.tested(claims.REQUIREMENT, make_runs(), 0).verdict == "held"


def change(*path, by):
    """Adds to a number of every run."""

    def changed(runs):
        for run in runs:
            value = run
            for key in path[:-1]:
                value = value[key]
            value[path[-1]] += by

    return changed


def elo(model, by, step="variants", of="harmlessness"):
    return change(step, "models", model, f"{of}_elo", by=by)


def labels(size, name, by):
    return change(f"judged_labels_{size}", "feedback", name, "accuracy", by=by)


def scores(step, chains, revision, judge, by):
    return change(step, "chains", chains, revision, judge, by=by)


FAILING = {
    "1: the largest is no better": (1, labels("m", "direct", -0.31)),
    "1: a step down in the middle": (1, labels("s", "direct", -0.18)),
    "2: reasoning is worse": (2, labels("m", "with_reasoning", -0.2)),
    "2: five are no better than one": (2, labels("s", "ensemble", -0.04)),
    "3: not calibrated": (
        3,
        change("judged_labels_xs", "calibration", "direct", "calibration_error", by=0.2),
    ),
    "3: reasoning is not over-confident": (
        3,
        change("judged_labels_m", "calibration", "with_reasoning", "overconfidence", by=-0.3),
    ),
    "4: a step down": (4, scores("revision_scores", "m", 3, "hh", -0.5)),
    "5: less than half": (5, scores("revision_scores", "m", 1, "harmless", -1.5)),
    "6: a step up": (6, scores("revision_scores", "m", 2, "helpful", 0.5)),
    "7: fewer principles are less harmless": (
        7,
        scores("principle_scores", "1", 4, "harmless", -0.5),
    ),
    "7: fewer principles are more harmless": (
        7,
        scores("principle_scores", "1", 4, "harmless", 0.5),
    ),
    "7: no more diversity": (7, change("principle_scores", "distinct_2", "16", 4, by=-0.1)),
    "8: direct is as good when small": (
        8,
        scores("direct_scores", "direct_xs", 4, "harmless", 2.1),
    ),
    "8: no tie when large": (8, scores("direct_scores", "direct_m", 4, "harmless", -0.5)),
    "9: below the pretrained model": (9, elo("pretrained", 600, "along_rl")),
    "9: above RL-CAI": (9, elo("rl_cai@20", -400, "along_rl")),
    "10: no more harmless": (10, elo("hh_rlhf@20", 300, "along_rl")),
    "10: less helpful": (10, elo("rl_cai@20", -50, "along_rl", "helpfulness")),
    "11: less harmless": (11, elo("rl_cai_cot@20", -50, "along_rl")),
    "11: more helpful": (11, elo("rl_cai_cot@20", 50, "along_rl", "helpfulness")),
    "12: RL-CAI evades": (12, change("variants", "models", "rl_cai", "evasive_rate", by=0.04)),
    "12: HH does not": (12, change("variants", "models", "hh_rlhf", "evasive_rate", by=-0.31)),
    "13: no boilerplate": (
        13,
        change("variants", "models", "rl_cai_overtrained", "explained_boilerplate_rate", by=-0.2),
    ),
    "14: hard labels are better": (14, elo("rl_cai_hard", 150)),
    "14: clamps in another order": (14, elo("rl_cai_cot_20_80", 100)),
    "14: no clamp is better": (14, elo("rl_cai_cot_free", 200)),
    "15: helpful RLHF grows less harmful": (
        15,
        change("along_rl", "models", "helpful_rlhf@20", "mean_harms", by=-1.0),
    ),
    "15: RL-CAI grows more harmful": (
        15,
        change("along_rl", "models", "rl_cai@20", "mean_harms", by=1.0),
    ),
    "16: one principle is as good": (16, elo("rl_cai_single", 310)),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_claim_fails_where_it_is_not_so(case):
    claim, changed = FAILING[case]
    runs = make_runs()
    changed(runs)
    found = verdicts(runs)
    assert found.pop(claim) == "did not hold"
    # What is changed is read by other claims at times, but never by all.
    assert list(found.values()).count("held") >= 12


def test_what_seeds_disagree_about_does_not_hold():
    """A mean above 0 with one seed below: (10, 10, -5) has 5 -+ 14.6 at 90 %."""
    runs = make_runs()
    for run, difference in zip(runs, (10.0, 10.0, -5.0)):
        models = run["variants"]["models"]
        models["rl_cai_single"]["harmlessness_elo"] = (
            models["rl_cai"]["harmlessness_elo"] - difference
        )
    result = claims.results(runs)[15]
    assert result.verdict == "did not hold"
    (part,) = result.parts
    assert part.interval.value == pytest.approx(5.0)
    # Student's t, two degrees of freedom, 95 %: 4.302653 x 8.660254 / sqrt(3).
    assert part.interval.high - part.interval.value == pytest.approx(4.302653 * 5.0, rel=1e-5)


def test_without_any_gain_no_share_of_it_holds():
    runs = make_runs()
    for run in runs:
        run["revision_scores"]["chains"]["m"] = [
            dict.fromkeys(("harmless", "helpful", "hh"), 1.0)
        ] * 5
    assert claims.results(runs)[4].verdict == "did not hold"


def test_what_was_not_run_is_not_tested():
    runs = make_runs()
    for run in runs:
        del run["principle_scores"]
    result = claims.results(runs)[6]
    assert (result.verdict, result.reason) == ("not tested", "needs the step principle_scores")
    assert set(verdicts(make_runs(1)).values()) == {"not tested"}
    assert set(verdicts([]).values()) == {"not tested"}


def test_the_requirement_wants_intervals_apart():
    runs = make_runs()
    for run, by in zip(runs, (0.0, -200.0, 150.0)):
        run["along_rl"]["models"]["rl_cai@20"]["harmlessness_elo"] += by
    assert claims.tested(claims.REQUIREMENT, runs, 0).verdict == "did not hold"
    assert claims.results(runs)[9].verdict == "did not hold"


def test_the_docs_name_each_claim_and_its_figure():
    rows = (ROOT / "docs/claims.md").read_text().splitlines()
    for place, claim in enumerate(claims.CLAIMS, start=1):
        (row,) = [row for row in rows if row.startswith(f"| {place} |")]
        figures = row.split("|")[3].strip()
        assert claim.figure in figures.split(", ") or (claim.figure, figures) == (
            "variants",
            "text",
        )
