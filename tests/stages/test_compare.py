import json

import pytest
from scripted import run_stage, speak, write_model

from cai_jax.data.schema import Pair, Turn, read_records
from cai_jax.errors import InputError
from cai_jax.stages import compare


@pytest.fixture
def given(tmp_path):
    lines = [{"id": f"p{i}", "prompt": f"Question {i}?", "harm": i} for i in range(4)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"model": tmp_path, "prompts": path}


def run(folder, given, **changes):
    counts = run_stage(compare, folder, given, **changes)
    return counts, read_records(folder / "pairs.jsonl", Pair)


def test_two_responses_a_prompt(tmp_path, given, monkeypatch):
    asked = speak(monkeypatch, lambda text, number: f" said {number}.\n\nHuman: more")
    counts, pairs = run(tmp_path / "step", given, max_response_tokens=9)
    assert [text for text, _, _ in asked] == [
        f"\n\nHuman: Question {i}?\n\nAssistant:" for _ in range(2) for i in range(4)
    ]
    assert pairs[1] == Pair(
        "p1", (Turn("human", "Question 1?"),), "said 1.", "said 5.", {"harm": 1}
    )
    assert len({key for _, _, key in asked}) == 8
    assert counts == {
        "records": 4,
        "identical": 0,
        "tokens": 8 * 9,
        "too_long": 0,
        "resampled": 0,
        "empty_responses": 0,
        "truncated_responses": 8,
    }


def test_a_second_response_is_sampled_until_it_differs(tmp_path, given, monkeypatch):
    # p0 differs at once, p1 at the second try, p2 at the third (it is empty), p3 never.
    said = iter(["a", "b", "c", "d", "A", "b", "c", " d", "B", "c", "d", "", "d"])
    asked = speak(monkeypatch, lambda text, number: next(said))
    counts, pairs = run(tmp_path / "step", given, max_tries=3)
    assert [key[-1] for _, _, key in asked[8:]] == ["p1", "p2", "p3", "p2", "p3"]
    assert len({key for _, _, key in asked}) == 13
    responses = [(pair.id, pair.response_a, pair.response_b) for pair in pairs]
    assert responses == [("p0", "a", "A"), ("p1", "b", "B"), ("p2", "c", "")]
    assert counts["identical"] == 1 and counts["resampled"] == 2 and counts["records"] == 3
    assert counts["empty_responses"] == 1


def test_prompts_that_do_not_fit_are_refused_or_left_out(tmp_path, given, monkeypatch):
    with open(given["prompts"], "a") as file:
        file.write(json.dumps({"id": "long", "prompt": "x" * 100}) + "\n")
    room = len("\n\nHuman: Question 0?\n\nAssistant:")
    speak(monkeypatch, lambda text, number: f" {number}", max_positions=room + 10)
    with pytest.raises(
        InputError, match=f"at most {room} tokens each, found 1 of 5 .* first 'long' of 121"
    ):
        run(tmp_path / "refused", given, max_response_tokens=10)
    counts, pairs = run(tmp_path / "step", given, max_response_tokens=10, on_long="drop")
    assert counts["too_long"] == 1 and len(pairs) == 4
    with pytest.raises(InputError, match="found 5 of 5"):
        run(tmp_path / "none", given, max_response_tokens=11, on_long="drop")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tries": 0}, "max_tries: expected at least 1, found 0"),
        ({"limit": -2}, "limit: expected 0 .all. or more, found -2"),
        ({"on_long": "cut"}, "on_long: expected 'refuse' or 'drop', found 'cut'"),
        ({"top_p": 0.0}, "top_p: expected more than 0"),
    ],
)
def test_bad_parameters_are_refused(tmp_path, given, changes, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "step", given, **changes)


def test_batches_seeds_and_other_records(tmp_path, given):
    given["model"] = write_model(tmp_path / "model")

    def pairs(name, **changes):
        return run(tmp_path / name / "compare", given, max_response_tokens=6, **changes)[1]

    found = pairs("four", batch_size=4)
    assert all(pair.response_a != pair.response_b for pair in found)
    assert pairs("three", batch_size=3) == found
    assert pairs("fewer", batch_size=4, limit=3) == found[:3]
    others = pairs("other", batch_size=4, seed=1)
    assert all(a.response_a != b.response_a for a, b in zip(found, others))


def test_plan():
    planned = {"model": {"parameters": 1000}, "prompts": {"records": 100, "tokens": 2000}}
    config = compare.default_config()
    config.limit, config.max_response_tokens = 50, 10
    assert compare.plan(config, planned) == {
        "records": 50,
        "tokens": 2 * 50 * 10,
        "flops": 2.0 * 1000 * (2 * 1000 + 2 * 50 * 10),
        "prompt_tokens": 1000,
    }
