"""What attention kernels cost, which a compiled program calls as closed boxes.

Axes: B batch, N query heads, T positions, H head dim; of decoding those of
`models/decode_kernel.py`.
"""

import json
import math
import re
from typing import NamedTuple

from cai_jax.core.hlo_text import Computation, Instruction

SPLASH = re.compile(r"splash_mha_(fwd|dq|dkv)_")
DECODE = re.compile(r"decode_slots")
CUDNN = re.compile(r"__cudnn\$fmha\w*")
# Products of [T, H] with [H, T] or of [T, T] with [T, H] in each kernel; cuDNN's backward has dq
# and dkv in one, with the weights once.
PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4, "cudnn_fwd": 2, "cudnn_bwd": 5}


class Kernel(NamedTuple):
    """Of one call."""

    flops: float
    # Bytes of operands that are read more than once, without the first time; less than 0 where
    # parts of operands are not read.
    read_again: float


def attention(i: Instruction, computation: Computation) -> Kernel | None:
    """The costs of an instruction that calls an attention kernel; None for all others.

    The kernels leave out blocks of which no query sees a key: half of them where attention is
    causal, and those behind a window. Blocks that documents of a row hide from each other are
    computed, as far as is known before the data.
    """
    if i.opcode != "custom-call":
        return None
    found = SPLASH.search(i.name)
    if found and "tpu_custom_call" in i.attributes:
        return _splash(found[1], i, computation)
    if DECODE.match(i.name) and "tpu_custom_call" in i.attributes:
        return _decode(i, computation)
    if CUDNN.search(i.attributes):
        return _cudnn(i, computation)
    return None


def _splash(kind: str, i: Instruction, computation: Computation) -> Kernel:
    # Two arrays say which blocks of keys [1, blocks of queries, most blocks of keys of one] come
    # next (transposed for dkv); then queries [(B,) N, T, H], and keys.
    schedule = computation.by_name[i.operands[0]].shapes[0].sizes
    queries = computation.by_name[i.operands[2]].shapes[0]
    *rows, length, head_dim = queries.sizes
    blocks, width = schedule[-2:] if kind != "dkv" else schedule[:-3:-1]
    block = length // blocks
    # Of queries up to the last, each block sees the ones before it, as far as a window lets it.
    visited = sum(min(number + 1, width) for number in range(blocks))
    heads = math.prod(rows)
    flops = 2.0 * PRODUCTS[kind] * heads * visited * block**2 * head_dim
    # Every block visited is two arrays [block, H] to read, of keys and values, or, where blocks of
    # keys stay, of queries and gradients.
    itemsize = queries.bytes // math.prod(queries.sizes)
    again = 2.0 * heads * max(visited - blocks, 0) * block * head_dim * itemsize
    return Kernel(flops, 0.0 if queries.on_chip else again)


def _decode(i: Instruction, computation: Computation) -> Kernel:
    """All columns of a layer's slots, as the plain path reads: how many are live is data."""
    arrays = [computation.by_name[name].shapes[0] for name in i.operands]
    # Numbers [.]; queries [B, K, G, H]; keys [L, B, K, H, S] and values; perhaps two scales.
    first = next(number for number, array in enumerate(arrays) if len(array.sizes) == 4)
    groups = arrays[first].sizes[2]
    keys, *_ = of_layers = arrays[first + 1 :]
    layers, *of_layer = keys.sizes
    unread = sum(array.bytes * (layers - 1) / layers for array in of_layers)
    return Kernel(2.0 * 2 * groups * math.prod(of_layer), -unread)


def _cudnn(i: Instruction, computation: Computation) -> Kernel:
    backward = "Backward" in (CUDNN.search(i.attributes) or [""])[0]
    config = re.search(r"backend_config=(\{.*\})", i.attributes)
    options = json.loads(config[1]) if config else {}
    of_attention = options.get("cudnn_fmha_backend_config", {})
    # The weights [B, N, T, S] that are not there.
    weights = of_attention.get("intermediate_tensor_shape", {}).get("dimensions", [])
    head_dim = computation.by_name[i.operands[0]].shapes[0].sizes[-1]
    products = PRODUCTS["cudnn_bwd" if backward else "cudnn_fwd"]
    flops = 2.0 * products * math.prod(map(int, weights)) * head_dim
    return Kernel(flops / 2 if "CAUSAL" in of_attention.get("mask_type", "") else flops, 0.0)
