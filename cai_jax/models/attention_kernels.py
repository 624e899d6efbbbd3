"""Attention by the kernels that platforms have, which never write the weights [T, S] to memory.

TPU: Pallas splash attention, as jax ships it. GPU: cuDNN's flash attention. What neither can do is
left to the plain path of `models/attention.py`; `choose` has the rules. Decoding on a TPU reads the
columns of the slots by a kernel of our own (`models/decode_kernel.py`), where `reading` says so; it
is plain elsewhere.

Axes: B batch, T positions, N query heads, K key/value heads, H head dim.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cai_jax.models.config import ModelConfig
from cai_jax.models.placing import ROWS

LANES = 128  # splash attention takes sequences of whole lanes of a TPU
BLOCK = 1024  # queries, and keys, at a time; fewer read keys and values more often
CUDNN_HEAD_DIM = 128  # at most, and a multiple of 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sight:
    """Who sees whom, in the place of a bias [B, T, S]: it is causal inside equal segments."""

    segments: jax.Array  # [B, T]
    windowed: jax.Array  # [] bool: whether the layer has the window; read in mixed layers only
    kernel: str = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reading:
    """How decoding reads the slots, on a TPU: by blocks of `columns`, on the devices of `mesh`."""

    columns: int = dataclasses.field(metadata={"static": True})
    mesh: Mesh | None = dataclasses.field(metadata={"static": True})


def choose(
    config: ModelConfig, length: int, span: int | None = None, parents: jax.Array | None = None
) -> str:
    """The kernel for T = `length` positions of a row: "splash", "cudnn" or "plain".

    `config.attention` says which; "" is by the platform of this process. Plain is left:

    - whatever has parents (responses that share a prompt), whose masks are no segments;
    - tokens that do not fill their whole cache, as in decoding: what they see depends on data;
    - rows below 128 positions, whose weights are small;
    - programs that are not told their mesh where there are several devices: a kernel is not split
      by the compiler (`core/sharding.py`, `on_mesh`);
    - for cuDNN float32, soft caps and heads other than of 8, 16, ... 128 dims.

    Args:
        config: the model.
        length: T.
        span: slots of the cache, if there is one.
        parents: as in `transformer.forward`.
    """
    kernel = _wanted(config)
    untold = jax.sharding.get_abstract_mesh().empty and jax.device_count() > 1
    if untold or parents is not None or length < LANES or span not in (None, length):
        return "plain"
    if kernel == "cudnn":
        fits = config.head_dim <= CUDNN_HEAD_DIM and config.head_dim % 8 == 0
        if config.dtype != "bfloat16" or config.attention_soft_cap is not None or not fits:
            return "plain"
    return kernel


def reading(config: ModelConfig, values: Any, mesh: Mesh | None) -> Reading | None:
    """How steps of decoding read slots; None, the plain path, reads all columns of all slots.

    Plain is left what is no TPU's; slots of no multiple of 128 columns; more than 4 MiB of keys and
    values of 128 columns on a device; and programs of several devices that give no mesh.

    Args:
        config: the model.
        values: of the slots, [L, B, K, S, H], or [B, K, S, H] of each layer.
        mesh: that splits the slots.
    """
    if _wanted(config) != "splash" or (mesh is None and jax.device_count() > 1):
        return None
    from cai_jax.models import decode_kernel

    array = jax.tree.leaves(values)[0]
    *_, heads, span, head_dim = array.shape
    tensor = 1 if mesh is None else mesh.shape["tensor"]
    heads = heads if heads % tensor else heads // tensor
    columns = decode_kernel.block_columns(span, heads, head_dim, array.dtype.itemsize)
    return Reading(columns, mesh) if columns else None


def _wanted(config: ModelConfig) -> str:
    platform = {"tpu": "splash", "gpu": "cudnn"}.get(jax.default_backend(), "plain")
    return config.attention or platform


def attend(
    queries: jax.Array, keys: jax.Array, values: jax.Array, sight: Sight, config: ModelConfig
) -> jax.Array:
    """What each position takes from those it sees, [B, N, T, H].

    Tokens of a document stand side by side in a row, so a window of positions is one of slots.

    Args:
        queries: [B, N, T, H], divided by the root of H or whatever the model divides by.
        keys: [B, K, T, H].
        values: [B, K, T, H].
        sight: who sees whom.
        config: of the model: its windows and its soft cap.
    """
    kernel = _cudnn if sight.kernel == "cudnn" else _splash
    far = _on_mesh(functools.partial(kernel, window=None, config=config))
    near = _on_mesh(functools.partial(kernel, window=config.window, config=config))
    arrays = queries, keys, values, sight.segments
    if config.mixed_layers:
        return lax.cond(sight.windowed, near, far, *arrays)
    return near(*arrays) if config.windowed_layers else far(*arrays)


def _on_mesh(kernel: Any) -> Any:
    """`kernel` of each device's own rows and heads, in a program that is told its mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel

    def split(queries, keys, values, segments):
        rows = ROWS if queries.shape[0] % math.prod(mesh.shape[a] for a in ROWS) == 0 else None
        heads = "tensor" if keys.shape[1] % mesh.shape["tensor"] == 0 else None
        by_head = P(rows, heads, None, None)
        return jax.shard_map(
            kernel,
            mesh=mesh,
            in_specs=(by_head, by_head, by_head, P(rows, None)),
            out_specs=by_head,
            check_vma=False,
        )(queries, keys, values, segments)

    return split


def _splash(queries, keys, values, segments, *, window, config):
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as splash,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length = queries.shape[2]
    whole = -(-length // LANES) * LANES
    # Nothing sees what is added at the end.
    queries, keys, values = (
        jnp.pad(x, ((0, 0), (0, 0), (0, whole - length), (0, 0))) for x in (queries, keys, values)
    )
    segments = jnp.pad(segments, ((0, 0), (0, whole - length)))
    mask: Any = masks.CausalMask((whole, whole))
    if window is not None:
        mask = masks.LocalMask((whole, whole), (window - 1, 0), 0)
    block = math.gcd(whole, BLOCK)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * queries.shape[1]),
        block_sizes=splash.BlockSizes(
            *(block, block, block, block, block, block), block_q_dq=block, block_kv_dq=block
        ),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=config.attention_soft_cap,
    )
    return jax.vmap(kernel)(queries, keys, values, splash.SegmentIds(segments, segments))[
        :, :, :length
    ]


def _cudnn(queries, keys, values, segments, *, window, config):
    queries, keys, values = (jnp.swapaxes(x, 1, 2) for x in (queries, keys, values))

    def attended(mask):
        return jax.nn.dot_product_attention(  # of [B, T, N or K, H]
            queries,
            keys,
            values,
            mask=mask,
            scale=1.0,
            is_causal=True,
            local_window_size=None if window is None else (window - 1, 0),
            implementation="cudnn",
        )

    def packed():
        return attended(segments[:, None, :, None] == segments[:, None, None, :])

    # Nothing sees what follows it, so texts of their own rows need no mask, which the kernel would
    # read as a bias [B, 1, T, T]: half of the kernel's time.
    follows = segments[:, 1:]
    alone = jnp.all((follows == segments[:, :-1]) | (follows == 0))
    return jnp.swapaxes(lax.cond(alone, lambda: attended(None), packed), 1, 2)
