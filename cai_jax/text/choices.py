"""The prompts of multiple-choice evaluations: direct, with few-shots, with reasoning (Fig 4)."""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from cai_jax.text.constitution import Constitution
from cai_jax.text.dialogue import HUMAN
from cai_jax.text.few_shots import LayOut, comparison_few_shot, reasoning_few_shot
from cai_jax.text.prompts import (
    CONSIDER,
    STEP_BY_STEP,
    THE_ANSWER,
    multiple_choice,
    reasoning_prompt,
)

_COMPARISON = re.compile(
    re.escape(CONSIDER)
    + r"(?P<turns>\n\n.*)\n\n\n(?P<comparison>[^\n]*) Options:"
    + r"\n \(A\) \[\[\[(?P<first>.*)\]\]\]\n \(B\) \[\[\[(?P<second>.*)\]\]\]"
    + re.escape(THE_ANSWER),
    re.DOTALL,
)
_BETWEEN = "a human and an assistant"
_TURN = re.compile(r"\n\n(Human|Assistant): ?")


class Turn(NamedTuple):
    """One turn of a dialogue; `role` is "human" or "assistant"."""

    role: str
    text: str


class PairQuestion(NamedTuple):
    """What `prompts.multiple_choice` was made from."""

    dialogue: tuple[Turn, ...]
    comparison: str
    first: str
    second: str


class Laid(NamedTuple):
    """A prompt to be laid out with `few_shots`, or with the last of them, in front."""

    lay_out: LayOut
    few_shots: tuple[str, ...]


def parse_multiple_choice(prompt: str) -> PairQuestion | None:
    """Takes a prompt of `prompts.multiple_choice` apart; None for one of another form.

    What it returns makes the same prompt again, byte for byte.
    """
    match = _COMPARISON.fullmatch(prompt)
    if match is None:
        return None
    pieces = _TURN.split(match["turns"])
    turns = tuple(Turn(role.lower(), text) for role, text in zip(pieces[1::2], pieces[2::2]))
    found = PairQuestion(turns, match["comparison"], match["first"], match["second"])
    return found if multiple_choice(*found) == prompt else None


def direct(prompt: str) -> Laid:
    """The prompt as it is: the answer is one of the options, read at once."""
    return Laid(lambda shots: "".join(shots) + prompt, ())


def with_few_shots(
    prompt: str,
    others: Sequence[tuple[str, str]],
    constitution: Constitution | None,
    number: int,
    rng: random.Random,
) -> Laid:
    """The prompt behind examples of the same form.

    Two responses to compare get the constitution's few-shots, under the prompt's own instruction
    and with the better response at either letter. Any other form gets questions of its own file.

    Args:
        prompt: the question.
        others: (prompt, right option) of questions about another context.
        constitution: whose few-shots to take, if any.
        number: at most so many.
        rng: for this question alone.
    """
    pair = parse_multiple_choice(prompt)
    if pair is not None and constitution is not None and constitution.comparison_few_shots:
        shots = [
            comparison_few_shot(example, pair.comparison, rng.random() < 0.5)
            for example in constitution.comparison_few_shots[:number]
        ]
        return Laid(lambda kept: "".join(kept) + prompt, tuple(shots))
    drawn = rng.sample(others, min(number, len(others)))
    # A prompt of the paper's other files has no blank line in front.
    lead = "" if prompt.startswith("\n\n") else "\n\n"
    shots = [f"{text}{option}{lead}" for text, option in drawn]
    return Laid(lambda kept: "".join(kept) + prompt, tuple(shots))


def with_reasoning(prompt: str, constitution: Constitution | None, number: int) -> Laid:
    """The prompt as a human turn that asks for reasoning first (paper sections 2, 4.1).

    The model's reasoning follows, then `prompts.SO_THE_ANSWER` and an option. The dialogue that is
    asked about is told between H and A, so that its turns are none of this one. There are few-shots
    with reasoning for two responses to compare alone: at most `number` of the constitution's.
    """
    pair = parse_multiple_choice(prompt)
    if pair is None:
        question = prompt.removesuffix(THE_ANSWER.strip()).strip("\n")
        question = question.replace(_BETWEEN, "a human (H) and an assistant (A)", 1)
        question = _TURN.sub(lambda turn: f"\n\n{turn[1][0]}: ", question)
        return direct(f"{HUMAN} {question}{STEP_BY_STEP}")
    texts = constitution.reasoning_few_shots[:number] if constitution is not None else ()
    shots = tuple(reasoning_few_shot(text, pair.comparison) for text in texts)
    asked = reasoning_prompt(*pair)
    return Laid(lambda kept: "".join(kept) + asked, shots)
