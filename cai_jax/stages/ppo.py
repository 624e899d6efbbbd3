"""Reinforcement learning against the preference model (RL-CAI, paper section 4; PPO).

The policy begins as the supervised model, which stays the reference: reward = r_PM - beta x KL, the
penalty paid token by token. An iteration is two compiled programs: `rollout` samples a response to
each of B prompts and evaluates policy, reference and preference model on it; `update` makes a few
passes of clipped policy and value gradients over them (`algorithms/ppo.py`).

A preference model is trained on comparisons of responses to one prompt, and how it ranks a prompt
above another is an accident. So the responses to a prompt are each other's baseline: without it,
whatever is said to prompts of low scores is unlearned, the language with it.

Responses are sampled from the whole vocabulary, and every log-probability is taken at the
temperature of sampling: those of the ratio and of the KL are of the distribution sampled from.

Axes: B responses, P prompt positions (padded on the left), R response positions.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cai_jax.algorithms import ppo_options
from cai_jax.core import monitoring, training_checkpoints
from cai_jax.core import optimizer as optimizers
from cai_jax.data import readers
from cai_jax.data.prompt_batches import ON_LONG
from cai_jax.errors import InputError
from cai_jax.models import computing

if typing.TYPE_CHECKING:
    import jax

    from cai_jax.data.bad_records import BadRecords
    from cai_jax.data.prompt_batches import FittedPrompts
    from cai_jax.models.config import ModelConfig
    from cai_jax.models.language_model import LanguageModel

LOWEST = {
    **dict.fromkeys(("iterations", "prompts_per_iteration", "max_prompt_tokens"), 1),
    **dict.fromkeys(("max_new_tokens", "record_every"), 1),
    **dict.fromkeys(("sample_texts", "snapshot_every"), 0),
}


def default_config() -> ConfigDict:
    """Every parameter of the step; those of the algorithm and of the optimizer stand beside."""
    config = optimizers.default_config()
    config.update(computing.default_config())
    config.learning_rate = 3e-4
    config.weight_decay = 0.0  # would pull towards 0, not towards the reference
    config.update(ppo_options.default_config())
    config.iterations = 60  # rollouts, each with its update
    config.prompts_per_iteration = 32
    config.dialogue_format = "plain"  # "\n\nHuman: ..."; or "chat", the model's own template
    config.max_prompt_tokens = 96
    config.on_long = "drop"  # prompts that are longer: "drop" or "refuse"
    config.max_new_tokens = 44
    config.record_every = 10  # iterations between two that are kept in rollouts.jsonl
    config.sample_texts = 2  # responses of every iteration that are kept in samples.jsonl
    config.snapshot_every = 0  # iterations between two models in snapshots/; 0: none
    config.checkpoints = training_checkpoints.default_config(every=50)
    config.fields = readers.default_fields()  # what the prompts' files call their columns
    config.data = readers.default_data()
    config.monitoring = monitoring.default_config()
    return config


def run(config: ConfigDict, inputs: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Trains a policy; writes model/, metrics.jsonl, rollouts.jsonl, samples.jsonl, snapshots/.

    Args:
        config: as `default_config`, with `seed` and `mesh`.
        inputs: `model`: policy and reference; `preference_model`: with the same tokenizer;
            `prompts`: files, mixed; `judge` (optional): a preference model that does not train the
            policy, and reads the iterations that are kept.
        folder: the step's own, empty.

    Returns:
        Counts: records (responses), tokens (of responses), dropped (prompts), and the mean score of
        the first and the last iteration, its KL, and its share of responses with boilerplate; with
        a judge, the first alarm, or "".
    """
    import jax

    from cai_jax import checkpoints
    from cai_jax.algorithms import goodhart
    from cai_jax.algorithms.controllers import Moments, adapted_kl_coef
    from cai_jax.algorithms.ppo import Controls
    from cai_jax.core import artifact, keys, mesh, sharding, training
    from cai_jax.core.metrics import MetricsWriter
    from cai_jax.core.progress import Progress
    from cai_jax.data import rollouts
    from cai_jax.data.bad_records import BadRecords
    from cai_jax.generation.preference import check_models
    from cai_jax.models import placing, score_statistics
    from cai_jax.text import phrases
    from cai_jax.text.refusals import opens_with_refusal

    check(config, inputs)
    device_mesh = mesh.make_mesh(config.mesh)
    check_divides(config, sharding.batch_parts(device_mesh))
    reference = checkpoints.load_model(inputs["model"], device_mesh, "float32")
    preference = checkpoints.load_model(inputs["preference_model"], device_mesh, "float32")
    reference = checkpoints.in_format(reference, config.dialogue_format)
    preference = checkpoints.in_format(preference, config.dialogue_format)
    bad = BadRecords(config.data.on_bad_record)
    fitted = read_prompts(config, inputs["prompts"], reference, bad)
    check_models(reference, preference, fitted.ids, config.max_new_tokens + 1)
    sample_key, update_key = jax.random.split(keys.base_key(config.seed, folder.name))
    optimizer = optimizers.make_optimizer(
        config, config.iterations * config.epochs * config.minibatches
    )
    state, shardings = training.create_state(
        starting_params(config, reference, preference), optimizer, device_mesh
    )
    rollout, update = compiled(config, reference, preference, optimizer, device_mesh, shardings)
    judge = load_judge(inputs.get("judge"), config, reference, fitted, device_mesh)
    responses = config.prompts_per_iteration * config.samples_per_prompt
    kept, first_said = folder / "rollouts.jsonl", None
    moments, offset, scale, kl_coef = Moments(), np.float32(0), 1.0, config.kl_coefficient
    if config.score_normalization == "stored":
        found = score_statistics.read(checkpoints.model_folder(inputs["preference_model"]))
        offset, scale = np.float32(found.mean), found.std
    sizes = [{"parameters": monitoring.size(model.params)} for model in (reference, preference)]
    planned = plan(config, dict(zip(("model", "preference_model"), sizes)))
    mfu = monitoring.mfu_per_token(planned["flops"] / planned["tokens"], device_mesh)
    begin = {"number": 0, "history": [], "kl_coef": kl_coef, "moments": moments}
    begin |= {"offset": offset, "scale": scale}
    with (
        training_checkpoints.TrainingCheckpoints(
            folder, config.checkpoints, inputs["model"]
        ) as saves,
        MetricsWriter(folder, config.monitoring, mfu) as writer,
        Progress(f"{folder.name} (ppo)", config.iterations, "iterations") as progress,
    ):
        state, at = saves.restored(state, begin)
        history, moments, kl_coef = at["history"], Moments(*at["moments"]), at["kl_coef"]
        offset, scale = np.float32(at["offset"]), at["scale"]
        draws = draw_prompts(fitted, config, sample_key)
        draws = itertools.islice(enumerate(draws, start=1), at["number"], config.iterations)
        progress.advance(at["number"])
        for iteration, (drawn, batch) in monitoring.profiled(
            draws, config.monitoring.profile_steps, folder
        ):
            batch = placing.place(batch, sharding.batch_sharding(device_mesh))
            experience = rollout(state.params, reference.params, preference.params, batch)
            if config.score_normalization == "running":
                moments = moments.updated(placing.fetch(experience.scores))
                offset, scale = np.float32(moments.mean), moments.deviation
            elif config.score_normalization == "first_mean" and iteration == 1:
                # The scores of a preference model mean something up to a constant alone. This one
                # puts the reference at 0, where the values begin.
                offset = np.mean(placing.fetch(experience.scores))
            controls = Controls(offset, np.float32(scale), np.float32(kl_coef))
            state, experience, metrics = update(
                state, experience, controls, jax.random.fold_in(update_key, iteration)
            )
            metrics = jax.device_get(metrics)
            training.check_finite(metrics, f"iteration {iteration}", [p.id for p in drawn], saves)
            records = rollouts.to_rollouts(
                placing.fetch(experience), iteration, drawn, reference.tokenizer
            )
            metrics["evasive"] = np.mean([opens_with_refusal(r.response) for r in records])
            first_said = first_said or phrases.said(*rollouts.first_texts(kept, records))
            said = phrases.said(*rollouts.texts(records))
            metrics |= phrases.measures(first_said, said)
            is_kept = (iteration - 1) % config.record_every == 0 or iteration == config.iterations
            if judge and is_kept:
                scores, judged = placing.fetch((experience.scores, judge(experience)))
                metrics |= goodhart.read(scores, judged, config.samples_per_prompt)
            history.append({name: float(value) for name, value in metrics.items()})
            writer.tokens += round(history[-1]["length"] * responses)
            writer.write(iteration, **history[-1], kl_coefficient=kl_coef)
            rollouts.append(folder / "samples.jsonl", records[: config.sample_texts])
            if is_kept:
                rollouts.append(kept, records)
                artifact.write_json(folder / "phrases.json", phrases.spread(first_said, said))
            alarm = goodhart.first_alarm(history)
            if alarm and alarm.after.iteration == iteration:
                print(f"{folder.name}: ALARM: {alarm}", file=sys.stderr)
            if config.kl_target:
                kl_coef = adapted_kl_coef(
                    kl_coef,
                    history[-1]["kl"],
                    target=config.kl_target,
                    horizon=config.kl_horizon,
                    responses=responses,
                )
            if config.snapshot_every and iteration % config.snapshot_every == 0:
                policy = reference._replace(params=state.params["policy"])
                checkpoints.save_model(folder, policy, checkpoints.snapshot_name(iteration))
                saves.model = folder / checkpoints.snapshot_name(iteration)
            if saves.due(iteration):
                at = {"number": iteration, "history": history, "kl_coef": kl_coef}
                at |= {"moments": moments, "offset": offset, "scale": scale}
                saves.save(iteration, state, at)
            progress.advance(1, "score {score:.3f}, KL {kl:.3f}".format(**history[-1]))
    policy = reference._replace(params=state.params["policy"])
    checkpoints.save_model(folder, policy)
    return {
        "records": config.iterations * responses,
        "tokens": round(sum(line["length"] for line in history) * responses),
        "dropped": fitted.dropped,
        "first_score": history[0]["score"],
        "score": history[-1]["score"],
        "kl": history[-1]["kl"],
        "boilerplate": history[-1]["boilerplate"],
        **({"alarm": str(goodhart.first_alarm(history) or "")} if judge else {}),
    } | bad.report(folder)


def load_judge(
    reference: Any, config: ConfigDict, policy: LanguageModel, fitted: FittedPrompts, mesh: Any
) -> Callable[[Any], jax.Array] | None:
    """A program from an experience to the judge's scores [B] of its responses; None: no judge."""
    from cai_jax import checkpoints
    from cai_jax.generation.rollout import make_judge

    if not reference:
        return None
    judge = checkpoints.in_format(checkpoints.load_model(reference, mesh), config.dialogue_format)
    return make_judge(judge, policy, fitted.ids, config.max_new_tokens + 1)


def check(config: ConfigDict, inputs: dict[str, Any]) -> None:
    """Refuses what `run` would refuse, before the run begins.

    Raises:
        InputError: a role is missing, a number means nothing, or batches do not divide.
    """
    from cai_jax.text.formats import dialogue_format

    dialogue_format(config.dialogue_format)
    for role in ("model", "preference_model", "prompts"):
        if not inputs.get(role):
            raise InputError(
                f"inputs: expected model, preference_model and prompts, found no {role}"
            )
    for name, least in LOWEST.items():
        if config[name] < least:
            raise InputError(f"{name}: expected at least {least}, found {config[name]}")
    if config.on_long not in ON_LONG:
        raise InputError(f"on_long: expected {' or '.join(ON_LONG)}, found {config.on_long!r}")
    ppo_options.check(config)
    optimizers.check(config)
    computing.check(config)
    training_checkpoints.check(config.checkpoints)
    check_divides(config, config.mesh.data * config.mesh.fsdp)


def check_divides(config: ConfigDict, parts: int) -> None:
    """Refuses minibatches that do not divide over data x fsdp devices."""
    if parts < 0:  # an axis of -1 shows its size when the devices are there
        return
    pieces = config.minibatches * parts
    responses = config.prompts_per_iteration * config.samples_per_prompt
    if responses % pieces:
        raise InputError(
            f"prompts_per_iteration x samples_per_prompt: expected a multiple of {pieces} "
            f"(minibatches x data x fsdp devices), found {responses}"
        )


def read_prompts(
    config: ConfigDict, sources: Any, model: LanguageModel, bad: BadRecords | None = None
) -> FittedPrompts:
    """The prompts that fit, their token ids, and how many do not."""
    from cai_jax.data.prompt_batches import fit_prompts
    from cai_jax.text.formats import dialogue_format

    render = dialogue_format(config.dialogue_format).dialogue
    prompts = readers.read_all_prompts(sources, 0, config.fields, bad)
    return fit_prompts(prompts, model.tokenizer, render, config.max_prompt_tokens, config.on_long)


def draw_prompts(fitted: FittedPrompts, config: ConfigDict, key: jax.Array) -> Any:
    """Batches of an iteration, without end; keys are those of the prompts' ids."""
    import jax

    from cai_jax.data.prompt_batches import drawn
    from cai_jax.generation.batching import record_keys

    return drawn(
        fitted,
        record_keys(key, [prompt.id for prompt in fitted.prompts]),
        np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist()),
        prompts=config.prompts_per_iteration,
        samples=config.samples_per_prompt,
    )


def starting_params(
    config: ConfigDict, model: LanguageModel, preference: LanguageModel
) -> dict[str, Any]:
    """What is trained: `policy`, and for "gae" `value`: a head of zeros, or a preference model."""
    from cai_jax.models import transformer

    if config.advantage != "gae":
        return {"policy": model.params}
    if config.value_model == "preference_model":
        return {"policy": model.params, "value": preference.params}
    return {"policy": model.params, "value": transformer.add_score_head({}, model.config)}


def compiled(
    config: ConfigDict,
    model: LanguageModel,
    preference: LanguageModel,
    optimizer: Any,
    device_mesh: Any,
    shardings: Any,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two programs of an iteration; the update takes over the memory of the state."""
    import jax

    from cai_jax.algorithms import ppo
    from cai_jax.core import sharding, training
    from cai_jax.generation.rollout import make_rollout

    rows, whole = sharding.batch_sharding(device_mesh), sharding.replicated(device_mesh)
    frozen = [sharding.tree_shardings(of.params, device_mesh) for of in (model, preference)]
    policy_config, preference_config = (
        in_a_loop(computing.computed(of.config, config)) for of in (model, preference)
    )
    evaluate = make_evaluate(config, policy_config, preference_config)
    evaluate = sharding.on_mesh(evaluate, device_mesh)
    respond = make_rollout(
        evaluate,
        policy_config,
        preference_config,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        eos_id=model.tokenizer.eos_id,
        evaluated=not ppo_options.evaluated_by_update(config),
        bootstrap=config.truncation == "bootstrap",
    )
    rollout = jax.jit(
        lambda *arguments: ppo.Experience(**respond(*arguments)),
        in_shardings=(shardings.params, *frozen, rows),
        out_shardings=rows,
    )
    update = jax.jit(
        ppo.make_update(
            config,
            evaluate,
            functools.partial(training.apply_gradients, optimizer=optimizer),
        ),
        donate_argnums=0,
        in_shardings=(shardings, rows, whole, whole),
        out_shardings=(shardings, rows, whole),
    )
    return rollout, update


def in_a_loop(config: ModelConfig) -> ModelConfig:
    """The model with a loop over its layers on GPUs, whatever else is computed without one there.

    With one the first update of a 1B was there after 14 s; without it the benchmark was still busy
    after 150 s, and why was not looked into.
    """
    import jax

    unroll = 1 if jax.default_backend() == "gpu" else 0
    return dataclasses.replace(config, scan_unroll=config.scan_unroll or unroll)


def make_evaluate(
    config: ConfigDict, policy_config: ModelConfig, preference_config: ModelConfig
) -> Callable[[Any, Any, Any], tuple[jax.Array, jax.Array]]:
    """The pure function (params, tokens [B, T], mask) -> log-probabilities and values [B, R]."""
    from cai_jax.algorithms.losses import token_logprobs
    from cai_jax.generation import rollout
    from cai_jax.models.transformer import loss_positions

    own = config.value_model == "preference_model"
    return rollout.make_evaluate(
        functools.partial(
            token_logprobs,
            temperature=config.temperature,
            positions=loss_positions(policy_config),
        ),
        policy_config,
        preference_config if own else None,
        config.max_new_tokens,
    )


def plan(config: ConfigDict, planned: dict[str, Any]) -> dict[str, Any]:
    """Responses, their tokens at most, and FLOPs of sampling, evaluating and training on them."""
    responses = config.iterations * config.prompts_per_iteration * config.samples_per_prompt
    tokens = responses * (config.max_prompt_tokens + config.max_new_tokens)
    policy, preference = (
        planned.get(role, {}).get("parameters", 0) for role in ("model", "preference_model")
    )
    # 2 a parameter and token forward: sampling, the reference, evaluating; and 6 for each pass.
    evaluating = 0 if ppo_options.evaluated_by_update(config) else 2
    flops = tokens * ((2 * 2 + evaluating + 6 * config.epochs) * policy + 2 * preference)
    if config.advantage == "gae" and config.value_model == "preference_model":
        flops += tokens * (evaluating + 6 * config.epochs) * preference
    return {
        "records": responses,
        "tokens": responses * config.max_new_tokens,
        "flops": float(flops),
        "updates": config.iterations * config.epochs * config.minibatches,
    }
