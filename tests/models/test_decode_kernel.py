"""The kernel that reads live columns alone: against slow loops, the plain path, and compiled ahead.

Off TPUs it runs in Pallas's interpreter.
"""

import dataclasses
import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas
from ml_collections import ConfigDict

from cai_jax.core import hlo_costs, hlo_text, sharding, topology
from cai_jax.core import mesh as meshes
from cai_jax.core.abstract import placed_as
from cai_jax.generation import engine, placing, slots
from cai_jax.models import attention_kernels, decode_kernel, transformer
from cai_jax.models.cache import Past
from cai_jax.models.config import ModelConfig

L, B, K, G, S, C = 2, 5, 2, 3, 384, 128
STARTS = np.array([0, 0, 130, 0, 300], np.int32)
ENDS = np.array([0, 1, 300, 384, 300], np.int32)  # the first and the last slot have no columns
LLAMA = ModelConfig(
    vocab_size=32, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=16, scan_unroll=1
)
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'cai_jax[tpu]'"
)


@pytest.fixture
def interpreted(monkeypatch):
    call = functools.partial(pallas.pallas_call, interpret=True)
    monkeypatch.setattr(pallas, "pallas_call", call)
    # The programs here are of one device, unless they are told a mesh.
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def expected(queries, keys, values, soft_cap):
    """The softmax over the columns of each slot, in float64, and its log-sum-exp, in loops."""
    outputs, sums = np.zeros(queries.shape), np.full(queries.shape[:3], -np.inf)
    for b, k, g in np.ndindex(B, K, G):
        live = slice(STARTS[b], ENDS[b])
        if STARTS[b] >= ENDS[b]:
            continue
        logits = queries[b, k, g].astype(np.float64) @ keys[b, k, :, live]
        if soft_cap is not None:
            logits = soft_cap * np.tanh(logits / soft_cap)
        sums[b, k, g] = np.log(np.sum(np.exp(logits)))
        outputs[b, k, g] = np.exp(logits - sums[b, k, g]) @ values[b, k, live]
    return outputs, sums


def with_nothing_elsewhere(arrays, axis):
    """NaN in all blocks that have no column which is seen, and in the other layer."""
    arrays = np.moveaxis(arrays.copy(), axis, -1)
    arrays[0] = np.nan
    for slot, (start, end) in enumerate(zip(STARTS, ENDS)):
        live = slice(start // C * C, -(-end // C) * C if start < end else 0)
        kept = arrays[1, slot, ..., live].copy()
        arrays[1, slot] = np.nan
        arrays[1, slot, ..., live] = kept
    return np.moveaxis(arrays, -1, axis)


@pytest.mark.parametrize(
    ("head_dim", "soft_cap", "eight_bits"),
    [(8, None, False), (128, 2.0, False), (8, None, True)],
    ids=["small_heads", "large_heads_soft_cap", "eight_bits"],
)
def test_columns_of_ragged_slots(interpreted, head_dim, soft_cap, eight_bits):
    random = np.random.default_rng(0)
    queries = random.normal(size=(B, K, G, head_dim)).astype(np.float32) * head_dim**-0.5
    keys = random.normal(size=(L, B, K, head_dim, S)).astype(np.float32)
    values = random.normal(size=(L, B, K, S, head_dim)).astype(np.float32)
    scales, whole = None, (keys[1], values[1])
    if eight_bits:
        scales = tuple(random.uniform(0.01, 0.02, (L, B, K, S)).astype(np.float32) for _ in "kv")
        keys, values = (np.round(50 * array).astype(np.int8) for array in (keys, values))
        whole = keys[1] * scales[0][1][:, :, None], values[1] * scales[1][1][..., None]
        given = keys, values, tuple(with_nothing_elsewhere(scale, -1) for scale in scales)
    else:
        given = with_nothing_elsewhere(keys, -1), with_nothing_elsewhere(values, -2), None

    @jax.jit
    def found(queries, keys, values, scales, starts, ends):
        seen = decode_kernel.blocks(starts, ends, S, C, None)
        return decode_kernel.attend(queries, keys, values, scales, 1, seen, soft_cap, None)

    sums, highest, total = found(queries, *given, STARTS, ENDS)
    outputs, logarithms = expected(queries, *whole, soft_cap)
    none = STARTS >= ENDS
    np.testing.assert_array_equal(sums[none], 0)
    np.testing.assert_array_equal(total[none], 0)
    np.testing.assert_array_equal(highest[none], np.float32(-1e30))
    np.testing.assert_allclose((sums / total)[~none], outputs[~none], atol=1e-6, rtol=0)
    found_logarithms = np.log(total[~none]) + highest[~none]
    np.testing.assert_allclose(found_logarithms[..., 0], logarithms[~none], atol=1e-6, rtol=1e-6)


def test_only_blocks_with_a_column_that_is_seen_are_read():
    found = decode_kernel.blocks(jnp.array(STARTS), jnp.array(ENDS), S, C, None)
    (count,) = found.used
    assert count == 1 + 2 + 3  # of B S / C = 15
    assert found.slots[:count].tolist() == [1, 2, 2, 3, 3, 3]
    assert found.numbers[:count].tolist() == [0, 1, 2, 0, 1, 2]
    # What is left of the list is never visited, and may not point outside.
    assert len(found.slots) == 15 and max(found.slots) < B and max(found.numbers) < S // C


def test_blocks_are_of_about_a_mebibyte():
    size = decode_kernel.block_columns
    assert size(2048, 8, 128, 2) == 256 and size(2048, 1, 128, 2) == size(2048, 8, 128, 1) == 512
    assert size(2048, 32, 128, 2) == size(384, 8, 128, 2) == 128  # at least the lanes of a TPU
    assert size(192, 8, 128, 2) == size(2048, 128, 128, 2) == 0


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def decoded(params, config, past, of, trunk, mesh=None):
    limit = jnp.int32(3)
    return slots.decode(
        params, config, past, of, limit, jnp.int32(8), "greedy", 4, trunk=trunk, mesh=mesh
    )[1]


def queue(config, eight_bits=False, trunk=0):
    """Slots with texts of all lengths, one of them done, and random keys and values."""
    keys = iter(jax.random.split(jax.random.key(1), 99))

    def random(array):
        # Sharp enough that a wrong column shows.
        drawn = 2 * jax.random.normal(next(keys), array.shape)
        return drawn.astype(array.dtype) if array.dtype != jnp.int8 else jnp.round(20 * drawn)

    past = jax.tree.map(random, slots.empty(config, 8, S, eight_bits))
    if eight_bits:
        by_number = jax.tree.map(lambda array: array.astype(jnp.int8), (past.keys, past.values))
        scales = jax.tree.map(lambda array: jnp.abs(array) / 20, past.scales)
        past = Past(*by_number, None, scales)
    of = engine.no_slots(8, 2)
    held = np.array([0, 1, 127, 128, 129, 300, 200, 77])
    of.base[:] = trunk * (np.arange(8) % 2)
    of = of._replace(position=(held + of.base).astype(np.int32), token=np.arange(8, dtype=np.int32))
    of.done[:] = np.arange(8) == 6
    of.budget[:] = 9
    shared = None
    if trunk:
        whole = slots.empty(config, 1, 128)
        shared = jax.tree.map(random, (whole.keys, whole.values))
    return past, jax.tree.map(jnp.asarray, of), shared


def assert_equal_chunks(found, plain):
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    assert (np.asarray(plain.tokens)[[0, 1, 2, 3, 4, 5, 7], :3] >= 0).all()
    np.testing.assert_allclose(found.logprobs, plain.logprobs, atol=1e-5, rtol=0)
    assert np.abs(plain.logprobs).max() > 0.1


CASES = {
    "windows_soft_cap_trunk": (
        {"window": 37, "windowed_layers": (1,), "attention_soft_cap": 3.0},
        {"trunk": 100},
    ),
    "eight_bits_by_layer": ({"layers": 1}, {"eight_bits": True}),  # one by one, not in a loop
}


@pytest.mark.parametrize("name", CASES)
def test_a_chunk_is_the_plain_one(interpreted, name):
    changes, options = CASES[name]
    config = dataclasses.replace(LLAMA, **changes)
    params = jax.tree.map(lambda x: 2 * x, transformer.init_params(config, jax.random.key(0)))
    arguments = queue(config, **options)
    using = dataclasses.replace(config, attention="splash")
    assert attention_kernels.reading(using, arguments[0].values, None).columns == C
    plain = decoded(params, config, *arguments)
    assert_equal_chunks(decoded(params, using, *arguments), plain)


@pytest.mark.nightly
def test_slots_and_heads_are_split_over_the_mesh(interpreted):
    params = transformer.init_params(LLAMA, jax.random.key(0))
    arguments = queue(LLAMA, trunk=100)
    mesh = meshes.make_mesh(ConfigDict({"data": 2, "fsdp": 1, "tensor": 2}), jax.devices()[:4])
    past, of, trunk = arguments
    past = jax.jit(placing.split_past, static_argnums=1)(past, mesh)
    of = jax.device_put(of, placing.rows_sharding(mesh))
    placed = jax.device_put(params, sharding.tree_shardings(params, mesh))
    using = dataclasses.replace(LLAMA, attention="splash")
    found = decoded(placed, using, past, of, trunk, mesh)
    assert_equal_chunks(found, decoded(params, LLAMA, *arguments))


def test_what_the_kernel_cannot_do_is_left_to_the_plain_path(monkeypatch):
    reading = attention_kernels.reading
    values = np.zeros((2, 8, 2, 256, 8), np.float32)
    mesh = meshes.make_mesh(ConfigDict({"data": 4, "fsdp": 1, "tensor": 2}))
    assert reading(LLAMA, values, mesh) is None  # on a CPU
    using = dataclasses.replace(LLAMA, attention="splash")
    assert reading(using, values, None) is None  # eight devices, and no mesh
    assert reading(using, values[..., :192, :], mesh) is None
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert reading(LLAMA, values, mesh) == attention_kernels.Reading(256, mesh)
    assert reading(dataclasses.replace(LLAMA, attention="plain"), values, mesh) is None


@needs_libtpu
@pytest.mark.parametrize("chip", ["v5e", "v6e"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_kernel_compiles_for_a_tpu(chip, head_dim, monkeypatch):
    layers, batch, kv_heads, groups, span = 4, 32, 8, 4, 2048
    (device, *_) = described(chip, monkeypatch)
    place = jax.sharding.SingleDeviceSharding(device)

    def of(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    @jax.jit
    def found(queries, keys, values, layer, starts, ends):
        seen = decode_kernel.blocks(starts, ends, span, 256, None)
        return decode_kernel.attend(queries, keys, values, None, layer, seen, None, None)

    compiled = found.lower(
        of(batch, kv_heads, groups, head_dim),
        of(layers, batch, kv_heads, head_dim, span),
        of(layers, batch, kv_heads, span, head_dim),
        of(dtype=jnp.int32),
        of(batch, dtype=jnp.int32),
        of(batch, dtype=jnp.int32),
    ).compile()
    text = compiled.as_text()
    assert "tpu_custom_call" in text and "decode_slots" in text
    # Nothing is copied: neither a layer of the slots, nor into another layout.
    assert compiled.memory_analysis().temp_size_in_bytes < 2**20
    of_layer = 2 * 2 * batch * kv_heads * head_dim * span
    assert of_layer < hlo_costs.Module(text).costs().hbm_bytes < 1.02 * of_layer


@needs_libtpu
def test_the_engine_decodes_by_it_on_a_mesh_of_tpus(monkeypatch):
    """Of the heads of an 8B, each device reads its own slots and heads, where they are."""
    rows, span = 32, 2048
    mesh = meshes.make_mesh(
        ConfigDict({"data": 2, "fsdp": 1, "tensor": 2}), described("v5e", monkeypatch)
    )
    config = ModelConfig(
        vocab_size=512,
        width=256,
        layers=2,
        heads=32,
        kv_heads=8,
        head_dim=128,
        hidden=256,
        dtype="bfloat16",
        scan_unroll=1,
        attention="splash",
    )
    params = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    by_row, whole = placing.rows_sharding(mesh), sharding.replicated(mesh)
    past = jax.eval_shape(lambda: slots.empty(config, rows, span))
    arrays = placed_as((past.keys, past.values), placing.heads_sharding(mesh, config.kv_heads))
    text = (
        slots.decode_jit.lower(
            placed_as(params, sharding.tree_shardings(params, mesh)),
            config,
            Past(*arrays, None),
            placed_as(engine.no_slots(rows, 8), by_row),
            *placed_as((np.int32(16), np.int32(rows)), whole),
            "greedy",
            16,
            mesh,
        )
        .compile()
        .as_text()
    )
    calls = [
        (computation, i)
        for computation in hlo_text.read(text)[0].values()
        for i in computation.instructions
        if re.match("decode_slots", i.name)
    ]
    ((computation, call),) = calls  # of the layers' loop
    keys, values = (computation.by_name[name] for name in call.operands[-2:])
    assert keys.shapes[0].sizes == (2, rows // 2, 4, 128, span)
    assert values.shapes[0].sizes == (2, rows // 2, 4, span, 128)
    # They are what the loop was given: no layer of them is cut out, and nothing is copied.
    assert keys.opcode == values.opcode == "get-tuple-element"


def described(chip, monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    return topology.describe(f"{chip}:2x2").devices
