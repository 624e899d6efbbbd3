import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from world_models import WORDS, human, one_device, write_model

from cai_jax import checkpoints
from cai_jax import run as runner
from cai_jax.core import configuration
from cai_jax.core.metrics import read_metrics
from cai_jax.data.comparisons import TokenPair, fill_responses
from cai_jax.data.schema import Comparison, write_records
from cai_jax.errors import InputError
from cai_jax.generation.score import score
from cai_jax.stages import dpo
from cai_jax.text.dialogue import render

BETA = 0.5
REWARDS = np.array([1.5, 0.4, -0.2, -1.1, 0.9, -0.6])  # of six responses to one prompt
DIALOGUE = human("tell me about the bike")
RESPONSES = [f"the {first} the {second}" for first in WORDS[:2] for second in WORDS[2:5]]


def comparisons():
    """All pairs, labelled as Bradley and Terry would; each in a random placement."""
    rng = np.random.default_rng(0)
    records = []
    for i in range(6):
        for j in range(i):
            a, b = (i, j) if rng.random() < 0.5 else (j, i)
            p_a = 1 / (1 + math.exp(REWARDS[b] - REWARDS[a]))
            pair = (RESPONSES[a], RESPONSES[b], p_a)
            records.append(Comparison(f"{a}-{b}", DIALOGUE, *pair, "feedback"))
    return records


def run(folder, inputs, **changes):
    folder.mkdir(parents=True)
    settings = {"pairs": 16, "beta": BETA, "learning_rate": 5e-3, "log_every": 1, **changes}
    return dpo.run(one_device(dpo.default_config(), **settings), inputs, folder)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_records(folder / "comparisons.jsonl", comparisons())
    (folder / "feedback").mkdir()
    write_records(folder / "feedback" / "comparisons.jsonl", comparisons()[:4])
    return {
        "model": write_model(folder / "model"),
        "comparisons": [folder / "comparisons.jsonl"],
        "held_out": folder / "feedback",
    }


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dpo") / "step"
    counts = run(folder, inputs, epochs=150, schedule="constant")
    (folder / "manifest.json").write_text("{}")
    return folder, counts


def test_before_the_first_update_all_margins_are_0(trained):
    folder, _ = trained
    first = read_metrics(folder)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["margin"] == pytest.approx(0, abs=1e-4)
    assert first["entropy"] == pytest.approx(0.55, abs=0.1)


def test_implied_rewards_are_the_rewards_behind_the_labels(trained, inputs):
    """By an independent path: log-probabilities of the saved model and of the reference."""
    folder, counts = trained
    models = [checkpoints.load_model(of) for of in (folder, inputs["model"])]
    tokenizer = models[0].tokenizer
    prompt = tokenizer.encode(render(DIALOGUE))
    said = [[*tokenizer.encode(f" {response}"), tokenizer.eos_id] for response in RESPONSES]
    policy, reference = (
        np.array([sum(row) for row in score(model, [prompt], [said])[0]]) for model in models
    )
    implied = BETA * (policy - reference)
    np.testing.assert_allclose(implied - implied.mean(), REWARDS - REWARDS.mean(), atol=0.05)

    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["training_n"] == 15 and evaluation["feedback_n"] == 4
    assert evaluation["training_accuracy"] == 1 == counts["training_accuracy"]
    floor = evaluation["training_label_entropy"]
    assert floor <= evaluation["training_log_loss"] < floor + 1e-3
    sides = [(int(c.id[0]), int(c.id[2])) for c in comparisons()]
    expected = np.mean([abs(REWARDS[a] - REWARDS[b]) for a, b in sides])
    assert evaluation["training_mean_margin"] == pytest.approx(expected, abs=0.05)
    assert evaluation["feedback_log_loss"] == pytest.approx(
        evaluation["feedback_label_entropy"], abs=1e-2
    )
    assert evaluation["sources"]["training/comparisons"]["calibration_error"] < 0.02
    assert (counts["records"], counts["steps"]) == (150 * 15, 141)


def test_saved_model_is_a_plain_language_model_that_has_moved(trained, inputs):
    folder, _ = trained
    model, before = checkpoints.load_model(folder), checkpoints.load_model(inputs["model"])
    assert set(model.params) == set(before.params)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), model.params, before.params)
    assert min(jax.tree.leaves(moved)) > 0


def test_same_seed_same_run(inputs, tmp_path):
    one, other = tmp_path / "one" / "step", tmp_path / "other" / "step"
    assert run(one, inputs, epochs=2) == run(other, inputs, epochs=2)
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_what_is_scored_is_the_response_and_its_end():
    pairs = [TokenPair("x", [5, 6, 7, 8, 1], [5, 6, 9, 1], 0.3, shared=2)]
    batch = fill_responses(pairs, np.array([[-3.0, -2.0]]), 2, 6)
    np.testing.assert_array_equal(batch.tokens[0], [[0, 5, 6, 7, 8, 1], [0, 0, 5, 6, 9, 1]])
    np.testing.assert_array_equal(batch.response[0], [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]])
    np.testing.assert_array_equal(batch.reference, [[-3, -2], [0, 0]])
    assert not batch.response[1].any() and batch.weights.tolist() == [1, 0]


@pytest.mark.parametrize("changes", [{"accumulate": 4}, {"lora": {"rank": 64, "alpha": 64.0}}])
def test_parts_of_a_batch_and_adapters(inputs, tmp_path, changes):
    """Parts give the same losses; factors of full rank learn as well, from the same start."""
    whole, other = tmp_path / "whole" / "step", tmp_path / "other" / "step"
    run(whole, inputs, epochs=4)
    config = one_device(dpo.default_config(), pairs=16, beta=BETA, learning_rate=5e-3, log_every=1)
    for name, value in {"epochs": 4, **changes}.items():
        configuration.assign(config, name, value, name)
    other.mkdir(parents=True)
    dpo.run(config, inputs, other)
    lines, found = ([line["loss"] for line in read_metrics(of)] for of in (whole, other))
    if "accumulate" in changes:
        np.testing.assert_allclose(found, lines, atol=1e-5)
    else:
        assert found[0] == pytest.approx(math.log(2), abs=1e-5)
        assert found[-1] < found[0] - 0.02
        assert (other / "adapter" / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("changes", "roles", "message"),
    [
        ({"beta": 0.0}, {}, "beta: expected more than 0, found 0"),
        ({"weights": (1.0, 2.0)}, {}, "weights: expected one for each of 1 comparisons"),
        ({"accumulate": 3}, {}, "pairs: expected a multiple of 3 .*, found 16"),
        ({"pairs": 0}, {}, "pairs: expected at least 1, found 0"),
        ({"on_long": "cut"}, {}, "on_long: expected one of truncate"),
        ({"sequence_length": 4}, {}, "expected pairs that fit, found none .15 are longer than 4"),
        ({}, {"comparisons": []}, "found no comparisons"),
    ],
)
def test_bad_input_is_refused(inputs, tmp_path, changes, roles, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "step", {**inputs, **roles}, **changes)
    assert not list((tmp_path / "step").iterdir())


def test_a_preference_model_is_no_policy(inputs, tmp_path):
    judge = write_model(tmp_path / "judge", preference_model=True)
    with pytest.raises(InputError, match="model: expected a language model"):
        run(tmp_path / "step", {**inputs, "model": judge})


def test_one_line_of_the_demo_turns_pm_and_ppo_into_dpo(tmp_path, capsys):
    demo = Path(__file__).parents[2] / "configs" / "demo.py"
    (tmp_path / "config.py").write_text(
        f"""import runpy
from cai_jax.stages import step
def get_config():
    config = runpy.run_path({str(demo)!r})["get_config"]()
    config.steps.rl_cai = step("dpo", {{"model": "sl_cai", "comparisons": ["feedback"]}})
    return config
"""
    )
    config, workdir = tmp_path / "config.py", tmp_path / "work"
    runner.main([f"--config={config}", f"--workdir={workdir}", "--dry_run"])
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert ["rl_cai", "dpo"] in lines and ["rl_cai", "ppo"] not in lines


def test_plan():
    config = one_device(dpo.default_config(), epochs=2, pairs=8, sequence_length=10)
    planned = {"model": {"parameters": 3}, "comparisons": [{"records": 20}], "held_out": []}
    assert dpo.plan(config, planned) == {
        "records": 40,
        "tokens": 800,
        "flops": 2.0 * 3 * (3 * 800 + 2 * 400),
        "updates": 5,
    }
