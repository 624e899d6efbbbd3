"""Reads prompts and comparisons from the files that people have."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ml_collections import ConfigDict

from cai_jax.data import tfds_splits
from cai_jax.data.bad_records import BadRecords
from cai_jax.data.rows import listed, read_rows
from cai_jax.data.schema import Comparison, Dialogue, Prompt, Turn, parse
from cai_jax.errors import InputError

TURN = re.compile(r"\n\n(Human|Assistant):")
"""What begins a turn in the files of HH-RLHF, and so in no turn's text."""

PROMPTS = "prompts.jsonl"  # in the folder of a step

FIELDS = ("id", "prompt", "chosen", "rejected", "transcript")
FORMS = (
    "'dialogue' (a Prompt), 'prompt' (text), 'transcript' (of a red-team attempt), or 'chosen' and "
    "'rejected' (as in HH-RLHF)"
)
NO_FIELDS: Mapping[str, str] = {}
HUMAN = "human"  # who judged the comparisons of a file


def default_fields() -> ConfigDict:
    """Which columns of a step's files are meant; "": the column that has our own name."""
    return ConfigDict({name: "" for name in FIELDS})


def default_data() -> ConfigDict:
    """How files are read. A config's own `data` group holds for all of its steps."""
    return ConfigDict(
        {
            "on_bad_record": "refuse",  # or "skip": count it, and list it in bad_records.jsonl
            "tfds_dir": "",  # where TFDS data sets were prepared; "": by TFDS_DATA_DIR
        }
    )


def read_prompts(
    path: Path,
    limit: int = 0,
    fields: Mapping[str, str] = NO_FIELDS,
    bad: BadRecords | None = None,
) -> list[Prompt]:
    """Reads the prompts of a JSON Lines or CSV file, or of a TFDS split, in one of four forms.

    - a `Prompt` record: {"id", "dialogue", "tags"};
    - {"prompt": text}: one human turn, or a dialogue if it begins with "\\n\\nHuman:"; an "id" is
      kept, and other fields become tags;
    - {"transcript": text}, a red-team attempt: its first human turn; other fields become tags;
    - {"chosen", "rejected"}: two dialogues of HH-RLHF; the prompt is what they share, up to the
      last human turn in it. Other fields become tags.

    Args:
        path: the file or split, or the folder of a step that makes prompts.
        limit: at most so many, from the top; 0: all.
        fields: our name -> the file's, for the fields of FIELDS whose names differ.
        bad: what becomes of records that are none of these; None: the first is refused.

    Raises:
        InputError: naming file, line and field, and what was expected.
    """
    path = Path(path)
    path = path / PROMPTS if path.is_dir() else path
    return _distinct(path, limit, bad, "prompt", functools.partial(prompt_of, fields=fields))


def read_all_prompts(
    paths: Path | Sequence[Path],
    limit: int = 0,
    fields: Mapping[str, str] = NO_FIELDS,
    bad: BadRecords | None = None,
) -> list[Prompt]:
    """`read_prompts` of one file or of several, at most `limit` of each.

    An id that an earlier file has too gets "@" and the number of its file behind it: files of
    HH-RLHF are all named alike, and ids must tell records apart.
    """
    prompts: dict[str, Prompt] = {}
    for number, path in enumerate(paths if isinstance(paths, list | tuple) else [paths]):
        for prompt in read_prompts(path, limit, fields, bad):
            while prompt.id in prompts:
                prompt = dataclasses.replace(prompt, id=f"{prompt.id}@{number}")
            prompts[prompt.id] = prompt
    return list(prompts.values())


def read_comparisons(
    path: Path,
    fields: Mapping[str, str] = NO_FIELDS,
    bad: BadRecords | None = None,
) -> list[Comparison]:
    """Reads the comparisons of a JSON Lines or CSV file, or of a TFDS split, in one of three forms.

    - a `Comparison` record;
    - {"chosen", "rejected"}: two dialogues of HH-RLHF; the responses are what follows the shared
      prompt (a few go on for several turns, and are one text);
    - {"prompt", "chosen", "rejected"}: a prompt as in `read_prompts` and two responses to it.

    In the last two the chosen response is A, with label 1, and other fields become tags.

    Args, raises: as `read_prompts`.
    """
    return _distinct(
        Path(path), 0, bad, "comparison", functools.partial(comparison_of, fields=fields)
    )


Found = TypeVar("Found", Prompt, Comparison)


def _distinct(
    path: Path,
    limit: int,
    bad: BadRecords | None,
    what: str,
    read: Callable[[Any, str, str], Found],
) -> list[Found]:
    """The records of a file, whose ids must differ."""
    bad = bad or BadRecords()
    before = len(bad.found)
    records: dict[str, Found] = {}
    for where, default_id, value in named_rows(path):
        if limit and len(records) == limit:
            break
        try:
            if isinstance(value, InputError):
                raise value
            record = read(value, where, default_id)
            if record.id in records:
                raise InputError(f"{where}: id: {record.id!r} stands in an earlier line already")
            records[record.id] = record
        except InputError as error:
            bad.add(where, error)
    if not records:
        skipped = len(bad.found) - before
        but = f" ({skipped} bad records skipped)" if skipped else ""
        raise InputError(f"{path}: expected at least one {what}, found none{but}")
    return list(records.values())


def name_of(path: Path) -> str:
    """A short name for what a file or split holds."""
    if tfds_splits.is_split(path):
        return tfds_splits.name(path).replace(":", "-")
    return re.sub(r"\.(jsonl|csv)(\.gz)?$", "", path.name)


def named_rows(path: Path) -> Iterator[tuple[str, str, Any]]:
    """(where, an id for a record that has none, value) of each row."""
    name = name_of(path)
    for where, number, value in read_rows(path):
        yield where, f"{name}-{number}", value


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
            _check_turn(turn, f"{where}: dialogue[{i}]")
        return Prompt(prompt.id, _ends_in_human(prompt.dialogue, f"{where}: dialogue"), prompt.tags)
    named = _named(value, fields, where)
    id = _id(named, where, default_id)
    if "prompt" in named.fields:
        unused = {name: named.fields[name] for name in FIELDS[2:] if name in named.fields}
        dialogue = _prompt_dialogue(named.fields["prompt"], f"{where}: {_column('prompt', fields)}")
        return Prompt(id, dialogue, named.rest | unused)
    if "transcript" in named.fields:
        at = f"{where}: {_column('transcript', fields)}"
        first = _dialogue(parse(str, named.fields["transcript"], at), at)[:1]
        # What the public file leaves out is null there, and NaN in a TFDS data set.
        tags = {key: tag for key, tag in named.rest.items() if tag is not None and tag == tag}
        return Prompt(id, _ends_in_human(first, at), tags)
    chosen, rejected = _two_dialogues(named, where, fields)
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
        chosen, rejected = _two_dialogues(named, where, fields)
        dialogue = shared_dialogue(chosen, rejected, where)
        a, b = (_continuation(side[len(dialogue) :]) for side in (chosen, rejected))
        return Comparison(id, dialogue, a, b, 1.0, HUMAN, tags=named.rest)
    dialogue = _prompt_dialogue(named.fields["prompt"], f"{where}: {_column('prompt', fields)}")
    a, b = (_response(named, side, where, fields) for side in ("chosen", "rejected"))
    return Comparison(id, dialogue, a, b, 1.0, HUMAN, tags=named.rest)


def _column(name: str, fields: Mapping[str, str]) -> str:
    """What the file calls one of our fields."""
    return fields[name] or name if name in fields else name


def _required(named: _Named, name: str, where: str, fields: Mapping[str, str]) -> str:
    if name not in named.fields:
        found = listed([*named.fields, *named.rest])
        raise InputError(f"{where}: field {name!r} is missing; expected {FORMS}, found {found}")
    return parse(str, named.fields[name], f"{where}: {_column(name, fields)}")


def _two_dialogues(
    named: _Named, where: str, fields: Mapping[str, str]
) -> tuple[Dialogue, Dialogue]:
    texts = [_required(named, name, where, fields) for name in ("chosen", "rejected")]
    at = [f"{where}: {_column(name, fields)}" for name in ("chosen", "rejected")]
    return _dialogue(texts[0], at[0]), _dialogue(texts[1], at[1])


def _response(named: _Named, name: str, where: str, fields: Mapping[str, str]) -> str:
    text = _required(named, name, where, fields)
    if marker := TURN.search(text):
        raise InputError(
            f"{where}: {_column(name, fields)}: expected one response to the prompt, found a turn "
            f"marker {marker[0]!r}; whole dialogues stand without a field 'prompt'"
        )
    return text.strip()


def _continuation(turns: Dialogue) -> str:
    """What follows a prompt, as one text: nearly always a single turn."""
    rest = turns[1:] if turns and turns[0].role == "assistant" else turns
    first = turns[0].text if len(rest) < len(turns) else ""
    return first + "".join(f"\n\n{turn.role.capitalize()}: {turn.text}" for turn in rest)


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


def _prompt_dialogue(text: Any, where: str) -> Dialogue:
    return _ends_in_human(_dialogue(parse(str, text, where), where, plain=True), where)


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
