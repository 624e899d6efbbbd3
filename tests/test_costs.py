"""The planner's formulas against XLA's own account of memory, and against JAX's residuals."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
import pytest

from cai_jax import costs
from cai_jax.algorithms import losses
from cai_jax.errors import InputError
from cai_jax.generation import slots
from cai_jax.models import transformer
from cai_jax.models.config import ModelConfig
from cai_jax.shapes import Model

ONE = {"data": 1, "fsdp": 1, "tensor": 1}
SMALL = ModelConfig(
    vocab_size=512,
    width=64,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=16,
    hidden=176,
    scan_unroll=1,
)
WIDE = dataclasses.replace(SMALL, width=256, hidden=704, layers=6)


def abstract(config):
    params = jax.eval_shape(lambda key: transformer.init_params(config, key), jax.random.key(0))
    return params, sum(leaf.size for leaf in jax.tree.leaves(params))


def batch(rows, length):
    return jax.ShapeDtypeStruct((rows, length), jnp.int32)


def loss(params, config, tokens):
    hidden, _ = transformer.forward(params, config, tokens, positions=tokens, segments=tokens)
    unembed = transformer.unembedding(params, config)
    return losses.lm_cross_entropy(hidden, unembed, tokens, jnp.ones(tokens.shape))[0]


@pytest.mark.parametrize(
    ("config", "rows", "length"),
    [
        (SMALL, 16, 128),
        (WIDE, 2, 32),
        (dataclasses.replace(SMALL, layers=16, remat="layer"), 8, 64),
    ],
)
def test_training_takes_what_xla_says_to_15_percent(config, rows, length):
    optimizer = optax.adam(1e-3)
    params, count = abstract(config)

    def step(params, state, tokens):
        gradients = jax.grad(loss)(params, config, tokens)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, params)
    jitted = jax.jit(step, donate_argnums=(0, 1))
    found = jitted.lower(params, state, batch(rows, length)).compile().memory_analysis()
    memory = costs.training_memory(Model(config, count, ""), ONE, rows, length)
    # Parameters and two moments are the arguments; the copy that training began with is not there.
    arguments = memory.weights / 2 + memory.optimizer
    assert arguments == pytest.approx(found.argument_size_in_bytes, rel=0.02)
    working = memory.gradients + memory.activations
    assert working == pytest.approx(found.temp_size_in_bytes, rel=0.15)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_activations_are_those_of_the_backward_pass(dtype):
    """In bfloat16 too, which XLA's CPU would compute in float32."""
    config = dataclasses.replace(SMALL, dtype=dtype, layers=5)
    params, count = abstract(config)

    def residuals(params, tokens):
        return jax.vjp(lambda params: loss(params, config, tokens), params)[1]

    kept = jax.tree.leaves(jax.eval_shape(residuals, params, batch(3, 112)))
    # With a batch axis; the others are (cast) weights, and the gradient of the unembedding.
    of_batch = [leaf for leaf in kept if leaf.shape[:2] == (5, 3) or leaf.shape[:1] == (3,)]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in of_batch)
    memory = costs.training_memory(Model(config, count, ""), ONE, 3, 112)
    one_layer_less = dataclasses.replace(config, layers=4)
    stored = costs.training_memory(Model(one_layer_less, count, ""), ONE, 3, 112).activations
    assert stored == pytest.approx(size, rel=0.03) and stored < memory.activations


@pytest.mark.parametrize(
    ("config", "rows", "length", "room"),
    [
        (SMALL, 8, 64, 16),
        (dataclasses.replace(SMALL, layers=8), 8, 64, 64),
        (WIDE, 2, 32, 32),
    ],
)
def test_the_prefill_takes_what_xla_says_or_up_to_half_more(config, rows, length, room):
    params, count = abstract(config)

    tokens, counts = batch(rows, length), jax.ShapeDtypeStruct((rows,), jnp.int32)
    found = slots.prefill_jit.lower(params, config, tokens, counts).compile().memory_analysis()
    model = Model(config, count, "")
    memory = costs.sampling_memory(model, ONE, rows, length)
    past = jax.eval_shape(lambda: slots.empty(config, rows, length + room))
    held = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(past))
    taken = found.temp_size_in_bytes + found.output_size_in_bytes
    ratio = (memory.activations + memory.cache) / taken
    assert 0.95 < ratio < 1.5
    assert memory.weights == pytest.approx(found.argument_size_in_bytes, rel=0.02)
    cache = costs.sampling_memory(model, ONE, rows, length + room).cache
    assert held == costs.cache_bytes(config, rows, length + room) == cache / 2


MESH = {"data": 2, "fsdp": 4, "tensor": 8}
STEP = {"mesh": MESH, "optimizer": "adamw", "moment_dtype": "float32"}
FINETUNE = {
    "rows": 64,
    "sequence_length": 32,
    "accumulate": 1,
    "ema_decay": 0.0,
    "lora": {"rank": 0},
    "remat": "none",
    "compute_dtype": "",
}


def test_each_axis_of_the_mesh_splits_what_it_splits():
    model = Model(SMALL, 3200, "")
    one, many = (costs.training_memory(model, mesh, 64, 32) for mesh in (ONE, MESH))
    assert one.weights == one.optimizer == 8 * 3200 and one.gradients == 4 * 3200
    assert many.weights * 32 == one.weights and many.gradients * 32 == one.gradients
    wide = 16 * 64 + 8 * 64
    split = 8 * 4 * 32 + 8 * (4 + 2) * 16 + 24 * 176
    assert one.activations == 64 * 32 * (5 * (wide + split) + 12 * 64)
    assert many.activations == 64 * 32 / 8 * (5 * (wide + split / 8) + 12 * 64)
    cache = costs.cache_bytes(SMALL, 64, 32)
    assert costs.sampling_memory(model, MESH, 64, 32).cache == 2 * cache / (8 * 8)


def test_steps_use_their_own_parameters():
    model, larger = Model(SMALL, 3200, ""), Model(WIDE, 64_000, "")
    counts = {"records": 10, "tokens": 6400, "flops": 1e15}
    device = costs.Hardware("none", flops=1e12, memory=1e9, bandwidth=1e9)

    def cost(kind, config, **models):
        given = {role: [read] for role, read in models.items()}
        return costs.cost(kind, STEP | config, counts, given, device)

    train = cost("finetune", FINETUNE, model=model)
    assert train.memory == costs.training_memory(model, MESH, 64, 32)
    assert train.seconds == pytest.approx(1e15 / (64 * 1e12 * 0.35))

    def changed(**changes):
        return cost("finetune", FINETUNE | changes, model=model)

    assert changed(moment_dtype="bfloat16").memory.optimizer == 4 * 3200 / 32
    assert changed(optimizer="adafactor").memory.optimizer == 0
    parts = changed(accumulate=4).memory
    assert parts.activations == train.memory.activations / 4
    assert parts.gradients == 2 * train.memory.gradients == 8 * 3200 / 32
    assert changed(ema_decay=0.9).memory.weights == train.memory.weights + 4 * 3200 / 32
    again = changed(remat="layer", compute_dtype="bfloat16")
    config = dataclasses.replace(SMALL, remat="layer", dtype="bfloat16")
    assert again.memory == costs.training_memory(Model(config, 3200, ""), MESH, 64, 32)
    assert again.seconds == pytest.approx(train.seconds * 4 / 3)
    adapter = changed(lora={"rank": 8}).memory
    assert adapter == train.memory._replace(weights=4 * 3200 / 32, optimizer=0.0, gradients=0.0)
    pairs = cost("preference", FINETUNE | {"pairs": 32}, model=model)
    assert pairs.memory == train.memory

    ppo = {"prompts_per_iteration": 16, "samples_per_prompt": 4, "minibatches": 2}
    ppo |= {"max_prompt_tokens": 24, "max_new_tokens": 8}
    ppo |= {"advantage": "gae", "value_model": "policy_trunk"}
    rl = cost("ppo", ppo, model=model, preference_model=larger)
    half_batch = costs.training_memory(model, MESH, 32, 32)
    assert rl.memory.weights == half_batch.weights + 4 * 64_000 / 32
    assert rl.memory.optimizer == half_batch.optimizer and rl.parameters == 64_000
    two = cost(
        "ppo", ppo | {"value_model": "preference_model"}, model=model, preference_model=larger
    )
    values = costs.training_memory(larger, MESH, 32, 32)
    assert two.memory.weights == half_batch.weights + values.weights
    assert two.memory.optimizer == half_batch.optimizer + values.optimizer
    # 6400 tokens in batches of 64: a hundred times all of 4 x 3200 bytes, an eighth on each device.
    reading = 100 * 4 * 3200 / 8 / (1e9 * 0.5)
    assert rl.seconds == pytest.approx(1e15 / (64 * 1e12 * 0.35) + reading)

    sampled = {"batch_size": 64, "max_response_tokens": 40, "num_few_shots": 0}
    shown = cost("compare", sampled, model=model)
    assert shown.memory == costs.sampling_memory(model, MESH, 64, 256 + 40) and shown.fits
    assert shown.seconds == rl.seconds
    shots = cost("critique_revise", sampled | {"num_few_shots": 2}, model=model)
    assert shots.memory == costs.sampling_memory(model, MESH, 64, 1024 + 256 + 40)
    read = {"batch_size": 64, "chain_of_thought": False}
    assert cost("feedback", read, model=model).seconds == train.seconds
    tight = device._replace(memory=shown.memory.total / 0.89)
    assert costs.cost("compare", STEP | sampled, counts, {"model": [model]}, tight).fits
    tight = device._replace(memory=shown.memory.total / 0.91)
    assert not costs.cost("compare", STEP | sampled, counts, {"model": [model]}, tight).fits
    assert costs.cost("report", STEP, counts, {}, device) is None
    assert costs.cost("compare", STEP | sampled, counts, {"model": [model]}, None).seconds is None


def test_unknown_hardware_is_named():
    with pytest.raises(InputError, match="config.hardware: expected one of laptop, .* 'h1000'"):
        costs.hardware("h1000")
    assert costs.hardware("") is None and costs.hardware("h100").memory == 80e9
