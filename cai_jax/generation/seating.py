"""Which slots requests take, and which tokens are there already: what slots hold is what is reused.

A request goes on in its slot from the first token that differs from what the slot holds, or behind
a copy of what another slot holds. Of requests that share what no slot holds, one goes first. What
many begin with at great length is a trunk, which no slot holds, and all read.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEAST = 64  # tokens found elsewhere that are worth a copy; or all there are
LEAST_OWN = 8  # tokens of the own slot that are worth going on from
LEAST_TRUNK = 256  # tokens that texts begin with, of which there is one copy for all slots
NO_TOKEN = -1

Kind = typing.Literal["fresh", "longer", "same"]


class Held:
    """The tokens whose keys and values are in each slot, behind the trunk or at the beginning."""

    def __init__(self, count: int):
        """Nothing."""
        self.tokens = np.full((count, 64), NO_TOKEN, np.int32)
        self.counts = np.zeros(count, np.int64)
        self.trunk = np.zeros(0, np.int32)
        self.base = np.zeros(count, np.int32)  # of each slot, tokens of the trunk or 0

    def begins(self, text: np.ndarray) -> int:
        """How many tokens of a text are the trunk: all of it, or 0."""
        size = len(self.trunk)
        return size if len(text) >= size and np.array_equal(text[:size], self.trunk) else 0

    def grow(self, trunk: np.ndarray) -> None:
        """Replaces the trunk; what stood behind it is forgotten."""
        for row in np.flatnonzero(self.base):
            self.put(int(row), ())
        self.trunk = trunk

    def put(self, row: int, tokens: Sequence[int] | np.ndarray, base: int = 0) -> None:
        """Replaces what a row holds, behind so many tokens of the trunk."""
        if len(tokens) > self.tokens.shape[1]:
            more = 2 * len(tokens) - self.tokens.shape[1]
            self.tokens = np.pad(self.tokens, ((0, 0), (0, more)), constant_values=NO_TOKEN)
        self.tokens[row, : self.counts[row]] = NO_TOKEN
        self.tokens[row, : len(tokens)] = tokens
        self.counts[row], self.base[row] = len(tokens), base

    def cut(self, most: int) -> None:
        """Forgets what stands behind the first `most` tokens."""
        self.tokens[:, most:] = NO_TOKEN
        self.counts = np.minimum(self.counts, most)

    def common(self, tokens: np.ndarray, base: int = 0) -> np.ndarray:
        """How many tokens each row and these begin with alike, where both follow the same."""
        size = min(len(tokens), self.tokens.shape[1])
        if not size:
            return np.zeros(len(self.counts), np.int64)
        differ = self.tokens[:, :size] != tokens[:size]
        alike = np.where(differ.any(axis=1), differ.argmax(axis=1), size)
        return np.where(self.base == base, alike, 0)


class Waiting(NamedTuple):
    """A request without a place: in the slot of its session, or in any."""

    session: int
    head: np.ndarray  # the prompt without its last token, which the first decode step reads
    slot: int | None


class Place(NamedTuple):
    """Where a request goes on: in `slot`, behind the first `kept` tokens of what `source` holds.

    These follow `base` tokens of the trunk.
    """

    waiting: Waiting
    slot: int
    source: int
    kept: int
    base: int = 0

    @property
    def rest(self) -> np.ndarray:
        """What is to be read."""
        return self.waiting.head[self.base + self.kept :]


def next_places(
    held: Held, waiting: Sequence[Waiting], free: Sequence[int], most: int
) -> tuple[Kind, list[Place], list[Waiting]]:
    """The requests that are placed next, at most so many and all in one way, and the others.

    Args:
        held: what the slots hold.
        waiting: requests; of those without a slot, at most as many as are free.
        free: slots without a session.
        most: requests placed at a time.

    Returns:
        The way: "fresh" (all tokens are to be read), "longer" (some), "same" (none).
    """
    found: dict[Kind, list[Place]] = {"fresh": [], "longer": [], "same": []}
    later: list[Waiting] = []
    chosen = Held(len(waiting))
    # Those that hold least are the first to be overwritten.
    unused = sorted(free, key=lambda slot: -held.counts[slot])
    for number, item in enumerate(waiting):
        base = held.begins(item.head)
        head = item.head[base:]
        size = len(head)
        common = held.common(head, base)
        source = int(common.argmax()) if item.slot is None else item.slot
        best = int(common.max())
        if item.slot is not None and best >= common[item.slot] + LEAST:
            source = int(common.argmax())
        kept = int(common[source])
        if item.slot != source and not _worth(kept, size) or 0 < kept < min(LEAST_OWN, size):
            source, kept = item.slot if item.slot is not None else -1, 0
        among = int(chosen.common(head, base).max()) if number else 0
        if among > kept and (among >= kept + LEAST or among == size):
            later.append(item)
            continue
        chosen.put(number, head, base)
        if item.slot is not None:
            slot = item.slot
        elif source in unused:
            slot = source
            unused.remove(slot)
        else:
            slot = unused.pop()
        kind: Kind = "same" if kept == size else "longer" if kept or base else "fresh"
        found[kind].append(Place(item, slot, source if kept else slot, kept, base))
    kind = max(found, key=lambda name: len(found[name]))
    # Long ones together, so that little is padded.
    order = sorted(found[kind], key=lambda place: -len(place.rest))
    taken = order[:most]
    others = [place.waiting for name, places in found.items() if name != kind for place in places]
    return kind, taken, [*(place.waiting for place in order[most:]), *others, *later]


def _worth(kept: int, size: int) -> bool:
    return kept >= LEAST or kept == size


def shared_beginning(heads: Sequence[np.ndarray]) -> np.ndarray:
    """The trunk that saves most columns of slots: what two of the texts or more begin with.

    It is empty where that is less than `LEAST_TRUNK` tokens.
    """
    best, saved = np.zeros(0, np.int32), 0
    order = sorted(heads, key=lambda head: np.asarray(head, ">u4").tobytes())
    shared, alike = 0, 0  # tokens that the last texts share, and how many more than one they are
    for one, other in zip(order, order[1:]):
        size = min(len(one), len(other))
        differ = one[:size] != other[:size]
        common = int(differ.argmax()) if differ.any() else size
        together = min(common, shared) if alike else common
        shared, alike = (together, alike + 1) if together >= LEAST_TRUNK else (0, 0)
        if shared * alike > saved:
            best, saved = other[:shared], shared * alike
    return best


def in_order(heads: Sequence[Sequence[int]]) -> list[int]:
    """The order in which texts are best begun.

    Those that share a prefix follow each other where that saves a tenth of all tokens or more; else
    the longest ones come first: they need the most memory, and what lacks, lacks at once.
    """
    packed = [np.asarray(head, ">u4").tobytes() for head in heads]
    order = sorted(range(len(heads)), key=packed.__getitem__)
    shared = 0
    for one, other in zip(order, order[1:]):
        a, b = (np.frombuffer(packed[number], np.uint32) for number in (one, other))
        size = min(len(a), len(b))
        differ = a[:size] != b[:size]
        alike = int(differ.argmax()) if differ.any() else size
        shared += alike if _worth(alike, len(b)) else 0
    if 10 * shared >= sum(map(len, heads)):
        return order
    return sorted(order, key=lambda number: -len(heads[number]))
