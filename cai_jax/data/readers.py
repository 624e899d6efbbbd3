"""Reads prompts from the files that people have."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai_jax.data.schema import Dialogue, Prompt, Turn, json_lines, parse
from cai_jax.errors import InputError

TURN = re.compile(r"\n\n(Human|Assistant):")
"""What begins a turn in the files of HH-RLHF, and so in no turn's text."""

PROMPTS = "prompts.jsonl"  # in the folder of a step

FORMS = "'dialogue' (a Prompt), 'prompt' (text), or 'chosen' and 'rejected' (as in HH-RLHF)"


def read_prompts(path: Path, limit: int = 0) -> list[Prompt]:
    """Reads the prompts of a .jsonl or .jsonl.gz file, each line in one of three forms.

    - a `Prompt` record: {"id", "dialogue", "tags"};
    - {"prompt": text}: one human turn, or a dialogue if it begins with "\\n\\nHuman:"; an "id" is
      kept, and other fields become tags;
    - {"chosen", "rejected"}: two dialogues of HH-RLHF; the prompt is what they share, up to the
      last human turn in it. Other fields become tags.

    Args:
        path: the file, or the folder of a step that makes prompts.
        limit: at most so many, from the top; 0: all.

    Raises:
        InputError: naming file, line and field, and what was expected.
    """
    path = Path(path)
    if path.is_dir():
        path = path / PROMPTS
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    prompts: dict[str, Prompt] = {}
    for number, (where, value) in enumerate(json_lines(path)):
        if limit and number == limit:
            break
        prompt = _prompt(value, where, f"{name}-{number}")
        if prompt.id in prompts:
            raise InputError(f"{where}: id: {prompt.id!r} stands in an earlier line already")
        prompts[prompt.id] = prompt
    if not prompts:
        raise InputError(f"{path}: expected at least one prompt, found none")
    return list(prompts.values())


def read_all_prompts(paths: Path | Sequence[Path], limit: int = 0) -> list[Prompt]:
    """`read_prompts` of one file or of several, at most `limit` of each.

    An id that an earlier file has too gets "@" and the number of its file behind it: files of
    HH-RLHF are all named alike, and ids must tell records apart.
    """
    prompts: dict[str, Prompt] = {}
    for number, path in enumerate(paths if isinstance(paths, Sequence) else [paths]):
        for prompt in read_prompts(path, limit):
            while prompt.id in prompts:
                prompt = dataclasses.replace(prompt, id=f"{prompt.id}@{number}")
            prompts[prompt.id] = prompt
    return list(prompts.values())


def _prompt(value: Any, where: str, default_id: str) -> Prompt:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, found {str(value)[:40]!r}")
    if "dialogue" in value:
        prompt = parse(Prompt, value, where)
        for i, turn in enumerate(prompt.dialogue):
            _check_turn(turn, f"{where}: dialogue[{i}]")
        return Prompt(prompt.id, _ends_in_human(prompt.dialogue, f"{where}: dialogue"), prompt.tags)
    rest = dict(value)
    id = parse(str, rest.pop("id", default_id), f"{where}: id")
    if "prompt" in value:
        text = parse(str, rest.pop("prompt"), f"{where}: prompt")
        dialogue = _dialogue(text, f"{where}: prompt", plain=True)
        return Prompt(id, _ends_in_human(dialogue, f"{where}: prompt"), rest)
    for field in ("chosen", "rejected"):
        if field not in value:
            found = ", ".join(value) or "no fields"
            raise InputError(
                f"{where}: field {field!r} is missing; expected {FORMS}, found {found}"
            )
    chosen, rejected = (
        _dialogue(parse(str, rest.pop(field), f"{where}: {field}"), f"{where}: {field}")
        for field in ("chosen", "rejected")
    )
    return Prompt(id, shared_dialogue(chosen, rejected, where), rest)


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


def _dialogue(text: str, where: str, plain: bool = False) -> Dialogue:
    """Splits text at its turn markers; `plain` text may do without, and is one human turn."""
    if plain and not TURN.search(text):
        return (Turn("human", text.strip()),)
    if not TURN.match(text):
        raise InputError(
            f"{where}: expected a dialogue that begins with '\\n\\nHuman:', found {text[:40]!r}"
        )
    pieces = TURN.split(text)[1:]
    return tuple(Turn(r.lower(), body.strip()) for r, body in zip(pieces[::2], pieces[1::2]))


def _ends_in_human(dialogue: Dialogue, where: str) -> Dialogue:
    """The dialogue without the opening of the next response, if it is there."""
    if dialogue and dialogue[-1] == Turn("assistant", ""):
        dialogue = dialogue[:-1]
    if not dialogue or dialogue[-1].role != "human" or not dialogue[-1].text.strip():
        found = f"{dialogue[-1].role} turn {dialogue[-1].text[:30]!r}" if dialogue else "no turns"
        raise InputError(f"{where}: expected a dialogue that ends in a human turn, found {found}")
    return dialogue


def _check_turn(turn: Turn, where: str) -> None:
    if turn.role not in ("human", "assistant"):
        raise InputError(f"{where}: role: expected human or assistant, found {turn.role[:40]!r}")
    if marker := TURN.search(turn.text):
        raise InputError(f"{where}: text: expected one turn, found a turn marker {marker[0]!r}")
