"""Goodput: the part of the time that runs took in a workdir which went into what is kept.

What is lost is starting, and work on steps that a run did not finish, but for what it had saved, or
that were made again.
The time between two runs, when nothing was at work, is not counted.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cai_jax.core import artifact
from cai_jax.core.monitoring import LOGS

FILE = "runs.json"
EVERY = 5.0  # seconds between two signs of life: how much a killed run may miss


@contextlib.contextmanager
def clocked(
    workdir: Path, started: float, productive: float = 0.0, every: float = EVERY
) -> Iterator[Callable[[], None]]:
    """Keeps the time of this run in `workdir`/_logs/runs.json, so that it counts if it is killed.

    Args:
        workdir: it is there.
        started: when the run began, by `time.monotonic`.
        productive: seconds that finished steps took; if there is no record of the runs that made
            them, they are taken for one such run.
        every: seconds between two entries.

    Yields:
        A function that brings the record up to date.
    """
    path = workdir / LOGS / FILE
    path.parent.mkdir(exist_ok=True)
    before = seconds(workdir) or [productive] * (productive > 0)
    ended, writing = threading.Event(), threading.Lock()

    def update() -> None:
        # Without this record nothing is lost but the number.
        with writing, contextlib.suppress(OSError):
            artifact.write_json(path, [*before, round(time.monotonic() - started, 3)])

    def watch() -> None:
        while not ended.wait(every):
            update()

    update()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield update
    finally:
        ended.set()
        thread.join()
        update()


def seconds(workdir: Path) -> list[float]:
    """What each run took, as far as it is known."""
    try:
        found = json.loads((workdir / LOGS / FILE).read_text(encoding="utf-8"))
        return [float(value) for value in found]
    except (OSError, ValueError, TypeError):
        return []


def productive_seconds(manifests: Sequence[Mapping[str, Any]]) -> float:
    """The time of finished steps, by their manifests."""
    return sum(float(manifest["seconds"]) for manifest in manifests)


def saved_seconds(unfinished: Path, began: float, before: float) -> float:
    """The time that runs put into a step up to the last thing of it that they saved.

    Args:
        unfinished: where the step saves: the newest .json in the folders there is its last sign.
        began: when the last of these runs began the step, in seconds since 1970.
        before: what was saved of the time of the runs before that.
    """
    saved = [path.stat().st_mtime for path in unfinished.glob("*/*.json")]
    return before + max(max(saved) - began, 0.0) if saved else 0.0


def measure(workdir: Path, manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"runs", "wall_seconds", "productive_seconds", "goodput"}; empty without a record."""
    took = seconds(workdir)
    wall, productive = sum(took), productive_seconds(manifests)
    if not wall:
        return {}
    return {
        "runs": len(took),
        "wall_seconds": round(wall, 3),
        "productive_seconds": round(productive, 3),
        "goodput": round(productive / wall, 4),
    }
