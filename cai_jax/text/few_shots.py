"""Few-shot examples: laid out under a principle (paper section 4.1), and fitted into a context."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cai_jax.errors import InputError
from cai_jax.text.constitution import OPTIONS, ComparisonExample
from cai_jax.text.dialogue import CRITIQUE_REQUEST, REVISION_REQUEST, parse_dialogue
from cai_jax.text.prompts import CHOICES, multiple_choice

_CRITIQUE = re.compile(f"{CRITIQUE_REQUEST}.*?(?={REVISION_REQUEST})", re.DOTALL)

LayOut = Callable[[Sequence[str]], Any]
"""A prompt (text or turns) from the few-shots that stand in front of it."""


class Fitted(NamedTuple):
    """The token ids of a prompt, how many of its few-shots had to go, and its text."""

    ids: list[int]
    dropped: int
    text: str


def fit(
    lay_outs: Sequence[LayOut],
    few_shots: Sequence[Sequence[str]],
    encode: Callable[[list[Any]], Sequence[list[int]]],
    room: int,
) -> list[Fitted | None]:
    """Encodes prompts, each with as many of its few-shots as there is room for.

    Few-shots go from the front, so that those next to the question stay.

    Args:
        lay_outs: one a prompt.
        few_shots: those of each prompt.
        encode: what `lay_outs` make to token ids.
        room: the most tokens that a prompt may have.

    Returns:
        For each prompt its ids, or None where they are too many even without few-shots.
    """
    fitted: list[Fitted | None] = [None] * len(lay_outs)
    waiting, dropped = list(range(len(lay_outs))), 0
    while waiting:
        texts = [lay_outs[i](few_shots[i][dropped:]) for i in waiting]
        for i, ids, text in zip(waiting, encode(texts), texts):
            if len(ids) <= room:
                fitted[i] = Fitted(ids, dropped, text)
        waiting = [i for i in waiting if fitted[i] is None and dropped < len(few_shots[i])]
        dropped += 1
    return fitted


class _Turn:
    def __init__(self, role: str, text: str):
        self.role, self.text = role, text


def comparison_few_shot(example: ComparisonExample, comparison: str, better_is_first: bool) -> str:
    """A multiple choice under a principle's `comparison`, with its answer.

    Raises:
        InputError: the example's dialogue is not in the "\\n\\nHuman: ..." format.
    """
    try:
        turns = [_Turn(role, text) for role, text in parse_dialogue(example.dialogue)]
    except ValueError as error:
        raise InputError(f"comparison few-shot: {error}") from None
    if turns[-1].role == "assistant" and not turns[-1].text:  # the opening of the next response
        turns.pop()
    options = (example.better, example.worse)
    first, second = options if better_is_first else options[::-1]
    return multiple_choice(turns, comparison, first, second) + CHOICES[not better_is_first]


def reasoning_few_shot(text: str, comparison: str) -> str:
    """A chain-of-thought example with its one "{}" filled in."""
    return text.replace("{}", f"{comparison}{OPTIONS}")


def without_critiques(text: str) -> str:
    """A critique few-shot for revisions that are asked for directly (paper section 3.5)."""
    return _CRITIQUE.sub("", text)
