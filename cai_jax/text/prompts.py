"""How the method's prompts are put together (paper sections 3.1, 4.1 and the official data)."""

from collections.abc import Sequence
from typing import NamedTuple

from cai_jax.text.constitution import OPTIONS, Principle
from cai_jax.text.dialogue import (
    ASSISTANT,
    CRITIQUE,
    CRITIQUE_REQUEST,
    HUMAN,
    REVISION,
    REVISION_REQUEST,
    TurnLike,
    render,
)
from cai_jax.text.markers import unlabelled

CHOICES = (" (A)", " (B)")
"""The two continuations whose log-probabilities are the feedback model's judgement."""

CONSIDER = "\n\nConsider the following conversation between a human and an assistant:"
CONSIDER_REASONING = (
    f"{HUMAN} Consider the following conversation between a human (H) and an assistant (A):"
)
THE_ANSWER = "\n\nThe answer is:"
STEP_BY_STEP = f"{ASSISTANT} Let's think step by step:"
SO_THE_ANSWER = f"{HUMAN}\nSo the answer is:"


def critique_prompt(
    dialogue: Sequence[TurnLike],
    response: str,
    principle: Principle,
    few_shots: Sequence[str] = (),
) -> str:
    """Asks for a critique of `response`; the few-shots stand in front (paper section 3.1).

    No line of the dialogue, a response or a critique can pass for a turn (`unlabelled`).
    """
    return (
        f"{''.join(few_shots)}{_answered(dialogue, response)}"
        f"{CRITIQUE_REQUEST} {principle.critique_request}{CRITIQUE}"
    )


def revision_prompt(
    dialogue: Sequence[TurnLike],
    response: str,
    critique: str,
    principle: Principle,
    few_shots: Sequence[str] = (),
) -> str:
    """Goes on from a critique to the revision request (paper section 3.1)."""
    return (
        f"{critique_prompt(dialogue, response, principle, few_shots)} {unlabelled(critique)}"
        f"{REVISION_REQUEST} {principle.revision_request}{REVISION}"
    )


def direct_revision_prompt(
    dialogue: Sequence[TurnLike],
    response: str,
    principle: Principle,
    few_shots: Sequence[str] = (),
) -> str:
    """Asks for a revision without a critique before it (paper section 3.5)."""
    return (
        f"{''.join(few_shots)}{_answered(dialogue, response)}"
        f"{REVISION_REQUEST} {principle.revision_request}{REVISION}"
    )


def multiple_choice(dialogue: Sequence[TurnLike], comparison: str, first: str, second: str) -> str:
    """Asks which response is better under a principle's `comparison` (paper section 4.1).

    The answer follows as one of CHOICES.
    """
    turns = "".join(f"\n\n{turn.role.capitalize()}: {turn.text}" for turn in dialogue)
    return f"{CONSIDER}{turns}{_options(comparison, first, second)}{THE_ANSWER}"


def reasoning_prompt(dialogue: Sequence[TurnLike], comparison: str, first: str, second: str) -> str:
    """Asks for a chain of thought about the same choice (paper section 4.1).

    The reasoning goes up to the next turn; then SO_THE_ANSWER and one of CHOICES follow.
    """
    initial = {"human": "H", "assistant": "A"}
    turns = "".join(f"\n\n{initial[turn.role]}: {turn.text}" for turn in dialogue)
    return f"{CONSIDER_REASONING}{turns}{_options(comparison, first, second)}{STEP_BY_STEP}"


def _options(comparison: str, first: str, second: str) -> str:
    return f"\n\n\n{comparison}{OPTIONS}\n (A) [[[{first}]]]\n (B) [[[{second}]]]"


def _answered(dialogue: Sequence[TurnLike], response: str) -> str:
    turns = [_Turn(turn.role, unlabelled(turn.text)) for turn in dialogue]
    return f"{render(turns)} {unlabelled(response)}"


class _Turn(NamedTuple):
    role: str
    text: str
