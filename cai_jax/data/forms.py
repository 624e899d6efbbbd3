"""Rows of files as prompts and comparisons: which fields a record has, and what they mean."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from cai_jax.data.rows import listed
from cai_jax.data.schema import Comparison, Dialogue, Prompt, parse
from cai_jax.data.turns import (
    TURN,
    check_turn,
    continuation,
    ends_in_human,
    shared_dialogue,
    split_turns,
)
from cai_jax.errors import InputError

FIELDS = ("id", "prompt", "chosen", "rejected", "transcript")
FORMS = (
    "'dialogue' (a Prompt), 'prompt' (text), 'transcript' (of a red-team attempt), or 'chosen' and "
    "'rejected' (as in HH-RLHF)"
)
COMPARISONS = (
    "'p_a' (a Comparison), 'chosen' and 'rejected' (dialogues as in HH-RLHF), or 'prompt' and two "
    "responses to it, 'chosen' and 'rejected'"
)
NO_FIELDS: Mapping[str, str] = {}
HUMAN = "human"  # who judged the comparisons of a file


class _Named(NamedTuple):
    """A row's fields by our names, and the rest of it."""

    fields: dict[str, Any]
    rest: dict[str, Any]


def _named(value: Any, fields: Mapping[str, str], where: str) -> _Named:
    """Finds the columns that `fields` names.

    Raises:
        InputError: the row is no object, or a column is not there.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, found {str(value)[:40]!r}")
    columns = {name: _column(name, fields) for name in FIELDS}
    for name, column in columns.items():
        if column != name and column not in value:
            raise InputError(
                f"{where}: field {column!r} is missing (fields.{name} names it); found "
                f"{listed(value)}"
            )
    named = {name: value[column] for name, column in columns.items() if column in value}
    return _Named(named, {key: v for key, v in value.items() if key not in columns.values()})


def _id(named: _Named, where: str, default_id: str) -> str:
    """The record's own id, as text, or the default where it has none (an empty cell, in CSV)."""
    found = named.fields.get("id", "")
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    return parse(str, found, f"{where}: id") or default_id


def prompt_of(
    value: Any, where: str, default_id: str, fields: Mapping[str, str] = NO_FIELDS
) -> Prompt:
    """The prompt of one row; see `read_prompts`."""
    if isinstance(value, dict) and "dialogue" in value:
        prompt = parse(Prompt, value, where)
        for i, turn in enumerate(prompt.dialogue):
            check_turn(turn, f"{where}: dialogue[{i}]")
        return Prompt(prompt.id, ends_in_human(prompt.dialogue, f"{where}: dialogue"), prompt.tags)
    named = _named(value, fields, where)
    id = _id(named, where, default_id)
    if "prompt" in named.fields:
        unused = {name: named.fields[name] for name in FIELDS[2:] if name in named.fields}
        dialogue = _prompt_dialogue(named.fields["prompt"], f"{where}: {_column('prompt', fields)}")
        return Prompt(id, dialogue, named.rest | unused)
    if "transcript" in named.fields:
        at = f"{where}: {_column('transcript', fields)}"
        first = split_turns(parse(str, named.fields["transcript"], at), at)[:1]
        # What the public file leaves out is null there, and NaN in a TFDS data set.
        tags = {key: tag for key, tag in named.rest.items() if tag is not None and tag == tag}
        return Prompt(id, ends_in_human(first, at), tags)
    chosen, rejected = _two_dialogues(named, where, fields, FORMS)
    return Prompt(id, shared_dialogue(chosen, rejected, where), named.rest)


def comparison_of(
    value: Any, where: str, default_id: str, fields: Mapping[str, str] = NO_FIELDS
) -> Comparison:
    """The comparison of one row; see `read_comparisons`."""
    if isinstance(value, dict) and "p_a" in value:
        return parse(Comparison, value, where)
    named = _named(value, fields, where)
    id = _id(named, where, default_id)
    if "prompt" not in named.fields:
        chosen, rejected = _two_dialogues(named, where, fields, COMPARISONS)
        dialogue = shared_dialogue(chosen, rejected, where)
        a, b = (continuation(side[len(dialogue) :]) for side in (chosen, rejected))
        return Comparison(id, dialogue, a, b, 1.0, HUMAN, tags=named.rest)
    dialogue = _prompt_dialogue(named.fields["prompt"], f"{where}: {_column('prompt', fields)}")
    a, b = (_response(named, side, where, fields) for side in ("chosen", "rejected"))
    return Comparison(id, dialogue, a, b, 1.0, HUMAN, tags=named.rest)


def _column(name: str, fields: Mapping[str, str]) -> str:
    """What the file calls one of our fields."""
    return fields[name] or name if name in fields else name


def _required(named: _Named, name: str, where: str, fields: Mapping[str, str], forms: str) -> str:
    if name not in named.fields:
        found = listed([*named.fields, *named.rest])
        raise InputError(f"{where}: field {name!r} is missing; expected {forms}, found {found}")
    return parse(str, named.fields[name], f"{where}: {_column(name, fields)}")


def _two_dialogues(
    named: _Named, where: str, fields: Mapping[str, str], forms: str
) -> tuple[Dialogue, Dialogue]:
    texts = [_required(named, name, where, fields, forms) for name in ("chosen", "rejected")]
    at = [f"{where}: {_column(name, fields)}" for name in ("chosen", "rejected")]
    return split_turns(texts[0], at[0]), split_turns(texts[1], at[1])


def _response(named: _Named, name: str, where: str, fields: Mapping[str, str]) -> str:
    text = _required(named, name, where, fields, COMPARISONS)
    if marker := TURN.search(text):
        raise InputError(
            f"{where}: {_column(name, fields)}: expected one response to the prompt, found a turn "
            f"marker {marker[0]!r}; whole dialogues stand without a field 'prompt'"
        )
    return text.strip()


def _prompt_dialogue(text: Any, where: str) -> Dialogue:
    return ends_in_human(split_turns(parse(str, text, where), where, plain=True), where)
