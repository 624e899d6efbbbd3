"""Direct preference optimization (Rafailov et al. 2023) on soft labels: RL-CAI without a PM.

The same comparisons that train a preference model train the policy itself: beta x log(policy /
reference) is the reward that a policy implies, and its differences are brought to the labels by the
loss of the preference model (`losses.dpo`). The reference is the model that training begins from;
its log-probabilities are computed once, before the first update, and kept.

A label of the paper is a probability, and so is ours: the optimum is finite, where the implied
rewards of two responses differ by the logit of their label.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
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

    from cai_jax.data.comparison_sources import Source
    from cai_jax.data.comparisons import Compared, ResponseBatch
    from cai_jax.models.config import ModelConfig

ADAPTER = "adapter"  # the step's folder for LoRA's factors
MEASURES = ("n", "accuracy", "log_loss", "label_entropy", "mean_margin")


def default_config() -> ConfigDict:
    """Every parameter of the step; those of the optimizer (learning rate ...) stand beside."""
    config = optimizers.default_config()
    config.update(computing.default_config())
    config.lora = lora.default_config()
    config.ema_decay = 0.0  # of an average of the parameters, which is what is saved; 0: the last
    # That of Rafailov et al. (appendix B), of all parameters of models of billions: the loss has no
    # sampling that would show a policy that breaks. LoRA and tiny models take a hundred times more.
    config.learning_rate = 1e-6
    config.weight_decay = 0.0  # would pull towards 0, not towards the reference
    config.beta = 0.1  # reward for a nat of difference to the reference; PPO's kl_coefficient
    # What a comparison of each input of `comparisons` weighs in the loss, in their order; (): 1.
    config.weights = ()
    config.epochs = 1
    config.pairs = 32  # comparisons in a batch, which is an update: twice as many texts
    config.accumulate = 1  # parts of a batch, one after the other: less memory, the same update
    config.dialogue_format = "plain"  # "\n\nHuman: ..."; or "chat", the model's own template
    config.sequence_length = 160  # tokens of dialogue, response and end, at most
    # Pairs that are longer: "truncate" (the beginning of the dialogue), "drop" or "refuse".
    config.on_long = "truncate"
    config.log_every = 10  # updates between two lines of metrics
    config.fields = readers.default_fields()  # what the comparisons' files call their columns
    config.checkpoints = training_checkpoints.default_config(every=200)
    config.data = readers.default_data()
    config.monitoring = monitoring.default_config()
    return config


def run(config: ConfigDict, inputs: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Trains a policy on comparisons; writes model/, metrics.jsonl and evaluation.json.

    evaluation.json has, for the training data and each held-out source, under "<source>_", how the
    implied rewards agree with the labels: n, accuracy (of the labels that are not a half), log_loss
    and label_entropy, its floor (nats), mean_margin (of the implied rewards, towards the label),
    truncated and dropped. Under "sources" it has all of `algorithms/preference_measures.py`, for
    each source. With LoRA, model/ has the factors merged in, and adapter/ as PEFT reads them.

    Args:
        config: as `default_config`, with `seed` and `mesh`.
        inputs: `model`: policy and reference; `comparisons`: files or step folders, mixed;
            `held_out`, optional: files or step folders, each measured by itself.
        folder: the step's own, empty.

    Returns:
        Counts: records (pairs trained on), tokens, steps, truncated, dropped, and the evaluation's
        accuracies.
    """
    import jax

    from cai_jax import checkpoints
    from cai_jax.core import keys, mesh, sharding, training
    from cai_jax.core.metrics import MetricsWriter
    from cai_jax.core.progress import Progress
    from cai_jax.data import comparison_sources, comparisons, pipeline
    from cai_jax.data.bad_records import BadRecords
    from cai_jax.models import peft_adapter, placing
    from cai_jax.models.language_model import LanguageModel
    from cai_jax.text.formats import dialogue_format

    check(config, inputs)
    device_mesh = mesh.make_mesh(config.mesh)
    comparison_sources.check_divides(config, sharding.batch_parts(device_mesh))
    model = checkpoints.load_model(inputs["model"], device_mesh, "float32")
    model = checkpoints.in_format(model, config.dialogue_format)
    if "score_head" in model.params:
        raise InputError("model: expected a language model, found a preference model")
    longest = min(config.sequence_length, model.config.max_positions)
    bad = BadRecords(config.data.on_bad_record)
    render = dialogue_format(config.dialogue_format).dialogue
    data = comparison_sources.read(config, inputs, model, render, longest, bad)
    pairs = [pair for source in data if source.trained for pair in source.pairs]
    length = max(map(comparisons.longer_length, (p for s in data for p in s.pairs)))
    model_config = computing.computed(model.config, config)
    rows = sharding.batch_sharding(device_mesh)
    held = placing.held_rows(rows, config.pairs)
    logprobs = jax.jit(
        lambda params, batch: response_logprobs(params, model_config, batch),
        in_shardings=(sharding.tree_shardings(model.params, device_mesh), rows),
        out_shardings=rows,
    )

    def place(pairs: Sequence[Compared], reference: np.ndarray) -> ResponseBatch:
        mine = [row for row in held if row < len(pairs)]
        of_mine = comparisons.token_pairs([pairs[row] for row in mine])
        filled = comparisons.fill_responses(of_mine, reference[mine], len(held), length)
        return placing.place_rows(filled, rows, held, config.pairs)

    def of_pairs(params: Any, pairs: Sequence[Compared]) -> np.ndarray:
        """Log-probabilities [n, 2] of the responses."""
        found = [np.zeros((0, 2), np.float32)]
        for first in range(0, len(pairs), config.pairs):
            group = pairs[first : first + config.pairs]
            batch = place(group, np.zeros((len(group), 2), np.float32))
            found.append(placing.fetch(logprobs(params, batch))[: len(group)])
        return np.concatenate(found)

    reference = [of_pairs(model.params, source.pairs) for source in data]
    of_training = np.concatenate([of for of, source in zip(reference, data) if source.trained])
    key = keys.base_key(config.seed, folder.name)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    num_steps = -(-len(pairs) * config.epochs // config.pairs)
    order = pipeline.shuffled(len(pairs), config.epochs, rng)
    stream = pipeline.iterate(pipeline.batches(range(len(pairs)), order, config.pairs))
    optimizer = optimizers.make_optimizer(config, num_steps)
    optimizer = optimizers.with_average(optimizer, config.ema_decay)
    trained, frozen = lora.split(model.params, config.lora, key)
    state, shardings = training.create_state(trained, optimizer, device_mesh)
    update = make_step(model_config, optimizer, config)
    step = training.compiled_update(update, device_mesh, shardings, frozen)
    flops = monitoring.training_flops(trained, frozen)
    mfu = monitoring.mfu_per_token(flops, device_mesh)
    with (
        training_checkpoints.TrainingCheckpoints(
            folder, config.checkpoints, inputs["model"]
        ) as saves,
        MetricsWriter(folder, config.monitoring, mfu) as writer,
        Progress(f"{folder.name} (dpo)", num_steps, "updates") as progress,
    ):
        state, at = saves.restored(state, training.start(stream))
        stream.set_state(at["stream"])
        tokens = at["tokens"]
        # Metrics still on devices, read together, so that nothing waits; and the records of each.
        pending, recent = jax.tree.map(np.float32, at["pending"]), at["recent"]
        progress.advance(at["number"])
        for number, indices in monitoring.profiled(
            enumerate(stream, start=at["number"] + 1), config.monitoring.profile_steps, folder
        ):
            group = [pairs[i] for i in indices]
            tokens += sum(pair.length_a + pair.length_b for pair in group)
            state, metrics = step(state, frozen, place(group, of_training[indices]))
            pending.append(metrics)
            recent.append([pair.record_id for pair in group])
            if number % config.log_every == 0 or number == num_steps:
                line = averaged(training.fetched(pending, recent, number, saves))
                writer.write(number, **line, tokens=tokens)
                progress.advance(len(pending), f"loss {line['loss']:.4f}")
                pending, recent = [], []
            if saves.due(number):
                pending = training.fetched(pending, recent, number, saves)
                at = {"number": number, "stream": stream.get_state(), "tokens": tokens}
                saves.save(number, state, at | {"pending": pending, "recent": recent})

    trained = optimizers.averaged(state.optimizer_state, state.params)
    params = lora.merged(trained, frozen, config.lora)
    checkpoints.save_model(folder, LanguageModel(model.config, params, model.tokenizer))
    if config.lora.rank:
        peft_adapter.write(
            folder / ADAPTER, model.config, trained, config.lora, str(inputs["model"])
        )
    rewards = [
        config.beta * (of_pairs(params, source.pairs) - of) for source, of in zip(data, reference)
    ]
    counts = {"records": len(pairs) * config.epochs, "tokens": tokens, "steps": num_steps}
    return counts | bad.report(folder) | evaluate(data, rewards, folder)


def evaluate(data: Sequence[Source], rewards: Sequence[np.ndarray], folder: Path) -> dict[str, Any]:
    """Writes evaluation.json from each source's implied rewards [n, 2] of responses A and B.

    Returns:
        Of the whole training data truncated and dropped; of all sources "<source>_accuracy".
    """
    from cai_jax.algorithms.preference_measures import measures
    from cai_jax.core import artifact
    from cai_jax.data.comparison_sources import TRAINING

    def measured(indices: list[int]) -> dict[str, Any]:
        sides = np.concatenate([rewards[i] for i in indices])
        labels = [pair.p_a for i in indices for pair in data[i].pairs]
        return measures(sides[:, 0], sides[:, 1], np.array(labels))

    groups = {TRAINING: [i for i, source in enumerate(data) if source.trained]}
    groups |= {source.name: [i] for i, source in enumerate(data) if not source.trained}
    evaluation: dict[str, Any] = {}
    for name, indices in groups.items():
        found = measured(indices)
        evaluation |= {f"{name}_{measure}": found.get(measure) for measure in MEASURES}
        for count in ("truncated", "dropped"):
            evaluation[f"{name}_{count}"] = sum(getattr(data[i], count) for i in indices)
    labelled = {
        f"{TRAINING}/{source.name}" if source.trained else source.name: measured([i])
        for i, source in enumerate(data)
    }
    artifact.write_json(folder / "evaluation.json", {**evaluation, "sources": labelled})
    counts = {name: evaluation[f"{TRAINING}_{name}"] for name in ("truncated", "dropped")}
    return counts | {name: value for name, value in evaluation.items() if name[-9:] == "_accuracy"}


def check(config: ConfigDict, inputs: dict[str, Any]) -> None:
    """Refuses what `run` would refuse, before the run begins.

    Raises:
        InputError: no comparisons, a number that means nothing, or pairs that do not divide over
            the devices.
    """
    from cai_jax.data import comparison_sources
    from cai_jax.text.formats import dialogue_format

    dialogue_format(config.dialogue_format)
    comparison_sources.check_inputs(config, inputs)
    if not config.beta > 0:
        raise InputError(f"beta: expected more than 0, found {config.beta}")
    optimizers.check(config)
    computing.check(config)
    training_checkpoints.check(config.checkpoints)
    lora.check(config.lora)
    comparison_sources.check_divides(config, config.mesh.data * config.mesh.fsdp)


def make_step(
    model_config: ModelConfig, optimizer: Any, config: ConfigDict
) -> Callable[[Any, Any, ResponseBatch], tuple[Any, dict[str, jax.Array]]]:
    """The pure update: step(state, frozen, batch) -> (state, metrics), summed over pairs."""
    import jax.numpy as jnp
    import optax

    from cai_jax.algorithms import labels, losses
    from cai_jax.core.training import apply_gradients, summed_gradients

    def loss_and_sums(params, batch):
        policy, reference = response_logprobs(params, model_config, batch), batch.reference
        of_pairs = losses.dpo(
            policy[:, 0],
            policy[:, 1],
            reference[:, 0],
            reference[:, 1],
            batch.p_a,
            beta=config.beta,
        )
        rewards = config.beta * (policy - reference)
        preferred = jnp.sign(batch.p_a - 0.5) * (rewards[:, 0] - rewards[:, 1])
        # A label of exactly a half has no better response.
        decided = batch.weights * (batch.p_a != 0.5)
        loss = jnp.sum(batch.weights * of_pairs)
        return loss, {
            "loss": loss,
            "entropy": jnp.sum(batch.weights * labels.label_entropy(batch.p_a)),
            "right": jnp.sum(decided * jnp.where(preferred == 0, 0.5, preferred > 0)),
            "margin": jnp.sum(decided * preferred),
            "decided": jnp.sum(decided),
            "weight": jnp.sum(batch.weights),
        }

    def step(state, frozen, batch):
        weight = jnp.maximum(jnp.sum(batch.weights), 1e-6)

        def loss(trained, part):
            total, sums = loss_and_sums(lora.joined(trained, frozen, config.lora), part)
            return total / weight, sums

        gradients, sums = summed_gradients(loss, state.params, batch, config.accumulate)
        norm = optax.tree.norm(gradients)
        state = apply_gradients(state, gradients, optimizer)
        return state, sums | {"gradient_norm": norm}

    return step


def response_logprobs(params: Any, config: ModelConfig, batch: Any) -> jax.Array:
    """Log-probabilities (nats) [B, 2] of the responses of a ResponseBatch, their ends included."""
    import jax.numpy as jnp

    from cai_jax.algorithms import losses
    from cai_jax.models import transformer

    length = batch.tokens.shape[-1]
    tokens, mask, response = (
        x.reshape(-1, length) for x in (batch.tokens, batch.mask, batch.response)
    )
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    hidden, _ = transformer.forward(
        params, config, tokens[:, :-1], positions=positions[:, :-1], segments=mask[:, :-1]
    )
    logprobs = losses.token_logprobs(
        hidden,
        transformer.unembedding(params, config),
        tokens[:, 1:],
        soft_cap=config.logits_soft_cap,
    )
    return jnp.sum(jnp.where(response[:, 1:], logprobs, 0), axis=1).reshape(-1, 2)


def averaged(fetched: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Metrics over several updates."""
    total = {name: sum(float(metrics[name]) for metrics in fetched) for name in fetched[0]}
    weight, decided = max(total["weight"], 1e-6), total["decided"] or float("nan")
    return {
        "loss": total["loss"] / weight,
        "entropy": total["entropy"] / weight,
        "accuracy": total["right"] / decided,
        "margin": total["margin"] / decided,
        "gradient_norm": total["gradient_norm"] / len(fetched),
    }


def plan(config: ConfigDict, planned: Mapping[str, Any]) -> dict[str, Any]:
    """Pairs trained on and measured, tokens at most, and FLOPs: 6 a parameter and token trained."""
    counted = {
        role: [planned[role]] if isinstance(planned.get(role), dict) else planned.get(role, [])
        for role in ("comparisons", "held_out")
    }
    records, held_out = (sum(source["records"] for source in of) for of in counted.values())
    trained = records * config.epochs * 2 * config.sequence_length
    measured = (records + held_out) * 2 * config.sequence_length
    parameters = planned.get("model", {}).get("parameters", 0)
    return {
        "records": records * config.epochs,
        "tokens": trained,
        # All are measured twice: by the reference before, and by the policy after.
        "flops": 2.0 * parameters * (3 * trained + 2 * measured),
        "updates": -(-records * config.epochs // config.pairs),
    }
