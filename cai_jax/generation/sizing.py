"""What the slot engine will allocate, stated by arithmetic and fitted to a budget before it does.

Counted are keys and values: of the slots, of their copy while they are given more columns, of what
is read in front of prompts that go on, of a trunk and its copy, and of a chunk. The weights are
there already, and activations are small beside them.
"""

from __future__ import annotations

import typing
from typing import NamedTuple

import numpy as np

from cai_jax.errors import InputError
from cai_jax.generation.batching import row_count
from cai_jax.generation.slots import chunk_steps

if typing.TYPE_CHECKING:
    from jax.sharding import Mesh

    from cai_jax.models.config import ModelConfig


class SlotPlan(NamedTuple):
    """How many slots there are, and what they take at most."""

    slots: int  # B
    refill: int  # F: requests placed at a time
    span: int  # S: columns of the largest slots
    bytes: int  # of keys and values, over all devices
    eight_bits: bool = False  # keys and values rounded to 8 bits
    again: bool = False  # who is in the queue asks again

    def __str__(self) -> str:
        size = f"{self.bytes / 2**20:,.1f} MiB"
        return f"{self.slots} slots of up to {self.span} positions: {size} of keys and values"


def plan_slots(
    config: ModelConfig,
    requests: int,
    batch_size: int,
    span: int,
    memory: int | None = None,
    mesh: Mesh | None = None,
    eight_bits: bool = False,
    again: bool = False,
) -> SlotPlan:
    """The slots for a queue of requests.

    Args:
        config: of the model.
        requests: in the queue.
        batch_size: slots at most.
        span: S, the columns of a prompt and its completion, bucketed.
        memory: bytes of keys and values at most: slots are halved until they fit; None: no bound.
        mesh: splits the slots.
        eight_bits: round keys and values to 8 bits.
        again: who is in the queue asks again, so that slots are refilled however few they are.

    Raises:
        InputError: not even the fewest slots fit into `memory`.
    """
    slots = row_count(requests, batch_size, mesh)
    while True:
        # All at once, or an eighth at a time, so that it is worth it and few slots wait for it.
        # Who asks again is never placed alone: it would show nobody what it shares with the next.
        part = slots if requests <= slots and not again else -(-slots // 8)
        part = max(part, min(slots, 2)) if again else part
        refill = row_count(part, part, mesh)
        stored = (2 * slots + refill) * span * column_bytes(config, eight_bits)
        one = row_count(1, 1, mesh)
        taken = stored + (slots * chunk_steps() + (refill + 2 * one) * span) * column_bytes(config)
        plan = SlotPlan(slots, refill, span, taken, eight_bits, again)
        if memory is None or taken <= memory:
            return plan
        fewer = row_count(slots // 2, max(slots // 2, 1), mesh)
        if fewer >= slots:
            raise InputError(
                f"memory: expected at least {taken / 2**20:,.1f} MiB for {slots} slots of "
                f"{span} positions, found {memory / 2**20:,.1f} MiB; lower max_new_tokens, shorten "
                "the prompts, keep them in 8 bits (kv_cache), or give more memory"
            )
        slots = fewer


def column_bytes(config: ModelConfig, eight_bits: bool = False) -> int:
    """Bytes of the keys and values of one token, in all layers."""
    heads = 2 * config.layers * config.kv_heads
    if eight_bits:
        return heads * (config.head_dim + 4)  # and a factor in float32
    size = 2 if config.dtype == "bfloat16" else np.dtype(config.dtype).itemsize
    return heads * config.head_dim * size
