"""Shapes of batches, keys of records, and what is refused before anything is computed."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cai_jax.errors import InputError
from cai_jax.generation import batching

TOKENIZER = SimpleNamespace(bos_id=None, eos_id=1)


def test_buckets_are_a_coarse_grid():
    assert [batching.bucket(n) for n in (-1, 0, 1, 16, 17, 24, 25, 33, 48, 49, 97)] == [
        *(0, 0, 16, 16, 24, 24, 32, 48, 48, 64, 128)
    ]
    assert [batching.bucket(n, 4) for n in (1, 4, 5, 6, 7, 9)] == [4, 4, 6, 6, 8, 12]
    assert [batching.coarse_bucket(n) for n in (0, 1, 64, 65, 129, 193, 257)] == [
        *(0, 64, 64, 128, 192, 256, 384)
    ]
    assert [batching.coarse_bucket(n, 32) for n in (1, 33, 65, 129)] == [32, 64, 128, 192]
    for n in range(1, 2000):
        assert n <= batching.bucket(n) < max(1.5 * n, 17)


def test_rows_are_a_power_of_two_or_the_batch_size_and_divide_over_the_mesh():
    assert [batching.row_count(n, 128) for n in (0, 1, 2, 3, 100, 128, 1000)] == [
        *(1, 1, 2, 4, 128, 128, 128)
    ]
    assert batching.row_count(1000, 100) == 100
    mesh = SimpleNamespace(shape={"data": 2, "fsdp": 2, "tensor": 8})
    assert [batching.row_count(n, 6, mesh) for n in (1, 3, 9)] == [4, 4, 8]
    with pytest.raises(InputError, match="batch_size: expected at least 1, found 0"):
        batching.row_count(5, 0)


def test_every_item_is_in_one_batch_longest_first():
    lengths = [3, 9, 1, 9, 4]
    assert list(batching.batches(lengths, 2)) == [[1, 3], [4, 0], [2]]
    assert list(batching.batches([], 2)) == []


def test_prompts_are_padded_on_the_left():
    tokens, mask = batching.pad_left([[5], [6, 7, 8]], 3)
    assert tokens.shape == mask.shape == (3, 17)
    assert tokens[:, -3:].tolist() == [[0, 0, 5], [6, 7, 8], [6, 7, 8]]
    assert mask[:, -3:].tolist() == [[0, 0, 1], [1, 1, 1], [1, 1, 1]]
    assert not tokens[:, :-3].any()
    assert not mask[:, :-3].any()
    assert batching.pad_left([[5], [6]], 2)[0].tolist() == [[5], [6]]


def test_a_record_has_its_key_whatever_stands_beside_it():
    key = jax.random.key(3)
    ids = [0, 1, "a", 1 << 32, 1 | 2 << 32, "b", 7]
    keys = batching.record_keys(key, ids)
    assert len({tuple(k) for k in keys}) == len(ids)
    assert np.array_equal(batching.record_keys(key, ids[::-1]), keys[::-1])
    assert np.array_equal(batching.record_keys(key, ["b"])[0], keys[5])
    expected = jax.random.fold_in(jax.random.fold_in(key, 1), 2)
    assert np.array_equal(keys[4], jax.random.key_data(expected))
    other = batching.record_keys(jax.random.key(4), ids)
    assert not {tuple(k) for k in keys} & {tuple(k) for k in other}
    assert len(batching.record_keys(key, [])) == 0


def test_an_empty_prompt_begins_with_what_begins_a_text():
    begins = SimpleNamespace(bos_id=2, eos_id=1)
    assert batching.with_start([], begins, "p") == [2]
    assert batching.with_start([], TOKENIZER, "p") == [1]
    assert batching.with_start([5], begins, "p") == [5]
    with pytest.raises(InputError, match="^p: expected a prompt, found an empty one"):
        batching.with_start([], SimpleNamespace(eos_id=None), "p")


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        (
            [[1], [1] * 7],
            {},
            r"^b: expected a prompt of at most 6 tokens \(10 positions less 4 x\)",
        ),
        ([[1], [40]], {}, "^b: expected tokens of the model's vocabulary of 40, found 40"),
        ([[-1], [1]], {}, "^a: expected tokens of the model's vocabulary of 40, found -1"),
        ([[1], [1]], {"score_head": {}}, "^expected a language model, found a preference model"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused(prompts, params, message):
    config = SimpleNamespace(vocab_size=40, max_positions=10)
    model = SimpleNamespace(config=config, params=params, tokenizer=TOKENIZER)
    with pytest.raises(InputError, match=message):
        batching.checked_prompts(model, prompts, [4, 4], "x", ["a", "b"])


def test_prompts_that_just_fit_pass():
    config = SimpleNamespace(vocab_size=40, max_positions=10)
    model = SimpleNamespace(config=config, params={}, tokenizer=TOKENIZER)
    prompts = [[39] * 6, [], [0]]
    assert batching.checked_prompts(model, prompts, [4, 9, 9], "x") == [[39] * 6, [1], [0]]
