"""Losses, gradients and greedy tokens on every factorisation of 2, 4 and 8 devices against one.

Updates are of plain gradient descent at rate 1, so that what they change are the gradients.
"""

import functools
import itertools
import types

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from world_models import one_device

from cai_jax.algorithms.ppo import Controls
from cai_jax.core import mesh as meshes
from cai_jax.core import sharding, training
from cai_jax.data import comparisons, packing
from cai_jax.data.prompt_batches import PromptBatch
from cai_jax.generation.generate import SamplingSettings, generate
from cai_jax.models import computing, transformer
from cai_jax.models.config import ModelConfig
from cai_jax.models.language_model import LanguageModel
from cai_jax.stages import finetune, ppo, preference

ROWS, T = 8, 16
MODEL = ModelConfig(
    vocab_size=40, width=16, layers=2, heads=4, kv_heads=4, head_dim=4, hidden=16, scan_unroll=1
)
ONE = (1, 1, 1)


def factorisations(devices):
    """With at least two axes above one, where there are such."""
    found = [f for f in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(f) == devices]
    return [f for f in found if sum(size > 1 for size in f) >= min(2, devices // 2) and f[2] <= 4]


ALL = [f for devices in (2, 4, 8) for f in factorisations(devices)]


@functools.cache
def params(preference_model=False):
    made = transformer.init_params(MODEL, jax.random.key(int(preference_model)))
    if preference_model:
        made = transformer.add_score_head(made, MODEL, jax.random.key(2))
    return jax.tree.map(np.asarray, made)


def mesh_of(sizes):
    axes = ConfigDict(dict(zip(meshes.AXES, sizes)))
    return meshes.make_mesh(axes, jax.devices()[: int(np.prod(sizes))])


def random_tokens(*shape):
    return np.random.default_rng(0).integers(3, MODEL.vocab_size, shape).astype(np.int32)


def updated(stage, config, start, batch, mesh):
    """Metrics, and gradients, of one update of finetune or preference."""
    optimizer = optax.sgd(1.0)
    state = training.TrainState(start, optimizer.init(start), np.zeros((), np.int32))
    shardings = sharding.tree_shardings(state, mesh)
    update = stage.make_step(computing.computed(MODEL, config), optimizer, config)
    step = training.compiled_update(update, mesh, shardings, None)
    placed = jax.device_put(batch, sharding.batch_sharding(mesh))
    after, metrics = step(jax.device_put(state, shardings), None, placed)
    return metrics, jax.tree.map(lambda a, b: np.asarray(a) - b, after.params, start)


def of_finetune(mesh):
    tokens = random_tokens(ROWS, T)
    segments = np.where(np.arange(T) < 9, 1, 2) * np.ones((ROWS, 1), np.int32)
    positions = np.where(np.arange(T) < 9, np.arange(T), np.arange(T) - 9).astype(np.int32)
    batch = packing.fill([], [], ROWS, T)._replace(
        tokens=tokens,
        segments=segments.astype(np.int32),
        positions=np.broadcast_to(positions, tokens.shape),
        targets=np.roll(tokens, -1, 1),
        weights=(np.arange(T) % 3 > 0) * np.ones((ROWS, 1), np.float32),
    )
    config = one_device(finetune.default_config(), accumulate=1)
    return updated(finetune, config, params(), batch, mesh)


def of_preference(mesh):
    batch = comparisons.fill_pairs([], ROWS, T)
    mask = np.ones_like(batch.mask)
    mask[::2, :, :5] = 0  # padded on the left
    batch = batch._replace(
        tokens=random_tokens(*batch.tokens.shape),
        mask=mask,
        p_a=np.linspace(0, 1, ROWS, dtype=np.float32),
        weights=np.ones(ROWS, np.float32),
    )
    config = one_device(preference.default_config(), centring=0.1)
    return updated(preference, config, params(True), batch, mesh)


def of_ppo(mesh):
    config = one_device(
        ppo.default_config(), max_prompt_tokens=6, max_new_tokens=5, minibatches=1, epochs=1
    )
    tokenizer = types.SimpleNamespace(eos_id=0)
    policy = LanguageModel(MODEL, params(), tokenizer)
    scorer = LanguageModel(MODEL, params(True), tokenizer)
    start, optimizer = ppo.starting_params(config, policy, scorer), optax.sgd(1.0)
    start = jax.tree.map(np.asarray, start)
    state = training.TrainState(start, optimizer.init(start), np.zeros((), np.int32))
    shardings = sharding.tree_shardings(state, mesh)
    rollout, update = ppo.compiled(config, policy, scorer, optimizer, mesh, shardings)
    keys = np.arange(2 * ROWS, dtype=np.uint32).reshape(ROWS, 2)
    batch = PromptBatch(
        random_tokens(ROWS, 6), np.ones((ROWS, 6), np.int32), keys, np.zeros(ROWS, np.uint32)
    )
    state = jax.device_put(state, shardings)
    frozen = [
        jax.device_put(of.params, sharding.tree_shardings(of.params, mesh))
        for of in (policy, scorer)
    ]
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    experience = rollout(state.params, *frozen, batch)
    controls = Controls(*[np.float32(0.1)] * len(Controls._fields))
    after, experience, metrics = update(state, experience, controls, jax.random.key(0))
    gradients = jax.tree.map(lambda a, b: np.asarray(a) - b, after.params, start)
    return (jax.tree.map(np.asarray, experience), metrics), gradients


KINDS = {"finetune": of_finetune, "preference": of_preference, "ppo": of_ppo}


@functools.cache
def on_one_device(kind):
    return jax.tree.map(np.asarray, KINDS[kind](mesh_of(ONE)))


def assert_same(kind, sizes):
    found, expected = KINDS[kind](mesh_of(sizes)), on_one_device(kind)
    compared = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    largest = 0.0
    for one, other in compared:
        # PPO's first loss is a mean of numbers near 1 that cancel: 0, to their rounding.
        floor = 1e-1 if np.ndim(other) == 0 else 1e-2
        scale = max(float(np.max(np.abs(other), initial=0.0)), floor)
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * scale)
        largest = max(largest, float(np.max(np.abs(other), initial=0.0)))
    assert largest > 0.1


@pytest.mark.nightly
@pytest.mark.parametrize("sizes", ALL, ids=lambda sizes: "x".join(map(str, sizes)))
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_one_device(kind, sizes):
    assert_same(kind, sizes)


@pytest.mark.nightly  # on two axes in the ordinary run: test_mesh.py
@pytest.mark.parametrize("kind", ["finetune"])
def test_losses_and_gradients_on_three_axes(kind):
    assert_same(kind, (2, 2, 2))


def greedy(mesh):
    start = params()
    placed = jax.device_put(start, sharding.tree_shardings(start, mesh))
    tokenizer = types.SimpleNamespace(eos_id=0, bos_id=0, stops=(), decode=str)
    model = LanguageModel(MODEL, placed, tokenizer)
    prompts = [list(map(int, random_tokens(n + 2))) for n in range(ROWS)]
    keys = jax.random.key(0), range(ROWS)
    settings = SamplingSettings(6, 0.0)
    answers = generate(model, prompts, settings, keys, batch_size=ROWS, mesh=mesh)
    assert len({tuple(answer.token_ids) for answer in answers}) > ROWS // 2
    return [list(answer.token_ids) for answer in answers]


@pytest.mark.nightly
@pytest.mark.parametrize("sizes", ALL, ids=lambda sizes: "x".join(map(str, sizes)))
def test_greedy_tokens_are_those_of_one_device(sizes):
    assert greedy(mesh_of(sizes)) == greedy(mesh_of(ONE))


def test_the_matrix_has_every_factorisation():
    assert len(ALL) == 3 + 3 + 7 and (2, 2, 2) in ALL and (1, 2, 4) in ALL and (4, 2, 1) in ALL
