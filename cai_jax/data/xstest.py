"""Reads XSTest (Roettger et al. 2023): prompts that only sound unsafe, and unsafe contrasts."""

from pathlib import Path
from typing import Any

from cai_jax.data.rows import read_rows
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
    prompts: dict[str, Prompt] = {}
    for where, _, value in read_rows(path):
        if isinstance(value, InputError):
            raise value
        prompt = _prompt(value, where)
        if prompt.id in prompts:
            raise InputError(f"{where}: id: expected each once, found {prompt.id!r} again")
        prompts[prompt.id] = prompt
    if not prompts:
        raise InputError(f"{path}: expected at least one prompt, found none")
    return list(prompts.values())[: limit or None]


def _prompt(row: Any, where: str) -> Prompt:
    if not isinstance(row, dict) or tuple(row) != COLUMNS:
        found = ", ".join(row) if isinstance(row, dict) else str(row)[:40]
        raise InputError(f"{where}: expected the columns {', '.join(COLUMNS)}, found {found}")
    for name in ("id", "prompt", "type"):
        if not row[name].strip():
            raise InputError(f"{where}: {name}: expected text, found none")
    if row["label"] not in LABELS:
        raise InputError(
            f"{where}: label: expected {' or '.join(LABELS)}, found {row['label'][:40]!r}"
        )
    tags = {name: row[name] for name in COLUMNS[2:]}
    return Prompt(f"xstest-{row['id']}", (Turn("human", row["prompt"]),), tags)
