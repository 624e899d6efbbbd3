"""Comparisons as pairs of token sequences, for the preference model."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cai_jax.data.examples import Render
from cai_jax.data.packing import check_on_long
from cai_jax.data.schema import Comparison
from cai_jax.data.shares import Place, items
from cai_jax.data.tokenization import TextTokenizer
from cai_jax.errors import InputError

PROMPT = 1  # the segment of a row's prompt


class TokenPair(NamedTuple):
    """A comparison as two sequences, each ending in the token where its score is read."""

    record_id: str
    a: list[int]
    b: list[int]
    p_a: float
    weight: float = 1.0  # in the loss
    shared: int = 0  # tokens at the beginning that are those of one prompt


class Compared(NamedTuple):
    """A pair of which the tokens are elsewhere (`data/shares.py`), for what needs none."""

    at: Place
    record_id: str
    length_a: int  # in tokens
    length_b: int
    shared: int
    p_a: float
    weight: float = 1.0


class PairBatch(NamedTuple):
    """B pairs; side 0 is response A, and texts are padded on the left."""

    tokens: np.ndarray  # int32 [B, 2, T]
    mask: np.ndarray  # int32 [B, 2, T]: 1 for a token
    p_a: np.ndarray  # float32 [B]
    weights: np.ndarray  # float32 [B]: in the loss; 0 for a pair that only fills the batch


class SharedBatch(NamedTuple):
    """B pairs, each in a row of its own: the prompt, then response A, then response B."""

    tokens: np.ndarray  # int32 [B, T]
    segments: np.ndarray  # int32 [B, T]: PROMPT, 2 and 3 for the responses, 0 for padding
    parents: np.ndarray  # int32 [B, T]: PROMPT where there is a token: both responses go on from it
    positions: np.ndarray  # int32 [B, T]: of the token in its text; B's begin where A's do
    ends: np.ndarray  # int32 [B, 2]: the column of each response's last token
    p_a: np.ndarray  # float32 [B]
    weights: np.ndarray  # float32 [B]


class ResponseBatch(NamedTuple):
    """A `PairBatch` whose responses are told from their prompts, for a policy to learn them."""

    tokens: np.ndarray  # int32 [B, 2, T]
    mask: np.ndarray  # int32 [B, 2, T]: 1 for a token
    response: np.ndarray  # bool [B, 2, T]: True for the tokens that follow the prompt
    reference: np.ndarray  # float32 [B, 2]: log-probabilities of the responses by the reference
    p_a: np.ndarray  # float32 [B]
    weights: np.ndarray  # float32 [B]: in the loss; 0 for a pair that only fills the batch


def fit_pairs(
    records: Sequence[Comparison],
    tokenizer: TextTokenizer,
    render: Render,
    length: int,
    on_long: str,
) -> tuple[list[list[TokenPair]], Counter[str]]:
    """Tokenizes comparisons, and treats those of more than `length` tokens as `on_long` says.

    A text is the dialogue, the response and an end token, where the score is read (Bai et al.
    2022a, A.2). Dialogue and response are tokenized one by one, as in sampling. Both texts of a
    truncated pair keep the same end of the dialogue; a pair with a response that does not fit even
    then is dropped.

    Args:
        records: the comparisons.
        tokenizer: of the model.
        render: the prompt of a dialogue, in the dialogue format of the tokenizer.
        length: tokens that a text may have.
        on_long: "truncate" (the beginning of the dialogue), "drop" or "refuse".

    Returns:
        The pair of each record, or none where it does not fit; and counts of pairs truncated (that
        lost the beginning of their dialogue) and dropped (left out).

    Raises:
        InputError: `on_long` is "refuse" and there is such a pair, or it is no known word; a label
            is no probability.
    """
    check_on_long(on_long)
    dialogues = tokenizer.encode_batch([render(record.dialogue) for record in records])
    answer = tokenizer.answer
    responses_a = tokenizer.encode_batch([answer(record.response_a) for record in records])
    responses_b = tokenizer.encode_batch([answer(record.response_b) for record in records])
    start, end = tokenizer.prompt_start, [tokenizer.eos_id]
    room = length - len(start) - len(end)
    pairs: list[list[TokenPair]] = []
    counts = Counter(truncated=0, dropped=0)
    for record, dialogue, a, b in zip(records, dialogues, responses_a, responses_b):
        if not 0 <= record.p_a <= 1:
            raise InputError(
                f"record {record.id}: p_a: expected a probability in 0..1, found {record.p_a}"
            )
        excess = max(len(dialogue) + max(len(a), len(b)) - room, 0)
        if excess and on_long == "refuse":
            raise InputError(
                f"record {record.id}: expected at most {length} tokens, found {length + excess}; "
                "raise sequence_length, or set on_long to truncate or drop"
            )
        if excess and (on_long == "drop" or excess >= len(dialogue)):
            counts["dropped"] += 1
            pairs.append([])
            continue
        counts["truncated"] += excess > 0
        prompt = start + dialogue[excess:]
        sides = prompt + a + end, prompt + b + end
        pairs.append([TokenPair(record.id, *sides, record.p_a, shared=len(prompt))])
    return pairs, counts


def facts(pair: TokenPair) -> tuple[str, int, int, int, float]:
    """What a `Compared` has of a pair."""
    return pair.record_id, len(pair.a), len(pair.b), pair.shared, pair.p_a


def token_pairs(compared: Sequence[Compared]) -> list[TokenPair]:
    """The pairs with their tokens, and the weights that they are given with."""
    pairs = items([pair.at for pair in compared])
    return [pair._replace(weight=of.weight) for pair, of in zip(pairs, compared)]


def fill_pairs(pairs: Sequence[TokenPair], num_pairs: int, length: int) -> PairBatch:
    """Writes pairs into arrays of B = `num_pairs` and T = `length`; the rest weighs nothing.

    Padding is token 0, which every model has (see `packing.fill`).
    """
    tokens, mask = (np.zeros((num_pairs, 2, length), np.int32) for _ in range(2))
    p_a, weights = (np.zeros(num_pairs, np.float32) for _ in range(2))
    for row, pair in enumerate(pairs):
        for side, text in enumerate((pair.a, pair.b)):
            tokens[row, side, length - len(text) :] = text
            mask[row, side, length - len(text) :] = 1
        p_a[row], weights[row] = pair.p_a, pair.weight
    return PairBatch(tokens, mask, p_a, weights)


def fill_responses(
    pairs: Sequence[TokenPair], reference: np.ndarray, num_pairs: int, length: int
) -> ResponseBatch:
    """`fill_pairs`, with the reference's log-probabilities [n, 2] of the n pairs."""
    batch = fill_pairs(pairs, num_pairs, length)
    response, of_reference = batch.mask > 0, np.zeros((num_pairs, 2), np.float32)
    of_reference[: len(pairs)] = reference
    for row, pair in enumerate(pairs):
        for side, text in enumerate((pair.a, pair.b)):
            response[row, side, : length - len(text) + pair.shared] = False
    return ResponseBatch(batch.tokens, batch.mask, response, of_reference, batch.p_a, batch.weights)


def longer_length(pair: Compared) -> int:
    """Tokens of the longer text of a pair."""
    return max(pair.length_a, pair.length_b)


def shared_length(pair: Compared) -> int:
    """Tokens of a pair whose prompt is there once."""
    return pair.length_a + pair.length_b - pair.shared


def fill_shared(pairs: Sequence[TokenPair], num_pairs: int, length: int) -> SharedBatch:
    """Writes pairs into rows of T = `length`, the prompt once; the rest weighs nothing."""
    shape = (num_pairs, length)
    tokens, segments, parents, positions = (np.zeros(shape, np.int32) for _ in range(4))
    ends = np.zeros((num_pairs, 2), np.int32)
    p_a, weights = (np.zeros(num_pairs, np.float32) for _ in range(2))
    counting = np.arange(length, dtype=np.int32)
    for row, pair in enumerate(pairs):
        tokens[row, : pair.shared] = pair.a[: pair.shared]
        segments[row, : pair.shared] = PROMPT
        positions[row, : pair.shared] = counting[: pair.shared]
        start = pair.shared
        for side, text in enumerate((pair.a, pair.b)):
            stop = start + len(text) - pair.shared
            tokens[row, start:stop] = text[pair.shared :]
            segments[row, start:stop] = PROMPT + 1 + side
            positions[row, start:stop] = counting[pair.shared : len(text)]
            ends[row, side] = stop - 1
            start = stop
        parents[row, :start] = PROMPT
        p_a[row], weights[row] = pair.p_a, pair.weight
    return SharedBatch(tokens, segments, parents, positions, ends, p_a, weights)


def raw_probability(comparison: Comparison) -> float:
    """P(response A is better) as the feedback model gave it, before clamping."""
    c = comparison
    if c.logp_a is None or c.logp_b is None:
        return c.p_a
    p_first = 0.5 * (1.0 + math.tanh(0.5 * (c.logp_a - c.logp_b)))
    # None: averaged over both placements, and so of the responses themselves.
    return 1.0 - p_first if c.a_is_first is False else p_first
