"""The record types of every text artifact; one JSON object a line, one type a file.

Reading checks each field: a wrong record is refused with file, line, field and what was expected.
"""

import dataclasses
import functools
import json
import math
import os
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cai_jax import hosts
from cai_jax.data import rows
from cai_jax.data.bad_records import BadRecords
from cai_jax.data.rows import json_value, listed, text_lines
from cai_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of a dialogue; `role` is "human" or "assistant"."""

    role: str
    text: str


Dialogue = tuple[Turn, ...]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A partial conversation that ends in a human turn. `tags` are for people and evaluation."""

    id: str
    dialogue: Dialogue
    tags: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DroppedPrompt:
    """A generated prompt that was not kept; `of` is the id of the prompt that it repeats, if any,
    and `similarity` their Jaccard index."""

    id: str
    text: str
    reason: str
    of: str | None = None
    similarity: float | None = None


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stretch of a document; `weight` multiplies the loss on its tokens (0: context only)."""

    text: str
    weight: float


@dataclasses.dataclass(frozen=True)
class Document:
    """Running text for pretraining, in weighted pieces."""

    id: str
    pieces: tuple[Piece, ...]


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """A dialogue and the response to imitate."""

    id: str
    dialogue: Dialogue
    response: str


@dataclasses.dataclass(frozen=True)
class Round:
    """One critique and revision under one principle (its id in the constitution)."""

    principle: str
    critique: str
    revision: str


@dataclasses.dataclass(frozen=True)
class Chain:
    """A response and its successive critiques and revisions; revision 0 is the response."""

    id: str
    dialogue: Dialogue
    response: str
    rounds: tuple[Round, ...] = ()


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two responses to one dialogue, not yet judged."""

    id: str
    dialogue: Dialogue
    response_a: str
    response_b: str
    tags: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Asked:
    """One multiple choice about a pair, and how the feedback model answered it.

    `logp_a`, `logp_b` are the log-probabilities (nats) of " (A)" and " (B)", `a_is_first` says
    whether response_a stood at (A), and `reasoning` is the chain of thought in front, if any.
    """

    principle: str
    a_is_first: bool
    logp_a: float
    logp_b: float
    reasoning: str | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A judged pair. `p_a` is the probability that response_a is the better one (a soft label).

    `source` names who judged ("feedback" or "human", say). `asked` has every question behind the
    label; the fields before it sum them up. `principle` is an id of the constitution, None where
    several were asked about. After one question, `logp_a`, `logp_b`, `a_is_first` and `reasoning`
    are its own; after several, `a_is_first` is None, `logp_a`, `logp_b` are the logs of the
    averaged probabilities of response_a and response_b, and `reasoning` joins all. `tags` come from
    the pair.
    """

    id: str
    dialogue: Dialogue
    response_a: str
    response_b: str
    p_a: float
    source: str
    principle: str | None = None
    logp_a: float | None = None
    logp_b: float | None = None
    a_is_first: bool | None = None
    reasoning: str | None = None
    tags: dict[str, Any] = dataclasses.field(default_factory=dict)
    asked: tuple[Asked, ...] = ()


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One response sampled during RL, with its PM score and the KL paid for it (nats)."""

    id: str
    iteration: int
    dialogue: Dialogue
    response: str
    score: float
    kl: float
    finish_reason: str


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a model wrote for record `id`, and how it ended: of a step that is not finished."""

    id: str
    text: str
    finish_reason: str


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Several responses to one dialogue with their PM scores; `best` counts from 0."""

    id: str
    dialogue: Dialogue
    responses: tuple[str, ...]
    scores: tuple[float, ...]
    best: int


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model answered to prompt `id` of an evaluation set, and the judge's verdict on it."""

    id: str
    prompt_set: str
    model: str
    dialogue: Dialogue
    response: str
    finish_reason: str
    verdict: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a model chose in question `id` of a multiple-choice evaluation.

    `mode` says how it was asked; `correct` and `chosen` are indices of `options`. `probabilities`
    are over the options, averaged over the reasonings if there are several; `mass` is the
    probability that the model gave to all options together (None: a preference model, whose
    probabilities come from its `scores`). `context` is the id of the first question about the same.
    """

    id: str
    evaluation: str
    mode: str
    context: str
    options: tuple[str, ...]
    correct: int
    chosen: int
    probabilities: tuple[float, ...]
    mass: float | None = None
    scores: tuple[float, ...] = ()
    reasonings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a judge said of the answers of two models to prompt `prompt`.

    `id` is that of the pair, `p_a` the probability that the answer of model_a is the better one
    (None: a tie), and `annotator` names the person, if one judged.
    """

    id: str
    prompt_set: str
    prompt: str
    model_a: str
    model_b: str
    judge: str
    p_a: float | None
    annotator: str | None = None


Record = TypeVar("Record")


def write_records(path: Path, records: Iterable[Any]) -> int:
    """Writes records as JSON Lines, whole or not at all, and returns how many.

    Several hosts each call with all records, and each writes its own share as a shard
    (`data/rows.py`): the shards one behind the other are the file that one host writes.
    """
    if hosts.count() > 1:
        records = list(records)
        count, part = len(records), records[hosts.share(len(records))]
        write_file(rows.shard(path, hosts.index(), hosts.count()), part)
        return count
    return write_file(path, records)


def write_file(path: Path, records: Iterable[Any]) -> int:
    """What `write_records` does where there is one host: one file, of whoever calls."""
    partial = path.with_name(path.name + ".partial")
    count = 0
    with open(partial, "w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n")
            count += 1
    os.replace(partial, path)
    return count


def read_records(
    path: Path, record_type: type[Record], bad: BadRecords | None = None
) -> list[Record]:
    """Reads a file of one record type, in JSON Lines or as `data/rows.py` says.

    Args:
        path: the file.
        record_type: one of the types above.
        bad: what becomes of lines that hold no such record; None: the first is refused.

    Raises:
        InputError: naming file, line, field and what was expected.
    """
    return [record for _, record in (bad or BadRecords()).good(find_records(path, record_type))]


def find_records(path: Path, record_type: type) -> Iterator[rows.Unread]:
    """The rows of a file of one record type; the value of each is a record, or an InputError."""
    for row in rows.find_rows(path):
        yield row.read_as(functools.partial(parse, record_type, where=row.where))


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields ("file:line", value) for each line of a .jsonl or .jsonl.gz file, blank ones too.

    Raises:
        InputError: a file that cannot be read, or a line that is no JSON.
    """
    for number, line in text_lines(path, "JSON Lines"):
        if isinstance(line, InputError):
            raise line
        where = f"{path}:{number}"
        yield where, json_value(line, where)


def parse(expected: Any, value: Any, where: str) -> Any:
    """Turns a JSON value into `expected` (a record type, scalar or container), or refuses it."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any:
        return value
    if dataclasses.is_dataclass(expected):
        return _parse_record(expected, value, where)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return parse(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        items = _expect(value, list, "a list", where)
        return tuple(parse(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(items))
    if origin is dict:
        return dict(_expect(value, dict, "an object", where))
    if expected is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value, where)
    if expected is not bool and isinstance(value, bool):
        raise InputError(f"{where}: expected {expected.__name__}, found {value!r}")
    return _expect(value, expected, expected.__name__, where)


def _parse_record(record_type: Any, value: Any, where: str) -> Any:
    value = _expect(value, dict, "an object", where)
    hints = typing.get_type_hints(record_type)
    fields = {field.name: field for field in dataclasses.fields(record_type)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise InputError(f"{where}: unknown field {unknown[0]!r}; expected {', '.join(fields)}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in value:
            raise InputError(f"{where}: field {name!r} is missing; found {listed(value)}")
    return record_type(
        **{name: parse(hints[name], item, f"{where}: {name}") for name, item in value.items()}
    )


def _number(value: int | float, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.nan
    if math.isnan(number):
        raise InputError(f"{where}: expected a number, found {str(value)[:40]}")
    return number


def _expect(value: Any, expected: Any, name: str, where: str) -> Any:
    if not isinstance(value, expected):
        raise InputError(f"{where}: expected {name}, found {str(value)[:40]!r}")
    return value
