"""Reads prompts and comparisons from the files that people have."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cai_jax.data import tfds_splits
from cai_jax.data.bad_records import BadRecords
from cai_jax.data.forms import FIELDS, NO_FIELDS, comparison_of, prompt_of
from cai_jax.data.rows import Unread, find_rows
from cai_jax.data.schema import Comparison, Prompt
from cai_jax.errors import InputError

PROMPTS = "prompts.jsonl"  # in the folder of a step


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
    bad = bad or BadRecords()
    ids: set[str] = set()
    prompts: list[Prompt] = []
    for row, prompt in bad.good(find(path, functools.partial(prompt_of, fields=fields))):
        if limit and len(prompts) == limit:
            break
        if prompt.id in ids:
            twice = f"{row.where}: id: {prompt.id!r} stands in an earlier line already"
            bad.add(row.where, InputError(twice))
            continue
        ids.add(prompt.id)
        prompts.append(prompt)
    check_some(len(prompts), path, "prompt", bad)
    return prompts


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

    In the last two the chosen response is A, with label 1, and other fields become tags. Ids may
    repeat, as those of prompts do in many files: here they only name records in messages.

    Args, raises: as `read_prompts`.
    """
    bad = bad or BadRecords()
    found = [comparison for _, comparison in bad.good(find_comparisons(path, fields))]
    check_some(len(found), path, "comparison", bad)
    return found


def find_comparisons(path: Path, fields: Mapping[str, str] = NO_FIELDS) -> Iterator[Unread]:
    """The rows of `read_comparisons`; the value of each is a comparison, or an InputError."""
    return find(Path(path), functools.partial(comparison_of, fields=fields))


def find(path: Path, read: Callable[..., Any]) -> Iterator[Unread]:
    """The rows of a file, whose value is `read(value, where, default_id)`, or an InputError.

    The last is the id of a record that has none.
    """
    name = name_of(path)
    for row in find_rows(path):
        default_id = f"{name}-{row.number}"
        yield row.read_as(functools.partial(read, where=row.where, default_id=default_id))


def check_some(count: int, path: Path, what: str, bad: BadRecords) -> None:
    """Refuses a file without records.

    Raises:
        InputError: saying how many bad ones were left out.
    """
    if not count:
        skipped = sum(found["file"] == str(path) for found in bad.found)
        but = f" ({skipped} bad records skipped)" if skipped else ""
        raise InputError(f"{path}: expected at least one {what}, found none{but}")


def name_of(path: Path) -> str:
    """A short name for what a file or split holds."""
    if tfds_splits.is_split(path):
        return tfds_splits.name(path).replace(":", "-")
    return re.sub(r"\.(jsonl|csv)(\.gz)?$", "", path.name)
