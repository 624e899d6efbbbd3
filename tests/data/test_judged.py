import json
import math

import pytest

from cai_jax.data.bad_records import BadRecords
from cai_jax.data.judged import KNOWN, answer_arrays, judged, known_label, read_pairs
from cai_jax.data.schema import Asked, Comparison, Pair, Turn, read_records, write_records
from cai_jax.errors import InputError

PAIR = Pair("1", (Turn("human", "q"),), "x", "y", {"t": 2})


def test_pairs_and_comparisons_are_read_alike(tmp_path):
    path = tmp_path / "pairs.jsonl"
    theirs = Comparison("2", PAIR.dialogue, "x", "y", 0.25, "human", tags={"t": 3})
    write_records(path, [PAIR, theirs])
    for given in (path, tmp_path):
        pairs = read_pairs(given)
        assert pairs == [PAIR, Pair("2", PAIR.dialogue, "x", "y", {"t": 3, KNOWN: 0.25})]
        assert [known_label(pair) for pair in pairs] == [None, 0.25]


@pytest.mark.parametrize("value", [1.5, "A", None])
def test_a_known_label_is_a_probability(tmp_path, value):
    path = tmp_path / "pairs.jsonl"
    line = {"id": "1", "dialogue": [], "response_a": "x", "response_b": "y", "tags": {KNOWN: value}}
    path.write_text(json.dumps(line) + "\n")
    if value is None:
        assert known_label(read_pairs(path)[0]) is None
        return
    with pytest.raises(InputError, match=r"pairs.jsonl:1: p_a: expected a probability in 0..1"):
        read_pairs(path)


def test_one_question_is_the_record(tmp_path):
    c = judged(PAIR, [Asked("harm", False, -0.5, -1.0, "hm")], 0.3)
    assert (c.principle, c.a_is_first, c.logp_a, c.logp_b) == ("harm", False, -0.5, -1.0)
    assert (c.reasoning, c.p_a, c.tags, c.source) == ("hm", 0.3, {"t": 2}, "feedback")
    write_records(tmp_path / "c.jsonl", [c])
    assert read_records(tmp_path / "c.jsonl", Comparison) == [c]


def test_several_questions_are_averaged_and_kept():
    asked = [Asked("harm", True, math.log(0.6), math.log(0.2)), Asked("tone", False, -3.0, -3.0)]
    c = judged(PAIR, asked, 0.6)
    # 0.75 and 0.5 of response A.
    assert (math.exp(c.logp_a), math.exp(c.logp_b)) == pytest.approx((0.625, 0.375))
    assert (c.principle, c.a_is_first, c.reasoning) == (None, None, None)
    assert c.asked == tuple(asked)
    same = judged(PAIR, [asked[0], Asked("harm", False, -1.0, -2.0)], 0.5)
    assert same.principle == "harm"
    logps, a_is_first = answer_arrays([c.asked, same.asked])
    assert logps.shape == (2, 2, 2) and logps[1, 1].tolist() == [-1.0, -2.0]
    assert a_is_first.tolist() == [[True, False], [True, False]]


def test_certainty_does_not_underflow():
    c = judged(PAIR, [Asked("p", True, 0.0, -900.0), Asked("p", False, -900.0, 0.0)], 1.0)
    assert (c.logp_a, c.logp_b) == pytest.approx((0.0, -900.0))


def test_the_comparisons_of_people_are_pairs_whose_label_is_known(tmp_path):
    path = tmp_path / "hh.jsonl"
    start = "\n\nHuman: q\n\nAssistant:"
    line = {"chosen": f"{start} good", "rejected": f"{start} bad"}
    path.write_text(json.dumps(line) + "\nnonsense\n" + json.dumps(line) + "\n")
    bad = BadRecords("skip")
    assert read_pairs(path, bad=bad) == [
        Pair(f"hh-{number}", (Turn("human", "q"),), "good", "bad", {KNOWN: 1.0})
        for number in (0, 2)
    ]
    assert [found["line"] for found in bad.found] == [2]
    with pytest.raises(InputError, match="hh.jsonl:2: expected one JSON object"):
        read_pairs(path)
