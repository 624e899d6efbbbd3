import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_jax.data import packing
from cai_jax.data.examples import Example
from cai_jax.errors import InputError
from cai_jax.models import transformer
from cai_jax.models.config import ModelConfig


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


documents = st.lists(
    st.tuples(st.integers(1, 12), st.integers(0, 2)).map(lambda drawn: (drawn[0], drawn[1] / 2)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(documents, st.integers(2, 12), st.sampled_from(["truncate", "drop"]), st.integers(0, 99))
def test_every_token_and_all_weight_is_in_a_row_or_counted_as_lost(drawn, length, on_long, seed):
    rng = np.random.default_rng(seed)
    given_ = [
        example(str(i), *rng.integers(1, 99, n).tolist(), weights=[0.0, *[weight] * (n - 1)])
        for i, (n, weight) in enumerate(drawn)
    ]
    fitted = packing.fit(given_, length, on_long)
    indices = packing.pack([len(e.ids) for e in fitted.examples], length)
    rows = packing.fill(fitted.examples, indices, len(indices), length)
    long = [e for e in given_ if len(e.ids) > length]
    assert (fitted.truncated, fitted.dropped)[on_long == "drop"] == len(long)
    assert len(fitted.examples) == len(given_) - fitted.dropped
    # Tokens: what was given, less what was cut off or left out.
    kept = {e.record_id: e.ids for e in given_}
    for e in long:
        kept[e.record_id] = e.ids[:length] if on_long == "truncate" else e.ids[:0]
    assert sorted(rows.tokens[rows.segments > 0]) == sorted(np.concatenate([*kept.values()]))
    # Weight: the first token of an example is predicted by nothing, and has none here.
    lost = [e.weights[length if on_long == "truncate" else 0 :] for e in long]
    total = sum(e.weights.sum() for e in given_) - sum(weights.sum() for weights in lost)
    assert rows.weights.sum() == pytest.approx(total)
    assert fitted.lost_tokens == sum(np.count_nonzero(weights) for weights in lost)


SHAPE = ModelConfig(
    vocab_size=16, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, hidden=16,
    tied_embeddings=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def hidden():
    """The model's hidden states [1, 16, D] of a packed row, as in training."""
    params = jax.jit(lambda key: transformer.init_params(SHAPE, key))(jax.random.key(0))
    compiled = jax.jit(
        lambda rows: transformer.forward(
            params, SHAPE, rows.tokens, positions=rows.positions, segments=rows.segments
        )[0]
    )
    return lambda rows: np.asarray(compiled(rows))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 8), min_size=2, max_size=6), st.integers(0, 99))
def test_no_document_attends_to_another(hidden, lengths, seed):
    rng = np.random.default_rng(seed)
    examples = [example(str(i), *rng.integers(1, 16, n).tolist()) for i, n in enumerate(lengths)]
    for row in packing.pack(lengths, 16):
        packed = packing.fill(examples, [row], 1, 16)
        states = hidden(packed)
        for segment, index in enumerate(row, start=1):
            own = packed.segments == segment
            # Every other token of the row is another one: nothing changes, to the last bit.
            others = (packed.tokens + rng.integers(1, 15, packed.tokens.shape)) % 16
            changed = packed._replace(tokens=np.where(own, packed.tokens, others).astype(np.int32))
            np.testing.assert_array_equal(hidden(changed)[own], states[own])
            # And the document by itself has the states that it has in the row.
            alone = hidden(packing.fill(examples, [[index]], 1, 16))[0, : lengths[index]]
            np.testing.assert_allclose(states[own], alone, atol=1e-5)


def test_a_model_that_ignores_segments_would_be_caught(hidden):
    """The test above can fail: with one segment for all, documents see each other."""
    examples = [example("a", 3, 4, 5), example("b", 6, 7)]
    packed = packing.fill(examples, [[0, 1]], 1, 16)
    one = packed._replace(segments=(packed.segments > 0).astype(np.int32))
    second = packed.segments == 2
    assert np.abs(hidden(one)[second] - hidden(packed)[second]).max() > 1e-3
