import random

import pytest

from cai_jax.text.duplicates import Collection, Match, ngrams, normalise


def test_only_words_count():
    assert normalise("  How DO\tI\n\nsteal-a 'Car'?! ") == "how do i steal a car"
    assert normalise("Don't") == "don t" and normalise("STRASSE") == normalise("straße")
    assert normalise("snake_case, 2nd") == "snake case 2nd" and normalise("?! \U0001f600") == ""


def test_ngrams_are_a_set_of_runs_of_words():
    assert ngrams("a b c a b c", 3) == {"a b c", "b c a", "c a b"}
    assert ngrams("a b", 3) == {"a b"} and ngrams("", 3) == {""}


def test_a_match_is_the_equal_text_else_the_most_similar_else_the_first():
    known = Collection(2, 0.5)
    for id, text in [("one", "a b c d"), ("two", "a b c e"), ("three", "A  b, c: d!")]:
        known.add(id, text)
    assert known.find("a B c D.") == Match("one", 0, 1.0, True)
    # Bigrams ab bc cf against ab bc cd and against ab bc ce: 2 of 4 both.
    assert known.find("a b c f") == Match("one", 0, 0.5, False)
    # ab bc ce eg: 3 of 4 with "two".
    assert known.find("a b c e g") == Match("two", 1, 0.75, False)
    assert known.find("a b g h") is None and Collection(2, 0.5).find("a b") is None


def test_the_threshold_is_met_exactly():
    # 3 of 10 shared words: 0.3 is met, and 0.3000001 is not; 0.3 * 10 > 3 in floating point.
    for threshold, found in [(0.3, True), (0.31, False)]:
        known = Collection(1, threshold)
        known.add("id", "a b c d e f")
        assert (known.find("a b c u v w x") is not None) == found


def similarity(a, b):
    a, b = ngrams(normalise(a), 2), ngrams(normalise(b), 2)
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8, 1.0])
def test_the_index_finds_what_comparing_all_pairs_finds(threshold):
    rng = random.Random(0)
    words = [f"w{i}" for i in range(3)]
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(400)]
    known = Collection(2, threshold, expected=texts[:100])
    found = 0
    for number, text in enumerate(texts):
        match = known.find(text)
        if text in texts[:number]:
            assert match == Match(str(texts.index(text)), texts.index(text), 1.0, True)
        else:
            all_of_them = [similarity(text, other) for other in texts[:number]]
            best = max(all_of_them, default=0)
            if best >= threshold:
                assert match == Match(
                    str(all_of_them.index(best)), all_of_them.index(best), best, False
                )
                found += 1
            else:
                assert match is None
        known.add(str(number), text)
    assert found >= 5
