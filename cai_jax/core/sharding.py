"""One table from array names to partition specs: params, optimizer state, cache and batches.

The name of an array is its path in the tree, joined by "/". A rule matches the end of the name, so
that `adam/mu/layers/mlp/gate` of an optimizer state is sharded as `layers/mlp/gate` is.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cai_jax.errors import InputError

# The batch is split over both axes that hold whole copies of the activations' features.
BATCH = ("data", "fsdp")

# First match wins. Letters are those of the shape comments: L layers, V vocabulary, D width,
# N and K heads, H head dimension, F hidden units, B batch, S cached positions.
TABLE: tuple[tuple[str, P], ...] = (
    (r"batch/.*", P(BATCH)),  # [B, ...]
    (r"embedder/embedding", P("tensor", "fsdp")),  # [V, D]
    (r"position_embedder/embedding", P(None, "fsdp")),  # [positions, D]
    (r"unembedder/kernel", P("fsdp", "tensor")),  # [D, V]
    (r"attention/(query|key|value)", P(None, "fsdp", "tensor", None)),  # [L, D, N or K, H]
    (r"attention/out", P(None, "tensor", None, "fsdp")),  # [L, N, H, D]
    (r"attention/(query|key|value)_bias", P(None, "tensor", None)),  # [L, N or K, H]
    (r"attention/(query|key)_norm/scale", P()),  # [L, H] or [L, N or K, H]
    (r"mlp/(gate|up)", P(None, "fsdp", "tensor")),  # [L, D, F]
    (r"mlp/(gate|up)_bias", P(None, "tensor")),  # [L, F]
    (r"mlp/down", P(None, "tensor", "fsdp")),  # [L, F, D]
    (r"(attention/out|mlp/down)_bias", P()),  # [L, D]
    # [L, D] or [D]: too small to split
    (r"(attention_norm|attention_post_norm|mlp_norm|mlp_post_norm|final_norm)/(scale|bias)", P()),
    (r"score_head/kernel", P()),  # [D]
    # LoRA's two factors, split as the sides of their projections are: the first [L, inputs, rank],
    # the second [L, rank, outputs].
    (r"adapter/.*/(query|key|value|gate|up)/a", P(None, "fsdp", None)),  # [L, D, R]
    (r"adapter/.*/(query|key|value)/b", P(None, None, "tensor", None)),  # [L, R, N or K, H]
    (r"adapter/.*/(gate|up)/b", P(None, None, "tensor")),  # [L, R, F]
    (r"adapter/.*/out/a", P(None, "tensor", None, None)),  # [L, N, H, R]
    (r"adapter/.*/down/a", P(None, "tensor", None)),  # [L, F, R]
    (r"adapter/.*/(out|down)/b", P(None, None, "fsdp")),  # [L, R, D]
    (r"keys", P(None, BATCH, "tensor", None, None)),  # cache [L, B, K, H, S]
    (r"values", P(None, BATCH, "tensor", None, None)),  # cache [L, B, K, S, H]
    (r"valid", P(BATCH, None)),  # cache [B, S]
    # Adafactor's rows and columns of second moments, and what stands in their place where it keeps
    # them whole; the whole ones are sharded as their parameters are, by the rules above.
    (r"(v|v_row|v_col)/.*", P()),
)


def spec_for(name: str, shape: tuple[int, ...]) -> P:
    """The partition spec of the array `name`; scalars (counters, lengths) are replicated.

    Raises:
        KeyError: no rule of TABLE fits. Every array has a rule: none is replicated by accident.
    """
    if not shape:
        return P()
    for pattern, spec in TABLE:
        if re.search(rf"(^|/){pattern}$", name) and len(spec) <= len(shape):
            return spec
    raise KeyError(f"core/sharding.py TABLE has no rule for array {name!r} of shape {shape}")


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """A tree of NamedSharding for `tree`, whose leaves need only a shape (abstract or real).

    Raises:
        InputError: an axis of an array does not divide over the mesh axes that split it.
    """

    def sharding(path, leaf) -> NamedSharding:
        name = array_name(path)
        spec = spec_for(name, leaf.shape)
        for axis, mesh_axes in enumerate(spec):
            parts = _parts(mesh, mesh_axes)
            if leaf.shape[axis] % parts:
                raise InputError(
                    f"array {name} {tuple(leaf.shape)}: axis {axis} of size {leaf.shape[axis]} "
                    f"does not divide over {parts} devices (mesh axes {mesh_axes}); "
                    "choose another mesh"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def array_table(tree: Any) -> str:
    """A line for each array of a tree, the largest first: name, type, spec, bytes on one device.

    Args:
        tree: of arrays, or of abstract ones, each with a NamedSharding.
    """
    rows = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        part = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        shape = ",".join(map(str, leaf.shape))
        spec = ", ".join(map(str, leaf.sharding.spec)) or "whole on every device"
        rows.append((part, array_name(path), f"{leaf.dtype}[{shape}]", spec))
    rows.sort(key=lambda row: (-row[0], row[1]))
    widths = [max(len(row[column]) for row in rows) for column in (1, 2)] if rows else [0, 0]
    lines = [
        f"{part:>16,}  {name.ljust(widths[0])}  {kind.ljust(widths[1])}  {spec}"
        for part, name, kind, spec in rows
    ]
    return "\n".join([*lines, f"{sum(row[0] for row in rows):>16,}  bytes on each device"])


def array_name(path: tuple[Any, ...]) -> str:
    """The "/"-joined name of a key path of `jax.tree_util.tree_map_with_path`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the leading axis (B) of every array of a batch over `data` and `fsdp`."""
    return NamedSharding(mesh, P(BATCH))


def batch_parts(mesh: Mesh) -> int:
    """In how many parts a batch is split: a batch size must be a multiple of it."""
    return _parts(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())


def on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`function`, told the mesh while it is traced, so that its models keep rows split.

    It is for programs that compute gradients. In decoding, where a batch is small beside a layer's
    weights, what to send is left to the compiler.
    """
    if mesh.size == 1:
        return function

    @functools.wraps(function)
    def told(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return told


def _parts(mesh: Mesh, mesh_axes: str | tuple[str, ...] | None) -> int:
    if mesh_axes is None:
        return 1
    names = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes
    return math.prod(mesh.shape[name] for name in names)
