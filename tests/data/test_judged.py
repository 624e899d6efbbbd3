import json
import math

import pytest

from cai_jax.data.judged import KNOWN, answer_arrays, judged, known_label, read_pairs
from cai_jax.data.schema import Asked, Comparison, Pair, Turn, read_records, write_records
from cai_jax.errors import InputError

PAIR = Pair("1", (Turn("human", "q"),), "x", "y", {"t": 2})


def test_pairs_are_read_from_files_and_steps(tmp_path):
    write_records(tmp_path / "pairs.jsonl", [PAIR])
    for given in (tmp_path / "pairs.jsonl", tmp_path):
        assert read_pairs(given) == [PAIR] and known_label(PAIR) is None


def test_comparisons_are_pairs_whose_label_is_known(tmp_path):
    path = tmp_path / "comparisons.jsonl"
    write_records(path, [Comparison("2", PAIR.dialogue, "x", "y", 0.25, "human", tags={"t": 3})])
    (pair,) = read_pairs(path)
    assert pair == Pair("2", PAIR.dialogue, "x", "y", {"t": 3, KNOWN: 0.25})
    assert known_label(pair) == 0.25
    # As HH-RLHF has them: the chosen response is A.
    texts = [f"\n\nHuman: q\n\nAssistant: {response}" for response in "xy"]
    path.write_text(json.dumps(dict(zip(("chosen", "rejected"), texts))) + "\n")
    (pair,) = read_pairs(path)
    assert (pair.dialogue, pair.response_a, pair.response_b) == (PAIR.dialogue, "x", "y")
    assert known_label(pair) == 1.0


@pytest.mark.parametrize("value", [1.5, "A", None])
def test_a_known_label_is_a_probability(tmp_path, value):
    path = tmp_path / "pairs.jsonl"
    write_records(path, [Pair("7", PAIR.dialogue, "x", "y", {KNOWN: value})])
    if value is None:
        assert known_label(read_pairs(path)[0]) is None
        return
    with pytest.raises(InputError, match=r"record '7': p_a: expected a probability in 0..1") as e:
        read_pairs(path)
    assert "pairs.jsonl" in str(e.value)


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
