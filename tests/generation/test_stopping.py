"""Stop strings against a search token by token."""

import random
from types import SimpleNamespace

import pytest

from cai_jax.generation.stopping import find_stop, stop_tokens

TOKENS = ["a", "b", "ab", "ba", "\n", "\n\n", "abc", "c", " "]


def decode(ids):
    return "".join(TOKENS[i] for i in ids)


def slow(ids, stops):
    for count in range(1, len(ids) + 1):
        text = decode(ids[:count])
        if found := [text.find(stop) for stop in stops if stop in text]:
            return text[: min(found)], count
    return None


def test_every_stop_is_found_where_a_slow_search_finds_it():
    rng = random.Random(0)
    outcomes = set()
    for _ in range(500):
        ids = rng.choices(range(len(TOKENS)), k=rng.randint(0, 12))
        stops = [
            "".join(rng.choices("abc\n ", k=rng.randint(1, 3))) for _ in range(rng.randint(0, 3))
        ]
        expected = slow(ids, stops)
        assert find_stop(ids, stops, decode) == expected
        outcomes.add(expected is None)
    assert outcomes == {True, False}


@pytest.mark.parametrize(
    ("ids", "stops", "expected"),
    [
        ([2, 7], ["bc"], ("a", 2)),  # across a token boundary
        ([6, 0], ["b"], ("a", 1)),  # inside of one token
        ([0, 4, 4], ["\n\n"], ("a", 3)),
        ([0, 1], ["b", "ab"], ("", 2)),  # the one that begins first, of those the token completes
        ([0], ["a"], ("", 1)),
        ([], ["a"], None),
        ([0, 1], [], None),
    ],
)
def test_the_text_ends_before_the_stop_and_the_tokens_with_it(ids, stops, expected):
    assert find_stop(ids, stops, decode) == expected


def test_the_loop_stops_by_itself_at_single_tokens_only():
    tokenizer = SimpleNamespace(
        encode=lambda text: [TOKENS.index(text)] if text in TOKENS else [0] * len(text),
        decode=decode,
    )
    assert stop_tokens(("ab", "\n\n"), tokenizer) == ([2, 5], True)
    assert stop_tokens(("ab", "bc"), tokenizer) == ([2], False)
    assert stop_tokens((), tokenizer) == ([], True)
    # A token that stands for a text it cannot spell ("unknown") is no stop.
    assert stop_tokens(("x",), tokenizer) == ([], False)
