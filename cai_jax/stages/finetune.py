"""Supervised finetuning (SL-CAI, section 3.2 of the paper), and pretraining of the desk's models.

A language model learns the responses of demonstrations, of critique-revision chains (the revisions
of all rounds, beside the responses of chains without rounds) or weighted documents.
"""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cai_jax.core import monitoring, training_checkpoints
from cai_jax.core import optimizer as optimizers
from cai_jax.data import readers
from cai_jax.errors import InputError
from cai_jax.models import computing, lora

if typing.TYPE_CHECKING:
    import jax

    from cai_jax.models.config import ModelConfig

ADAPTER = "adapter"  # the step's folder for LoRA's factors


def default_config() -> ConfigDict:
    """Every parameter of the step; those of the optimizer (learning rate ...) stand beside."""
    config = optimizers.default_config()
    config.update(computing.default_config())
    config.lora = lora.default_config()
    config.ema_decay = 0.0  # of an average of the parameters, which is what is saved; 0: the last
    config.initialize = False  # random weights of the model folder's shape: pretraining
    config.dialogue_format = "plain"  # "\n\nHuman: ..."; or "chat", the model's own template
    config.revisions = (1, 2, 3, 4)  # of each chain; SL-CAI-n has 1..n, and 0 is the response
    config.epochs = 1
    config.max_steps = 0  # stop after so many updates; 0: after all epochs
    config.rows = 32  # packed rows in a batch: in an update
    config.accumulate = 1  # parts of a batch, one after the other: less memory, the same update
    config.sequence_length = 160  # tokens in a row
    config.on_long = "truncate"  # examples longer than a row: "truncate", "drop" or "refuse"
    config.log_every = 20  # updates between two lines of metrics
    config.checkpoints = training_checkpoints.default_config(every=200)
    config.data = readers.default_data()
    config.monitoring = monitoring.default_config()
    return config


def check(config: ConfigDict, inputs: dict[str, Any]) -> None:
    """Refuses parameters that mean no training, before anything runs.

    Raises:
        InputError: naming the parameter.
    """
    from cai_jax.data.packing import check_on_long
    from cai_jax.text.formats import dialogue_format

    for role in ("model", "data"):
        if role not in inputs:
            raise InputError(f"inputs: expected model and data, found no {role}")
    dialogue_format(config.dialogue_format)
    lowest = {"epochs": 1, "max_steps": 0, "rows": 1, "sequence_length": 2, "log_every": 1}
    for name, least in {**lowest, "accumulate": 1}.items():
        if config[name] < least:
            raise InputError(f"{name}: expected at least {least}, found {config[name]}")
    if not 0 <= config.ema_decay < 1:
        raise InputError(f"ema_decay: expected 0 <= ema_decay < 1, found {config.ema_decay}")
    if any(number < 0 for number in config.revisions):
        raise InputError(f"revisions: expected 0, 1, 2, ..., found {tuple(config.revisions)}")
    check_on_long(config.on_long)
    optimizers.check(config)
    computing.check(config)
    training_checkpoints.check(config.checkpoints)
    lora.check(config.lora)
    if config.initialize and config.lora.rank:
        raise InputError("lora.rank: expected 0 with initialize: there is no model to adapt")


def run(config: ConfigDict, inputs: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Trains the `model` on `data`, and writes model/ and metrics.jsonl.

    With LoRA, model/ has the factors merged in, and adapter/ has them as PEFT reads them.

    Args:
        config: as `default_config`, with `seed` and `mesh`.
        inputs: `model`: a model folder or finished step; `data`: files or step folders of chains,
            demonstrations or documents.
        folder: the step's own, empty.

    Returns:
        Counts: records (sequences trained on), tokens, steps, truncated, dropped, loss.
    """
    import jax

    from cai_jax import checkpoints
    from cai_jax.core import keys, mesh, sharding, training
    from cai_jax.core.metrics import MetricsWriter
    from cai_jax.core.progress import Progress
    from cai_jax.data import example_sources, packing, pipeline, shares
    from cai_jax.data.bad_records import BadRecords
    from cai_jax.models import peft_adapter, placing
    from cai_jax.models.language_model import LanguageModel
    from cai_jax.text.formats import dialogue_format

    check(config, inputs)
    device_mesh = mesh.make_mesh(config.mesh)
    parts = sharding.batch_parts(device_mesh)
    if config.rows % (parts * config.accumulate):
        each = f" for each of {config.accumulate} parts" if config.accumulate > 1 else ""
        raise InputError(
            f"rows: expected a multiple of {parts * config.accumulate} (data x fsdp "
            f"devices{each}), found {config.rows}"
        )
    key = keys.base_key(config.seed, folder.name)
    model = load_or_initialize(config, inputs["model"], device_mesh, key)
    model = checkpoints.in_format(model, config.dialogue_format)
    bad = BadRecords(config.data.on_bad_record)
    render = dialogue_format(config.dialogue_format).dialogue
    lengths, report = example_sources.read(config, inputs["data"], model, render, bad)
    report |= bad.report(folder)
    # The host's order of records comes from the same key as everything else.
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    examples = [lengths[i] for i in rng.permutation(len(lengths))]
    rows = packing.pack([example.length for example in examples], config.sequence_length)
    num_steps = -(-len(rows) * config.epochs // config.rows)
    num_steps = min(num_steps, config.max_steps or num_steps)
    order = pipeline.shuffled(len(rows), config.epochs, rng)[: num_steps * config.rows]
    batch_sharding = sharding.batch_sharding(device_mesh)
    held = placing.held_rows(batch_sharding, config.rows)

    def filled(indices: list[list[int]]) -> tuple[list[list[int]], packing.Rows]:
        mine = [indices[row] for row in held if row < len(indices)]
        wanted = [index for row in mine for index in row]
        made = dict(zip(wanted, shares.items([examples[index].at for index in wanted])))
        return indices, packing.fill(made, mine, len(held), config.sequence_length)

    stream = pipeline.iterate(pipeline.batches(rows, order, config.rows).map(filled))
    optimizer = optimizers.make_optimizer(config, num_steps)
    optimizer = optimizers.with_average(optimizer, config.ema_decay)
    trained, frozen = lora.split(model.params, config.lora, key)
    state, shardings = training.create_state(trained, optimizer, device_mesh)
    update = make_step(computing.computed(model.config, config), optimizer, config)
    step = training.compiled_update(update, device_mesh, shardings, frozen)
    flops = monitoring.training_flops(trained, frozen)
    mfu = monitoring.mfu_per_token(flops, device_mesh)
    with (
        training_checkpoints.TrainingCheckpoints(
            folder, config.checkpoints, inputs["model"]
        ) as saves,
        MetricsWriter(folder, config.monitoring, mfu) as writer,
        Progress(f"{folder.name} (finetune)", num_steps, "updates") as progress,
    ):
        state, at = saves.restored(state, training.start(stream) | {"records": 0, "loss": 0.0})
        stream.set_state(at["stream"])
        records, tokens, loss = at["records"], at["tokens"], at["loss"]
        # Metrics still on devices, read together, so that nothing waits; and the records of each.
        pending, recent = jax.tree.map(np.float32, at["pending"]), at["recent"]
        progress.advance(at["number"])
        for number, (indices, batch) in monitoring.profiled(
            enumerate(stream, start=at["number"] + 1), config.monitoring.profile_steps, folder
        ):
            packed = [examples[index] for row in indices for index in row]
            ids = [example.record_id for example in packed]
            records += len(ids)
            tokens += sum(example.length for example in packed)
            placed = placing.place_rows(batch, batch_sharding, held, config.rows)
            state, metrics = step(state, frozen, placed)
            pending.append(metrics)
            recent.append(ids)
            if number % config.log_every == 0 or number == num_steps:
                totals = summed(training.fetched(pending, recent, number, saves))
                loss = totals["loss"]
                writer.write(number, **totals, tokens=tokens)
                progress.advance(len(pending), f"loss {loss:.4f}")
                pending, recent = [], []
            if saves.due(number):
                pending = training.fetched(pending, recent, number, saves)
                at = {"number": number, "stream": stream.get_state(), "records": records}
                at |= {"tokens": tokens, "loss": loss, "pending": pending, "recent": recent}
                saves.save(number, state, at)
    trained = optimizers.averaged(state.optimizer_state, state.params)
    params = lora.merged(trained, frozen, config.lora)
    checkpoints.save_model(folder, LanguageModel(model.config, params, model.tokenizer))
    counts = {"records": records, "tokens": tokens} | report | {"steps": num_steps, "loss": loss}
    if config.lora.rank:
        peft_adapter.write(
            folder / ADAPTER, model.config, trained, config.lora, str(inputs["model"])
        )
    return counts


def make_step(model_config: ModelConfig, optimizer: Any, config: ConfigDict) -> Any:
    """The pure update: step(state, frozen, batch) -> (state, metrics), summed over tokens."""
    import jax.numpy as jnp
    import optax

    from cai_jax.core.training import apply_gradients, summed_gradients

    def step(state, frozen, batch):
        weight = jnp.maximum(jnp.sum(batch.weights, dtype=jnp.float32), 1e-6)

        def loss(trained, part):
            params = lora.joined(trained, frozen, config.lora)
            total, of_part = loss_sums(params, model_config, part)
            return total / weight, {"loss_sum": total, "weight": of_part}

        gradients, sums = summed_gradients(loss, state.params, batch, config.accumulate)
        norm = optax.tree.norm(gradients)
        state = apply_gradients(state, gradients, optimizer)
        return state, sums | {"gradient_norm": norm}

    return step


def loss_sums(params: Any, config: ModelConfig, batch: Any) -> tuple[jax.Array, jax.Array]:
    """The losses of a batch (`packing.Rows` on devices): (sum of weighted nats, sum of weights)."""
    from cai_jax.algorithms import losses
    from cai_jax.models import transformer

    hidden, _ = transformer.forward(
        params, config, batch.tokens, positions=batch.positions, segments=batch.segments
    )
    unembed = transformer.unembedding(params, config)
    return losses.lm_cross_entropy(
        hidden,
        unembed,
        batch.targets,
        batch.weights,
        soft_cap=config.logits_soft_cap,
        positions=transformer.loss_positions(config),
    )


def load_or_initialize(
    config: ConfigDict, reference: Path, device_mesh: Any, key: jax.Array
) -> Any:
    """The model to start from; with `initialize`, random weights in the shape of its folder."""
    import jax

    from cai_jax import checkpoints
    from cai_jax.core import sharding
    from cai_jax.data.tokenization import load_tokenizer
    from cai_jax.models import transformer, weights
    from cai_jax.models.language_model import LanguageModel

    if not config.initialize:
        return checkpoints.load_model(reference, device_mesh, "float32")
    source = checkpoints.model_folder(reference)
    model_config, _ = weights.read_config(source)
    abstract = checkpoints.abstract_params(model_config, preference_model=False)
    init = jax.jit(
        lambda key: transformer.init_params(model_config, key),
        out_shardings=sharding.tree_shardings(abstract, device_mesh),
    )
    return LanguageModel(model_config, init(key), load_tokenizer(source))


def summed(fetched: list[dict[str, Any]]) -> dict[str, float]:
    """Metrics over several updates."""
    weight = sum(float(metrics["weight"]) for metrics in fetched)
    return {
        "loss": sum(float(metrics["loss_sum"]) for metrics in fetched) / max(weight, 1e-6),
        "gradient_norm": float(np.mean([metrics["gradient_norm"] for metrics in fetched])),
    }


def plan(config: ConfigDict, planned: dict[str, Any]) -> dict[str, float]:
    """Sequences, tokens (at most) and FLOPs of all epochs, from the planned counts of `data`.

    A record is a sequence; a chain with rounds is one for each of `revisions`, and no longer than
    its prompt and all that its rounds wrote. `max_steps` bounds the whole.
    """
    data = planned["data"]
    records = tokens = 0
    for source in data if isinstance(data, list | tuple) else [data]:
        there = source["records"]
        sequences = there * (len(config.revisions) if source.get("revisions") else 1)
        length = (source["tokens"] + source.get("prompt_tokens", 0)) / max(there, 1)
        records += sequences * config.epochs
        tokens += round(sequences * min(length, config.sequence_length)) * config.epochs
    most = config.max_steps * config.rows * config.sequence_length
    if 0 < most < tokens:
        records, tokens = round(records * most / tokens), most
    # A forward pass takes 2 FLOPs a parameter and token, a backward pass twice as many.
    parameters = planned["model"].get("parameters", 0)
    return {"records": records, "tokens": tokens, "flops": 6.0 * parameters * tokens}
