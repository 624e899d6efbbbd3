import math

import pytest

from cai_jax.text import phrases
from cai_jax.text.phrases import Grown, said

CARED = "you are valid, valued, and cared for"


def words(number, length=9):
    """A response of words that no other has."""
    return " ".join(f"w{number}x{i}" for i in range(length))


def responses(num, num_with, phrase=CARED):
    return [f"{words(i)} {phrase if i < num_with else ''}" for i in range(num)]


def asked(num):
    return [f"prompt {i}" for i in range(num)]


def test_counts_are_of_responses_and_leave_out_what_the_prompt_says():
    found = said(
        ["A b, c d. A b c d!", "a b c d e", "no", "x y z w"],
        ["p", "p", "q", "tell me: X y z w"],
    )
    expected = {"a b c d": 2, "b c d a": 1, "c d a b": 1, "d a b c": 1, "b c d e": 1}
    assert found.phrases == expected
    assert found.prompts == 3 and found.words == (8 + 5 + 1 + 4) / 4
    # Five phrases of four words, one of which comes twice; nothing of the others is repeated.
    assert found.repetition == pytest.approx(0.2 / 4)
    # 7 + 4 + 0 + 3 bigrams: ab, bc, cd, da, de, xy, yz, zw.
    assert found.distinct == 8 / 14


def test_a_phrase_that_spreads_is_boilerplate():
    first, last = said(responses(40, 2), asked(40)), said(responses(40, 30), asked(40))
    found = phrases.grown(first, last)
    assert [one.phrase for one in found] == [
        *("and cared for", "are valid valued and", "valid valued and cared"),
        *("valued and cared for", "you are valid valued"),
    ][1:]
    assert all(one.first == 2 / 40 and one.last == 30 / 40 for one in found)
    assert found[0].log_ratio == pytest.approx(math.log((30.5 / 41) / (2.5 / 41)))
    measured = phrases.measures(first, last)
    assert measured["boilerplate"] == 30 / 40
    assert measured["phrase_growth"] == found[0].log_ratio
    assert measured["length_drift"] == pytest.approx((9 + 7 * 0.75) / (9 + 7 * 0.05) - 1)
    # Each run of nine has eight bigrams of its own, and one into the phrase, which has six.
    assert measured["distinct_2"] == (40 * 8 + 30 + 6) / (40 * 8 + 30 * 7)


@pytest.mark.parametrize(
    ("num_first", "num_last", "prompts", "grows"),
    [
        # arcsin(sqrt(p)) of 0 and 17 / 40 stand 4 sqrt(2 / 160) = 0.447 apart from 8 / 40 on.
        (0, 7, 40, False),
        (0, 8, 40, True),
        (8, 8, 40, False),
        (30, 2, 40, False),  # it has shrunk
        (0, 16, 10, False),  # four answers to each prompt are not four cases
        (0, 30, 10, True),
    ],
)
def test_chance_is_not_growth(num_first, num_last, prompts, grows):
    questions = [f"prompt {i % prompts}" for i in range(40)]
    first, last = (said(responses(40, num), questions) for num in (num_first, num_last))
    assert bool(phrases.grown(first, last)) == grows
    assert (phrases.measures(first, last)["boilerplate"] > 0) == grows


def test_a_rare_phrase_is_not_boilerplate_however_sure_its_growth():
    first, last = said(responses(1000, 0), asked(1000)), said(responses(1000, 90), asked(1000))
    assert phrases.grown(first, last) == []
    assert phrases.grown(first, said(responses(1000, 100), asked(1000)))


def test_overlapping_phrases_are_shown_as_the_longer_ones_that_they_are_parts_of():
    def one(phrase, last=0.5):
        return Grown(phrase, 0.0, last, last)

    parts = [one("a b c d", 0.6), one("b c d e"), one("c d e f", 0.4), one("x y z w", 0.5)]
    assert phrases.joined(parts) == [one("x y z w", 0.5), one("a b c d e f", 0.4)]
    circle = [one("a b a b"), one("b a b a")]
    assert phrases.joined(circle) == [one("a b a b a")]
    assert phrases.joined([]) == []


def test_short_and_empty_responses_have_no_phrases():
    empty = said(["", "one two three"], ["p", "q"])
    assert empty.phrases == {} and empty.words == 1.5 and empty.distinct == 1.0
    assert phrases.measures(said([""], ["p"]), empty) == {
        "boilerplate": 0.0,
        "phrase_growth": 0.0,
        "length_drift": pytest.approx(1.5e9, rel=1e-6),
        "distinct_2": 1.0,
        "repetition": 0.0,
    }
