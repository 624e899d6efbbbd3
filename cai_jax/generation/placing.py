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
    if mesh is None:
        return cache
    return Cache(
        keys=jax.tree.map(lambda array: _by_head(array, mesh), cache.keys),
        values=jax.tree.map(lambda array: _by_head(array, mesh), cache.values),
        valid=lax.with_sharding_constraint(cache.valid, NamedSharding(mesh, P(ROWS))),
        length=lax.with_sharding_constraint(cache.length, NamedSharding(mesh, P())),
    )


def split_past(past: Past, mesh: Mesh | None) -> Past:
    """Pins the layout of the slots' keys and values, so that no call compiles anew for another."""
    if mesh is None:
        return past
    scales = jax.tree.map(lambda array: _by_head(array, mesh, 3), past.scales)
    keys, values = jax.tree.map(lambda array: _by_head(array, mesh), (past.keys, past.values))
    return Past(keys, values, past.lengths, scales)


def split_trunk(trunk: Trunk, mesh: Mesh | None) -> Trunk:
    """Pins the layout of a trunk: its heads are split, and every row reads them."""
    if mesh is None:
        return trunk

    def split(array: Any) -> Any:
        layers = array.ndim - 4
        of_rows = heads_sharding(mesh, array.shape[1 + layers], layers).spec
        spec = P(*(None if axis == ROWS else axis for axis in of_rows))
        return lax.with_sharding_constraint(array, NamedSharding(mesh, spec))

    return jax.tree.map(split, trunk)


def _by_head(array: Any, mesh: Mesh, axes: int = 4) -> Any:
    layers = array.ndim - axes
    return lax.with_sharding_constraint(
        array, heads_sharding(mesh, array.shape[1 + layers], layers)
    )
