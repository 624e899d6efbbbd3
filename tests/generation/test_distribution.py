"""The draw of one token, against exact distributions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import truncated_softmax

from cai_jax.errors import InputError
from cai_jax.generation.distribution import Filter, draw, invert_cumulative, mode_of, uniforms
from cai_jax.generation.settings import SamplingSettings

GRID = 1 << 14  # uniform numbers at the middle of as many cells: frequencies exact to one cell
LOGITS = np.array([0.3, -1.0, 2.0, 1.1, 2.0, -3.0, 0.9], np.float32)  # with a tie at the top

drawn = functools.partial(jax.jit, static_argnames="mode")(draw)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [(0, 1.0), (1, 1.0), (3, 1.0), (4, 1.0), (99, 1.0), (0, 0.01), (0, 0.6), (0, 0.9), (5, 0.7)],
)
def test_frequencies_and_log_probabilities_are_exact(temperature, top_k, top_p):
    mode = mode_of(temperature, top_k, top_p)
    assert mode == ("sample" if (top_k, top_p) == (0, 1.0) else "filter")
    logits = np.tile(LOGITS, (GRID, 1))
    grid = ((np.arange(GRID) + 0.5) / GRID).astype(np.float32)
    filters = Filter(jnp.float32(temperature), jnp.int32(top_k or 7), jnp.float32(top_p))
    tokens, logprobs, tempered = map(np.asarray, drawn(logits, grid, filters, mode=mode))

    expected = truncated_softmax(LOGITS, temperature, top_k, top_p)
    frequencies = np.bincount(tokens, minlength=7) / GRID
    assert np.abs(frequencies - expected).max() < 1.5 / GRID
    assert np.abs(tempered - np.log(expected[tokens])).max() < 1e-5
    assert np.abs(logprobs - np.log(truncated_softmax(LOGITS, 1, 0, 1.0)[tokens])).max() < 1e-5


def test_rows_have_settings_of_their_own_and_min_p_keeps_the_near():
    kinds = [(1.0, 0, 1.0, 0.3), (2.0, 5, 1.0, 0.4), (0.5, 0, 0.9, 0.0), (1.0, 7, 1.0, 0.0)]
    count = GRID // 4
    columns = [np.repeat(column, count) for column in zip(*kinds)]
    columns[1] = np.where(columns[1] == 0, 7, columns[1]).astype(np.int32)
    filters = Filter(
        *(np.asarray(c, np.int32 if c.dtype.kind == "i" else np.float32) for c in columns)
    )
    grid = np.tile((np.arange(count) + 0.5) / count, 4).astype(np.float32)
    tokens, _, tempered = map(
        np.asarray, drawn(np.tile(LOGITS, (GRID, 1)), grid, filters, mode="filter")
    )
    for number, (temperature, top_k, top_p, min_p) in enumerate(kinds):
        expected = truncated_softmax(LOGITS, temperature, top_k, top_p)
        expected = np.where(expected >= min_p * expected.max(), expected, 0)
        expected /= expected.sum()
        part = slice(number * count, (number + 1) * count)
        frequencies = np.bincount(tokens[part], minlength=7) / count
        assert np.abs(frequencies - expected).max() < 1.5 / count
        assert np.abs(tempered[part] - np.log(expected[tokens[part]])).max() < 1e-5
    assert mode_of(1.0, 0, 1.0, 0.3) == "filter"
    # Tokens 0, 1 and 5 lie below 0.3 of the best.
    assert set(tokens[:count]) == {2, 3, 4, 6}


def test_a_row_goes_on_with_its_own_number():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.arange(3))
    whole = np.asarray(jax.jit(uniforms, static_argnums=1)(keys, 30))
    later = np.asarray(uniforms(keys, 4, jnp.array([0, 7, 26])))
    assert np.array_equal(later, [whole[0, :4], whole[1, 7:11], whole[2, 26:]])


def test_samples_of_keys_pass_a_chi_square_test():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.arange(5000))
    numbers = np.asarray(jax.jit(uniforms, static_argnums=1)(keys, 4))
    assert 0 <= numbers.min() < numbers.max() < 1
    filters = Filter(jnp.float32(1.0), jnp.int32(7), jnp.float32(1.0))
    flat = numbers.reshape(-1)[:GRID]
    tokens = np.asarray(drawn(np.tile(LOGITS, (GRID, 1)), flat, filters, mode="sample").token)
    expected = GRID * truncated_softmax(LOGITS, 1.0, 0, 1.0)
    statistic = ((np.bincount(tokens, minlength=7) - expected) ** 2 / expected).sum()
    assert statistic < 22.5  # the 0.999 quantile of chi-square with 6 degrees of freedom
    # No row and no token repeats or follows another.
    assert len(np.unique(numbers)) > 0.99 * numbers.size
    correlations = np.corrcoef(numbers.T) - np.eye(4)
    assert np.abs(correlations).max() < 4 / 5000**0.5
    # Number t depends on the key and t alone.
    assert np.array_equal(numbers[7:9, :2], jax.jit(uniforms, static_argnums=1)(keys[7:9], 2))


def test_greedy_takes_the_first_of_equals_in_a_batch_with_sampled_rows():
    logits = np.tile(LOGITS, (3, 1))
    filters = Filter(jnp.array([0.0, 1.0, 0.0]), jnp.int32(7), jnp.float32(1.0))
    result = draw(logits, np.array([0.999, 0.999, 0.0], np.float32), filters, "sample")
    assert result.token.tolist() == [2, 6, 2]
    assert result.tempered[0] == result.tempered[2] == 0
    expected = np.log(truncated_softmax(LOGITS, 1.0, 0, 1.0))
    assert np.allclose(result.logprob, expected[[2, 6, 2]], atol=1e-6)
    greedy = draw(logits, np.zeros(3, np.float32), filters, "greedy")
    assert greedy.token.tolist() == [2, 2, 2]
    assert np.allclose(greedy.logprob, expected[2], atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-4, 1e-38, 1e-44])
def test_a_temperature_near_zero_is_greedy(temperature):
    logits = np.array([[1.0, 3.0, 2.0, 2.9]], np.float32)
    filters = Filter(jnp.float32(temperature), jnp.int32(4), jnp.float32(1.0))
    for mode in ("sample", "filter"):
        result = draw(logits, np.array([0.99], np.float32), filters, mode)
        assert result.token.tolist() == [1]
        assert result.tempered.tolist() == [0.0]


@pytest.mark.parametrize("vocabulary", [1, 31, 32, 33, 100])
def test_the_inverse_is_numpys_at_every_size(vocabulary):
    rng = np.random.default_rng(vocabulary)
    weights = rng.random((50, vocabulary), np.float32)
    weights[:, rng.random(vocabulary) < 0.4] = 0
    weights[:, rng.integers(vocabulary)] = 0.5
    numbers = rng.random(50, np.float32)
    cumulative = np.cumsum(weights.astype(np.float64), axis=1)
    expected = (cumulative > (numbers * cumulative[:, -1])[:, None]).argmax(axis=1)
    assert np.array_equal(invert_cumulative(weights, numbers), expected)


def test_a_weight_of_zero_is_never_drawn():
    weights = np.zeros((4, 70), np.float32)
    weights[:, [3, 40]] = [[0.1, 0.2]]
    edges = np.array([0.0, 1 / 3 - 1e-3, 1 / 3 + 1e-3, 1 - 2**-24], np.float32)
    assert invert_cumulative(weights, edges).tolist() == [3, 3, 40, 40]


def test_a_vocabulary_of_a_real_model_is_drawn_from_evenly():
    vocabulary = 128_256
    logits = np.zeros((64, vocabulary), np.float32)
    filters = Filter(jnp.float32(1.0), jnp.int32(vocabulary), jnp.float32(1.0))
    grid = ((np.arange(64) + 0.5) / 64).astype(np.float32)
    result = draw(logits, grid, filters, "sample")
    assert np.abs(np.asarray(result.token) - grid * vocabulary).max() <= 1
    assert np.allclose(result.logprob, -np.log(vocabulary), atol=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("min_p", -0.1),
        ("min_p", float("nan")),
        ("stop", ("a", "")),
    ],
)
def test_settings_that_mean_nothing_are_refused(field, value):
    with pytest.raises(InputError, match=f"^{field}: expected "):
        SamplingSettings(**{field: value})
