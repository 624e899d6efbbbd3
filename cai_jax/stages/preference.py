"""The preference model (paper section 4.1): from compared pairs to a score for a whole text.

A language model with a score head, trained so that sigmoid(score A - score B) is the label of the
comparison, which may be soft. Who judged does not matter: AI feedback on harmlessness and human
comparisons of helpfulness are mixed, and each record carries its label. A preference model that was
trained on other comparisons before is a step of the same kind, whose result is this one's `model`.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
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
    from collections.abc import Callable

    import jax

    from cai_jax.data.comparison_sources import Source
    from cai_jax.data.comparisons import Compared, PairBatch, SharedBatch
    from cai_jax.models.config import ModelConfig
    from cai_jax.models.language_model import LanguageModel

ADAPTER = "adapter"  # the step's folder for LoRA's factors


def default_config() -> ConfigDict:
    """Every parameter of the step; those of the optimizer (learning rate ...) stand beside."""
    config = optimizers.default_config()
    config.update(computing.default_config())
    config.lora = lora.default_config()
    config.ema_decay = 0.0  # of an average of the parameters, which is what is saved; 0: the last
    config.learning_rate = 2e-3
    # What a comparison of each input of `comparisons` weighs in the loss, in their order; (): 1.
    # All are seen once an epoch: a source of n comparisons and weight w has the share n w of it.
    config.weights = ()
    config.centring = 0.0  # of (score A + score B)^2 in the loss, which holds scores near 0
    config.epochs = 1
    config.pairs = 32  # comparisons in a batch, which is an update: twice as many texts
    # Both responses after one copy of their prompt, in a row: faster where prompts are longer than
    # responses; the same scores but for rounding.
    config.shared_prompts = False
    config.accumulate = 1  # parts of a batch, one after the other: less memory, the same update
    config.dialogue_format = "plain"  # "\n\nHuman: ..."; or "chat", the model's own template
    config.sequence_length = 160  # tokens of dialogue, response and end, at most
    # Pairs that are longer: "truncate" (the beginning of the dialogue), "drop" or "refuse".
    config.on_long = "truncate"
    config.log_every = 10  # updates between two lines of metrics
    config.fields = readers.default_fields()  # what the comparisons' files call their columns
    config.checkpoints = training_checkpoints.default_config(every=200)
    # Measure `held_out` at each of them and at the end, and end with the parameters of the lowest
    # loss: where epochs are many. False: with the last.
    config.checkpoints.best = False
    config.data = readers.default_data()
    config.monitoring = monitoring.default_config()
    return config


def run(config: ConfigDict, inputs: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Trains a preference model; writes model/, metrics.jsonl and evaluation.json.

    evaluation.json has, for the training data and each held-out source, under "<source>_": n,
    accuracy (of the labels that are not a half), log_loss and label_entropy (nats), truncated and
    dropped. Under "sources" it has for each held-out source, and each one of the training data
    ("training/<source>"), what `algorithms/preference_measures.py` says, and its weight.

    With checkpoints.best, metrics.jsonl has the held-out loss besides, and model/ is the best one.

    The mean and deviation of the scores of the held-out responses (without any: of the training
    data's) go to model/score_statistics.json. With LoRA, model/ has the factors merged in, and
    adapter/ has them as PEFT reads them.

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
    longest = min(config.sequence_length, model.config.max_positions)
    bad = BadRecords(config.data.on_bad_record)
    render = dialogue_format(config.dialogue_format).dialogue
    data = comparison_sources.read(config, inputs, model, render, longest, bad)
    pairs = [pair for source in data if source.trained for pair in source.pairs]
    fill: Any = comparisons.fill_shared if config.shared_prompts else comparisons.fill_pairs
    length_of = comparisons.shared_length if config.shared_prompts else comparisons.longer_length
    length = max(length_of(pair) for source in data for pair in source.pairs)
    key = keys.base_key(config.seed, folder.name)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())

    params = starting_params(model)
    num_steps = -(-len(pairs) * config.epochs // config.pairs)
    order = pipeline.shuffled(len(pairs), config.epochs, rng)
    stream = pipeline.iterate(pipeline.batches(pairs, order, config.pairs))
    optimizer = optimizers.make_optimizer(config, num_steps)
    optimizer = optimizers.with_average(optimizer, config.ema_decay)
    trained, frozen = lora.split(params, config.lora, key)
    state, shardings = training.create_state(trained, optimizer, device_mesh)
    batch_sharding, whole = sharding.batch_sharding(device_mesh), sharding.replicated(device_mesh)
    held = placing.held_rows(batch_sharding, config.pairs)
    model_config = computing.computed(model.config, config)
    update = make_step(model_config, optimizer, config)
    step = training.compiled_update(update, device_mesh, shardings, frozen)

    def place(pairs: Sequence[Compared]) -> PairBatch | SharedBatch:
        mine = comparisons.token_pairs([pairs[row] for row in held if row < len(pairs)])
        filled = fill(mine, len(held), length)
        return placing.place_rows(filled, batch_sharding, held, config.pairs)

    measure = jax.jit(
        lambda params, batch: loss_and_sums(params, model_config, batch, 0.0)[1:],
        in_shardings=(sharding.tree_shardings(params, device_mesh), batch_sharding),
        out_shardings=whole,
    )
    held_out_pairs = [p for of in data if not of.trained for p in of.pairs]

    def held_out_loss(state: Any) -> tuple[float, Any]:
        """The mean loss of the held-out pairs, and the parameters that it is of."""
        trained = optimizers.averaged(state.optimizer_state, state.params)
        joined = lora.merged(trained, frozen, config.lora)
        pairs = [pair._replace(weight=1.0) for pair in held_out_pairs]
        batches = [pairs[i : i + config.pairs] for i in range(0, len(pairs), config.pairs)]
        return means([measure(joined, place(of))[0] for of in batches])["log_loss"] or 0.0, trained

    flops = monitoring.training_flops(trained, frozen)
    mfu = monitoring.mfu_per_token(flops, device_mesh)
    with (
        training_checkpoints.TrainingCheckpoints(
            folder, config.checkpoints, inputs["model"]
        ) as saves,
        MetricsWriter(folder, config.monitoring, mfu) as writer,
        Progress(f"{folder.name} (preference)", num_steps, "updates") as progress,
    ):
        start = training.start(stream) | {"best": [0, math.inf]}
        state, at = saves.restored(state, start)
        best = training_checkpoints.Best(folder, at.get("best", start["best"]))
        stream.set_state(at["stream"])
        tokens = at["tokens"]
        # Metrics still on devices, read together, so that nothing waits; and the records of each.
        pending, recent = jax.tree.map(np.float32, at["pending"]), at["recent"]
        progress.advance(at["number"])
        for number, batch in monitoring.profiled(
            enumerate(stream, start=at["number"] + 1), config.monitoring.profile_steps, folder
        ):
            tokens += sum(pair.length_a + pair.length_b for pair in batch)
            state, metrics = step(state, frozen, place(batch))
            pending.append(metrics)
            recent.append([pair.record_id for pair in batch])
            measured = config.checkpoints.best and (
                number % config.checkpoints.every == 0 or number == num_steps
            )
            if number % config.log_every == 0 or number == num_steps or measured:
                totals = summed(training.fetched(pending, recent, number, saves))
                if measured:
                    totals["held_out_loss"], averaged = held_out_loss(state)
                    best.offer(number, totals["held_out_loss"], averaged)
                writer.write(number, **totals, tokens=tokens)
                progress.advance(len(pending), f"loss {totals['loss']:.4f}")
                pending, recent = [], []
            if saves.due(number):
                pending = training.fetched(pending, recent, number, saves)
                at = {"number": number, "stream": stream.get_state(), "tokens": tokens}
                at |= {"pending": pending, "recent": recent, "best": best.position}
                saves.save(number, state, at)

    trained = best.restored(optimizers.averaged(state.optimizer_state, state.params))
    params = lora.merged(trained, frozen, config.lora)
    checkpoints.save_model(folder, LanguageModel(model.config, params, model.tokenizer))
    counts = {"records": len(pairs) * config.epochs, "tokens": tokens, "steps": num_steps}
    counts |= bad.report(folder)
    if config.lora.rank:
        peft_adapter.write(
            folder / ADAPTER, model.config, trained, config.lora, str(inputs["model"])
        )
    if config.checkpoints.best:
        counts["best_step"] = int(best.position[0])
    return counts | evaluate(
        data, config.pairs, lambda pairs: measure(params, place(pairs)), folder
    )


def evaluate(
    data: Sequence[Source],
    batch_size: int,
    measure: Callable[[Sequence[Compared]], Any],
    folder: Path,
) -> dict[str, Any]:
    """Measures all sources, and writes evaluation.json and the scores' statistics.

    Args:
        data: of all sources, as `read_sources` gives them.
        batch_size: pairs that `measure` takes at a time, at most.
        measure: pairs -> (sums over them, scores [2, B] of sides A and B).
        folder: of the step, with its model.

    Returns:
        Of the whole training data truncated and dropped; of all sources "<source>_accuracy".
    """
    import jax

    from cai_jax.algorithms.preference_measures import measures
    from cai_jax.core import artifact
    from cai_jax.data.comparison_sources import TRAINING
    from cai_jax.models import score_statistics

    groups: dict[str, list[Source]] = {TRAINING: [source for source in data if source.trained]}
    groups |= {source.name: [source] for source in data if not source.trained}
    evaluation: dict[str, Any] = {}
    of_sources: dict[str, Any] = {}
    scores: dict[str, np.ndarray] = {}
    for name, sources in groups.items():
        pairs = [pair._replace(weight=1.0) for s in sources for pair in s.pairs]
        batches = [pairs[i : i + batch_size] for i in range(0, len(pairs), batch_size)]
        measured = [jax.device_get(measure(batch)) for batch in batches]
        evaluation[f"{name}_n"] = len(pairs)
        for measure_name, value in means([sums for sums, _ in measured]).items():
            evaluation[f"{name}_{measure_name}"] = value
        for count in ("truncated", "dropped"):
            evaluation[f"{name}_{count}"] = sum(getattr(s, count) for s in sources)
        found = [of_batch[:, : len(batch)] for (_, of_batch), batch in zip(measured, batches)]
        scores[name] = np.concatenate([np.zeros((2, 0), np.float32), *found], axis=1)
        labels = np.array([pair.p_a for pair in pairs])
        first = 0
        for source in sources:
            own = slice(first, first + len(source.pairs))
            first = own.stop
            label = f"{TRAINING}/{source.name}" if source.trained else source.name
            score_a, score_b = scores[name][:, own]
            of_sources[label] = measures(score_a, score_b, labels[own])
            of_sources[label] |= {"weight": source.weight} if source.trained else {}
    artifact.write_json(folder / "evaluation.json", {**evaluation, "sources": of_sources})
    reference = [name for name in scores if name != TRAINING and scores[name].size] or [TRAINING]
    score_statistics.write(
        folder / "model", np.concatenate([scores[name].ravel() for name in reference]), reference
    )
    counts = {name: evaluation[f"{TRAINING}_{name}"] for name in ("truncated", "dropped")}
    return counts | {n: value for n, value in evaluation.items() if n.endswith("_accuracy")}


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
    if config.centring < 0:
        raise InputError(f"centring: expected 0 or more, found {config.centring}")
    optimizers.check(config)
    computing.check(config)
    training_checkpoints.check(config.checkpoints)
    if config.checkpoints.best and not (inputs.get("held_out") and config.checkpoints.every):
        raise InputError(
            "checkpoints.best: expected inputs.held_out and checkpoints.every > 0 with it; "
            "give both, or leave it False"
        )
    lora.check(config.lora)
    comparison_sources.check_divides(config, config.mesh.data * config.mesh.fsdp)


def starting_params(model: LanguageModel) -> dict[str, Any]:
    """Those of `model`, as a preference model: with a head of zeros where it has none."""
    from cai_jax.models import transformer

    params = {name: value for name, value in model.params.items() if name != "unembedder"}
    if "score_head" not in params:
        params = transformer.add_score_head(params, model.config)
    return params


def make_step(model_config: ModelConfig, optimizer: Any, config: ConfigDict) -> Any:
    """The pure update: step(state, frozen, batch) -> (state, metrics), summed over pairs."""
    import jax.numpy as jnp
    import optax

    from cai_jax.core.training import apply_gradients, summed_gradients

    def step(state, frozen, batch):
        weight = jnp.maximum(jnp.sum(batch.weights), 1e-6)

        def loss(trained, part):
            params = lora.joined(trained, frozen, config.lora)
            total, sums, _ = loss_and_sums(params, model_config, part, config.centring)
            return total / weight, sums

        gradients, sums = summed_gradients(loss, state.params, batch, config.accumulate)
        norm = optax.tree.norm(gradients)
        state = apply_gradients(state, gradients, optimizer)
        return state, sums | {"gradient_norm": norm}

    return step


def loss_and_sums(
    params: Any, config: ModelConfig, batch: Any, centring: float
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    """What is made small, summed over the pairs of a batch, and what it is made of.

    Args:
        params: of a preference model.
        config: of the model.
        batch: a `PairBatch` or `SharedBatch` on devices.
        centring: of the squared sum of a pair's scores (Eisenstein et al. 2023), beside the loss of
            Bradley and Terry, which knows their difference alone.

    Returns:
        (the sum, sums by name: loss, entropy, right, decided, weight, and scores [2, B]).
    """
    import jax.numpy as jnp

    from cai_jax.algorithms import labels, losses
    from cai_jax.generation.preference import pair_scores

    score_a, score_b = pair_scores(params, config, batch)
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
    total = sums["loss"]
    if centring:
        total += centring * jnp.sum(batch.weights * (score_a + score_b) ** 2)
    return total, sums, jnp.stack([score_a, score_b])


def summed(fetched: list[dict[str, Any]]) -> dict[str, Any]:
    """Metrics over several updates."""
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
