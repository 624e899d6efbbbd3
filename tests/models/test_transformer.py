"""The transformer against torch, in every family: log-probabilities, padding, packing, cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import torch
from jax import lax

from cai_jax.models import layers, transformer, weights
from cai_jax.models.cache import init_cache
from cai_jax.models.config import ModelConfig

B, T, VOCABULARY = 2, 11, 71


class Case:
    """A model here and in torch, and what both say of tokens."""

    def __init__(self, folder, kind, shape):
        self.module = tiny_models.write_family(folder, kind, **shape)
        config, self.params = weights.read_folder(folder)
        # One compiled layer, which is told which one it is.
        self.config = dataclasses.replace(config, scan_unroll=1)

    def logits(self, tokens, positions=None, segments=None):
        """[B, T, V] by one compiled program for all tests."""
        if positions is None:
            positions = np.tile(np.arange(tokens.shape[1]), (len(tokens), 1))
        if segments is None:
            segments = np.ones_like(tokens)
        arrays = (np.asarray(array, np.int32) for array in (tokens, positions, segments))
        return np.asarray(full_logits(self.params, self.config, *arrays))

    def torch_logits(self, tokens):
        with torch.no_grad():
            return self.module(torch.tensor(np.atleast_2d(tokens))).logits.numpy()


@functools.partial(jax.jit, static_argnames="config")
def full_logits(params, config, tokens, positions, segments):
    hidden, cache = transformer.forward(
        params, config, tokens, positions=positions, segments=segments
    )
    assert cache is None
    return transformer.logits(params, config, hidden)


@functools.partial(jax.jit, static_argnames=("config", "prefill"))
def cached_logits(params, config, tokens, positions, segments, prefill):
    """The same by a prefill of some tokens, and then one token at a time."""
    cache = init_cache(config, tokens.shape[0], tokens.shape[1] + 3)
    hidden, cache = transformer.forward(
        params,
        config,
        tokens[:, :prefill],
        positions=positions[:, :prefill],
        segments=segments[:, :prefill],
        cache=cache,
    )

    def step(cache, column):
        token, position, segment = (array[:, None] for array in column)
        one, cache = transformer.forward(
            params, config, token, positions=position, segments=segment, cache=cache
        )
        return cache, one[:, 0]

    rest = tuple(array[:, prefill:].T for array in (tokens, positions, segments))
    cache, more = lax.scan(step, cache, rest)
    hidden = jnp.concatenate([hidden, jnp.swapaxes(more, 0, 1)], axis=1)
    return transformer.logits(params, config, hidden), cache.length


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    highest = logits.max(axis=-1, keepdims=True)
    return logits - highest - np.log(np.exp(logits - highest).sum(axis=-1, keepdims=True))


@pytest.fixture(scope="module", params=tiny_models.CASES.values(), ids=tiny_models.CASES)
def case(request, tmp_path_factory):
    return Case(tmp_path_factory.mktemp("case"), *request.param)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(3, VOCABULARY, (B, T))


def test_log_probabilities_are_those_of_torch(case, tokens):
    ours, theirs = log_softmax(case.logits(tokens)), log_softmax(case.torch_logits(tokens))
    assert np.abs(ours - theirs).max() < 1e-4
    # The comparison means something: predictions differ between positions and are not flat.
    assert ours.std(axis=-1).min() > 0.3
    assert np.abs(ours[:, 1:] - ours[:, :-1]).max() > 1


def test_prefill_and_cached_decoding_are_the_full_forward(case, tokens):
    # Row 0 fills all columns; row 1 has three of padding on its left.
    segments = np.ones_like(tokens)
    segments[1, :3] = 0
    positions = np.maximum(np.cumsum(segments, axis=1) - 1, 0)
    arrays = (np.asarray(array, np.int32) for array in (tokens, positions, segments))
    cached, length = cached_logits(case.params, case.config, *arrays, prefill=5)
    assert length == T
    assert np.allclose(cached[0], case.torch_logits(tokens)[0], atol=1e-4)
    assert np.allclose(cached[1, 3:], case.torch_logits(tokens[1, 3:])[0], atol=1e-4)


def test_padding_on_either_side_changes_nothing(case, tokens):
    row = tokens[0, :7]
    expected = case.torch_logits(row)[0]
    batch = np.zeros((B, T), int)
    batch[0, -7:], batch[1, :7] = row, row
    segments = (batch > 0).astype(int)
    positions = np.maximum(np.cumsum(segments, axis=1) - 1, 0)
    logits = case.logits(batch, positions, segments)
    assert np.abs(logits[0, -7:] - expected).max() < 1e-4
    assert np.abs(logits[1, :7] - expected).max() < 1e-4
    assert np.isfinite(logits).all()
    # What the padding holds is not read.
    batch[0, :-7], batch[1, 7:] = 9, 9
    other = case.logits(batch, positions, segments)
    assert np.array_equal(other[0, -7:], logits[0, -7:])
    assert np.array_equal(other[1, :7], logits[1, :7])


def test_packed_sequences_do_not_see_each_other(case, tokens):
    row = tokens[0]
    segments = np.tile([1] * 4 + [2] * 5 + [0] * 2, (B, 1))
    positions = np.tile([*range(4), *range(5), 0, 1], (B, 1))
    other = row.copy()
    other[:4] = (row[:4] - 3 + 17) % (VOCABULARY - 3) + 3
    assert (other[:4] != row[:4]).all()
    logits = case.logits(np.stack([row, other]), positions, segments)
    assert np.array_equal(logits[0, 4:9], logits[1, 4:9])
    assert np.abs(logits[0, :4] - logits[1, :4]).max() > 0.1
    assert np.abs(logits[0, :4] - case.torch_logits(row[:4])[0]).max() < 1e-4
    assert np.abs(logits[0, 4:9] - case.torch_logits(row[4:9])[0]).max() < 1e-4
    if case.config.learned_positions:
        return
    # Only differences of positions matter, so they may count through.
    through = case.logits(np.stack([row, other]), segments=segments)
    assert np.abs(through[:, :9] - logits[:, :9]).max() < 1e-4


def test_a_token_does_not_see_later_ones(case, tokens):
    changed = tokens.copy()
    changed[:, 6] = (tokens[:, 6] - 3 + 5) % (VOCABULARY - 3) + 3
    before, after = case.logits(tokens), case.logits(changed)
    assert np.array_equal(before[:, :6], after[:, :6])
    assert (np.abs(before[:, 6:] - after[:, 6:]).max(axis=-1) > 1e-3).all()


TINY = ModelConfig(
    vocab_size=VOCABULARY, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, hidden=24
)


@pytest.fixture(scope="module")
def tiny_params():
    return jax.jit(lambda key: transformer.init_params(TINY, key))(jax.random.key(0))


def test_defaults_are_one_document_from_position_zero(tokens, tiny_params):
    ones, counted = np.ones_like(tokens), np.tile(np.arange(T), (B, 1))
    both = jax.jit(
        lambda tokens: (
            transformer.forward(tiny_params, TINY, tokens)[0],
            transformer.forward(tiny_params, TINY, tokens, positions=counted, segments=ones)[0],
        )
    )(tokens)
    assert np.array_equal(*both)


def test_bfloat16_computes_in_it_and_gives_float32_logits(tokens, tiny_params):
    half = ModelConfig(**{**vars(TINY), "dtype": "bfloat16"})
    abstract = jax.eval_shape(lambda key: transformer.init_params(half, key), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {jnp.dtype("float32")}

    def run(params):
        cache = init_cache(half, B, T)
        hidden, cache = transformer.forward(params, half, tokens, cache=cache)
        return hidden, cache, transformer.logits(params, half, hidden)

    hidden, cache, logits = jax.eval_shape(run, abstract)
    assert (hidden.dtype, cache.keys.dtype, cache.values.dtype) == (jnp.bfloat16,) * 3
    assert logits.dtype == jnp.float32
    coarse = log_softmax(jax.jit(run)(tiny_params)[2])
    exact = log_softmax(
        full_logits(tiny_params, TINY, *(tokens, np.tile(np.arange(T), (B, 1)), tokens > 0))
    )
    assert 0 < np.abs(coarse - exact).max() < 0.05


def test_layers_are_computed_one_by_one_where_a_loop_copies_them(monkeypatch):
    for backend, devices, one_by_one in (
        ("cpu", 8, True),
        ("gpu", 1, True),
        ("gpu", 8, False),
        ("tpu", 1, False),
    ):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        monkeypatch.setattr(jax, "device_count", lambda devices=devices: devices)
        assert transformer.unrolls(TINY) == one_by_one, (backend, devices)
        assert not transformer.unrolls(dataclasses.replace(TINY, scan_unroll=1))


def test_remat_and_unrolling_change_no_gradient(tokens, tiny_params):

    def loss(params, config):
        hidden, _ = transformer.forward(params, config, tokens)
        return jnp.mean(jax.nn.logsumexp(transformer.logits(params, config, hidden), axis=-1))

    def gradient(**options):
        config = ModelConfig(**{**vars(TINY), **options})
        return tiny_models.leaves(jax.jit(jax.grad(loss), static_argnums=1)(tiny_params, config))

    plain = gradient(remat="none", scan_unroll=2)
    lean = gradient(remat="layer", scan_unroll=1)
    assert plain.keys() == lean.keys()
    for name, leaf in plain.items():
        assert np.allclose(leaf, lean[name], rtol=1e-4, atol=1e-7), name
        assert np.abs(leaf).max() > 0, name


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_last_positions_alone_are_those_of_all(family, tokens, tiny_params, tmp_path):
    """States and gradients, of rows that are padded on the left, with windows and caps too."""
    config, params = TINY, tiny_params
    if family == "gemma2":
        kind, shape = tiny_models.CASES["gemma2: caps, every other layer windowed"]
        tiny_models.write_family(tmp_path, kind, **shape)
        config, params = weights.read_folder(tmp_path)
    segments = np.ones_like(tokens)
    segments[1, :3] = 0
    positions = np.maximum(np.cumsum(segments, axis=1) - 1, 0)

    @functools.partial(jax.jit, static_argnames="last")
    @functools.partial(jax.value_and_grad, has_aux=True)
    def of(params, last):
        hidden, _ = transformer.forward(
            params, config, tokens, positions=positions, segments=segments, last=last
        )
        return jnp.sum(jnp.sin(hidden[:, -5:])), hidden

    (_, whole), gradients = of(params, None)
    (_, some), of_some = of(params, 5)
    assert some.shape == (B, 5, config.width)
    assert np.allclose(some, whole[:, -5:], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), of_some, gradients)


@pytest.mark.parametrize("vocabulary", [7, layers.ONE_HOT_VOCABULARY + 1])
def test_the_gradient_of_the_embedding_sums_over_equal_tokens(vocabulary):
    tokens = np.array([[3, 0, 3], [6, 3, 6]])
    gradient = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
    table = jnp.ones((vocabulary, 4))
    _, backward = jax.vjp(lambda table: layers.lookup(table, tokens), table)
    expected = np.zeros((vocabulary, 4), np.float32)
    np.add.at(expected, tokens.reshape(-1), gradient.reshape(-1, 4))
    assert np.allclose(backward(gradient)[0], expected, atol=1e-6)


def test_initial_weights_have_the_scales_that_training_starts_from():
    config = ModelConfig(
        vocab_size=512,
        width=64,
        layers=3,
        heads=4,
        kv_heads=2,
        head_dim=16,
        hidden=128,
        tied_embeddings=False,
    )
    params = tiny_models.leaves(
        jax.jit(lambda key: transformer.init_params(config, key))(jax.random.key(0))
    )
    # Fan-in scaling (queries, keys and values start smaller by H^0.5, so that attention starts
    # near uniform); the 2 L outputs to the residual stream share a variance of one.
    expected = {
        "/embedder/embedding": 64**-0.5,
        "/layers/attention/query": (64 * 16) ** -0.5,
        "/layers/attention/key": (64 * 16) ** -0.5,
        "/layers/attention/value": (64 * 16) ** -0.5,
        "/layers/attention/out": (2 * 3 * 64) ** -0.5,
        "/layers/mlp/gate": 64**-0.5,
        "/layers/mlp/up": 64**-0.5,
        "/layers/mlp/down": (2 * 3 * 128) ** -0.5,
        "/unembedder/kernel": 64**-0.5,
    }
    norms = {"/layers/attention_norm/scale", "/layers/mlp_norm/scale", "/final_norm/scale"}
    assert params.keys() == expected.keys() | norms
    for name, deviation in expected.items():
        assert params[name].std() == pytest.approx(deviation, rel=0.04), name
        assert abs(params[name].mean()) < 0.05 * deviation, name
    assert all((params[name] == 1).all() for name in norms)
    # Layers are drawn apart.
    gates = np.asarray(params["/layers/mlp/gate"]).reshape(3, -1)
    assert np.abs(np.corrcoef(gates) - np.eye(3)).max() < 0.05


def test_a_score_head_is_zero_or_of_unit_variance():
    params = {"embedder": {}}
    zeros = transformer.add_score_head(params, TINY)["score_head"]["kernel"]
    assert zeros.shape == (16,)
    assert not zeros.any()
    wide = ModelConfig(**{**vars(TINY), "width": 4096})
    drawn = transformer.add_score_head(params, wide, jax.random.key(0))["score_head"]["kernel"]
    assert drawn.std() == pytest.approx(4096**-0.5, rel=0.03)
    assert "score_head" not in params
