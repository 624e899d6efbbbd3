"""The paper's plain dialogue format: "\\n\\nHuman: ...\\n\\nAssistant: ..."."""

import re
from collections.abc import Sequence
from typing import Protocol

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"
CRITIQUE_REQUEST = "\n\nCritiqueRequest:"
CRITIQUE = "\n\nCritique:"
REVISION_REQUEST = "\n\nRevisionRequest:"
REVISION = "\n\nRevision:"

STOPS = (HUMAN, ASSISTANT, CRITIQUE_REQUEST, CRITIQUE, REVISION_REQUEST, REVISION)
"""Where a response, critique or revision ends, whatever the model goes on to write."""

_TURN = re.compile(r"\n\n(Human|Assistant):")


class TurnLike(Protocol):
    """Anything with a `role` ("human" or "assistant") and a `text`."""

    @property
    def role(self) -> str: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102


def render(dialogue: Sequence[TurnLike]) -> str:
    """The prompt that a model continues with the assistant's next response."""
    markers = {"human": HUMAN, "assistant": ASSISTANT}
    return "".join(f"{markers[t.role]} {t.text}" for t in dialogue) + ASSISTANT


def parse_dialogue(text: str) -> list[tuple[str, str]]:
    """Splits "\\n\\nHuman: ...\\n\\nAssistant: ..." into (role, text) turns, texts stripped.

    Raises:
        ValueError: if the text does not begin with a turn marker.
    """
    if not _TURN.match(text):
        raise ValueError(f"expected a dialogue that begins with {HUMAN!r}, found {text[:40]!r}")
    pieces = _TURN.split(text)[1:]
    return [(role.lower(), body.strip()) for role, body in zip(pieces[::2], pieces[1::2])]


def cut_at_stop(text: str) -> str:
    """The text before the first stop, stripped: what counts as the response."""
    ends = [position for stop in STOPS if (position := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))].strip()
