"""The preference model (paper section 4.1): from compared pairs to a score for a whole text.

A language model with a score head, trained so that sigmoid(score A - score B) is the label of the
comparison, which may be soft. Who judged does not matter: AI feedback on harmlessness and human
comparisons of helpfulness are mixed, and each record carries its label.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cai_jax.core import optimizer as optimizers
from cai_jax.data import readers
from cai_jax.errors import InputError

if typing.TYPE_CHECKING:
    import jax

    from cai_jax.data.bad_records import BadRecords
    from cai_jax.data.comparisons import PairBatch, TokenPair
    from cai_jax.data.schema import Comparison
    from cai_jax.models.config import ModelConfig

RECORD_FILE = "comparisons.jsonl"
TRAINING = "training"


def default_config() -> ConfigDict:
    """Every parameter of the step; those of the optimizer (learning rate ...) stand beside."""
    config = optimizers.default_config()
    config.learning_rate = 2e-3
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
    """Trains a preference model; writes model/, metrics.jsonl and evaluation.json.

    evaluation.json has, for the training data and each held-out source, under "<source>_": n,
    accuracy (of the labels that are not a half), log_loss and label_entropy (nats), truncated and
    dropped.

    Args:
        config: as `default_config`, with `seed` and `mesh`.
        inputs: `model`: what to start from; `comparisons`: files or step folders, mixed;
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
    from cai_jax.data.comparisons import fill_pairs, fit_pairs
    from cai_jax.models import transformer
    from cai_jax.models.language_model import LanguageModel
    from cai_jax.text.dialogue import render

    check(config, inputs)
    device_mesh = mesh.make_mesh(config.mesh)
    check_divides(config.pairs, sharding.batch_parts(device_mesh))
    model = checkpoints.load_model(inputs["model"], device_mesh)
    longest = min(config.sequence_length, model.config.max_positions)
    bad = BadRecords(config.data.on_bad_record)
    data = {
        name: fit_pairs(records, model.tokenizer, render, longest, config.on_long)
        for name, records in read(inputs, config.fields, bad).items()
    }
    pairs = data[TRAINING].pairs
    if not pairs:
        raise InputError(
            f"comparisons: expected pairs that fit, found none ({data[TRAINING].dropped} are "
            f"longer than {longest} tokens); raise sequence_length"
        )
    texts = [text for fitted in data.values() for pair in fitted.pairs for text in pair[1:3]]
    if max(map(max, texts)) >= model.config.vocab_size:
        raise InputError(
            f"model: its tokenizer gives id {max(map(max, texts))}, but its vocabulary has only "
            f"{model.config.vocab_size} entries; the folder's files do not belong together"
        )
    length = max(map(len, texts))
    key = keys.base_key(config.seed, folder.name)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())

    params = {name: value for name, value in model.params.items() if name != "unembedder"}
    if "score_head" not in params:
        params = transformer.add_score_head(params, model.config)
    num_steps = -(-len(pairs) * config.epochs // config.pairs)
    order = pipeline.shuffled(len(pairs), config.epochs, rng)
    stream = pipeline.iterate(pipeline.batches(pairs, order, config.pairs))
    optimizer = optimizers.make_optimizer(config, num_steps)
    state, shardings = training.create_state(params, optimizer, device_mesh)
    batch_sharding, whole = sharding.batch_sharding(device_mesh), sharding.replicated(device_mesh)
    step = jax.jit(
        make_step(model.config, optimizer),
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding),
        out_shardings=(shardings, whole),
    )
    measure = jax.jit(
        lambda params, batch: loss_and_sums(params, model.config, batch)[1],
        in_shardings=(shardings.params, batch_sharding),
        out_shardings=whole,
    )

    def place(pairs: Sequence[TokenPair]) -> PairBatch:
        return jax.device_put(fill_pairs(pairs, config.pairs, length), batch_sharding)

    trained = 0
    pending: list[Any] = []  # metrics still on devices: read together, so that nothing waits
    recent: list[list[TokenPair]] = []
    with (
        MetricsWriter(folder) as writer,
        Progress(f"{folder.name} (preference)", num_steps, "updates") as progress,
    ):
        for number, batch in enumerate(stream, start=1):
            trained += sum(len(pair.a) + len(pair.b) for pair in batch)
            state, metrics = step(state, place(batch))
            pending.append(metrics)
            recent.append(batch)
            if number % config.log_every == 0 or number == num_steps:
                totals = summed(pending, number, recent)
                writer.write(number, **totals, tokens=trained)
                progress.advance(len(pending), f"loss {totals['loss']:.4f}")
                pending, recent = [], []

    evaluation: dict[str, Any] = {}
    for name, fitted in data.items():
        starts = range(0, len(fitted.pairs), config.pairs)
        groups = (fitted.pairs[first : first + config.pairs] for first in starts)
        found = means([measure(state.params, place(group)) for group in groups])
        found = {"n": len(fitted.pairs), **found}
        found |= {"truncated": fitted.truncated, "dropped": fitted.dropped}
        evaluation |= {f"{name}_{measured}": value for measured, value in found.items()}
    artifact.write_json(folder / "evaluation.json", evaluation)
    checkpoints.save_model(folder, LanguageModel(model.config, state.params, model.tokenizer))
    return {
        "records": len(pairs) * config.epochs,
        "tokens": trained,
        "steps": num_steps,
        "truncated": data[TRAINING].truncated,
        "dropped": data[TRAINING].dropped,
        **bad.report(folder),
    } | {name: value for name, value in evaluation.items() if name.endswith("_accuracy")}


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
    if config.on_long not in ON_LONG:
        raise InputError(f"on_long: expected one of {', '.join(ON_LONG)}, found {config.on_long!r}")
    optimizers.check(config)
    check_divides(config.pairs, config.mesh.data * config.mesh.fsdp)


def check_divides(pairs: int, parts: int) -> None:
    """Refuses a batch that does not divide over data x fsdp devices."""
    if parts > 0 and pairs % parts:  # an axis of -1 shows its size when the devices are there
        raise InputError(
            f"pairs: expected a multiple of {parts} (data x fsdp devices), found {pairs}"
        )


def read(
    inputs: dict[str, Any], fields: Mapping[str, str], bad: BadRecords
) -> dict[str, list[Comparison]]:
    """The comparisons to train on, under TRAINING, and those of each held-out source."""
    from cai_jax.data import schema

    def records(path: Path) -> list[Comparison]:
        if path.is_dir():
            return schema.read_records(path / RECORD_FILE, schema.Comparison, bad)
        return readers.read_comparisons(path, fields, bad)

    found = {
        TRAINING: [record for path in paths(inputs, "comparisons") for record in records(path)]
    }
    for path in paths(inputs, "held_out"):
        name = readers.name_of(path)
        while name in found:
            name += "_"
        found[name] = records(path)
    return found


def paths(inputs: dict[str, Any], role: str) -> list[Path]:
    """The paths of a role that has none, one or a list."""
    value = inputs.get(role) or []
    return [Path(path) for path in (value if isinstance(value, list | tuple) else [value])]


def make_step(config: ModelConfig, optimizer: Any) -> Any:
    """The pure update: step(state, batch) -> (state, metrics), metrics summed over pairs."""
    import jax
    import optax

    from cai_jax.core.training import apply_gradients

    def step(state, batch):
        (_, sums), gradients = jax.value_and_grad(
            lambda params: loss_and_sums(params, config, batch), has_aux=True
        )(state.params)
        norm = optax.tree.norm(gradients)
        state = apply_gradients(state, gradients, optimizer)
        return state, sums | {"gradient_norm": norm}

    return step


def loss_and_sums(
    params: Any, config: ModelConfig, batch: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss of a PairBatch, and sums over its pairs: loss, entropy, right, decided."""
    import jax.numpy as jnp

    from cai_jax.algorithms import labels, losses

    score_a, score_b = pair_scores(params, config, batch.tokens, batch.mask)
    margin = score_a - score_b
    # A label of exactly a half has no better response, so that no score gets it right or wrong.
    decided = batch.weights * (batch.p_a != 0.5)
    right = jnp.where(margin == 0, 0.5, (margin > 0) == (batch.p_a > 0.5))
    sums = {
        "loss": jnp.sum(batch.weights * losses.bradley_terry(score_a, score_b, batch.p_a)),
        "entropy": jnp.sum(batch.weights * labels.label_entropy(batch.p_a)),
        "right": jnp.sum(decided * right),
        "decided": jnp.sum(decided),
        "weight": jnp.sum(batch.weights),
    }
    return sums["loss"] / jnp.maximum(sums["weight"], 1), sums


def pair_scores(
    params: Any, config: ModelConfig, tokens: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Scores of responses A and B, [B] each, from pairs [B, 2, T] padded on the left."""
    import jax.numpy as jnp

    from cai_jax.models import transformer

    tokens, mask = (x.reshape(-1, x.shape[-1]) for x in (tokens, mask))  # [2B, T]
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    hidden, _ = transformer.forward(params, config, tokens, positions=positions, segments=mask)
    scores = transformer.scores(params, hidden[:, -1]).reshape(-1, 2)
    return scores[:, 0], scores[:, 1]


def summed(
    pending: list[Any], number: int, recent: Sequence[Sequence[TokenPair]]
) -> dict[str, Any]:
    """Metrics over several updates; stops where one of them is not finite."""
    import jax

    fetched = jax.device_get(pending)
    for i, (metrics, batch) in enumerate(zip(fetched, recent)):
        if not all(np.isfinite(value) for value in metrics.values()):
            ids = ", ".join(pair.record_id for pair in batch[:8])
            raise FloatingPointError(
                f"update {number - len(pending) + i + 1}: loss {float(metrics['loss'])}, "
                f"gradient norm {float(metrics['gradient_norm'])}; lower the learning rate or look "
                f"at records {ids}{' ...' if len(batch) > 8 else ''}"
            )
    found = means(fetched)
    return {
        "loss": found["log_loss"],
        "accuracy": float("nan") if found["accuracy"] is None else found["accuracy"],
        "entropy": found["label_entropy"],
        "gradient_norm": float(np.mean([metrics["gradient_norm"] for metrics in fetched])),
    }


def means(sums: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Accuracy, log-loss and label entropy from the sums of batches; None where nothing counts."""
    import jax

    total = {name: 0.0 for name in ("loss", "entropy", "right", "decided", "weight")}
    for of_batch in jax.device_get(list(sums)):
        for name in total:
            total[name] += float(of_batch[name])

    def quotient(part: str, of: str) -> float | None:
        return total[part] / total[of] if total[of] else None

    return {
        "accuracy": quotient("right", "decided"),
        "log_loss": quotient("loss", "weight"),
        "label_entropy": quotient("entropy", "weight"),
    }


def plan(config: ConfigDict, planned: dict[str, Any]) -> dict[str, Any]:
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
        "flops": 2.0 * parameters * (3 * trained + measured),
        "updates": -(-records * config.epochs // config.pairs),
    }
