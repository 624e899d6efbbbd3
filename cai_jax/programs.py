"""The compiled programs of a run's steps, with abstract arrays: to be compiled, not to be run.

They are the programs that the stages and the sampler run, made by the same functions; only the
arrays are shapes, of the sizes that the config and the model have.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cai_jax import checkpoints
from cai_jax.core import optimizer as optimizers
from cai_jax.data import comparison_sources, comparisons, packing
from cai_jax.data.prompt_batches import PromptBatch
from cai_jax.errors import InputError
from cai_jax.models import computing, lora
from cai_jax.models.config import ModelConfig
from cai_jax.models.language_model import LanguageModel
from cai_jax.stages import finetune, ppo, preference

if typing.TYPE_CHECKING:
    from jax.sharding import Mesh

# Prompts that a decoding batch is compiled for, unless the step bounds them (as in costs.py).
PROMPT_TOKENS = 256
UPDATES = 100  # of a schedule, whose length changes numbers only


class Program(NamedTuple):
    """A jitted function and what it is called with."""

    name: str
    function: Any
    arguments: tuple[Any, ...]  # abstract arrays, each with its sharding, and static values
    held: tuple[Any, ...]  # what the stage keeps on the devices beside the arguments, abstract
    tokens: int  # positions computed in a call, padding included
    # What the method needs: 2 a parameter and token forward, 4 backward; no rematerialisation.
    useful_flops: float
    loop_trips: int  # of loops whose number of rounds is data: tokens generated at most
    required_bytes: float | None = None  # that each device sends, by arithmetic; None: not derived


def finetune_programs(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> list[Program]:
    """The update of SL-CAI."""
    from cai_jax.core import sharding

    check_rows("rows", config.rows, sharding.batch_parts(mesh) * config.accumulate)
    batch = packing.fill([], [], config.rows, config.sequence_length)
    params = checkpoints.abstract_params(model, preference_model=False)
    return [_update("update", finetune, config, model, params, batch, mesh)]


def preference_programs(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> list[Program]:
    """The update of the preference model, at texts of the full length."""
    from cai_jax.core import sharding

    comparison_sources.check_divides(config, sharding.batch_parts(mesh))
    fill: Any = comparisons.fill_shared if config.shared_prompts else comparisons.fill_pairs
    batch = fill([], config.pairs, config.sequence_length)
    params = checkpoints.abstract_params(model, preference_model=True)
    return [_update("update", preference, config, model, params, batch, mesh)]


def _update(
    name: str,
    stage: Any,
    config: ConfigDict,
    model: ModelConfig,
    params: Any,
    batch: Any,
    mesh: Mesh,
) -> Program:
    import jax

    from cai_jax.core import sharding, training
    from cai_jax.core.abstract import parameter_count, placed_as

    optimizer = optimizers.make_optimizer(config, UPDATES)
    optimizer = optimizers.with_average(optimizer, config.ema_decay)
    trained, frozen = jax.eval_shape(
        lambda params: lora.split(params, config.lora, jax.random.key(0)), params
    )
    state, shardings = training.abstract_state(trained, optimizer, mesh)
    update = stage.make_step(computing.computed(model, config), optimizer, config)
    step = training.compiled_update(update, mesh, shardings, frozen)
    tokens = math.prod(batch.tokens.shape)
    whole = parameter_count(params)
    # Frozen parameters have no gradients of their own: 2 a token less.
    useful = (6.0 if frozen is None else 4.0) * whole * tokens
    placed = (
        placed_as(state, shardings),
        placed_as(frozen, sharding.tree_shardings(frozen, mesh)),
        placed_as(batch, sharding.batch_sharding(mesh)),
    )
    # The stage keeps what it began with until it ends.
    held = () if frozen is not None else (placed[0].params,)
    required = _required(placed[0].params, model, config, mesh, tokens, config.accumulate)
    required += _required(placed[1], model, config, mesh, 0, config.accumulate, trained=False)
    return Program(name, step, placed, held, tokens, useful, 1, required)


def _required(
    params: Any,
    model: ModelConfig,
    config: ConfigDict,
    mesh: Mesh,
    positions: int,
    parts: int,
    trained: bool = True,
) -> float:
    """What each device must send in an update (`core/collectives.py`)."""
    from cai_jax.core import collectives

    computed = computing.computed(model, config)
    return collectives.required_bytes(
        params,
        mesh,
        positions=positions,
        width=model.width,
        layers=model.layers,
        itemsize=np.dtype(computed.dtype).itemsize,
        parts=parts,
        recomputed=computed.remat == "layer",
        trained=trained,
    )


def ppo_programs(
    config: ConfigDict, model: ModelConfig, preference_model: ModelConfig, mesh: Mesh
) -> list[Program]:
    """The rollout and the update of an iteration; both see the reference and the PM in memory."""
    import jax

    from cai_jax.algorithms.ppo import Controls
    from cai_jax.algorithms.ppo_options import evaluated_by_update
    from cai_jax.core import sharding, training
    from cai_jax.core.abstract import parameter_count, placed_as

    ppo.check_divides(config, sharding.batch_parts(mesh))
    tokenizer = types.SimpleNamespace(eos_id=0)
    policy = LanguageModel(model, checkpoints.abstract_params(model, False), tokenizer)
    scorer = LanguageModel(
        preference_model, checkpoints.abstract_params(preference_model, True), tokenizer
    )
    optimizer = optimizers.make_optimizer(config, UPDATES)
    params = ppo.starting_params(config, policy, scorer)
    state, shardings = training.abstract_state(params, optimizer, mesh)
    rollout, update = ppo.compiled(config, policy, scorer, optimizer, mesh, shardings)
    rows = config.prompts_per_iteration * config.samples_per_prompt
    length = config.max_prompt_tokens + config.max_new_tokens
    shape = (rows, config.max_prompt_tokens)
    batch = PromptBatch(
        tokens=np.zeros(shape, np.int32),
        mask=np.zeros(shape, np.int32),
        keys=np.zeros((rows, 2), np.uint32),
        visits=np.zeros(rows, np.uint32),
    )
    state = placed_as(state, shardings)
    frozen = tuple(
        placed_as(of.params, sharding.tree_shardings(of.params, mesh)) for of in (policy, scorer)
    )
    by_row, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    prompts = placed_as(batch, by_row)
    experience = placed_as(jax.eval_shape(rollout, state.params, *frozen, prompts), by_row)
    controls = placed_as(Controls(*[np.float32(0)] * len(Controls._fields)), whole)
    key = placed_as(jax.eval_shape(lambda: jax.random.key(0)), whole)
    of_policy, of_scorer = parameter_count(policy.params), parameter_count(scorer.params)
    values = of_scorer if config.advantage == "gae" and "value" in params else 0
    if config.value_model != "preference_model":
        values = 0
    # Sampling, the reference, the preference model, and perhaps evaluating: forward all.
    evaluated = 0 if evaluated_by_update(config) else of_policy + values
    respond = 2.0 * rows * length * (2 * of_policy + of_scorer + evaluated)
    train = 6.0 * rows * length * config.epochs * (of_policy + values)
    updates, positions = config.epochs * config.minibatches, rows * length // config.minibatches
    required = _required(state.params, model, config, mesh, positions, 1) * updates
    return [
        Program(
            "rollout",
            rollout,
            (state.params, *frozen, prompts),
            (state.optimizer_state,),
            rows * length,
            respond,
            config.max_new_tokens,
        ),
        Program(
            "update",
            update,
            (state, experience, controls, key),
            frozen,
            rows * length * config.epochs,
            train,
            1,
            required,
        ),
    ]


def decode_programs(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> list[Program]:
    """Prefill and decoding of all slots of a step that samples, to the longest completion."""
    import jax

    from cai_jax.core import sharding
    from cai_jax.core.abstract import parameter_count, placed_as
    from cai_jax.generation import batching, engine, placing, slots
    from cai_jax.generation.distribution import mode_of
    from cai_jax.models.cache import Past

    rows = config.batch_size
    check_rows("batch_size", rows, sharding.batch_parts(mesh))
    limits = [n for n in config if n.startswith("max_") and n.endswith("_tokens")]
    new = max(config[name] for name in limits)
    length = PROMPT_TOKENS
    span = batching.bucket(length + new, engine.SMALLEST_SPAN)
    params = checkpoints.abstract_params(model, preference_model=False, dtype=model.dtype)
    params = placed_as(params, sharding.tree_shardings(params, mesh))
    by_row, whole = placing.rows_sharding(mesh), sharding.replicated(mesh)
    tokens, counts, of_slots = placed_as(
        (np.zeros((rows, length), np.int32), np.zeros(rows, np.int32), engine.no_slots(rows, 8)),
        by_row,
    )
    past = jax.eval_shape(lambda: slots.empty(model, rows, span))
    by_head = placing.heads_sharding(mesh, model.kv_heads, 0 if type(past.keys) is tuple else 1)
    past = Past(placed_as(past.keys, by_head), placed_as(past.values, by_head), None)
    limit, until = placed_as((np.int32(new), np.int32(rows)), whole)
    mode = mode_of(config.temperature, config.top_k, config.top_p)
    useful = 2.0 * parameter_count(params) * rows
    prefill = (params, model, tokens, counts, mesh)
    decode = (params, model, past, of_slots, limit, until, mode, slots.chunk_steps(), mesh)
    return [
        Program("prefill", slots.prefill_jit, prefill, (), rows * length, useful * length, 1),
        Program("decode", slots.decode_jit, decode, (), rows * new, useful * new, new),
    ]


def on_accelerator(model: ModelConfig, attention: str) -> ModelConfig:
    """The model as it is computed where the devices are no CPUs, whatever this process sees.

    Layers are scanned on simulated devices too, so that their number costs no compile time, and
    losses cut as on accelerators, so that what is sent does not grow with the batch.

    Args:
        model: the model.
        attention: as in `ModelConfig`, of the devices; "plain" for simulated ones.
    """
    from cai_jax.models.transformer import LOSS_POSITIONS

    return dataclasses.replace(
        model,
        scan_unroll=model.scan_unroll or 1,
        loss_positions=model.loss_positions or LOSS_POSITIONS,
        attention=model.attention or attention,
    )


def check_rows(name: str, found: int, parts: int) -> None:
    """Refuses a batch that does not divide over the devices that split it."""
    if found % parts:
        raise InputError(
            f"{name}: expected a multiple of {parts} (data x fsdp devices, and parts of a batch), "
            f"found {found}"
        )
