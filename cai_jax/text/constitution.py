"""A constitution: principles, each in three wordings, and the few-shot examples beside them.

One JSON file a constitution:

    {"name": ..., "provenance": ...,
     "principles": [{"id", "critique_request", "revision_request", "comparison"}, ...],
     "critique_few_shots": [text of a whole critique-revision chain, ...],
     "comparison_few_shots": [{"dialogue", "better", "worse"}, ...],
     "reasoning_few_shots": [text with one "{}" where "<comparison> Options:" goes, ...]}
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai_jax.errors import InputError
from cai_jax.text.dialogue import HUMAN, STOPS

OPTIONS = " Options:"
"""Follows a comparison in the prompt, and so is no part of it."""


@dataclasses.dataclass(frozen=True)
class Principle:
    """One principle, worded as a critique request, a revision request and a comparison."""

    id: str
    critique_request: str
    revision_request: str
    comparison: str


@dataclasses.dataclass(frozen=True)
class ComparisonExample:
    """A few-shot comparison: a dialogue (as text), the better and the worse response."""

    dialogue: str
    better: str
    worse: str


@dataclasses.dataclass(frozen=True)
class Constitution:
    """Principles and few-shot examples, with where they come from."""

    name: str
    provenance: str
    principles: tuple[Principle, ...]
    critique_few_shots: tuple[str, ...]
    comparison_few_shots: tuple[ComparisonExample, ...]
    reasoning_few_shots: tuple[str, ...]

    def subset(self, ids: Sequence[str]) -> "Constitution":
        """The same constitution with only these principles, in this order; none named: all.

        Raises:
            InputError: for an id that the constitution does not have.
        """
        known = {principle.id: principle for principle in self.principles}
        for name in ids:
            if name not in known:
                raise InputError(
                    f"constitution {self.name!r}: unknown principle {name!r}; "
                    f"it has {', '.join(known)}"
                )
        return dataclasses.replace(
            self, principles=tuple(known[name] for name in ids) or self.principles
        )

    def drawn(self, count: int, seed: int) -> "Constitution":
        """The same constitution with `count` of its principles, drawn by the seed; 0: all.

        The draws of one seed are nested: that of 4 principles holds that of 2, so an ablation over
        their number (figure 6 of the paper) adds principles and exchanges none. A draw depends on
        the ids alone, and the principles keep their order.

        Raises:
            InputError: there are not so many.
        """
        if not 0 <= count <= len(self.principles):
            raise InputError(
                f"num_principles: expected 0 (all) to {len(self.principles)}, the principles to "
                f"draw from, found {count}"
            )

        def rank(principle: Principle) -> bytes:
            return hashlib.sha256(f"{seed} {principle.id}".encode()).digest()

        taken = sorted(self.principles, key=rank)[: count or len(self.principles)]
        return dataclasses.replace(
            self, principles=tuple(principle for principle in self.principles if principle in taken)
        )


def load_constitution(path: Path) -> Constitution:
    """Reads a constitution file, or the folder of the paper's official prompt files.

    Raises:
        InputError: naming the file, the field, and what was expected.
    """
    path = Path(path)
    if path.is_dir():
        from cai_jax.text.official import read_official  # it builds on this module

        return read_official(path)
    if not path.is_file():
        raise InputError(f"{path}: expected a constitution (a JSON file), found none")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a constitution in JSON: {error}") from None
    return constitution_from_json(value, str(path))


def constitution_from_json(value: Any, where: str) -> Constitution:
    """Builds a constitution from decoded JSON; `where` opens every error message.

    Raises:
        InputError: naming the field that is missing, unknown or empty; an id that occurs twice; a
            wording that holds a marker of the prompts it goes into; a few-shot of another form.
    """
    fields = [field.name for field in dataclasses.fields(Constitution)]
    _check_fields(value, fields, where)
    name, provenance = (_text(value[field], f"{where}: {field}") for field in fields[:2])
    lists = {field: _list(value[field], f"{where}: {field}") for field in fields[2:]}
    if not lists["principles"]:
        raise InputError(f"{where}: principles: expected at least one principle, found none")
    principles = _records(Principle, lists["principles"], f"{where}: principles")
    ids = [principle.id for principle in principles]
    for i, name_of in enumerate(ids):
        if name_of in ids[:i]:
            raise InputError(f"{where}: principles[{i}]: id {name_of!r} is used twice")
        _check_wordings(principles[i], f"{where}: principles[{i}]")
    critiques = _texts(lists["critique_few_shots"], f"{where}: critique_few_shots")
    examples = _records(
        ComparisonExample, lists["comparison_few_shots"], f"{where}: comparison_few_shots"
    )
    for i, text in enumerate(critiques):
        _check_dialogue(text, f"{where}: critique_few_shots[{i}]")
    for i, example in enumerate(examples):
        _check_dialogue(example.dialogue, f"{where}: comparison_few_shots[{i}]: dialogue")
    reasoning = _texts(lists["reasoning_few_shots"], f"{where}: reasoning_few_shots")
    for i, text in enumerate(reasoning):
        if text.count("{}") != 1:
            raise InputError(
                f"{where}: reasoning_few_shots[{i}]: expected one '{{}}' for the principle, "
                f"found {text.count('{}')}"
            )
    return Constitution(name, provenance, principles, critiques, examples, reasoning)


def _check_wordings(principle: Principle, where: str) -> None:
    """Refuses wordings that bring the markers with them which the prompts put around them."""
    for field in ("critique_request", "revision_request", "comparison"):
        text = getattr(principle, field)
        for marker in (*STOPS, OPTIONS):
            if marker in text or text.startswith(marker.lstrip()):
                raise InputError(
                    f"{where}: {field}: expected the wording alone, found the marker "
                    f"{marker.strip()!r} in it, which the prompt adds; take it out"
                )


def _check_dialogue(text: str, where: str) -> None:
    if not text.startswith(HUMAN):
        raise InputError(
            f"{where}: expected a dialogue that begins with {HUMAN!r}, found {text[:40]!r}"
        )


def _check_fields(value: Any, fields: Sequence[str], where: str) -> None:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, found {str(value)[:40]!r}")
    for field in fields:
        if field not in value:
            raise InputError(f"{where}: field {field!r} is missing; found {', '.join(value)}")
    for field in value:
        if field not in fields:
            raise InputError(f"{where}: unknown field {field!r}; expected {', '.join(fields)}")


def _records(record_type: Any, values: list, where: str) -> tuple:
    fields = [field.name for field in dataclasses.fields(record_type)]
    records = []
    for i, value in enumerate(values):
        _check_fields(value, fields, f"{where}[{i}]")
        records.append(record_type(**{f: _text(value[f], f"{where}[{i}]: {f}") for f in fields}))
    return tuple(records)


def _texts(values: list, where: str) -> tuple[str, ...]:
    return tuple(_text(value, f"{where}[{i}]") for i, value in enumerate(values))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: expected text, found {str(value)[:40]!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON can spell half of a surrogate pair, and no tokenizer reads it.
        raise InputError(
            f"{where}: expected text, found the lone surrogate {error.object[error.start]!r}"
        ) from None
    return value


def _list(value: Any, where: str) -> list:
    if not isinstance(value, list):
        raise InputError(f"{where}: expected a list, found {str(value)[:40]!r}")
    return value
