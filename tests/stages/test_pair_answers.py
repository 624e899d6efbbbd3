import csv
import io
import itertools
import json

import pytest
import scripted
from ml_collections import ConfigDict

from cai_jax.data.schema import Answer, Pair, Turn, read_records, write_records
from cai_jax.errors import InputError
from cai_jax.stages import pair_answers

MODELS = ("sl_cai", "rl_cai", "helpful")
NUM_PROMPTS = 60


def write_answers(path, models=MODELS, num_prompts=NUM_PROMPTS):
    """Each model's own answer to each prompt of two sets; the first prompt gets one from all."""
    answers = [
        Answer(
            id=f"r{number}",
            prompt_set=prompt_set,
            model=model,
            dialogue=(Turn("human", f"q{number}"),),
            response=f"{model if number else 'all'} says {number}",
            finish_reason="stop",
        )
        for model in models
        for prompt_set in ("red_team", "benign")
        for number in range(num_prompts)
    ]
    write_records(path, answers)
    return path


def run(folder, answers, **changes):
    counts = scripted.run_stage(pair_answers, folder, {"answers": answers}, **changes)
    return counts, read_records(folder / "pairs.jsonl", Pair)


def test_every_two_models_meet_once_a_prompt_on_sides_that_tell_nothing(tmp_path):
    answers = write_answers(tmp_path / "samples.jsonl")
    counts, pairs = run(tmp_path / "pairs", answers)
    assert counts == {"records": 3 * (NUM_PROMPTS - 1), "tokens": 0, "equal": 3}
    met = {(p.tags["prompt"], *sorted((p.tags["model_a"], p.tags["model_b"]))) for p in pairs}
    assert met == {
        (f"r{number}", *sorted(two))
        for number in range(1, NUM_PROMPTS)
        for two in itertools.combinations(MODELS, 2)
    }
    for pair in pairs:
        assert pair.tags["prompt_set"] == "red_team"
        number = pair.tags["prompt"][1:]
        assert pair.response_a == f"{pair.tags['model_a']} says {number}"
        assert pair.response_b == f"{pair.tags['model_b']} says {number}"
        assert pair.dialogue == (Turn("human", f"q{number}"),)
    firsts = sum(pair.tags["model_a"] < pair.tags["model_b"] for pair in pairs)
    assert 0.35 < firsts / len(pairs) < 0.65
    assert len({pair.id for pair in pairs}) == len(pairs)


def test_the_files_for_people_do_not_say_whose_answers_they_are(tmp_path):
    answers = write_answers(tmp_path / "samples.jsonl")
    _, pairs = run(tmp_path / "pairs", answers, prompt_set="benign", question="Which, then?")
    rows = [json.loads(line) for line in (tmp_path / "pairs/blind.jsonl").read_text().splitlines()]
    text = (tmp_path / "pairs/blind.csv").read_text("utf-8-sig")
    cells = list(csv.DictReader(io.StringIO(text, newline="")))
    assert rows == cells and set(rows[0]) == {
        "id", "question", "dialogue", "response_a", "response_b", "choice"
    }  # fmt: skip
    by_id = {pair.id: pair for pair in pairs}
    order = [by_id[row["id"]].tags["prompt"] for row in rows]
    assert order != [pair.tags["prompt"] for pair in pairs]  # ids, not prompts, make the order
    for row in rows:
        assert (row["question"], row["choice"]) == ("Which, then?", "")
        assert row["response_a"] == by_id[row["id"]].response_a
        # Letter and hexadecimal digits: nothing of the pair shows in it.
        assert row["id"][0] == "p" and len(bytes.fromhex(row["id"][1:])) == 8


def test_another_model_changes_nothing_between_the_others(tmp_path):
    answers = write_answers(tmp_path / "samples.jsonl")
    _, pairs = run(tmp_path / "one" / "pairs", answers)
    more = write_answers(tmp_path / "more.jsonl", ("pretrained", *MODELS[::-1]), 30)
    _, others = run(tmp_path / "two" / "pairs", more, models=MODELS)
    assert {p for p in map(repr, pairs) if p.count("'r3'")} == {
        p for p in map(repr, others) if p.count("'r3'")
    }
    assert {pair.id for pair in others} < {pair.id for pair in pairs}
    _, seeded = run(tmp_path / "three" / "pairs", answers, seed=1)
    assert not {pair.id for pair in seeded} & {pair.id for pair in pairs}


def test_fewer_pairs_a_prompt_are_drawn_by_the_prompt(tmp_path):
    answers = write_answers(tmp_path / "samples.jsonl")
    _, pairs = run(tmp_path / "one" / "pairs", answers)
    counts, some = run(tmp_path / "two" / "pairs", answers, pairs_per_prompt=1)
    assert counts["records"] == NUM_PROMPTS - 1 and counts["equal"] == 1
    assert {pair.id for pair in some} < {pair.id for pair in pairs}
    met = {frozenset((p.tags["model_a"], p.tags["model_b"])) for p in some}
    assert len(met) == 3


def test_bad_configs_and_answers_are_refused(tmp_path):
    answers = write_answers(tmp_path / "samples.jsonl", num_prompts=2)
    alone = write_answers(tmp_path / "alone.jsonl", MODELS[:1], 2)
    equal = write_answers(tmp_path / "equal.jsonl", num_prompts=1)
    cases = [
        (answers, {"prompt_set": "xstest"}, "question: expected one for prompt_set 'xstest'"),
        (
            answers,
            {"prompt_set": "x", "question": "?"},
            "prompt_set: expected one of red_team, benign",
        ),
        (answers, {"models": ("sl_cai",)}, "models: expected two or more"),
        (answers, {"models": ("sl_cai", "sl_cai")}, "models: expected two or more"),
        (answers, {"models": ("sl_cai", "sl")}, "models: expected some of sl_cai, rl_cai, helpful"),
        (answers, {"pairs_per_prompt": -1}, "pairs_per_prompt: expected 0 or more"),
        (alone, {}, "expected those of two models, found sl_cai"),
        (equal, {}, "expected two that differ, found 3 equal pairs"),
    ]
    for number, (path, changes, message) in enumerate(cases):
        with pytest.raises(InputError, match=message):
            run(tmp_path / f"{number}", path, **changes)
    with pytest.raises(InputError, match=r"inputs.answers: expected"):
        pair_answers.check(pair_answers.default_config(), {})


def test_the_plan_counts_pairs():
    config = pair_answers.default_config()
    answers = {"records": 300, "tokens": 6000, "models": 3}
    found = pair_answers.plan(config, {"answers": answers})
    assert found == {"records": 300, "tokens": 12000, "flops": 0.0}
    config.update(ConfigDict({"pairs_per_prompt": 1}))
    found = pair_answers.plan(config, {"answers": answers})
    assert found == {"records": 100, "tokens": 4000, "flops": 0.0}
