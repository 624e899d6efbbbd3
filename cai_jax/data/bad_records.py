"""Records that cannot be read: the first ends the run, or all are left out, counted and listed."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cai_jax import hosts
from cai_jax.data.rows import Unread
from cai_jax.errors import InputError

ON_BAD_RECORD = ("refuse", "skip")
LIST = "bad_records.jsonl"


class BadRecords:
    """What a step does with bad records (`on_bad_record`), and those that it has met."""

    def __init__(self, on_bad_record: str = "refuse"):
        """Takes "refuse" or "skip".

        Raises:
            InputError: it is neither.
        """
        if on_bad_record not in ON_BAD_RECORD:
            raise InputError(
                f"data.on_bad_record: expected one of {', '.join(ON_BAD_RECORD)}, found "
                f"{on_bad_record!r}"
            )
        self._skip = on_bad_record == "skip"
        self.found: list[dict[str, Any]] = []

    def add(self, where: str, error: InputError) -> None:
        """Raises `error`, or lists it under `where` ("file:line") if bad records are skipped."""
        if not self._skip:
            raise error
        file, _, line = where.rpartition(":")
        reason = " ".join(str(error).removeprefix(where).lstrip(": ").split())
        self.found.append({"file": file, "line": int(line), "reason": reason})

    def good(self, rows: Iterable[Unread]) -> Iterator[tuple[Unread, Any]]:
        """(row, value) of each row that can be read; the others are added."""
        for row in rows:
            value = row.value()
            if isinstance(value, InputError):
                self.add(row.where, value)
            else:
                yield row, value

    def report(self, folder: Path) -> dict[str, int]:
        """Writes `folder`/bad_records.jsonl, and returns {"bad_records": n}; neither if the first
        would have been refused."""
        if not self._skip:
            return {}
        if self.found and hosts.is_first():
            partial = Path(folder) / f"{LIST}.partial"
            with open(partial, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(bad, ensure_ascii=False) + "\n" for bad in self.found)
            os.replace(partial, Path(folder) / LIST)
        return {"bad_records": len(self.found)}
