import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_jax.data import packing
from cai_jax.data.examples import Example
from cai_jax.errors import InputError


def example(name: str, *ids: int, weights: list[float] | None = None) -> Example:
    weights = [1.0] * len(ids) if weights is None else weights
    return Example(name, np.array(ids, np.int32), np.array(weights, np.float32))


def test_two_examples_in_a_row_are_written_as_here():
    examples = [example("a", 5, 6, 7, weights=[0, 0, 1]), example("b", 8, 9, weights=[0, 0.5])]
    rows = packing.fill(examples, [[1, 0]], num_rows=2, length=6)
    assert rows.tokens.tolist() == [[8, 9, 5, 6, 7, 0], [0] * 6]
    assert rows.segments.tolist() == [[1, 1, 2, 2, 2, 0], [0] * 6]
    assert rows.positions.tolist() == [[0, 1, 0, 1, 2, 0], [0] * 6]
    assert rows.targets.tolist() == [[9, 0, 6, 7, 0, 0], [0] * 6]
    assert rows.weights.tolist() == [[0.5, 0, 0, 1, 0, 0], [0] * 6]


lengths_and_row = st.integers(1, 40).flatmap(
    lambda row: st.tuples(st.lists(st.integers(1, row), max_size=300), st.just(row))
)


@settings(max_examples=60, deadline=None)
@given(lengths_and_row)
def test_every_example_is_in_one_row_and_no_row_is_overfull(drawn):
    lengths, row_length = drawn
    rows = packing.pack(lengths, row_length)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= row_length for row in rows)


@pytest.mark.parametrize(("shortest", "longest"), [(10, 100), (30, 60), (1, 30)])
def test_little_more_is_wasted_than_by_first_fit_over_all_rows(shortest, longest):
    lengths = np.random.default_rng(1).integers(shortest, longest, 2000).tolist()
    free: list[int] = []
    for length in lengths:
        place = next((r for r, space in enumerate(free) if space >= length), len(free))
        if place == len(free):
            free.append(160)
        free[place] -= length
    assert len(packing.pack(lengths, 160)) <= 1.03 * len(free)


@settings(max_examples=30, deadline=None)
@given(lengths_and_row, st.integers(0, 3))
def test_what_is_filled_in_is_what_a_slow_reader_finds(drawn, more_rows):
    lengths, row_length = drawn
    rng = np.random.default_rng(len(lengths))
    examples = [
        example(str(i), *rng.integers(1, 99, n).tolist(), weights=rng.integers(0, 3, n).tolist())
        for i, n in enumerate(lengths)
    ]
    indices = packing.pack(lengths, row_length)
    rows = packing.fill(examples, indices, len(indices) + more_rows, row_length)

    found = []
    for r in range(len(indices) + more_rows):
        for segment in range(1, rows.segments[r].max(initial=0) + 1):
            at = [t for t in range(row_length) if rows.segments[r, t] == segment]
            assert at == list(range(at[0], at[0] + len(at)))
            assert [rows.positions[r, t] for t in at] == list(range(len(at)))
            found.append(tuple(rows.tokens[r, t] for t in at))
            ids = examples[indices[r][segment - 1]]
            for k, t in enumerate(at):
                last = k == len(at) - 1
                assert rows.weights[r, t] == (0 if last else ids.weights[k + 1])
                assert last or rows.targets[r, t] == rows.tokens[r, t + 1]
    assert sorted(found) == sorted(tuple(e.ids) for e in examples)
    assert not rows.weights[rows.segments == 0].any()
    assert not rows.tokens[rows.segments == 0].any()


LONG = [
    example("short", 1, 2, weights=[0, 1]),
    example("long", 1, 2, 3, 4, 5, 6, weights=[0, 0, 1, 1, 0, 1]),
    example("exact", 1, 2, 3, 4),
]


def test_long_examples_are_cut_and_counted():
    fitted = packing.fit(LONG, 4, "truncate")
    assert [e.ids.tolist() for e in fitted.examples] == [[1, 2], [1, 2, 3, 4], [1, 2, 3, 4]]
    assert fitted.examples[1].weights.tolist() == [0, 0, 1, 1]
    assert (fitted.truncated, fitted.dropped, fitted.lost_tokens) == (1, 0, 1)


def test_long_examples_are_dropped_and_counted():
    fitted = packing.fit(LONG, 4, "drop")
    assert [e.record_id for e in fitted.examples] == ["short", "exact"]
    assert (fitted.truncated, fitted.dropped, fitted.lost_tokens) == (0, 1, 3)


def test_long_examples_are_refused_by_name():
    with pytest.raises(InputError, match="record long: expected at most 4 tokens, found 6"):
        packing.fit(LONG, 4, "refuse")
    assert packing.fit(LONG, 6, "refuse") == packing.Fitted(LONG, 0, 0, 0)
    with pytest.raises(InputError, match="expected one of truncate, drop, refuse, found 'cut'"):
        packing.fit(LONG, 6, "cut")
