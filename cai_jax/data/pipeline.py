"""The batches of a training step: a seeded order, and exact resume.

`grain` carries the position. Its iterator's state is a number of batches and the order is made from
the seed, so that a stream that is stopped anywhere and set to its saved state goes on as it would
have done. No worker processes: records are in memory or in ArrayRecord files, and a batch is filled
while the devices work on the one before.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any

import numpy as np

if typing.TYPE_CHECKING:
    import grain

PADDING = -1  # in the place of a record where the last batch is not full


def shuffled(num_records: int, epochs: int, rng: np.random.Generator) -> np.ndarray:
    """The order of all epochs, one after the other without a gap, each with its own permutation.

    Returns:
        int64 [epochs * num_records]: every record's index, once an epoch.
    """
    return np.concatenate([rng.permutation(num_records) for _ in range(epochs)])


def batches(records: Sequence[Any], order: np.ndarray, batch_size: int) -> grain.MapDataset:
    """The records of each batch, as a `grain.MapDataset` of lists; `map` goes on from there.

    The last batch may have fewer records.

    Args:
        records: anything with a length and items: a list, or what `tfds.data_source` gives.
        order: indices of records, as `shuffled` gives them.
        batch_size: records in a batch, on all hosts together.
    """
    import grain

    padded = np.full((-(-len(order) // batch_size), batch_size), PADDING, np.int64)
    padded.reshape(-1)[: len(order)] = order

    def read(indices: np.ndarray) -> list[Any]:
        wanted = [int(i) for i in indices if i != PADDING]
        # One call for a batch where the records are in files.
        at_once = getattr(records, "__getitems__", None)
        return list(at_once(wanted)) if at_once and wanted else [records[i] for i in wanted]

    return grain.MapDataset.source(padded).map(read)


def iterate(dataset: grain.MapDataset) -> grain.DatasetIterator:
    """An iterator with `get_state()` and `set_state(state)`, in the calling thread."""
    import grain

    reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(dataset.to_iter_dataset(reading))
