"""Computes texts so that a prefix which several of them share is computed once.

The keys and values of a shared segment are kept as rows of a cache; what continues it gathers its
row, and so has an exact copy. The walk goes down one branch at a time: as many caches are held as
there are segments above one another. Segments are padded on the left, wherever they stand: a cache
marks which of its slots are valid.

Axes: B rows, P rows of the cache before, T tokens of the segments, S slots before them.
"""

from __future__ import annotations

import functools
import typing
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax.generation import batching
from cai_jax.generation.placing import rows_sharding, split_cache
from cai_jax.generation.prefixes import NO_NODE, Trie
from cai_jax.models import placing, transformer
from cai_jax.models.cache import Cache, init_cache

if typing.TYPE_CHECKING:
    from jax.sharding import Mesh

    from cai_jax.models.config import ModelConfig
    from cai_jax.models.language_model import LanguageModel


class Batch(NamedTuple):
    """Texts that come next, and the cache that they continue: row `source[i]` is text i's."""

    texts: list[int]
    cache: Cache | None  # None: the texts are at their beginning
    source: np.ndarray  # [B] int32, for rows without a text too
    segments: int  # that the cache holds, one behind the other


def walk(
    model: LanguageModel,
    trie: Trie,
    texts: Sequence[Sequence[int]],
    rows: int,
    batch_size: int,
    mesh: Mesh | None = None,
) -> Iterator[Batch]:
    """Batches of at most `rows` texts, each with the cache of what stands before it.

    Args:
        model: on the devices of `mesh`.
        trie: of the texts.
        texts: token ids; what follows the shared part may have anything at its end.
        rows: of a batch of texts.
        batch_size: shared segments computed at a time.
        mesh: splits the rows of a batch; None: one device.
    """
    nodes_below, texts_below = defaultdict(list), defaultdict(list)
    for number, node in enumerate(trie.nodes):
        nodes_below[node.parent].append(number)
    for number, parent in enumerate(trie.parents):
        texts_below[parent].append(number)
    at_depth = Counter(node.depth for node in trie.nodes)
    place = functools.partial(placing.place, sharding=rows_sharding(mesh))

    def visit(cache: Cache | None, above: Sequence[int], depth: int) -> Iterator[Batch]:
        row_of = {node: row for row, node in enumerate(above)}

        def sources(parents: list[int], count: int) -> np.ndarray:
            source = np.zeros(count, np.int32)
            source[: len(parents)] = [row_of[parent] for parent in parents]
            return source

        here = [text for node in above for text in texts_below[node]]
        for batch in batching.batches([len(texts[i]) - trie.start(i) for i in here], rows):
            numbers = [here[i] for i in batch]
            source = sources([trie.parents[number] for number in numbers], rows)
            yield Batch(numbers, cache, source, depth)

        below = [node for parent in above for node in nodes_below[parent]]
        if not below:
            return
        count = batching.row_count(at_depth[depth], batch_size, mesh)
        nodes = [trie.nodes[number] for number in below]
        for batch in batching.batches([node.end - node.start for node in nodes], count):
            some = [nodes[i] for i in batch]
            segments = [texts[node.text][node.start : node.end] for node in some]
            width = batching.coarse_bucket(max(map(len, segments)))
            tokens, mask = batching.right_aligned(segments, count, width)
            source = sources([node.parent for node in some], count)
            extended = extend_jit(
                model.params, model.config, cache, place(source), place(tokens), place(mask), mesh
            )
            yield from visit(extended, [below[i] for i in batch], depth + 1)

    return visit(None, [NO_NODE], 0)


def continued(
    params: transformer.Params,
    config: ModelConfig,
    cache: Cache | None,
    source: jax.Array,
    tokens: jax.Array,
    mask: jax.Array,
    room: int = 0,
) -> tuple[jax.Array, Cache]:
    """Hidden states [B, T, D] of tokens that continue cache rows `source`, and the longer cache.

    Args:
        params: of the model.
        config: its shape.
        cache: of P rows and S slots; None: nothing stands before.
        source: [B] which row each text continues.
        tokens: [B, T], padded on the left.
        mask: [B, T] 1 for a token, 0 for padding.
        room: free slots to leave at the end.
    """
    batch, width = tokens.shape
    if cache is None:
        before = init_cache(config, batch, width + room)
        lengths = jnp.zeros((batch, 1), jnp.int32)
    else:
        before = widened(gathered(cache, source), width + room)
        lengths = jnp.sum(before.valid, axis=1, keepdims=True)
    positions = lengths + jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    hidden, after = transformer.forward(
        params, config, tokens, positions=positions, segments=mask, cache=before
    )
    assert after is not None
    return hidden, after


def forwarded(trie: Trie, texts: Sequence[Sequence[int]]) -> int:
    """Tokens that a walk and its caller compute of the texts that the trie is of."""
    shared = sum(node.end - node.start for node in trie.nodes)
    return shared + sum(len(text) - trie.start(number) for number, text in enumerate(texts))


def gathered(cache: Cache, source: jax.Array) -> Cache:
    """The rows `source` [B] of a cache."""

    def gather(arrays):  # [..., P, K, H, S] or [..., P, K, S, H]
        return jax.tree.map(lambda array: jnp.take(array, source, axis=-4), arrays)

    return cache._replace(
        keys=gather(cache.keys),
        values=gather(cache.values),
        valid=jnp.take(cache.valid, source, axis=0),
    )


def widened(cache: Cache, room: int) -> Cache:
    """A cache with `room` more slots at its end."""

    def widen(arrays, axis):
        def pad(array):
            widths = [(0, 0)] * array.ndim
            widths[axis] = (0, room)
            return jnp.pad(array, widths)

        return jax.tree.map(pad, arrays)

    return cache._replace(
        keys=widen(cache.keys, -1), values=widen(cache.values, -2), valid=widen(cache.valid, -1)
    )


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def extend_jit(params, config, cache, source, tokens, mask, mesh=None) -> Cache:
    """The cache of `continued`, compiled once for each shape."""
    return split_cache(continued(params, config, cache, source, tokens, mask)[1], mesh)
