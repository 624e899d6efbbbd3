"""The platforms' kernels against the plain path, in Pallas's interpreter, and compiled ahead."""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from ml_collections import ConfigDict

from cai_jax.core import mesh as meshes
from cai_jax.core import sharding, topology
from cai_jax.models import attention_kernels, transformer
from cai_jax.models.cache import init_cache
from cai_jax.models.config import ModelConfig

B, T = 2, 200  # no multiple of 128
LLAMA = ModelConfig(
    vocab_size=32, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=16, scan_unroll=1
)
CASES = {
    "causal": {"layers": 1},
    "windows": {"layers": 1, "window": 37, "windowed_layers": (0,)},
    "mixed_windows_and_soft_cap": {
        "window": 37,
        "windowed_layers": (1,),
        "attention_soft_cap": 0.2,
        "query_scalar": 0.5,
    },
}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    make = functools.partial(splash_attention_kernel.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mha", make)
    # The programs here are of one device, unless they are told a mesh.
    monkeypatch.setattr(jax, "device_count", lambda: 1)


@pytest.fixture(scope="module")
def packed():
    """Rows of several documents, positions in each, and padding at the end."""
    lengths = [[61, 102, 30], [150, 9, 41]]
    segments = np.zeros((B, T), np.int32)
    positions = np.zeros((B, T), np.int32)
    for row, of_row in enumerate(lengths):
        start = 0
        for number, length in enumerate(of_row):
            segments[row, start : start + length] = number + 1
            positions[row, start : start + length] = np.arange(length)
            start += length
    tokens = np.random.default_rng(0).integers(0, 32, (B, T), dtype=np.int32)
    return tokens, positions, segments


def model(**changes):
    config = dataclasses.replace(LLAMA, **changes)
    params = transformer.init_params(config, jax.random.key(0))
    # Sharper attention than at the start, so that a wrong mask shows.
    return config, jax.tree.map(lambda x: 2 * x, params)


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def measured(params, config, tokens, positions, segments, mesh=None):
    """Hidden states of all tokens that are no padding, and the gradients of a sum of them."""

    def loss(params):
        hidden, _ = transformer.forward(
            params, config, tokens, positions=positions, segments=segments
        )
        hidden = jnp.where(segments[..., None] != 0, hidden, 0)
        return jnp.sum(jnp.sin(hidden)), hidden

    function = jax.value_and_grad(loss, has_aux=True)
    if mesh is not None:
        function = sharding.on_mesh(function, mesh)
    (_, hidden), gradients = function(params)
    return hidden, gradients


def assert_equal(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one, other, atol=1e-4 * max(scale, 1e-3), rtol=0)


def using(config, kernel):
    return dataclasses.replace(config, attention=kernel)


@pytest.mark.parametrize("name", CASES)
def test_splash_attention_is_the_plain_one(name, packed):
    config, params = model(**CASES[name])
    found = measured(params, using(config, "splash"), *packed)
    assert_equal(found, measured(params, using(config, "plain"), *packed))
    # Documents in one row: were they one, the result would be another.
    tokens, positions, segments = packed
    joined = measured(params, using(config, "splash"), tokens, positions, np.minimum(segments, 1))
    assert np.abs(joined[0] - found[0]).max() > 0.1


@pytest.mark.nightly
def test_rows_and_heads_are_split_over_the_mesh(packed):
    config, params = model()
    mesh = meshes.make_mesh(ConfigDict({"data": 1, "fsdp": 2, "tensor": 2}), jax.devices()[:4])
    placed = jax.device_put(params, sharding.tree_shardings(params, mesh))
    batch = jax.device_put(packed, sharding.batch_sharding(mesh))
    found = measured(placed, using(config, "splash"), *batch, mesh)
    assert_equal(found, measured(params, using(config, "plain"), *packed))


def test_a_prefill_is_the_plain_one():
    config, params = model(window=37, windowed_layers=(1,))
    tokens = np.random.default_rng(0).integers(0, 32, (B, T), dtype=np.int32)
    mask = (np.arange(T) >= np.array([[0], [77]])).astype(np.int32)  # padded on the left

    @functools.partial(jax.jit, static_argnames="config")
    def prefill(params, config):
        cache = init_cache(config, B, T)
        positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        hidden, cache = transformer.forward(
            params, config, tokens, positions=positions, segments=mask, cache=cache
        )
        kept = mask[:, None, :, None]
        return hidden * mask[..., None], cache.values * kept, cache.valid, cache.length

    found, expected = (prefill(params, using(config, kind)) for kind in ("splash", "plain"))
    assert_equal(found, expected)


def test_what_a_kernel_cannot_do_is_left_to_the_plain_path():
    choose = attention_kernels.choose
    splash = using(LLAMA, "splash")
    assert choose(LLAMA, 512) == "plain"  # on a CPU
    assert choose(splash, 512) == choose(splash, 512, span=512) == "splash"
    assert choose(splash, 1, span=512) == choose(splash, 128, span=512) == "plain"
    assert choose(splash, 127) == "plain"
    assert choose(splash, 512, parents=np.zeros((1, 512))) == "plain"
    cudnn = dataclasses.replace(LLAMA, attention="cudnn", dtype="bfloat16")
    assert choose(cudnn, 512) == "cudnn"
    for other in ({"dtype": "float32"}, {"attention_soft_cap": 1.0}, {"head_dim": 136}):
        assert choose(dataclasses.replace(cudnn, **other), 512) == "plain"
    assert choose(dataclasses.replace(cudnn, head_dim=12), 512) == "plain"


def test_a_platform_has_its_kernel_where_the_mesh_is_known(monkeypatch):
    choose = attention_kernels.choose
    config = dataclasses.replace(LLAMA, dtype="bfloat16")
    mesh = meshes.make_mesh(ConfigDict({"data": 1, "fsdp": 8, "tensor": 1}))
    for backend, kernel in (("tpu", "splash"), ("gpu", "cudnn")):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert choose(config, 512) == kernel
        assert choose(using(config, "plain"), 512) == "plain"
        with monkeypatch.context() as several:
            several.setattr(jax, "device_count", lambda: 8)
            assert choose(config, 512) == choose(using(config, kernel), 512) == "plain"
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                assert choose(config, 512) == kernel


@pytest.mark.parametrize("name", ["causal", "mixed_windows_and_soft_cap"])
def test_cudnn_is_asked_for_the_same_attention(name, packed, monkeypatch):
    # Without a GPU: the same call, computed by XLA.
    attention = jax.nn.dot_product_attention

    def by_xla(*arrays, implementation, **options):
        assert implementation == "cudnn"
        return attention(*arrays, implementation="xla", **options)

    config, params = model(**CASES[name])
    if config.attention_soft_cap is not None:
        config = dataclasses.replace(config, attention_soft_cap=None)
    expected = measured(params, using(config, "plain"), *packed)
    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    monkeypatch.setattr(attention_kernels, "choose", lambda *arguments: "cudnn")
    assert_equal(measured(params, using(config, "cudnn"), *packed), expected)


@pytest.mark.parametrize("alone", [True, False])
def test_cudnn_is_given_a_mask_only_where_documents_are_packed(alone, packed, monkeypatch):
    attention = jax.nn.dot_product_attention

    def by_xla(*arrays, implementation, mask, **options):
        found = attention(*arrays, implementation="xla", mask=mask, **options)
        return jnp.where((mask is None) == alone, found, jnp.nan)

    tokens, positions, segments = packed
    if alone:  # a text in each row, and what follows it is padding
        positions, segments = np.tile(np.arange(T), (B, 1)), np.minimum(segments, 1)
    config, params = model()
    expected = measured(params, using(config, "plain"), tokens, positions, segments)
    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    monkeypatch.setattr(attention_kernels, "choose", lambda *arguments: "cudnn")
    # Another window that nothing reaches, so that nothing compiled before is taken.
    config = dataclasses.replace(config, attention="cudnn", window=999 + alone)
    assert_equal(measured(params, config, tokens, positions, segments), expected)


def test_padding_in_front_of_a_text_is_masked_by_cudnn(packed, monkeypatch):
    attention = jax.nn.dot_product_attention

    def by_xla(*arrays, implementation, **options):
        return attention(*arrays, implementation="xla", **options)

    tokens, _, _ = packed
    segments = np.ones((B, T), np.int32)
    segments[1, :50] = 0
    positions = np.maximum(np.cumsum(segments, axis=1) - 1, 0)
    config, params = model()
    expected = measured(params, using(config, "plain"), tokens, positions, segments)
    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    monkeypatch.setattr(attention_kernels, "choose", lambda *arguments: "cudnn")
    config = dataclasses.replace(config, attention="cudnn", window=998)
    assert_equal(measured(params, config, tokens, positions, segments), expected)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'cai_jax[tpu]'"
)
@pytest.mark.parametrize("name", ["causal", "mixed_windows_and_soft_cap"])
def test_splash_attention_compiles_for_a_tpu(name, packed, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    devices = topology.describe("v5e:2x2").devices
    mesh = meshes.make_mesh(ConfigDict({"data": 1, "fsdp": 2, "tensor": 2}), devices)
    config, params = model(**CASES[name], dtype="bfloat16", head_dim=64)
    config = using(config, "splash")
    from cai_jax.core.abstract import placed_as

    arguments = (
        placed_as(params, sharding.tree_shardings(params, mesh)),
        config,
        *placed_as(packed, sharding.batch_sharding(mesh)),
        mesh,
    )
    text = measured.lower(*arguments).compile().as_text()
    kernels = {"fwd", "dq", "dkv"}
    found = {kind for kind in kernels if f"splash_mha_{kind}" in text}
    assert found == kernels and "tpu_custom_call" in text
