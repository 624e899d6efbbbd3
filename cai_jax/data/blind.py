"""Pairs for people to judge: exported blind, and their votes read back.

A blind file has a pair a row: an id that means nothing, the question, the dialogue, two responses,
and an empty `choice` for "a", "b" or "tie". Who wrote what stands in the pairs that it was made of,
which the judges do not get. Rows stand in the order of their ids, which is no order at all.
"""

import csv
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cai_jax import hosts
from cai_jax.data.schema import Pair, json_lines
from cai_jax.errors import InputError

COLUMNS = ("id", "question", "dialogue", "response_a", "response_b", "choice")
CHOICES = {"a": 1.0, "b": 0.0, "tie": None}
"""What a judge may say, and P(response A is better) for it; a tie has none."""

# What makes a spreadsheet take a cell for a formula, in either width, and what it skips before it.
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "\t", "\r", "\n")
DELIMITERS = (",", ";", "\t")  # a spreadsheet saves with that of its country


@dataclasses.dataclass(frozen=True)
class Vote:
    """What one judge said of the pair `id`; `p_a` is 1, 0 or None (a tie)."""

    id: str
    annotator: str
    p_a: float | None
    where: str


@dataclasses.dataclass(frozen=True)
class Votes:
    """The votes of a file, each pair once a judge, and how many rows held none or one again."""

    votes: tuple[Vote, ...]
    unjudged: int
    duplicates: int


def write_blind(folder: Path, pairs: Sequence[Pair], question: str) -> None:
    """Writes blind.csv and blind.jsonl, the same rows, for judges who are asked `question`."""
    if not hosts.is_first():
        return
    rows = [blind_row(pair, question) for pair in sorted(pairs, key=lambda pair: pair.id)]
    partial = folder / "blind.csv.partial"
    # The mark at the beginning tells a spreadsheet that this is UTF-8.
    with open(partial, "w", encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({name: plain_cell(text) for name, text in row.items()} for row in rows)
    os.replace(partial, folder / "blind.csv")
    partial = folder / "blind.jsonl.partial"
    with open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    os.replace(partial, folder / "blind.jsonl")


def blind_row(pair: Pair, question: str) -> dict[str, str]:
    """The row of a pair: none of its tags, which may name the models."""
    turns = [f"{turn.role.capitalize()}: {turn.text}" for turn in pair.dialogue]
    values = (pair.id, question, "\n\n".join(turns), pair.response_a, pair.response_b, "")
    return dict(zip(COLUMNS, values))


def plain_cell(text: str) -> str:
    """The text as a cell that no spreadsheet computes: one like a formula gets an apostrophe."""
    return f"'{text}" if text.lstrip(" ").startswith(FORMULA) else text


def vote_files(path: Path) -> list[Path]:
    """The file itself, or the .csv and .jsonl files of a folder, by name.

    Raises:
        InputError: a folder with none.
    """
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in (".csv", ".jsonl"))
    if not files:
        raise InputError(f"{path}: expected files of votes (.csv or .jsonl) in it, found none")
    return files


def read_votes(path: Path) -> Votes:
    """Reads what one or several people filled in: a .csv with a header, or JSON Lines.

    A row has `id`, `choice` ("a", "b" or "tie", in any case; empty: not judged), and perhaps
    `annotator`, without which all rows are by one who is named like the file. What else there is
    does not matter.

    Raises:
        InputError: naming file, line and field; one judge said two things of one pair.
    """
    path = Path(path)
    votes: dict[tuple[str, str], Vote] = {}
    unjudged = duplicates = 0
    for where, row in _csv_rows(path) if path.suffix == ".csv" else json_lines(path):
        vote = _vote(row, where, path.name)
        if vote is None:
            unjudged += 1
            continue
        earlier = votes.setdefault((vote.annotator, vote.id), vote)
        if earlier.p_a != vote.p_a:
            raise InputError(
                f"{where}: choice: expected what {vote.annotator!r} said of {vote.id!r} before "
                f"({earlier.where}), found another choice; keep one of the two"
            )
        duplicates += earlier is not vote
    return Votes(tuple(votes.values()), unjudged, duplicates)


def _vote(row: Any, where: str, name: str) -> Vote | None:
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object, found {str(row)[:40]!r}")
    values = []
    for field in ("id", "choice"):
        if not isinstance(value := row.get(field), str):
            raise InputError(f"{where}: {field}: expected text, found {str(value)[:40]!r}")
        values.append(value.strip())
    id, choice = values
    if not id:
        raise InputError(f"{where}: id: expected the id of a pair, found none")
    if not choice:
        return None
    if choice.lower() not in CHOICES:
        raise InputError(
            f"{where}: choice: expected {', '.join(CHOICES)} or nothing, found {choice[:40]!r}"
        )
    annotator = row.get("annotator") or name
    if not isinstance(annotator, str):
        raise InputError(f"{where}: annotator: expected text, found {str(annotator)[:40]!r}")
    return Vote(id, annotator.strip() or name, CHOICES[choice.lower()], where)


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with their first lines, without those that are all empty."""
    if not path.is_file():
        raise InputError(f"{path}: expected a CSV file, found none; check the path")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            delimiter = max(DELIMITERS, key=header.count)
            columns = [
                name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])
            ]
            for name in ("id", "choice"):
                if columns.count(name) != 1:
                    raise InputError(
                        f"{path}:1: expected a header with one column {name!r}, "
                        f"found {header.strip()[:60]!r}"
                    )
            reader, line = csv.reader(file, delimiter=delimiter, strict=True), 2
            for cells in reader:
                if any(cells):
                    yield f"{path}:{line}", dict(zip(columns, cells))
                line = reader.line_num + 2
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: cannot be read as CSV in UTF-8: {error}") from None
