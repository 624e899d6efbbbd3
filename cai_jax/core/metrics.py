"""Training metrics as JSON Lines: one object a line, the step first; and for those who watch."""

import json
import math
import os
from pathlib import Path
from typing import Any, Self

from ml_collections import ConfigDict

from cai_jax import hosts
from cai_jax.core import monitoring


class MetricsWriter:
    """Appends lines to `folder/metrics.jsonl`, each readable as soon as it is written.

    `tokens`, those seen up to now, are what rates are taken from; `write` finds them among the
    metrics if they are there.
    """

    def __init__(
        self, folder: Path, watch: ConfigDict | None = None, mfu_per_token: float | None = None
    ):
        """Opens `folder/metrics.jsonl` for appending; on other hosts than the first, nothing.

        Args:
            folder: of the step.
            watch: as `monitoring.default_config`: who else gets the metrics, with rates; None:
                nobody.
            mfu_per_token: as `monitoring.mfu_per_token` gives it.
        """
        watch = watch if watch and hosts.is_first() else monitoring.default_config()
        self.tokens = 0
        path = folder / "metrics.jsonl" if hosts.is_first() else Path(os.devnull)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._writes, self._close_writers = monitoring.open_writers(watch.writers, folder)
        self._heartbeat = monitoring.Heartbeat(folder.name, watch.heartbeat_seconds, mfu_per_token)

    def write(self, step: int, **metrics: Any) -> None:
        """Writes scalars (Python, NumPy or JAX); one that is not finite becomes null."""
        line = {name: _number(value) for name, value in metrics.items()}
        self._file.write(json.dumps({"step": int(step), **line}) + "\n")
        self._file.flush()
        self.tokens = metrics.get("tokens", self.tokens)
        # Rates are no part of the artifact: they differ from run to run.
        shown = line | self._heartbeat.beat(int(step), self.tokens, line.get("loss"))
        for write in self._writes:
            write(int(step), {name: x for name, x in shown.items() if x is not None})

    def close(self) -> None:
        """Closes the file and the other writers."""
        self._file.close()
        self._close_writers()

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
