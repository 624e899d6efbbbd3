"""Reads XSTest (Roettger et al. 2023): prompts that only sound unsafe, and unsafe contrasts."""

import csv
from pathlib import Path

from cai_jax.data.schema import Prompt, Turn
from cai_jax.errors import InputError

COLUMNS = ("id", "prompt", "type", "label", "focus", "note")
LABELS = ("safe", "unsafe")
"""A safe prompt should be answered; its unsafe contrasts should not."""


def read_xstest(path: Path, limit: int = 0) -> list[Prompt]:
    """Reads xstest_prompts.csv as it is published; the columns but id and prompt become tags.

    Args:
        path: the file.
        limit: at most so many, from the top; 0: all.

    Raises:
        InputError: naming file, line and column, and what was expected.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: expected XSTest's prompts as CSV, found no file; check the path")
    prompts: dict[str, Prompt] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise InputError(
                    f"{path}:1: expected the columns {', '.join(COLUMNS)}, "
                    f"found {', '.join(reader.fieldnames or ()) or 'none'}"
                )
            for row in reader:
                prompt = _prompt(row, f"{path}:{reader.line_num}")
                if prompt.id in prompts:
                    raise InputError(
                        f"{path}:{reader.line_num}: id: expected each once, "
                        f"found {prompt.id!r} again"
                    )
                prompts[prompt.id] = prompt
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: cannot be read as CSV in UTF-8: {error}") from None
    if not prompts:
        raise InputError(f"{path}: expected at least one prompt, found none")
    return list(prompts.values())[: limit or None]


def _prompt(row: dict[str, str], where: str) -> Prompt:
    values = {name: row.get(name) for name in COLUMNS}
    if None in row or None in values.values():
        raise InputError(f"{where}: expected {len(COLUMNS)} cells, one a column")
    for name in ("id", "prompt", "type"):
        if not values[name].strip():
            raise InputError(f"{where}: {name}: expected text, found none")
    if values["label"] not in LABELS:
        raise InputError(
            f"{where}: label: expected {' or '.join(LABELS)}, found {values['label'][:40]!r}"
        )
    id, text = values.pop("id"), values.pop("prompt")
    return Prompt(f"xstest-{id}", (Turn("human", text),), values)
