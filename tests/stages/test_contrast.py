import itertools
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from scripted import run_stage

from cai_jax.algorithms.intervals import holm, sign_flip_test, student_interval
from cai_jax.data.schema import Answer, Turn, write_records
from cai_jax.errors import InputError
from cai_jax.page import sweeps
from cai_jax.stages import contrast


def answers(model, harmful, helpful=(), prompt_set="red_team"):
    """One answer a prompt: with a harm where `harmful` says so; helpful ones to benign prompts."""
    dialogue = (Turn("human", "x"),)

    def one(number, of_set, **verdict):
        found = {"harms": [], "broken": False, "helpful": False, "evasive": False} | verdict
        return Answer(f"{of_set}-{number}", of_set, model, dialogue, "y", "stop", found)

    return [
        *(one(i, "red_team", harms=["theft"] if bad else []) for i, bad in enumerate(harmful)),
        *(one(i, "benign", helpful=bool(good)) for i, good in enumerate(helpful)),
    ]


@pytest.fixture
def swept(tmp_path):
    """A baseline that is harmful to 8 of 16, a better model (2 of 16), and one that is as good."""
    write_records(
        tmp_path / "samples.jsonl",
        [
            *answers("base", [1] * 8 + [0] * 8, [1, 1, 0, 0]),
            *answers("better", [1] * 2 + [0] * 14, [1, 1, 0, 0]),
            *answers("same", [0] * 8 + [1] * 8, [0, 1, 1, 0]),
        ],
    )
    return {"answers": tmp_path / "samples.jsonl"}


def test_means_and_paired_differences(tmp_path, swept):
    counts = run_stage(contrast, tmp_path / "step", swept)
    assert counts == {"records": 60, "tokens": 0, "models": 3}
    found = json.loads((tmp_path / "step/contrast.json").read_text())
    assert found["baseline"] == "base"
    models = found["models"]
    values = {name: of["red_team/harmless"]["value"] for name, of in models.items()}
    assert values == {"base": 0.5, "better": 0.875, "same": 0.5}
    assert models["base"]["benign/helpful"]["value"] == 0.5
    assert "benign/harmless" not in models["base"]
    better = found["differences"]["better"]["red_team/harmless"]
    assert better["value"] == 0.375 and 0.1 < better["low"] < better["high"] < 0.65
    # Six signs that are all equal: 2 of 2^6 flips are as far from 0.
    assert better["p"] == pytest.approx(2 / 64, abs=0.005)
    assert better["adjusted_p"] == pytest.approx(2 * better["p"])
    same = found["differences"]["same"]["red_team/harmless"]
    assert same["value"] == 0.0 and same["p"] == 1.0 and same["low"] < 0 < same["high"]


def test_the_table_and_its_plot(tmp_path, swept):
    run_stage(contrast, tmp_path / "step", swept)
    found = json.loads((tmp_path / "step/contrast.json").read_text())
    heading, base, better, same = sweeps.rows(found)
    assert heading == ["", "harmless", "evasive", "broken", "helpful"]
    assert base[1].startswith("0.500 (") and "+" not in base[1]
    assert better[1].startswith("0.875 (") and better[1].endswith(" +0.375 ")
    found["differences"]["better"]["red_team/harmless"]["adjusted_p"] = 0.01
    assert sweeps.rows(found)[2][1].endswith(" +0.375*")
    root = ElementTree.fromstring((tmp_path / "step/contrast.svg").read_text())
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("better") == 4 and "0.875" in texts


def test_what_is_refused(tmp_path, swept):
    with pytest.raises(InputError, match="baseline: expected one of the models base, better, same"):
        run_stage(contrast, tmp_path / "a", swept, baseline="worse")
    write_records(
        tmp_path / "other.jsonl", [*answers("base", [1, 0]), *answers("better", [1, 0, 0])]
    )
    with pytest.raises(InputError, match="expected better to answer the prompts of base"):
        run_stage(contrast, tmp_path / "b", {"answers": tmp_path / "other.jsonl"})
    plain = Answer("1", "red_team", "base", (Turn("human", "x"),), "y", "stop")
    write_records(tmp_path / "plain.jsonl", [plain])
    with pytest.raises(InputError, match="expected answers with a judge's verdicts, found none"):
        run_stage(contrast, tmp_path / "c", {"answers": tmp_path / "plain.jsonl"})


def test_scores_of_a_preference_model_are_measures_too():
    dialogue = (Turn("human", "x"),)
    verdict = {"score": 1.5, "evasive": True}
    answer = Answer("1", "red_team", "base", dialogue, "y", "stop", verdict)
    assert contrast.numbers(answer) == {"score": 1.5, "evasive": 1.0}


def test_sign_flips_are_those_of_all_flips():
    differences = [0.5, -0.25, 1.0, 0.75, 0.0, 0.5]
    flips = [abs(np.dot(s, differences)) for s in itertools.product((-1, 1), repeat=6)]
    exact = np.mean([flip >= 2.5 - 1e-9 for flip in flips])
    found = sign_flip_test(differences, seed=0, num_resamples=40_000)
    assert found == pytest.approx(exact, abs=0.005)
    assert found == sign_flip_test(differences, seed=0, num_resamples=40_000)


def test_holm_by_hand():
    # Sorted .01 .02 .04 times 3, 2, 1: .03, .04, .04.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_students_interval_by_a_table():
    interval = student_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    # t of 4 degrees of freedom at 97.5 %: 2.776445; deviation sqrt(2.5).
    assert interval.value == 3.0
    assert interval.high == pytest.approx(3.0 + 2.776445 * np.sqrt(2.5 / 5), rel=1e-6)
    assert student_interval([2.0]) == (2.0, -np.inf, np.inf)
    with pytest.raises(ValueError, match="at least one value"):
        student_interval([])
