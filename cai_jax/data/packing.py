"""Several examples in one row, each for itself: no padding wasted, nothing seen across.

Rows are assigned before the first update, so that a schedule knows how many there will be, and
every example and every lost token is counted. (Of grain's packers, ConcatThenSplit cuts examples
where a row ends, and FirstFitPack knows neither the number of rows nor the records in them.)
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cai_jax.data.examples import Example
from cai_jax.errors import InputError

ON_LONG = ("truncate", "drop", "refuse")
OPEN_ROWS = 64  # rows that still take examples; more would fill them little better


class Rows(NamedTuple):
    """A batch of packed rows, R by T."""

    tokens: np.ndarray  # int32 [R, T]
    segments: np.ndarray  # int32 [R, T]: 1, 2, ... for the row's examples, 0 for padding
    positions: np.ndarray  # int32 [R, T]: from 0 in each example
    targets: np.ndarray  # int32 [R, T]: the next token of the same example
    weights: np.ndarray  # float32 [R, T]: of predicting `targets`; 0 at an example's last token


class Fitted(NamedTuple):
    """Examples that fit a row, and what was done to those that did not."""

    examples: list[Example]
    truncated: int  # examples cut at the row's length
    dropped: int  # examples left out
    lost_tokens: int  # trained tokens (weight > 0) that were cut off or left out


def check_on_long(on_long: str) -> None:
    """Refuses what is no word of ON_LONG."""
    if on_long not in ON_LONG:
        raise InputError(f"on_long: expected one of {', '.join(ON_LONG)}, found {on_long!r}")


def fit(examples: Sequence[Example], length: int, on_long: str) -> Fitted:
    """Truncates, drops or refuses the examples of more than `length` tokens, and counts them.

    Raises:
        InputError: `on_long` is "refuse" and there is such an example, or it is no known word.
    """
    check_on_long(on_long)
    kept: list[Example] = []
    truncated = dropped = lost = 0
    for example in examples:
        if len(example.ids) <= length:
            kept.append(example)
            continue
        if on_long == "refuse":
            raise InputError(
                f"record {example.record_id}: expected at most {length} tokens, found "
                f"{len(example.ids)}; raise sequence_length, or set on_long to truncate or drop"
            )
        if on_long == "drop":
            dropped += 1
            lost += int(np.count_nonzero(example.weights))
            continue
        truncated += 1
        lost += int(np.count_nonzero(example.weights[length:]))
        kept.append(Example(example.record_id, example.ids[:length], example.weights[:length]))
    return Fitted(kept, truncated, dropped, lost)


def pack(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Assigns examples to rows by first fit among the open ones, in the order given.

    Args:
        lengths: of the examples, each at most `row_length`.
        row_length: T.

    Returns:
        The indices of the examples in each row. Each index occurs once.
    """
    rows: list[list[int]] = []
    free = np.zeros(OPEN_ROWS, np.int64)  # space left in each open row
    row_at = np.zeros(OPEN_ROWS, np.int64)  # which row it is
    for index, length in enumerate(lengths):
        fits = free >= length
        place = int(fits.argmax())
        if not fits[place]:
            place = int(free.argmin())  # the fullest row is closed, a new one takes its place
            free[place], row_at[place] = row_length, len(rows)
            rows.append([])
        rows[row_at[place]].append(index)
        free[place] -= length
    return rows


def fill(
    examples: Sequence[Example] | Mapping[int, Example],
    rows: Sequence[Sequence[int]],
    num_rows: int,
    length: int,
) -> Rows:
    """Writes the examples of `rows` into arrays of R = `num_rows` rows of T = `length`.

    Rows that are not there are padding: they have no weight in the loss. Padding is token 0, which
    every model has; a padding token that was added to a tokenizer alone would be outside of it.
    """
    shape = (num_rows, length)
    tokens, targets, segments, positions = (np.zeros(shape, np.int32) for _ in range(4))
    weights = np.zeros(shape, np.float32)
    counting = np.arange(length, dtype=np.int32)
    for r, indices in enumerate(rows):
        start = 0
        for segment, index in enumerate(indices, start=1):
            _, ids, token_weights = examples[index]
            stop = start + len(ids)
            tokens[r, start:stop] = ids
            segments[r, start:stop] = segment
            positions[r, start:stop] = counting[: stop - start]
            targets[r, start : stop - 1] = ids[1:]
            weights[r, start : stop - 1] = token_weights[1:]
            start = stop
    return Rows(tokens, segments, positions, targets, weights)
