"""Which prefixes texts share: a trie of segments, each of which is worth computing once."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NO_NODE = -1  # the parent of what stands at the beginning of a text

LEAST = 64  # tokens of a shared segment: a shorter one costs more to compile and pad than it saves
WORTH = 0.05  # of the tokens computed: what levels must save to be worth programs of their own
MOST = 1024  # tokens of a segment: longer ones are computed part by part


class Node(NamedTuple):
    """A segment: tokens start to end of the text of that number, and of all texts below it."""

    parent: int  # the node whose tokens stand before it, or NO_NODE
    start: int
    end: int
    text: int
    depth: int  # nodes before it


class Trie(NamedTuple):
    """Segments, parents before their children, and where each text goes on."""

    nodes: list[Node]
    parents: list[int]  # of each text, the node that it continues, or NO_NODE

    def start(self, text: int) -> int:
        """How many tokens of a text its node and those before it hold."""
        parent = self.parents[text]
        return 0 if parent == NO_NODE else self.nodes[parent].end


def build_trie(
    texts: Sequence[Sequence[int]], least: int = LEAST, most: int = MOST, worth: float = WORTH
) -> Trie:
    """The segments that at least two of the texts share.

    Equal texts share all they have. Others share a segment of `least` tokens or more. What is
    longer than `most`, shared or not, is a chain of segments; a text keeps at most that many tokens
    behind its node. The lowest levels of segments are left out where without them at most `worth`
    times as many tokens more are computed.
    """
    packed = [np.asarray(text, ">u4").tobytes() for text in texts]  # ordered as the tokens are
    order = sorted(range(len(texts)), key=packed.__getitem__)
    common = np.array(
        [0, *(_common(packed[a], packed[b]) for a, b in zip(order, order[1:]))], np.int64
    )
    lengths = [len(text) for text in texts]
    whole = _grown(order, common, lengths, least, max(lengths, default=0), len(texts))
    below = Counter(whole.parents)  # texts below each node
    saved = [0] * (max((node.depth for node in whole.nodes), default=-1) + 1)
    for number, node in reversed(list(enumerate(whole.nodes))):  # parents come last
        below[node.parent] += below[number]
        saved[node.depth] += (node.end - node.start) * (below[number] - 1)
    levels = len(saved)
    computed = sum(lengths) - sum(saved)
    while levels and sum(saved[levels - 1 :]) < worth * computed:
        levels -= 1
    return _grown(order, common, lengths, least, most, levels)


def _grown(
    order: Sequence[int],
    common: np.ndarray,
    lengths: Sequence[int],
    least: int,
    most: int,
    levels: int,
) -> Trie:
    """The trie of texts in their order, of which neighbours have `common` tokens (by the second).

    At most so many `levels` of shared segments, each of which may be a chain, stand above a text.
    """
    nodes: list[Node] = []
    parents = [NO_NODE] * len(order)

    def grow(parent: int, end: int, text: int, rest: int) -> int:
        """Nodes of at most `most` tokens behind `parent`, up to all but `rest` of `end`."""
        start, depth = (nodes[parent].end, nodes[parent].depth + 1) if parent != NO_NODE else (0, 0)
        while end - start > rest:
            nodes.append(Node(parent, start, min(start + most, end), text, depth))
            parent, start, depth = len(nodes) - 1, nodes[-1].end, depth + 1
        return parent

    # Ranges of the order, whose texts go on from one node, and the levels above them.
    ranges = [(0, len(order), NO_NODE, 0)] if order else []
    while ranges:
        first, last, parent, above = ranges.pop()
        text = order[first]
        if last - first == 1 or above == levels:
            for number in order[first:last]:
                parents[number] = grow(parent, lengths[number], number, most)
            continue
        inside = common[first + 1 : last]
        shared = int(inside.min())
        start = 0 if parent == NO_NODE else nodes[parent].end
        # In this order texts that are no longer than what all share are the first ones.
        equal = lengths[order[first + 1]] == shared
        if shared - start >= least or (equal and shared > start):
            parent = grow(parent, shared, text, 0)
            above += 1
        cuts = first + 1 + np.flatnonzero(inside == shared)
        bounds = [first, *cuts.tolist(), last]
        ranges += [(low, high, parent, above) for low, high in zip(bounds, bounds[1:])][::-1]
    return Trie(nodes, parents)


def distinct_tokens(texts: Sequence[Sequence[int]]) -> int:
    """Tokens of the texts without those of prefixes that one had before: nodes of a full trie."""
    packed = sorted(np.asarray(text, ">u4").tobytes() for text in texts)
    total = sum(map(len, packed)) // 4
    return total - sum(_common(a, b) for a, b in zip(packed, packed[1:]))


def _common(one: bytes, other: bytes) -> int:
    """How many tokens two packed texts begin with alike."""
    size = min(len(one), len(other)) // 4
    differ = np.frombuffer(one, np.uint32, size) != np.frombuffer(other, np.uint32, size)
    return int(differ.argmax()) if differ.any() else size
