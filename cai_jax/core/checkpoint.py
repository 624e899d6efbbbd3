"""Checkpoints of trees of arrays: the only place that knows Orbax (its v1 interface)."""

from pathlib import Path
from typing import Any


def save(folder: Path, tree: Any) -> None:
    """Writes `tree` (arrays, numbers, random keys) to `folder`, whole or not at all.

    Args:
        folder: must not exist; its parent must.
        tree: any pytree; on several hosts every process calls with the same tree.
    """
    _orbax().save(Path(folder).absolute(), tree)


def restore(folder: Path, abstract_tree: Any = None) -> Any:
    """Reads what `save` wrote.

    Args:
        folder: as given to `save`.
        abstract_tree: the tree's structure, with arrays or `jax.ShapeDtypeStruct`s as leaves. Where
            they carry a sharding, the arrays are placed accordingly, on whatever mesh; else, on the
            default device. None: nested dicts and lists of numpy arrays.
    """
    import jax
    import numpy as np

    if abstract_tree is None:
        return jax.tree.map(np.asarray, _orbax().load(Path(folder).absolute()))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def abstract(leaf: Any) -> Any:
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            return leaf
        sharding = getattr(leaf, "sharding", None) or device
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return _orbax().load(Path(folder).absolute(), jax.tree.map(abstract, abstract_tree))


def _orbax() -> Any:
    # The interface has two addresses: newer releases also have it without `experimental`.
    try:
        from orbax.checkpoint import v1
    except ImportError:
        from orbax.checkpoint.experimental import v1
    return v1
