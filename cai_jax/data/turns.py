"""Dialogues as the files of HH-RLHF write them: one text, split at its turn markers."""

import re

from cai_jax.data.schema import Dialogue, Turn
from cai_jax.errors import InputError

TURN = re.compile(r"\n\n(Human|Assistant):")
"""What begins a turn in the files of HH-RLHF, and so in no turn's text."""


def split_turns(text: str, where: str, plain: bool = False) -> Dialogue:
    """Splits text at its turn markers; `plain` text may do without, and is one human turn."""
    if plain and not TURN.search(text):
        return (Turn("human", text.strip()),)
    if not TURN.match(text):
        raise InputError(
            f"{where}: expected a dialogue that begins with '\\n\\nHuman:', found {text[:40]!r}"
        )
    pieces = TURN.split(text)[1:]
    return tuple(Turn(r.lower(), body.strip()) for r, body in zip(pieces[::2], pieces[1::2]))


def ends_in_human(dialogue: Dialogue, where: str) -> Dialogue:
    """The dialogue without the opening of the next response, if it is there."""
    if dialogue and dialogue[-1] == Turn("assistant", ""):
        dialogue = dialogue[:-1]
    if not dialogue or dialogue[-1].role != "human" or not dialogue[-1].text.strip():
        found = f"{dialogue[-1].role} turn {dialogue[-1].text[:30]!r}" if dialogue else "no turns"
        raise InputError(f"{where}: expected a dialogue that ends in a human turn, found {found}")
    return dialogue


def check_turn(turn: Turn, where: str) -> None:
    """Refuses a turn of nobody's, or one whose text would be several."""
    if turn.role not in ("human", "assistant"):
        raise InputError(f"{where}: role: expected human or assistant, found {turn.role[:40]!r}")
    if marker := TURN.search(turn.text):
        raise InputError(f"{where}: text: expected one turn, found a turn marker {marker[0]!r}")


def shared_dialogue(chosen: Dialogue, rejected: Dialogue, where: str) -> Dialogue:
    """The turns that both dialogues begin with, up to the last human turn among them.

    The last "Assistant:" would not do: in a few records of HH-RLHF one side goes on for several
    turns, and the two "prompts" would differ.
    """
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and (chosen[shared - 1].role != "human" or not chosen[shared - 1].text):
        shared -= 1
    if not shared:
        raise InputError(
            f"{where}: chosen, rejected: expected dialogues that share a human turn, "
            f"found {chosen[0].text[:30]!r} and {rejected[0].text[:30]!r}"
        )
    return chosen[:shared]


def continuation(turns: Dialogue) -> str:
    """What follows a prompt, as one text: nearly always a single turn."""
    rest = turns[1:] if turns and turns[0].role == "assistant" else turns
    first = turns[0].text if len(rest) < len(turns) else ""
    return first + "".join(f"\n\n{turn.role.capitalize()}: {turn.text}" for turn in rest)
