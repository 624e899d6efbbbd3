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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cai_jax.core import optimizer as optimizers
from cai_jax.data import readers
from cai_jax.errors import InputError
from cai_jax.models import computing

if typing.TYPE_CHECKING:
    import jax

    from cai_jax.data.bad_records import BadRecords
    from cai_jax.data.comparisons import FittedPairs, TokenPair
    from cai_jax.models.config import ModelConfig

RECORD_FILE = "comparisons.jsonl"
TRAINING = "training"


class Batch(NamedTuple):
    """B pairs; side 0 is response A, and texts are padded on the left."""

    tokens: Any  # int32 [B, 2, T]
    mask: Any  # int32 [B, 2, T]: 1 for a token
    response: Any  # bool [B, 2, T]: True for the tokens that follow the prompt
    reference: Any  # float32 [B, 2]: log-probabilities of the responses under the reference
    p_a: Any  # float32 [B]
    weights: Any  # float32 [B]: 0 for a pair that only fills the batch


def default_config() -> ConfigDict:
    """Every parameter of the step; those of the optimizer (learning rate ...) stand beside."""
    config = optimizers.default_config()
    config.update(computing.default_config())
    config.learning_rate = 3e-4
    config.weight_decay = 0.0  # would pull towards 0, not towards the reference
    config.beta = 0.1  # reward for a nat of difference to the reference; PPO's kl_coefficient
    config.epochs = 1
    config.pairs = 32  # comparisons in a batch: twice as many texts
    config.sequence_length = 160  # tokens of dialogue, response and end, at most
    # Pairs that are longer: "truncate" (the beginning of the dialogue), "drop" or "refuse".
    config.on_long = "truncate"
    config.log_every = 10  # updates between two lines of metrics
    config.fields = readers.default_fields()  # what the comparisons' files call their columns
    config.data = readers.default_data()
    return config


def run(config: ConfigDict, inputs: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Trains a policy on comparisons; writes model/, metrics.jsonl and evaluation.json.

    evaluation.json has, for the training data and each held-out source, under "<source>_", how the
    implied rewards agree with the labels: n, accuracy (of the labels that are not a half), log_loss
    and label_entropy, its floor (nats), margin (of the implied rewards, towards the label),
    truncated and dropped.

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
    from cai_jax.core import artifact, keys, mesh, sharding, training
    from cai_jax.core.metrics import MetricsWriter
    from cai_jax.core.progress import Progress
    from cai_jax.data import pipeline
    from cai_jax.data.bad_records import BadRecords
    from cai_jax.models.language_model import LanguageModel

    check(config, inputs)
    device_mesh = mesh.make_mesh(config.mesh)
    check_divides(config.pairs, sharding.batch_parts(device_mesh))
    model = checkpoints.load_model(inputs["model"], device_mesh)
    bad = BadRecords(config.data.on_bad_record)
    data = prepare(config, inputs, model, bad)
    pairs = data[TRAINING].pairs
    length = max(len(text) for of in data.values() for pair in of.pairs for text in pair[1:3])
    model_config = computing.computed(model.config, config)
    rows, whole = sharding.batch_sharding(device_mesh), sharding.replicated(device_mesh)
    logprobs = jax.jit(
        lambda params, batch: response_logprobs(params, model_config, batch),
        in_shardings=(sharding.tree_shardings(model.params, device_mesh), rows),
        out_shardings=rows,
    )

    def of_pairs(params: Any, pairs: Sequence[TokenPair]) -> np.ndarray:
        """Log-probabilities [n, 2] of the responses."""
        found = [np.zeros((0, 2), np.float32)]
        for first in range(0, len(pairs), config.pairs):
            group = pairs[first : first + config.pairs]
            batch = fill(group, np.zeros((len(group), 2)), config.pairs, length)
            found.append(np.asarray(logprobs(params, jax.device_put(batch, rows)))[: len(group)])
        return np.concatenate(found)

    reference = {name: of_pairs(model.params, of.pairs) for name, of in data.items()}
    key = keys.base_key(config.seed, folder.name)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    num_steps = -(-len(pairs) * config.epochs // config.pairs)
    order = pipeline.shuffled(len(pairs), config.epochs, rng)
    stream = pipeline.iterate(pipeline.batches(range(len(pairs)), order, config.pairs))
    optimizer = optimizers.make_optimizer(config, num_steps)
    state, shardings = training.create_state(model.params, optimizer, device_mesh)
    step = jax.jit(
        make_step(model_config, optimizer, config.beta),
        donate_argnums=0,
        in_shardings=(shardings, rows),
        out_shardings=(shardings, whole),
    )
    trained = 0
    pending: list[Any] = []  # metrics still on devices: read together, so that nothing waits
    recent: list[list[str]] = []
    where = f"{folder.name}, trained from {inputs['model']}"
    with (
        MetricsWriter(folder) as writer,
        Progress(f"{folder.name} (dpo)", num_steps, "updates") as progress,
    ):
        for number, indices in enumerate(stream, start=1):
            group = [pairs[i] for i in indices]
            trained += sum(len(pair.a) + len(pair.b) for pair in group)
            batch = fill(group, reference[TRAINING][indices], config.pairs, length)
            state, metrics = step(state, jax.device_put(batch, rows))
            pending.append(metrics)
            recent.append([pair.record_id for pair in group])
            if number % config.log_every == 0 or number == num_steps:
                line = averaged(pending, number, recent, where)
                writer.write(number, **line, tokens=trained)
                progress.advance(len(pending), f"loss {line['loss']:.4f}")
                pending, recent = [], []

    evaluation: dict[str, Any] = {}
    for name, fitted in data.items():
        rewards = config.beta * (of_pairs(state.params, fitted.pairs) - reference[name])
        labels = np.array([pair.p_a for pair in fitted.pairs])
        found = measures(rewards[:, 0] - rewards[:, 1], labels)
        found |= {"truncated": fitted.truncated, "dropped": fitted.dropped}
        evaluation |= {f"{name}_{measured}": value for measured, value in found.items()}
    artifact.write_json(folder / "evaluation.json", evaluation)
    checkpoints.save_model(folder, LanguageModel(model.config, state.params, model.tokenizer))
    counts = {
        "records": len(pairs) * config.epochs,
        "tokens": trained,
        "steps": num_steps,
        "truncated": data[TRAINING].truncated,
        "dropped": data[TRAINING].dropped,
    }
    accuracies = {name: value for name, value in evaluation.items() if name.endswith("_accuracy")}
    return counts | bad.report(folder) | accuracies


def check(config: ConfigDict, inputs: dict[str, Any]) -> None:
    """Refuses what `run` would refuse, before the run begins.

    Raises:
        InputError: no comparisons, a number that means nothing, or pairs that do not divide over
            the devices.
    """
    from cai_jax.data.packing import ON_LONG

    for role in ("model", "comparisons"):
        if not inputs.get(role):
            raise InputError(f"inputs: expected model and comparisons, found no {role}")
    for name in ("epochs", "pairs", "sequence_length", "log_every"):
        if config[name] < 1:
            raise InputError(f"{name}: expected at least 1, found {config[name]}")
    if not config.beta > 0:
        raise InputError(f"beta: expected more than 0, found {config.beta}")
    if config.on_long not in ON_LONG:
        raise InputError(f"on_long: expected one of {', '.join(ON_LONG)}, found {config.on_long!r}")
    optimizers.check(config)
    computing.check(config)
    check_divides(config.pairs, config.mesh.data * config.mesh.fsdp)


def check_divides(pairs: int, parts: int) -> None:
    """Refuses a batch that does not divide over data x fsdp devices."""
    if parts > 0 and pairs % parts:  # an axis of -1 shows its size when the devices are there
        raise InputError(
            f"pairs: expected a multiple of {parts} (data x fsdp devices), found {pairs}"
        )


def prepare(
    config: ConfigDict, inputs: dict[str, Any], model: Any, bad: BadRecords
) -> dict[str, FittedPairs]:
    """The pairs to train on, under TRAINING, and those of each held-out source, tokenized.

    Raises:
        InputError: the model is none of language, nothing to train on is left, or a token is none
            of the model's.
    """
    from cai_jax.data import schema
    from cai_jax.data.comparisons import fit_pairs
    from cai_jax.text.dialogue import render

    if "score_head" in model.params:
        raise InputError("model: expected a language model, found a preference model")
    longest = min(config.sequence_length, model.config.max_positions)
    records: dict[str, list[Any]] = {TRAINING: []}
    for role in ("comparisons", "held_out"):
        value = inputs.get(role) or []
        for path in map(Path, value if isinstance(value, list | tuple) else [value]):
            name = TRAINING if role == "comparisons" else readers.name_of(path)
            while role == "held_out" and name in records:
                name += "_"
            if path.is_dir():
                found = schema.read_records(path / RECORD_FILE, schema.Comparison, bad)
            else:
                found = readers.read_comparisons(path, config.fields, bad)
            records[name] = records.get(name, []) + found
    data = {
        name: fit_pairs(of_source, model.tokenizer, render, longest, config.on_long)
        for name, of_source in records.items()
    }
    if not data[TRAINING].pairs:
        raise InputError(
            f"comparisons: expected pairs that fit, found none ({data[TRAINING].dropped} are "
            f"longer than {longest} tokens); raise sequence_length"
        )
    texts = (text for fitted in data.values() for pair in fitted.pairs for text in pair[1:3])
    largest = max(map(max, texts))
    if largest >= model.config.vocab_size:
        raise InputError(
            f"model: its tokenizer gives id {largest}, but its vocabulary has only "
            f"{model.config.vocab_size} entries; the folder's files do not belong together"
        )
    return data


def fill(pairs: Sequence[TokenPair], reference: np.ndarray, num_pairs: int, length: int) -> Batch:
    """Pairs and their reference log-probabilities [n, 2] as arrays of B = `num_pairs`."""
    from cai_jax.data.comparisons import fill_pairs

    batch = fill_pairs(pairs, num_pairs, length)
    response, of_reference = batch.mask > 0, np.zeros((num_pairs, 2), np.float32)
    of_reference[: len(pairs)] = reference
    for row, pair in enumerate(pairs):
        for side, text in enumerate((pair.a, pair.b)):
            start = length - len(text)
            response[row, side, : start + pair.shared] = False
    return Batch(batch.tokens, batch.mask, response, of_reference, batch.p_a, batch.weights)


def make_step(config: ModelConfig, optimizer: Any, beta: float) -> Any:
    """The pure update: step(state, batch) -> (state, metrics), metrics summed over pairs."""
    import jax
    import jax.numpy as jnp
    import optax

    from cai_jax.algorithms import labels, losses
    from cai_jax.core.training import apply_gradients

    def loss(params, batch):
        policy, reference = response_logprobs(params, config, batch), batch.reference
        of_pairs = losses.dpo(
            policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], batch.p_a, beta=beta
        )
        rewards = beta * (policy - reference)
        preferred = jnp.sign(batch.p_a - 0.5) * (rewards[:, 0] - rewards[:, 1])
        # A label of exactly a half has no better response.
        decided = batch.weights * (batch.p_a != 0.5)
        sums = {
            "loss": jnp.sum(batch.weights * of_pairs),
            "entropy": jnp.sum(batch.weights * labels.label_entropy(batch.p_a)),
            "right": jnp.sum(decided * jnp.where(preferred == 0, 0.5, preferred > 0)),
            "margin": jnp.sum(decided * preferred),
            "decided": jnp.sum(decided),
            "weight": jnp.sum(batch.weights),
        }
        return sums["loss"] / jnp.maximum(sums["weight"], 1e-6), sums

    def step(state, batch):
        (_, sums), gradients = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
        norm = optax.tree.norm(gradients)
        state = apply_gradients(state, gradients, optimizer)
        return state, sums | {"gradient_norm": norm}

    return step


def response_logprobs(params: Any, config: ModelConfig, batch: Batch) -> jax.Array:
    """Log-probabilities (nats) of the responses [B, 2], summed over their tokens and their end."""
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


def averaged(
    pending: list[Any], number: int, recent: Sequence[Sequence[str]], where: str
) -> dict[str, float]:
    """Metrics over several updates; stops where one of them is not finite."""
    import jax

    from cai_jax.core.training import check_finite

    fetched = jax.device_get(pending)
    check_finite(fetched, number, "loss", lambda i: recent[i], where)
    total = {name: sum(float(metrics[name]) for metrics in fetched) for name in fetched[0]}
    weight, decided = max(total["weight"], 1e-6), total["decided"] or float("nan")
    return {
        "loss": total["loss"] / weight,
        "entropy": total["entropy"] / weight,
        "accuracy": total["right"] / decided,
        "margin": total["margin"] / decided,
        "gradient_norm": total["gradient_norm"] / len(fetched),
    }


def measures(margins: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How margins [n] of implied rewards agree with labels [n]; None where nothing counts."""
    from cai_jax.algorithms.calibration import binary_entropy

    def mean(values: np.ndarray) -> float | None:
        return float(np.mean(values)) if values.size else None

    margins, labels = margins.astype(np.float64), labels.astype(np.float64)
    losses = labels * np.logaddexp(0, -margins) + (1 - labels) * np.logaddexp(0, margins)
    preferred = (np.sign(labels - 0.5) * margins)[labels != 0.5]
    return {
        "n": len(labels),
        "accuracy": mean(np.where(preferred == 0, 0.5, preferred > 0)),
        "log_loss": mean(losses),
        "label_entropy": mean(binary_entropy(labels)),
        "margin": mean(preferred),
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
