"""Figures from made-up runs, the page about them, and which steps each needs."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
from laboratory.made_up import ENDS, make_runs

from cai_jax import reproduce
from cai_jax.errors import InputError
from cai_jax.laboratory import figures, results, steps
from cai_jax.laboratory.measured import Missing
from cai_jax.page.figures import file, shared_names
from cai_jax.pipeline import read_steps
from cai_jax.stages import load_stage


@pytest.fixture(scope="module")
def quick():
    return read_steps(steps.get_config("quick"), load_stage)


def test_a_point_is_the_mean_over_seeds_with_students_interval():
    (panel,) = figures.frontier(make_runs())
    assert [curve.name for curve in panel.curves] == list(figures.RUNS.values())
    rl_cai = panel.curves[2]
    # Seeds differ by 1 Elo: mean + 1, and 4.302653 / sqrt(3) to either side.
    assert rl_cai.x == pytest.approx([-1.0, -41.0, -81.0])
    assert [i.value for i in rl_cai.y] == pytest.approx([1.0, 176.0, 351.0])
    assert rl_cai.y[-1].high - 351.0 == pytest.approx(2.484138, rel=1e-5)
    hh = panel.curves[1]
    assert hh.y[0].value == pytest.approx(-499.0)  # where its RL began: the pretrained model


def test_sizes_are_those_that_were_run():
    helpful, harmless = figures.by_size(make_runs())
    assert harmless.curves[4].name == "SL-CAI"
    assert harmless.curves[2].x == [104.7, 208.3]
    assert [i.value for i in harmless.curves[2].y] == pytest.approx([251.0, 351.0])
    assert helpful.curves[0].y[1].value == pytest.approx(ENDS["helpful_rlhf"][1] - 1.0)


def test_bins_of_all_seeds_are_pooled_by_their_cases():
    runs = make_runs(2)
    runs[1]["judged_labels_s"]["calibration"]["direct"]["curve"] = [
        {"probability": 0.12, "frequency": 0.4, "n": 60}
    ]
    direct = figures.calibration(runs)[1].curves[0]
    assert direct.x == pytest.approx([(0.15 * 20 + 0.12 * 60) / 80, 0.95])
    assert direct.y[0].value == pytest.approx((0.1 * 20 + 0.4 * 60) / 80)
    # Wilson's interval of 26 in 80, by an independent table.
    assert direct.y[0].low == pytest.approx(0.2323, abs=2e-4)
    assert direct.y[0].high == pytest.approx(0.4337, abs=2e-4)


def test_the_papers_numbers_are_carried_with_their_source():
    (panel,) = figures.paper.frontier()
    curves = {curve.name: curve for curve in panel.curves}
    assert curves["RL-CAI"].x == [57, 104, 110, 109]
    assert [i.value for i in curves["RL-CAI with CoT"].y] == [52, 114, 150, 190]
    harmless = figures.paper.revisions()[0]
    assert [i.value for i in harmless.curves[0].y] == [0, 1.80, 2.15, 2.26, 2.30]
    assert "arXiv 2212.08073" in figures.paper.digitised()["source"]


def test_every_figure_is_drawn_as_a_file_of_its_own():
    found = results.results(make_runs(), list(figures.FIGURES), "")["figures"]
    for name, figure in found.items():
        if not figure["ours"]:
            assert name == "variants"
            continue
        text = file(name, figure)
        assert "var(" not in text  # colours are written out
        root = ElementTree.fromstring(text)
        texts = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
        assert f"Figure {name}: {figure['title']}" in texts
        assert any("say nothing about real language models" in one for one in texts)
        for whose, panels in (("Ours", figure["ours"]), ("The paper's", figure["paper"])):
            assert {f"{whose}: {panel['title']}" for panel in panels} <= set(texts)
            names = {c["name"] for p in panels for c in p["curves"] if len(p["curves"]) > 1}
            assert names <= set(texts)


def test_ours_and_the_papers_have_the_same_colours():
    found = results.results(make_runs(), list(figures.FIGURES), "")["figures"]
    for name in ("2", "3", "4", "8", "10"):
        (ours, *_), (papers, *_) = found[name]["ours"], found[name]["paper"]
        lines = [curve["name"] for curve in papers["curves"]]
        assert lines == [curve["name"] for curve in ours["curves"]][: len(lines)]
        assert shared_names(found[name])[: len(lines)] == lines
    assert found["4"]["ours"][0]["y_range"] == found["4"]["paper"][0]["y_range"]
    assert shared_names(found["5"]) == []  # other sizes


def test_the_card_has_the_ends_of_all_runs():
    card = results.card(make_runs())
    assert [of["title"] for of in card["models"].values()] == [
        *("helpful only", "helpful RLHF", "HH RLHF", "SL-CAI", "RL-CAI", "RL-CAI with CoT")
    ]
    rl_cai = next(of for of in card["models"].values() if of["title"] == "RL-CAI")
    assert rl_cai["harmlessness_elo"].value == pytest.approx(ENDS["rl_cai"][0] + 1.0)
    assert results.card([])["models"] == {}


def test_a_figure_without_its_step_says_which():
    runs = make_runs()
    for run in runs:
        del run["by_size"]
    with pytest.raises(Missing, match="by_size"):
        figures.by_size(runs)


def test_only_the_steps_that_a_figure_needs_are_run(quick):
    chosen = reproduce.needed(quick, ["12"])
    sizes = ("xs", "s", "m")
    assert chosen == [f"{kind}_{size}" for size in sizes for kind in ("critiqued", "judged_chains")]
    chosen = reproduce.needed(quick, ["2"])
    assert {"chains", "sl_cai", "rl_cai", "rl_cai_cot", "hh_rlhf", "along_rl"} <= set(chosen)
    assert not {"rl_cai_hard", "dpo", "chains_s", "along_rl_greedy"} & set(chosen)
    assert chosen[-1] == "along_rl"
    everything = reproduce.needed(quick, list(figures.FIGURES))
    assert len(everything) > 90 and "rl_cai_single" in everything


def test_people_are_asked_about_the_baselines_alone(quick):
    """No label of the oracle reaches SL-CAI or RL-CAI."""
    sources = {step.name: step.sources for step in quick}
    kinds = {step.name: step.kind for step in quick}

    def above(name):
        return {name}.union(*(above(source) for source in sources[name]))

    for name in ("sl_cai", "rl_cai", "rl_cai_cot", "rl_cai_single", "dpo", "rl_cai_s"):
        assert "human_labels" not in {kinds[step] for step in above(name)}
    for name in ("hh_rlhf", "helpful_rlhf", "hh_from_sl_cai"):
        assert "human_labels" in {kinds[step] for step in above(name)}


@pytest.mark.parametrize("scale", sorted(steps.SCALES))
def test_validation_prompts_stand_in_for_the_held_out_ones(scale):
    config = json.dumps(steps.get_config(scale, "validation").to_dict(), default=str)
    assert "prompts/red_team_validation" in config
    assert "pairs/validation" in config and "pairs/held_out" not in config
    assert "prompts/red_team_held_out" not in config


@pytest.mark.parametrize("scale", sorted(steps.SCALES))
def test_the_laboratory_reads_its_own_models_and_held_out_data(scale):
    config = steps.get_config(scale).to_dict()
    inputs = json.dumps([one["inputs"] for one in config["steps"].values()], default=str)
    files = set(re.findall(r"sandbox:([^\"@]+)", inputs))
    read = {file for file in files if re.search(r"models/|pairs/|prompts/.*held_out", file)}
    models = {f"models/{k}-{s}" for k in ("pretrained", "helpful") for s in steps.SIZES}
    data = {f"prompts/{kind}_held_out.jsonl" for kind in ("red_team", "benign")}
    assert read == {f"laboratory/{name}" for name in models | data | {"pairs/held_out.jsonl"}}


def test_results_are_computed_from_the_artifacts_alone(tmp_path):
    lines = reproduce.write(tmp_path, make_runs(), list(figures.FIGURES), "Three made-up seeds.")
    assert len([line for line in lines if "held" in line]) == 17
    found = json.loads((tmp_path / "claims.json").read_text())
    assert [claim["verdict"] for claim in found["claims"]] == ["held"] * 16
    assert found["variants"]["hh_rlhf"]["evasive_rate"]["value"] == pytest.approx(0.5)
    checks = {check["name"]: check["interval"]["value"] for check in found["checks"]}
    # 4.4 of the general principles' gain over 4.0, and 0.7 of it at once (and a little for noise).
    assert checks["7: gain under four general principles, in gains under sixteen"] == (
        pytest.approx(1.1, abs=0.001)
    )
    assert checks["5: share of the gain of revision 1, general principles alone"] == (
        pytest.approx(0.7, abs=0.001)
    )
    # 0.08 and 0.02, and as little.
    assert checks["3: confidence less accuracy, with reasoning, m"] == pytest.approx(0.081)
    assert checks["3: calibration error, direct, xs"] == pytest.approx(0.021)
    assert len(checks) == 30
    html = (tmp_path / "index.html").read_text()
    assert "12: evasive, HH RLHF from SL-CAI" in html
    assert results.STATEMENT.split(";")[1].split(",")[0].strip() in html
    assert "16 of 16 claims that could be tested held" in html
    assert not re.search(r"(src|href)=.(?!#)", html)
    assert "Harmfulness from 0 to 4" in (tmp_path / "figures/figure-10.svg").read_text()
    again = (tmp_path / "index.html").read_bytes()
    reproduce.write(tmp_path, make_runs(), list(figures.FIGURES), "Three made-up seeds.")
    assert (tmp_path / "index.html").read_bytes() == again


def test_one_seed_shows_points_and_no_intervals(tmp_path):
    reproduce.write(tmp_path, make_runs(1), ["5"], "One seed.")
    found = json.loads((tmp_path / "claims.json").read_text())
    assert found["figures"]["5"]["ours"][0]["curves"][2]["y"][4] == {
        "value": 4.0,
        "low": None,
        "high": None,
    }
    assert {claim["verdict"] for claim in found["claims"]} == {"not tested"}


def test_a_workdir_keeps_its_scale(tmp_path):
    reproduce.write_config(tmp_path, "quick")
    reproduce.write_config(tmp_path, "quick")
    with pytest.raises(InputError, match="is of another scale"):
        reproduce.write_config(tmp_path, "full")


def test_unknown_figures_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        reproduce.main([f"--workdir={tmp_path}", "--figures=5,11"])
    assert stop.value.code == 2
    assert "--figures: expected some of 2, 3, 4, " in capsys.readouterr().err
