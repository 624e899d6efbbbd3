"""Reads prompts and comparisons from the files that people have."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from cai_jax.data import tfds_splits
from cai_jax.data.bad_records import BadRecords
from cai_jax.data.forms import FIELDS, NO_FIELDS, comparison_of, prompt_of
from cai_jax.data.rows import read_rows
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
    read = functools.partial(prompt_of, fields=fields)
    ids: set[str] = set()
    prompts: list[Prompt] = []
    for where, prompt in _records(path, bad := bad or BadRecords(), read):
        if limit and len(prompts) == limit:
            break
        if prompt.id in ids:
            twice = f"{where}: id: {prompt.id!r} stands in an earlier line already"
            bad.add(where, InputError(twice))
            continue
        ids.add(prompt.id)
        prompts.append(prompt)
    return _some(prompts, path, "prompt", bad)


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
    path, bad = Path(path), bad or BadRecords()
    read = functools.partial(comparison_of, fields=fields)
    return _some([found for _, found in _records(path, bad, read)], path, "comparison", bad)


Found = TypeVar("Found", Prompt, Comparison)


def _records(
    path: Path, bad: BadRecords, read: Callable[[Any, str, str], Found]
) -> Iterator[tuple[str, Found]]:
    """(where, record) of each row that can be read."""
    for where, default_id, value in named_rows(path):
        try:
            if isinstance(value, InputError):
                raise value
            record = read(value, where, default_id)
        except InputError as error:
            bad.add(where, error)
            continue
        yield where, record


def _some(records: list[Found], path: Path, what: str, bad: BadRecords) -> list[Found]:
    """The records, of which there must be one."""
    if not records:
        skipped = sum(found["file"] == str(path) for found in bad.found)
        but = f" ({skipped} bad records skipped)" if skipped else ""
        raise InputError(f"{path}: expected at least one {what}, found none{but}")
    return records


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
