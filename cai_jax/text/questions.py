"""The multiple choices that a feedback model is asked about a pair (paper sections 4.1, 4.3)."""

import random
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from cai_jax.text.constitution import Constitution, Principle
from cai_jax.text.dialogue import TurnLike
from cai_jax.text.few_shots import LayOut, comparison_few_shot, reasoning_few_shot
from cai_jax.text.markers import neutralised
from cai_jax.text.prompts import multiple_choice, reasoning_prompt

PLACEMENTS = ("random", "both", "fixed")
"""Who stands at (A): response A by a coin a pair; each in turn; always response A."""


class PairLike(Protocol):
    """Two responses to a dialogue."""

    @property
    def dialogue(self) -> Sequence[TurnLike]: ...  # noqa: D102
    @property
    def response_a(self) -> str: ...  # noqa: D102
    @property
    def response_b(self) -> str: ...  # noqa: D102


ENSEMBLES = ("none", "principles")
"""Under which principles a pair is asked about: one that is drawn, or all."""


class Question(NamedTuple):
    """A multiple choice about a pair.

    `name` tells it from the pair's other questions, and its reasoning has a key by this name.
    `lay_out` makes the prompt from `few_shots`, or from the last of them. `neutralised` says
    whether the pair's text could have steered the answer, and was changed for it.
    """

    name: str
    principle: Principle
    a_is_first: bool
    lay_out: LayOut
    few_shots: tuple[str, ...]
    neutralised: bool


class _Turn(NamedTuple):
    role: str
    text: str


def questions_about(
    pair: PairLike,
    constitution: Constitution,
    rng: random.Random,
    *,
    placement: str,
    num_few_shots: int,
    chain_of_thought: bool,
    ensemble: str = "none",
    num_reasonings: int = 1,
) -> list[Question]:
    """The questions about a pair: for each principle, each placement, `num_reasonings` of them.

    The first is what would be asked if there were no more. All have the same few-shots and, with
    placement "random", the same coin.

    Args:
        pair: what is judged.
        constitution: its principles are drawn from; its few-shots stand in front.
        rng: for this pair alone.
        placement: one of PLACEMENTS.
        num_few_shots: at most so many, each under a principle of its own (paper section 4.1), and
            those without reasoning with the better response at either letter.
        chain_of_thought: asks for reasoning first.
        ensemble: one of ENSEMBLES.
        num_reasonings: how often each is asked, each time with a reasoning of its own (Fig 4).
    """

    def drawn() -> tuple[Principle, bool]:
        return rng.choice(constitution.principles), rng.random() < 0.5

    # The pair's own draws come first: few-shots leave them as they are.
    principle, coin = drawn()
    few_shots = []
    if chain_of_thought:
        for text in constitution.reasoning_few_shots[:num_few_shots]:
            few_shots.append(reasoning_few_shot(text, drawn()[0].comparison))
    else:
        for example in constitution.comparison_few_shots[:num_few_shots]:
            its_own, better_is_first = drawn()
            few_shots.append(comparison_few_shot(example, its_own.comparison, better_is_first))

    template = reasoning_prompt if chain_of_thought else multiple_choice
    texts = [*(turn.text for turn in pair.dialogue), pair.response_a, pair.response_b]
    *turns, response_a, response_b = (neutralised(text)[0] for text in texts)
    changed = any(neutralised(text)[1] for text in texts)
    dialogue = [_Turn(turn.role, text) for turn, text in zip(pair.dialogue, turns)]

    def question(number: int, asked_under: Principle, a_is_first: bool) -> Question:
        first, second = (response_a, response_b) if a_is_first else (response_b, response_a)
        asked = template(dialogue, asked_under.comparison, first, second)
        name = "ab" if a_is_first else "ba"
        name += "" if asked_under is principle else f"/{asked_under.id}"
        return Question(
            name + (f" #{number}" if number else ""),
            asked_under,
            a_is_first,
            lambda shots: "".join(shots) + asked,
            tuple(few_shots),
            changed,
        )

    others = [other for other in constitution.principles if other is not principle]
    orders = {"random": (coin,), "both": (True, False), "fixed": (True,)}
    return [
        question(number, asked_under, a_is_first)
        for asked_under in [principle, *(others if ensemble == "principles" else ())]
        for a_is_first in orders[placement]
        for number in range(num_reasonings)
    ]


def identical(pair: PairLike) -> bool:
    """Whether both responses read the same in a question: there is nothing to compare."""
    return neutralised(pair.response_a)[0] == neutralised(pair.response_b)[0]
