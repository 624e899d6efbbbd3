"""Abstract arrays with a sharding: what a program is compiled for when nothing is there."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np


def placed_as(tree: Any, shardings: Any) -> Any:
    """Abstract arrays like those of `tree`, with a sharding each, or one for all."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=where),
        tree,
        shardings,
    )


def parameter_count(params: Any) -> int:
    """Numbers in all arrays of a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def device_bytes(trees: Iterable[Any]) -> int:
    """Bytes on one device of abstract arrays that have a sharding."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tuple(trees))
    )


def is_placed(argument: Any) -> bool:
    """Whether an argument of a program is a tree of abstract arrays, not a static value."""
    leaves = jax.tree.leaves(argument)
    return bool(leaves) and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
