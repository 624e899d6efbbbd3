"""The two dialogue formats: the paper's plain text, and the chat template of the checkpoint.

A format lays out what a model is asked; the tokenizer of that format encodes it. Plain prompts are
text, in which markers such as "\\n\\nHuman:" separate the turns. A chat prompt is a list of turns:
a request for a critique or a revision is a further turn of the human's, and what the model writes
is the assistant's. Few-shot examples of critiques are earlier turns of the same conversation; those
of multiple choices stay text, in front of the question in the human's turn.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from cai_jax.errors import InputError
from cai_jax.text import prompts
from cai_jax.text.constitution import Principle
from cai_jax.text.dialogue import (
    ASSISTANT,
    CRITIQUE,
    CRITIQUE_REQUEST,
    HUMAN,
    REVISION,
    REVISION_REQUEST,
    STOPS,
    TurnLike,
    render,
)

FORMATS = ("plain", "chat")

_SPEAKERS = {
    HUMAN: "human",
    ASSISTANT: "assistant",
    CRITIQUE_REQUEST: "human",
    CRITIQUE: "assistant",
    REVISION_REQUEST: "human",
    REVISION: "assistant",
}
_MARKER = re.compile("(" + "|".join(STOPS) + ")")
_SO_THE_ANSWER = prompts.SO_THE_ANSWER.replace(HUMAN, "\n")


class Turn(NamedTuple):
    """One turn of a chat prompt."""

    role: str  # "human" or "assistant"
    text: str


class ChatPrompt(NamedTuple):
    """What a chat model is asked, and how its answer begins."""

    turns: tuple[Turn, ...]
    begun: str = ""


Prompt = str | ChatPrompt


class DialogueFormat(Protocol):
    """How a model is asked for a response, a critique, a revision or a choice."""

    def dialogue(self, dialogue: Sequence[TurnLike]) -> Prompt:
        """Asks for the assistant's next response."""

    def critique(
        self,
        dialogue: Sequence[TurnLike],
        response: str,
        principle: Principle,
        few_shots: Sequence[str] = (),
    ) -> Prompt:
        """Asks for a critique of `response` (paper section 3.1)."""

    def revision(
        self,
        dialogue: Sequence[TurnLike],
        response: str,
        critique: str,
        principle: Principle,
        few_shots: Sequence[str] = (),
    ) -> Prompt:
        """Asks for a revision after a critique (paper section 3.1)."""

    def direct_revision(
        self,
        dialogue: Sequence[TurnLike],
        response: str,
        principle: Principle,
        few_shots: Sequence[str] = (),
    ) -> Prompt:
        """Asks for a revision without a critique (paper section 3.5)."""

    def question(self, text: str) -> Prompt:
        """Asks a multiple choice, laid out as in `text/prompts.py`, answered or reasoned about."""


class Plain:
    """The paper's "\\n\\nHuman: ...\\n\\nAssistant:"."""

    dialogue = staticmethod(render)
    critique = staticmethod(prompts.critique_prompt)
    revision = staticmethod(prompts.revision_prompt)
    direct_revision = staticmethod(prompts.direct_revision_prompt)

    def question(self, text: str) -> str:
        """The text as it is."""
        return text


class Chat:
    """Turns for the checkpoint's own chat template."""

    def dialogue(self, dialogue: Sequence[TurnLike]) -> ChatPrompt:
        """The turns as they are."""
        return ChatPrompt(tuple(Turn(turn.role, turn.text) for turn in dialogue))

    def critique(
        self,
        dialogue: Sequence[TurnLike],
        response: str,
        principle: Principle,
        few_shots: Sequence[str] = (),
    ) -> ChatPrompt:
        """The request is a further turn of the human's."""
        return self._asked(dialogue, response, few_shots, (), principle.critique_request)

    def revision(
        self,
        dialogue: Sequence[TurnLike],
        response: str,
        critique: str,
        principle: Principle,
        few_shots: Sequence[str] = (),
    ) -> ChatPrompt:
        """The critique is the assistant's, and the request the human's."""
        criticised = (Turn("human", principle.critique_request), Turn("assistant", critique))
        return self._asked(dialogue, response, few_shots, criticised, principle.revision_request)

    def direct_revision(
        self,
        dialogue: Sequence[TurnLike],
        response: str,
        principle: Principle,
        few_shots: Sequence[str] = (),
    ) -> ChatPrompt:
        """The request is a further turn of the human's."""
        return self._asked(dialogue, response, few_shots, (), principle.revision_request)

    def question(self, text: str) -> ChatPrompt:
        """One turn of the human's; the assistant's begins with the words before its choice.

        These are "The answer is:" or "Let's think step by step:", and after some reasoning this
        with "So the answer is:", which in plain text the human says.
        """
        beginning = prompts.STEP_BY_STEP
        if text.endswith(prompts.THE_ANSWER):
            beginning = prompts.THE_ANSWER
        asked, found, reasoning = text.rpartition(beginning)
        if not found:
            raise ValueError(f"no multiple choice: {text[-40:]!r}")
        begun = beginning.removeprefix(ASSISTANT).strip() + reasoning
        begun = begun.replace(prompts.SO_THE_ANSWER, _SO_THE_ANSWER)
        return ChatPrompt((Turn("human", asked.removeprefix(HUMAN).strip()),), begun)

    def _asked(
        self,
        dialogue: Sequence[TurnLike],
        response: str,
        few_shots: Sequence[str],
        between: tuple[Turn, ...],
        request: str,
    ) -> ChatPrompt:
        shown = [turn for text in few_shots for turn in example_turns(text)]
        spoken = self.dialogue(dialogue).turns
        answered = Turn("assistant", response)
        return ChatPrompt((*shown, *spoken, answered, *between, Turn("human", request)))


def example_turns(text: str) -> list[Turn]:
    """A few-shot example of critiques and revisions as turns.

    Raises:
        InputError: it does not begin with a human's turn, or the two do not speak in turn.
    """
    before, *pieces = _MARKER.split(text)
    turns = [
        Turn(_SPEAKERS[marker], body.strip()) for marker, body in zip(pieces[::2], pieces[1::2])
    ]
    roles = [turn.role for turn in turns]
    if before.strip() or roles != ["human", "assistant"] * (len(roles) // 2):
        raise InputError(
            "critique few-shot: expected text that begins with '\\n\\nHuman:', in which human and "
            f"assistant speak in turn, found {text[:40]!r}; set num_few_shots to 0, or "
            "dialogue_format to plain"
        )
    return turns


def dialogue_format(name: str) -> DialogueFormat:
    """The format of a name of FORMATS.

    Raises:
        InputError: there is none.
    """
    if name not in FORMATS:
        raise InputError(f"dialogue_format: expected {' or '.join(FORMATS)}, found {name!r}")
    return Chat() if name == "chat" else Plain()
