"""Which slots requests take, and which tokens are there already: what slots hold is what is reused.

A request goes on in its slot from the first token that differs from what the slot holds, or behind
a copy of what another slot holds. Of requests that share what no slot holds, one goes first.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEAST = 64  # tokens found elsewhere that are worth a copy; or all there are
LEAST_OWN = 8  # tokens of the own slot that are worth going on from
NO_TOKEN = -1

Kind = typing.Literal["fresh", "longer", "same"]


class Held:
    """The tokens whose keys and values are in each slot, or in each row of a batch."""

    def __init__(self, count: int):
        """Nothing."""
        self.tokens = np.full((count, 64), NO_TOKEN, np.int32)
        self.counts = np.zeros(count, np.int64)

    def put(self, row: int, tokens: Sequence[int] | np.ndarray) -> None:
        """Replaces what a row holds."""
        if len(tokens) > self.tokens.shape[1]:
            more = 2 * len(tokens) - self.tokens.shape[1]
            self.tokens = np.pad(self.tokens, ((0, 0), (0, more)), constant_values=NO_TOKEN)
        self.tokens[row, : self.counts[row]] = NO_TOKEN
        self.tokens[row, : len(tokens)] = tokens
        self.counts[row] = len(tokens)

    def cut(self, most: int) -> None:
        """Forgets what stands behind the first `most` tokens."""
        self.tokens[:, most:] = NO_TOKEN
        self.counts = np.minimum(self.counts, most)

    def common(self, tokens: np.ndarray) -> np.ndarray:
        """How many tokens each row and these begin with alike."""
        size = min(len(tokens), self.tokens.shape[1])
        if not size:
            return np.zeros(len(self.counts), np.int64)
        differ = self.tokens[:, :size] != tokens[:size]
        return np.where(differ.any(axis=1), differ.argmax(axis=1), size)


class Waiting(NamedTuple):
    """A request without a place: in the slot of its session, or in any."""

    session: int
    head: np.ndarray  # the prompt without its last token, which the first decode step reads
    slot: int | None


class Place(NamedTuple):
    """Where a request goes on: in `slot`, behind the first `kept` tokens of what `source` holds."""

    waiting: Waiting
    slot: int
    source: int
    kept: int


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
        The way: "fresh" (all tokens are to be read), "longer" (those behind `kept`), "same" (none).
    """
    found: dict[Kind, list[Place]] = {"fresh": [], "longer": [], "same": []}
    later: list[Waiting] = []
    chosen = Held(len(waiting))
    # Those that hold least are the first to be overwritten.
    unused = sorted(free, key=lambda slot: -held.counts[slot])
    for number, item in enumerate(waiting):
        size = len(item.head)
        common = held.common(item.head)
        source = int(common.argmax()) if item.slot is None else item.slot
        best = int(common.max())
        if item.slot is not None and best >= common[item.slot] + LEAST:
            source = int(common.argmax())
        kept = int(common[source])
        if item.slot != source and not _worth(kept, size) or 0 < kept < min(LEAST_OWN, size):
            source, kept = item.slot if item.slot is not None else -1, 0
        among = int(chosen.common(item.head).max()) if number else 0
        if among > kept and (among >= kept + LEAST or among == size):
            later.append(item)
            continue
        chosen.put(number, item.head)
        if item.slot is not None:
            slot = item.slot
        elif source in unused:
            slot = source
            unused.remove(slot)
        else:
            slot = unused.pop()
        kind: Kind = "same" if kept == size else "longer" if kept else "fresh"
        found[kind].append(Place(item, slot, source if kept else slot, kept))
    kind = max(found, key=lambda name: len(found[name]))
    # Long ones together, so that little is padded.
    order = sorted(found[kind], key=lambda place: place.kept - len(place.waiting.head))
    taken = order[:most]
    others = [place.waiting for name, places in found.items() if name != kind for place in places]
    return kind, taken, [*(place.waiting for place in order[most:]), *others, *later]


def _worth(kept: int, size: int) -> bool:
    return kept >= LEAST or kept == size


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
