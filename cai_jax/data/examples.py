"""Records as training examples: token ids and the weight of each in the loss.

The prompt of a dialogue is context (weight 0); the response and the end-of-sequence token after it
are trained (weight 1). A document says its weights piece by piece; its end has its last piece's.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cai_jax.data.schema import Chain, Demonstration, Dialogue, Document
from cai_jax.data.shares import Place
from cai_jax.data.tokenization import TextTokenizer
from cai_jax.errors import InputError

Render = Callable[[Dialogue], Any]  # text, or turns that a `ChatTokenizer` encodes
TrainingRecord = Document | Demonstration | Chain


class Example(NamedTuple):
    """One sequence to train on."""

    record_id: str
    ids: np.ndarray  # int32 [length]
    weights: np.ndarray  # float32 [length]: of predicting the token at this index


class Length(NamedTuple):
    """An example that is made elsewhere (`data/shares.py`), for what needs no tokens."""

    at: Place
    record_id: str
    length: int  # in tokens


class WeightedText(NamedTuple):
    """A sequence before tokenization, as (text, weight) pieces."""

    record_id: str
    pieces: tuple[tuple[Any, float], ...]  # only the prompts of chat are no str


def weighted_texts(
    records: Iterable[TrainingRecord],
    render: Render,
    revisions: Sequence[int],
    answer: Callable[[str], str] = " {}".format,
) -> list[WeightedText]:
    """Lays records out as text.

    Args:
        records: documents, demonstrations or chains. A chain gives one text for each of
            `revisions` (SL-CAI-n: 1..n; 0 is the first response), or its response if it has no
            rounds (a helpful sample).
        render: the prompt of a dialogue, in the dialogue format of the tokenizer.
        revisions: which revisions of a chain to imitate.
        answer: what is encoded after a prompt for a response.

    Raises:
        InputError: a chain has fewer rounds than `revisions` asks for.
    """
    texts = []
    for record in records:
        if isinstance(record, Document):
            pieces = tuple((piece.text, piece.weight) for piece in record.pieces)
            texts.append(WeightedText(record.id, pieces))
            continue
        prompt = (render(record.dialogue), 0.0)
        for response in _responses(record, revisions):
            texts.append(WeightedText(record.id, (prompt, (answer(response), 1.0))))
    return texts


def _responses(record: Demonstration | Chain, revisions: Sequence[int]) -> list[str]:
    if isinstance(record, Demonstration) or not record.rounds:
        return [record.response]
    if max(revisions, default=0) > len(record.rounds):
        raise InputError(
            f"chain {record.id}: revisions: expected at most {len(record.rounds)}, the rounds it "
            f"has, found {max(revisions)}; lower `revisions` or run more rounds"
        )
    stages = [record.response, *(step.revision for step in record.rounds)]
    return [stages[number] for number in revisions]


def make_examples(texts: Sequence[WeightedText], tokenizer: TextTokenizer) -> list[Example]:
    """Tokenizes each piece by itself, as generation sees a prompt and then its continuation.

    Each text ends with the end-of-sequence token. Equal pieces are tokenized once.
    """
    distinct = {text: i for i, text in enumerate(dict.fromkeys(p for t in texts for p, _ in t[1]))}
    encoded = [np.array(ids, np.int32) for ids in tokenizer.encode_batch(distinct)]
    start = np.array(tokenizer.prompt_start, np.int32)
    end = np.array([tokenizer.eos_id], np.int32)
    examples = []
    for record_id, pieces in texts:
        parts = [start, *(encoded[distinct[text]] for text, _ in pieces), end]
        weights = [0.0, *(weight for _, weight in pieces), pieces[-1][1] if pieces else 0.0]
        lengths = [len(part) for part in parts]
        examples.append(
            Example(
                record_id, np.concatenate(parts), np.repeat(np.array(weights, np.float32), lengths)
            )
        )
    return examples
