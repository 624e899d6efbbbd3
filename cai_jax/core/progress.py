"""Progress of a loop on stderr: how far, at what rate, and how long it still takes."""

import sys
import time
from typing import Self, TextIO

from cai_jax import hosts


class Progress:
    """One line, rewritten in place; silent unless the stream is a terminal.

    with Progress("critique_revise", total=1200, unit="prompts") as progress:
        for batch in batches:
            ...
            progress.advance(len(batch))
    """

    def __init__(self, label: str, total: int, unit: str = "steps", stream: TextIO | None = None):
        """Starts the clock. `total` counts `unit`s; `stream` is stderr if not given."""
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self._stream = stream if stream is not None else sys.stderr
        self._shown = self._stream.isatty() and hosts.is_first()
        self._started = time.monotonic()
        self._drawn = 0.0
        self._said: set[str] = set()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Counts `count` more as done; `note` (a loss, say) is shown at the end of the line."""
        self.done += count
        now = time.monotonic()
        # Four lines a second are readable, and cost nothing.
        if self._shown and (now - self._drawn > 0.25 or self.done >= self.total):
            self._drawn = now
            self._stream.write("\r\x1b[K" + self.line(now - self._started, note))
            self._stream.flush()

    def say(self, text: str) -> None:
        """Prints a line that stays, whatever the stream is; once, however often it is said."""
        if text not in self._said and hosts.is_first():
            self.close()
            self._stream.write(f"{self.label}: {text}\n")
            self._stream.flush()
        self._said.add(text)

    def line(self, seconds: float, note: str = "") -> str:
        """The text of the line after `seconds`."""
        rate = self.done / seconds if seconds > 0 else 0.0
        left = duration((self.total - self.done) / rate) if rate > 0 else "?"
        text = f"{self.label}: {self.done:,}/{self.total:,} {self.unit}, {rate:,.1f}/s, {left} left"
        return f"{text}, {note}" if note else text

    def close(self) -> None:
        """Clears the line: what a step has to say after it stands on stdout."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def duration(seconds: float) -> str:
    """A time in the largest two fitting units: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
