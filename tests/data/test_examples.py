import numpy as np
import pytest

from cai_jax.data import examples
from cai_jax.data.schema import Chain, Demonstration, Document, Piece, Round, Turn
from cai_jax.errors import InputError
from cai_jax.text.dialogue import render


class Letters:
    """A token a character: its code point. 1 begins a sequence, 0 ends it."""

    prompt_start = [1]
    eos_id = 0

    def __init__(self):
        self.encoded: list[str] = []

    def encode_batch(self, texts):
        texts = list(texts)
        self.encoded += texts
        return [[ord(letter) for letter in text] for text in texts]


ASKED = (Turn("human", "hi"),)
PROMPT = "\n\nHuman: hi\n\nAssistant:"
CHAIN = Chain("c", ASKED, "r0", (Round("p", "bad", "r1"), Round("q", "fine", "r2")))


def texts(records, revisions=(1,)):
    return examples.weighted_texts(records, render, revisions)


def responses(chain, revisions):
    return [pieces[1][0] for _, pieces in texts([chain], revisions)]


def test_a_demonstration_is_context_and_then_a_trained_response():
    record = Demonstration("d", ASKED, "ok")
    assert texts([record]) == [("d", ((PROMPT, 0.0), (" ok", 1.0)))]


@pytest.mark.parametrize(
    ("revisions", "expected"),
    [((1, 2), [" r1", " r2"]), ((2,), [" r2"]), ((0, 1), [" r0", " r1"]), ((), [])],
)
def test_a_chain_gives_the_revisions_asked_for(revisions, expected):
    assert responses(CHAIN, revisions) == expected
    assert all(pieces[0] == (PROMPT, 0.0) for _, pieces in texts([CHAIN], revisions))


def test_a_chain_without_rounds_gives_its_response_whatever_is_asked():
    assert responses(Chain("h", ASKED, "helpful"), (1, 2, 3, 4)) == [" helpful"]


def test_a_chain_that_is_too_short_is_refused_by_name():
    with pytest.raises(InputError, match="chain c: revisions: expected at most 2, .* found 4"):
        texts([CHAIN], (1, 2, 3, 4))


def test_each_token_has_the_weight_of_its_piece_and_the_end_that_of_the_last():
    document = Document("d", (Piece("ab", 0.25), Piece("c", 0.0), Piece("de", 2.0)))
    (example,) = examples.make_examples(texts([document]), Letters())
    assert example.record_id == "d"
    assert example.ids.tolist() == [1, *map(ord, "abcde"), 0]
    assert example.weights.tolist() == [0, 0.25, 0.25, 0, 2, 2, 2]
    assert (example.ids.dtype, example.weights.dtype) == (np.int32, np.float32)


def test_the_end_of_a_response_is_trained():
    (example,) = examples.make_examples(texts([Demonstration("d", ASKED, "ok")]), Letters())
    assert example.ids.tolist() == [1, *map(ord, PROMPT + " ok"), 0]
    assert example.weights.tolist() == [0.0] * (1 + len(PROMPT)) + [1.0] * 4


def test_a_prompt_of_many_revisions_is_tokenized_once():
    tokenizer = Letters()
    made = examples.make_examples(texts([CHAIN, CHAIN], (1, 2)), tokenizer)
    assert sorted(tokenizer.encoded) == sorted([PROMPT, " r1", " r2"])
    assert [len(example.ids) for example in made] == [len(PROMPT) + 5] * 4
