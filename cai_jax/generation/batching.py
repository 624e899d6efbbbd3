"""From prompts of any length to few array shapes: sorted, bucketed, padded.

Compiling one decode shape costs seconds, so lengths are rounded up to a coarse grid and every batch
of a call has the same number of rows.
"""

from __future__ import annotations

import hashlib
import time
import typing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax.errors import InputError
from cai_jax.generation.settings import Stats

if typing.TYPE_CHECKING:
    from jax.sharding import Mesh

    from cai_jax.models.language_model import LanguageModel

SMALLEST_BUCKET = 16  # of prompts and of tokens to generate


class Progress(typing.Protocol):
    """What shows how far a call is; `core/progress.py` has one."""

    def advance(self, count: int = 1) -> None:
        """Counts `count` more as done."""

    def say(self, text: str) -> None:
        """Says what holds for all that is to be done."""


def bucket(length: int, smallest: int = SMALLEST_BUCKET) -> int:
    """The smallest of 0, 16, 24, 32, 48, 64, 96, ... (with `smallest` = 16) not below `length`."""
    if length <= 0:
        return 0
    size = smallest
    while size < length:
        size *= 2
    return size * 3 // 4 if smallest < size and length <= size * 3 // 4 else size


def coarse_bucket(length: int, smallest: int = 64) -> int:
    """The smallest of 0, 64, 128, 192, 256, 384, ... (with `smallest` = 64) not below `length`.

    For segments: the programs of short ones cost more to compile than their padding to compute.
    """
    size = bucket(length, smallest)
    return size * 4 // 3 if size % 3 == 0 and 0 < size < 3 * 64 else size


def row_count(count: int, batch_size: int, mesh: Mesh | None = None) -> int:
    """Rows of every batch of `count` items: a power of two, at most `batch_size` (rounded up).

    On a mesh it is a multiple of the devices that split a batch.
    """
    if batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, found {batch_size}")
    parts = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    rows = min(batch_size, 1 << max(count - 1, 0).bit_length())
    return -(-rows // parts) * parts


def batches(lengths: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Indices in batches of up to `rows`, longest first: memory that lacks, lacks at once."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for first in range(0, len(order), rows):
        yield order[first : first + rows]


def pad_left(prompts: Sequence[Sequence[int]], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask [rows, 1 + bucket]: the last column is each prompt's last token.

    Rows past the prompts repeat the last prompt; what they give is thrown away.
    """
    return right_aligned(prompts, rows, 1 + bucket(max(map(len, prompts)) - 1))


def right_aligned(
    texts: Sequence[Sequence[int]], rows: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask [rows, width], padded on the left; rows past the texts repeat the last."""
    tokens = np.zeros((rows, width), np.int32)
    mask = np.zeros((rows, width), np.int32)
    for row in range(rows):
        text = texts[min(row, len(texts) - 1)]
        tokens[row, width - len(text) :] = text
        mask[row, width - len(text) :] = 1
    return tokens, mask


def pad_right(
    texts: Sequence[Sequence[int] | np.ndarray], rows: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [rows, width], padded on the right, and how many; the last text fills the rows."""
    tokens = np.zeros((rows, width), np.int32)
    counts = np.zeros(rows, np.int32)
    for row in range(rows):
        text = texts[min(row, len(texts) - 1)]
        tokens[row, : len(text)] = text
        counts[row] = len(text)
    return tokens, counts


def checked_prompts(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    extra: Sequence[int],
    of: str,
    names: Sequence[str] | None = None,
) -> list[list[int]]:
    """The prompts, none of them empty, after making sure that the model can continue them.

    Args:
        model: must be a language model.
        prompts: token ids.
        extra: how many tokens follow each prompt at most.
        of: what those are, for messages.
        names: of the prompts, for messages; by default their numbers.

    Raises:
        InputError: a preference model, a token that is not in its vocabulary, or no room.
    """
    if "score_head" in model.params:
        raise InputError("expected a language model, found a preference model, which only scores")
    names = names or [f"prompt {index}" for index in range(len(prompts))]
    started = [
        with_start(prompt, model.tokenizer, name)
        for prompt, name in zip(prompts, names, strict=True)
    ]
    for prompt, more, name in zip(started, extra, names, strict=True):
        check_tokens(prompt, model.config.vocab_size, name)
        check_room(len(prompt), more, model.config.max_positions, name, of)
    return started


def check_tokens(ids: Sequence[int], vocab_size: int, name: str) -> None:
    """Refuses ids that have no embedding: looking one up gives NaN, and no error."""
    if len(ids) and not 0 <= min(ids) <= max(ids) < vocab_size:
        found = max(ids) if min(ids) >= 0 else min(ids)
        raise InputError(
            f"{name}: expected tokens of the model's vocabulary of {vocab_size}, found {found}; "
            "the tokenizer and the weights do not belong together"
        )


def with_start(prompt: Sequence[int], tokenizer: typing.Any, name: str) -> list[int]:
    """The prompt, or for an empty one the token that begins a text.

    That is the tokenizer's beginning-of-text token; one that has none ends texts and begins them
    with the same token.
    """
    if len(prompt):
        return list(prompt)
    for token in (getattr(tokenizer, "bos_id", None), tokenizer.eos_id):
        if token is not None:
            return [token]
    raise InputError(
        f"{name}: expected a prompt, found an empty one, "
        "and the tokenizer has no token to begin a text with"
    )


def check_room(length: int, extra: int, max_positions: int, name: str, of: str) -> None:
    """Refuses a prompt that the model's positions do not hold together with what follows it."""
    if length + extra > max_positions:
        raise InputError(
            f"{name}: expected a prompt of at most {max(max_positions - extra, 0)} tokens "
            f"({max_positions} positions less {extra} {of}), found {length}; "
            "shorten the prompt or what follows it"
        )


def record_keys(base_key: jax.Array, record_ids: Iterable[int | str]) -> np.ndarray:
    """The random bits [n, W] of one key for each record, whatever else is in the list.

    An integer id is folded into the base key; a string enters by 64 bits of its SHA-256.
    """
    words = []
    for record in record_ids:
        if isinstance(record, str):
            digest = hashlib.sha256(record.encode()).digest()
            words.append((int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")))
        else:
            words.append((record & 0xFFFFFFFF, record >> 32))
    # Padded to a power of two, so that lists of many lengths share a program.
    padded = np.zeros((row_count(len(words), max(len(words), 1) * 2), 2), np.uint32)
    padded[: len(words)] = np.asarray(words, np.uint32).reshape(-1, 2)
    return np.asarray(_fold(base_key, padded))[: len(words)]


@jax.jit
def _fold(base_key: jax.Array, words: jax.Array) -> jax.Array:
    def fold(pair):
        return jax.random.key_data(
            jax.random.fold_in(jax.random.fold_in(base_key, pair[0]), pair[1])
        )

    return jax.vmap(fold)(jnp.asarray(words))


@contextmanager
def measured(stats: Stats | None) -> Iterator[Stats]:
    """Adds wall and compile seconds to `stats`, or to a new one."""
    stats = Stats() if stats is None else stats
    started = time.perf_counter()

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/") and "trace" not in event:
            stats.compile_seconds += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield stats
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
        stats.seconds += time.perf_counter() - started
