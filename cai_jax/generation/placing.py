"""How batches and caches lie on a mesh: rows over "data" and "fsdp", heads over "tensor"."""

from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cai_jax.models.cache import Cache, Past, Trunk

ROWS = ("data", "fsdp")  # the mesh axes that split a batch


def rows_sharding(mesh: Mesh | None) -> NamedSharding | None:
    """Where arrays [B, ...] go: split over the mesh, or the default device."""
    return None if mesh is None else NamedSharding(mesh, P(ROWS))


def heads_sharding(mesh: Mesh, kv_heads: int, layers: int = 1) -> NamedSharding:
    """Of arrays [L, B, K, ...], or without L; heads that do not divide are on every device."""
    heads = "tensor" if kv_heads % mesh.shape["tensor"] == 0 else None
    return NamedSharding(mesh, P(*[None] * layers, ROWS, heads))


def split_cache(cache: Cache, mesh: Mesh | None) -> Cache:
    """Pins the layout of a cache."""
    return cache if mesh is None else _pinned(cache, cache_specs(cache, mesh), mesh)


def split_past(past: Past, mesh: Mesh | None) -> Past:
    """Pins the layout of the slots' keys and values, so that no call compiles anew for another."""
    return past if mesh is None else _pinned(past, past_specs(past, mesh), mesh)


def cache_specs(cache: Cache, mesh: Mesh) -> Any:
    """How a cache is split, as a tree like it."""
    keys, values = _specs((cache.keys, cache.values), mesh)
    return Cache(keys, values, P(ROWS), P())  # type: ignore[arg-type]


def past_specs(past: Past, mesh: Mesh) -> Any:
    """How the slots' keys and values are split, as a tree like them."""
    keys, values = _specs((past.keys, past.values), mesh)
    return Past(keys, values, past.lengths, _specs(past.scales, mesh, 3))


def split_trunk(trunk: Trunk, mesh: Mesh | None) -> Trunk:
    """Pins the layout of a trunk: its heads are split, and every row reads them."""
    if mesh is None:
        return trunk

    return _pinned(trunk, unsplit_rows(_specs(trunk, mesh)), mesh)


def unsplit_rows(specs: Any) -> Any:
    """The specs without a split of the rows: heads alone are."""

    def of(spec: P) -> P:
        return P(*(None if axis == ROWS else axis for axis in spec))

    return jax.tree.map(of, specs, is_leaf=lambda node: isinstance(node, P))


def _specs(arrays: Any, mesh: Mesh, axes: int = 4) -> Any:
    """Of arrays [L, B, K, ...] with so many axes, or one more for L."""

    def of(array: Any) -> P:
        layers = array.ndim - axes
        return heads_sharding(mesh, array.shape[1 + layers], layers).spec

    return jax.tree.map(of, arrays)


def _pinned(tree: Any, specs: Any, mesh: Mesh) -> Any:
    return jax.tree.map(
        lambda array, spec: lax.with_sharding_constraint(array, NamedSharding(mesh, spec)),
        tree,
        specs,
    )
