"""Training metrics as JSON Lines: one object a line, the step first."""

import json
import math
from pathlib import Path
from typing import Any, Self


class MetricsWriter:
    """Appends lines to `folder/metrics.jsonl`, each readable as soon as it is written."""

    def __init__(self, folder: Path):
        """Opens `folder/metrics.jsonl` for appending."""
        self._file = open(folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115

    def write(self, step: int, **metrics: Any) -> None:
        """Writes scalars (Python, NumPy or JAX); one that is not finite becomes null."""
        line = {"step": int(step)} | {name: _number(value) for name, value in metrics.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of `folder/metrics.jsonl`."""
    with open(folder / "metrics.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _number(value: Any) -> float | int | None:
    """Rounds to 7 significant digits, as many as a float32 holds."""
    if isinstance(value, int):
        return value
    value = float(value)
    return float(f"{value:.7g}") if math.isfinite(value) else None
