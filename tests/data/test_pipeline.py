import itertools
import json
import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_jax.data import packing, pipeline
from cai_jax.data.examples import Example

LETTERS = list("abcdefg")


def order(records, epochs, seed=0):
    return pipeline.shuffled(len(records), epochs, np.random.default_rng(seed))


def stream(records, epochs, size, seed=0):
    return pipeline.batches(records, order(records, epochs, seed), size)


def lists(dataset):
    return list(pipeline.iterate(dataset))


def test_every_epoch_has_every_record_once_in_an_order_of_its_own():
    found = lists(stream(LETTERS, 3, 4))
    assert [len(batch) for batch in found] == [4, 4, 4, 4, 4, 1]  # no gap between epochs
    flat = list(itertools.chain(*found))
    epochs = [flat[first : first + 7] for first in (0, 7, 14)]
    assert [sorted(epoch) for epoch in epochs] == [LETTERS] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_is_that_of_numpy_and_of_the_seed():
    """What a loop over permutations gives; and so the batches of earlier versions, bit for bit."""
    rng = np.random.default_rng(5)
    expected = [LETTERS[i] for _ in range(2) for i in rng.permutation(7)]
    assert list(itertools.chain(*lists(stream(LETTERS, 2, 3, seed=5)))) == expected
    assert lists(stream(LETTERS, 2, 3, seed=5)) == lists(stream(LETTERS, 2, 3, seed=5))
    assert lists(stream(LETTERS, 2, 3, seed=5)) != lists(stream(LETTERS, 2, 3, seed=6))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 5), st.integers(0, 99))
def test_a_stream_goes_on_from_every_position_as_if_it_had_not_been_stopped(n, epochs, size, seed):
    undisturbed = lists(stream(range(n), epochs, size, seed))
    iterator = pipeline.iterate(stream(range(n), epochs, size, seed))
    for position in range(len(undisturbed) + 1):
        saved = json.dumps(iterator.get_state())  # as a checkpoint has it
        continued = pipeline.iterate(stream(range(n), epochs, size, seed))
        continued.set_state(json.loads(saved))
        assert list(continued) == undisturbed[position:]
        assert continued.get_state() == {"next_index": len(undisturbed)}
        next(iterator, None)


def test_packed_rows_go_on_exactly_too():
    rng = np.random.default_rng(0)
    examples = [
        Example(str(i), rng.integers(1, 99, n).astype(np.int32), np.ones(n, np.float32))
        for i, n in enumerate(rng.integers(1, 9, 40))
    ]
    rows = packing.pack([len(example.ids) for example in examples], 12)

    def packed():
        dataset = pipeline.batches(rows, order(rows, 2), 3)
        return pipeline.iterate(dataset.map(lambda row: packing.fill(examples, row, 3, 12)))

    undisturbed = list(packed())
    # No token is lost, and none comes twice in an epoch.
    tokens = np.concatenate([batch.tokens[batch.segments > 0] for batch in undisturbed])
    assert sorted(tokens) == sorted(2 * [i for example in examples for i in example.ids])
    iterator = packed()
    for position in range(len(undisturbed)):
        continued = packed()
        continued.set_state(iterator.get_state())
        for found, expected in zip(continued, undisturbed[position:], strict=True):
            for name, array in expected._asdict().items():
                np.testing.assert_array_equal(getattr(found, name), array)
        next(iterator)


class InFiles:
    """A source that counts how it is read, as ArrayRecord files are."""

    def __init__(self):
        self.calls = []

    def __len__(self):
        return 5

    def __getitem__(self, index):
        raise AssertionError("one at a time")

    def __getitems__(self, indices):
        self.calls.append(indices)
        return [f"record {i}" for i in indices]


def test_records_in_files_are_read_a_batch_at_a_time_when_it_is_wanted():
    source = InFiles()
    iterator = pipeline.iterate(pipeline.batches(source, np.array([4, 0, 3, 1, 2]), 2))
    assert source.calls == []
    assert next(iterator) == ["record 4", "record 0"]
    assert source.calls == [[4, 0]]
    assert list(iterator) == [["record 3", "record 1"], ["record 2"]]
    assert source.calls == [[4, 0], [3, 1], [2]]


def test_no_process_and_no_thread_is_started():
    script = (
        "import threading, multiprocessing, numpy as np\n"
        "from cai_jax.data import pipeline\n"
        "it = pipeline.iterate(pipeline.batches(list(range(9)), np.arange(9), 2))\n"
        "next(it); before = threading.active_count()\n"
        "assert len(list(it)) == 4\n"
        "print(before, threading.active_count(), len(multiprocessing.active_children()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["1", "1", "0"], done.stderr
