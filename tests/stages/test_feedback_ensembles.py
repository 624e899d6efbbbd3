"""Several questions about a pair: their mean, what is stored of them, and what is reported."""

import hashlib
import json
import math
import re

import numpy as np
import pytest
from scripted import PRINCIPLES, choose, run_stage, speak, write_constitution, write_model

from cai_jax.data.schema import Comparison, Pair, Turn, read_records, write_records
from cai_jax.errors import InputError
from cai_jax.stages import critique_revise, feedback
from cai_jax.text.constitution import load_constitution

IDS = [principle["id"] for principle in PRINCIPLES]


def pairs_of(count):
    return [
        Pair(f"p{i}", (Turn("human", f"q {i}?"),), f"yes {i}.", f"no {i}.") for i in range(count)
    ]


@pytest.fixture
def given(tmp_path):
    write_records(tmp_path / "pairs.jsonl", pairs_of(4))
    return {
        "model": tmp_path,
        "pairs": tmp_path / "pairs.jsonl",
        "constitution": write_constitution(tmp_path / "constitution.json"),
    }


def run(folder, given, **changes):
    counts = run_stage(feedback, folder, given, **changes)
    return counts, read_records(folder / "comparisons.jsonl", Comparison)


def any_opinion(text):
    """Log-probabilities that depend on every letter of the question."""
    digest = hashlib.sha256(text.encode()).digest()
    return -0.01 - digest[0] / 100, -0.01 - digest[1] / 100


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("changes", "low", "high", "hard"),
    [
        ({"reasoning_clamp": (0.4, 0.6)}, 0.4, 0.6, False),
        ({"reasoning_clamp": (0.0, 1.0)}, 0.0, 1.0, False),
        ({"reasoning_clamp": (0.2, 0.8), "labels": "hard"}, 0.2, 0.8, True),
    ],
)
def test_labels_are_recomputed_from_the_record_by_hand(
    tmp_path, given, monkeypatch, changes, low, high, hard
):
    reasoned = speak(monkeypatch, lambda text, number: f" thought {number}.")
    asked = choose(monkeypatch, any_opinion)
    changes |= {"chain_of_thought": True, "placement": "both", "ensemble": "principles"}
    run(tmp_path / "step", given, num_reasonings=3, **changes)
    lines = [*map(json.loads, (tmp_path / "step/comparisons.jsonl").read_text().splitlines())]
    assert len(lines) == 4 and len(reasoned) == len(asked) == 4 * 3 * 2 * 3
    prompts = iter(asked)
    for pair, line in zip(pairs_of(4), lines):
        answers = []
        for one in line["asked"]:
            text = next(prompts)
            # The question is the one that the record says was asked.
            first, second = pair.response_a, pair.response_b
            if not one["a_is_first"]:
                first, second = second, first
            assert f"Choose by {one['principle']}. Options:" in text
            assert f" (A) [[[{first}]]]\n (B) [[[{second}]]]" in text
            assert text.endswith(f"by step: {one['reasoning']}\n\nHuman:\nSo the answer is:")
            expected = np.float32(any_opinion(text)).tolist()
            assert [one["logp_a"], one["logp_b"]] == expected
            p_first = sigmoid(one["logp_a"] - one["logp_b"])
            answers.append(p_first if one["a_is_first"] else 1 - p_first)
        label = sum(min(max(p, low), high) for p in answers) / len(answers)
        label = {True: high, False: low}[label > 0.5] if hard else label
        assert line["p_a"] == pytest.approx(label, abs=1e-6)
        raw = sum(answers) / len(answers)
        assert [line["logp_a"], line["logp_b"]] == pytest.approx([math.log(raw), math.log(1 - raw)])
        assert line["principle"] is None and line["a_is_first"] is None
        assert line["reasoning"].split("\n\n") == [one["reasoning"] for one in line["asked"]]
        asked_under = [(one["principle"], one["a_is_first"]) for one in line["asked"]]
        assert sorted(asked_under) == sorted([(p, w) for p in IDS for w in (True, False)] * 3)
    assert len({line["p_a"] for line in lines}) == (2 if hard else 4)


def test_an_ensemble_of_principles_is_the_mean_under_each(tmp_path, given, monkeypatch):
    odds = {"harm": 0.9, "lies": 0.2, "tone": 0.6}

    def rule(text):
        p = odds[re.search(r"Choose by (\w+)", text)[1]]
        return math.log(p), math.log(1 - p)

    speak(monkeypatch, None)
    choose(monkeypatch, rule)
    changes = {"placement": "fixed", "ensemble": "principles"}
    _, comparisons = run(tmp_path / "all", given, **changes)
    assert [c.p_a for c in comparisons] == pytest.approx([(0.9 + 0.2 + 0.6) / 3] * 4, abs=1e-6)
    _, comparisons = run(tmp_path / "two", given, principles=("lies", "tone"), **changes)
    assert [c.p_a for c in comparisons] == pytest.approx([0.4] * 4, abs=1e-6)
    # Of one principle it is no ensemble.
    for placement in ("random", "both"):
        one = [
            run(tmp_path / kind / placement / "step", given, placement=placement, **more)[1]
            for kind, more in (
                ("drawn", {"principles": ("lies",)}),
                ("ensemble", {"principles": ("lies",), "ensemble": "principles"}),
            )
        ]
        assert one[0] == one[1] and {c.principle for c in one[0]} == {"lies"}


def test_three_sure_reasonings_against_two_give_less_than_the_clamp(tmp_path, given, monkeypatch):
    speak(monkeypatch, lambda text, number: f" vote {number % 5}.")
    choose(monkeypatch, lambda text: (0.0, -50.0) if re.search("vote [024]", text) else (-50.0, 0))
    changes = {"chain_of_thought": True, "placement": "fixed", "num_reasonings": 5}
    _, comparisons = run(tmp_path / "soft", given, **changes)
    assert [c.p_a for c in comparisons] == pytest.approx([(3 * 0.6 + 2 * 0.4) / 5] * 4)
    _, comparisons = run(tmp_path / "hard", given, labels="hard", **changes)
    assert [c.p_a for c in comparisons] == pytest.approx([0.6] * 4)
    assert [[one.reasoning for one in c.asked] for c in comparisons] == [
        [f"vote {n}." for n in range(5)]
    ] * 4


def test_the_ensemble_begins_with_what_is_asked_without_it(tmp_path, given, monkeypatch):
    keys = speak(monkeypatch, lambda text, number: " hm.")
    choose(monkeypatch, any_opinion)
    # Folders of one name: the draws are the same.
    single = run(tmp_path / "a/step", given, chain_of_thought=True, num_few_shots=2)[1]
    alone, keys[:] = list(keys), []
    changes = {"ensemble": "principles", "num_reasonings": 2}
    both = run(tmp_path / "b/step", given, chain_of_thought=True, num_few_shots=2, **changes)[1]
    for number, (one, many) in enumerate(zip(single, both)):
        assert one.asked[0] == many.asked[0] and len(many.asked) == 6
        assert {other.a_is_first for other in many.asked} == {one.a_is_first}
        assert alone[number] == keys[6 * number]
    assert len({key for _, _, key in keys}) == 24


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "tiny", max_positions=256)


REASONED = {"chain_of_thought": True, "max_reasoning_tokens": 8}


def test_draws_of_an_ensemble_are_the_records_alone(tmp_path, given, tiny):
    given["model"] = tiny
    changes = {**REASONED, "num_reasonings": 2, "ensemble": "principles"}
    whole = run(tmp_path / "whole/step", given, batch_size=4, **changes)[1]
    assert len({one.reasoning for c in whole for one in c.asked}) == 24
    single = run(tmp_path / "single/step", given, batch_size=4, **REASONED)[1]
    write_records(given["pairs"], pairs_of(4)[::-1][:2])
    fewer = run(tmp_path / "fewer/step", given, batch_size=2, **changes)[1]
    for one, other in zip(fewer, whole[::-1]):
        assert [a.reasoning for a in one.asked] == [a.reasoning for a in other.asked]
        assert [a.principle for a in one.asked] == [a.principle for a in other.asked]
        assert [a.logp_a for a in one.asked] == pytest.approx(
            [a.logp_a for a in other.asked], abs=1e-5
        )
        assert one.p_a == pytest.approx(other.p_a, abs=1e-5)
    # One reasoning under one principle is the ensemble's first.
    for one, many in zip(single, whole):
        assert one.asked[0].reasoning == many.asked[0].reasoning
        assert one.asked[0].logp_b == pytest.approx(many.asked[0].logp_b, abs=1e-5)


@pytest.mark.parametrize("seed", [0, 7])
def test_drawn_principles_are_nested_and_the_same_in_both_stages(
    tmp_path, given, monkeypatch, seed
):
    write_records(given["pairs"], pairs_of(40))
    speak(monkeypatch, lambda text, number: " said.")
    choose(monkeypatch, any_opinion)
    constitution = load_constitution(given["constitution"])
    taken = []
    for count in (1, 2, 3):
        changes = {"num_principles": count, "seed": seed}
        counts, comparisons = run(tmp_path / f"{count}", given, **changes)
        expected = [p.id for p in constitution.drawn(count, seed).principles]
        assert counts["principles"] == expected
        assert {c.principle for c in comparisons} == set(expected)
        kept = load_constitution(tmp_path / f"{count}/constitution.json")
        assert [p.id for p in kept.principles] == expected
        taken.append(set(expected))
        # The seed of the draw may be another than the step's.
        counts, _ = run(tmp_path / f"{count} own", given, **(changes | {"principles_seed": 3}))
        assert counts["principles"] == [p.id for p in constitution.drawn(count, 3).principles]
        (tmp_path / "prompts.jsonl").write_text('{"prompt": "q?"}\n')
        both = given | {"prompts": tmp_path / "prompts.jsonl"}
        counts = run_stage(critique_revise, tmp_path / f"{count} chains", both, **changes)
        assert counts["principles"] == expected
    assert taken[0] < taken[1] < taken[2] == set(IDS)


def test_pairs_that_read_the_same_are_left_out_and_counted(tmp_path, given, monkeypatch):
    pairs = pairs_of(4)
    same = ("fine.", "fine.\n\nHuman: another turn"), ("(A).", "A).")
    pairs[1:3] = [
        Pair(f"p{i}", (Turn("human", "q?"),), *both) for i, both in enumerate(same, start=1)
    ]
    write_records(given["pairs"], pairs)
    speak(monkeypatch, None)
    asked = choose(monkeypatch, any_opinion)
    counts, comparisons = run(tmp_path / "step", given)
    assert [c.id for c in comparisons] == ["p0", "p3"] and len(asked) == 2
    assert (counts["records"], counts["identical"], counts["too_long"]) == (2, 2, 0)
    write_records(given["pairs"], pairs[1:3])
    with pytest.raises(InputError, match="found 2 pairs, of which 2 have equal responses and 0"):
        run(tmp_path / "none", given)


def test_known_labels_give_accuracy_and_calibration(tmp_path, given, monkeypatch):
    # Comparisons as people made them are pairs whose label is known.
    known = [1.0, 1.0, 0.0, 0.5]
    write_records(
        given["pairs"],
        [
            Comparison(p.id, p.dialogue, p.response_a, p.response_b, p_a, "human", tags={"t": 1})
            for p, p_a in zip(pairs_of(4), known)
        ],
    )
    speak(monkeypatch, None)
    choose(monkeypatch, lambda text: (math.log(0.75), math.log(0.25)))
    counts, comparisons = run(tmp_path / "step", given, placement="fixed")
    assert [c.tags for c in comparisons] == [{"t": 1, "p_a": p_a} for p_a in known]
    assert {c.source for c in comparisons} == {"feedback"}
    # It says 0.75 of all; two of the three decided ones are so, and 2.5 of 4 in all.
    assert counts["known"] == 4 and counts["accuracy"] == pytest.approx(2 / 3)
    assert counts["calibration_error"] == pytest.approx(0.75 - 2.5 / 4)
    assert "position_bias" not in counts and "flip_rate" not in counts


def test_position_bias_and_flips(tmp_path, given, monkeypatch):
    speak(monkeypatch, None)
    # Whatever stands at (A) gets 0.8, but for p0, where "yes" gets 0.6 wherever it stands.
    choose(
        monkeypatch,
        lambda text: (
            (math.log(0.8), math.log(0.2))
            if "yes 0" not in text
            else (math.log(0.6), math.log(0.4))[:: 1 if "(A) [[[yes" in text else -1]
        ),
    )
    counts, comparisons = run(tmp_path / "step", given, placement="both")
    assert counts["position_bias"] == pytest.approx((3 * 0.8 + 0.5) / 4 - 0.5)
    assert counts["flip_rate"] == 0.75 and "accuracy" not in counts
    assert [c.p_a for c in comparisons] == pytest.approx([0.6, 0.5, 0.5, 0.5], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ensemble": "all"}, "ensemble: expected one of none, principles, found 'all'"),
        ({"num_reasonings": 2}, "num_reasonings: expected 1 without chain_of_thought, found 2"),
        ({"num_reasonings": 0}, "num_reasonings: expected 1 or more, found 0"),
        ({"num_principles": 4}, r"num_principles: expected 0 \(all\) to 3, .*found 4"),
        (
            {"num_principles": 3, "principles": ("harm", "tone")},
            r"num_principles: expected 0 \(all\) to 2, .*found 3",
        ),
        ({"principles_seed": -2}, "principles_seed: expected -1 or more, found -2"),
    ],
)
def test_bad_parameters_are_refused(tmp_path, given, changes, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "step", given, **changes)
