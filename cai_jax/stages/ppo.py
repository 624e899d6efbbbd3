"""Reinforcement learning against the preference model (RL-CAI, paper section 4; PPO).

The policy begins as the supervised model, which stays the reference: reward = r_PM - beta x KL, the
penalty paid token by token. An iteration is two compiled programs: `rollout` samples a response to
each of B prompts and evaluates policy, reference and preference model on it; `update` makes a few
passes of clipped policy and value gradients over them (Schulman et al. 2017).

A preference model is trained on comparisons of responses to one prompt, and how it ranks a prompt
above another is an accident. So the responses to a prompt are each other's baseline: without it,
whatever is said to prompts of low scores is unlearned, the language with it.

Responses are sampled at temperature 1 from the whole vocabulary, so that the log-probabilities of
the ratio and of the KL are those of the distribution that was sampled from.

Axes: B responses, P prompt positions (padded on the left), R response positions.
"""

from __future__ import annotations

import functools
import itertools
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cai_jax.core import optimizer as optimizers
from cai_jax.data import readers
from cai_jax.errors import InputError

if typing.TYPE_CHECKING:
    import jax

    from cai_jax.algorithms.ppo import Experience
    from cai_jax.data.bad_records import BadRecords
    from cai_jax.data.schema import Prompt, Rollout
    from cai_jax.models.config import ModelConfig
    from cai_jax.models.language_model import LanguageModel

ON_LONG = ("drop", "refuse")
COUNTS = (
    "iterations",
    "prompts_per_iteration",
    "samples_per_prompt",
    "max_prompt_tokens",
    "max_new_tokens",
    "epochs",
    "minibatches",
    "record_every",
)
RATES = (
    "kl_coefficient",
    "missing_eos_penalty",
    "gamma",
    "gae_lambda",
    "clip_ratio",
    "value_clip",
    "value_coefficient",
)


class PromptBatch(NamedTuple):
    """Prompts to sample from."""

    tokens: Any  # int32 [B, P], padded on the left
    mask: Any  # int32 [B, P]: 1 for a token
    keys: Any  # uint32 [B, W]: the bits of each prompt's random key
    visits: Any  # uint32 [B]: how often it was drawn before


def default_config() -> ConfigDict:
    """Every parameter of the step; those of the optimizer (learning rate ...) stand beside."""
    config = optimizers.default_config()
    config.learning_rate = 3e-4
    config.weight_decay = 0.0  # would pull towards 0, not towards the reference
    config.iterations = 60  # rollouts, each with its update
    config.prompts_per_iteration = 32
    # Responses to a prompt; from two on they are each other's baseline. 1: the values alone are.
    config.samples_per_prompt = 2
    config.max_prompt_tokens = 96
    config.on_long = "drop"  # prompts that are longer: "drop" or "refuse"
    config.max_new_tokens = 44
    config.kl_coefficient = 0.05  # beta
    config.missing_eos_penalty = 1.0  # taken off the score of a response without an end
    config.gamma = 1.0
    config.gae_lambda = 0.95
    config.whiten_advantages = True
    config.epochs = 2  # passes over an iteration's responses
    config.minibatches = 2  # updates in a pass
    config.clip_ratio = 0.2
    config.value_clip = 0.2
    config.value_coefficient = 0.1
    config.record_every = 10  # iterations between two that are kept in rollouts.jsonl
    config.fields = readers.default_fields()  # what the prompts' files call their columns
    config.data = readers.default_data()
    return config


def run(config: ConfigDict, inputs: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Trains a policy; writes model/, metrics.jsonl and rollouts.jsonl.

    Args:
        config: as `default_config`, with `seed` and `mesh`.
        inputs: `model`: policy and reference; `preference_model`: with the same tokenizer;
            `prompts`: files, mixed.
        folder: the step's own, empty.

    Returns:
        Counts: records (responses), tokens (of responses), dropped (prompts), and the mean score of
        the first and the last iteration, and its KL.
    """
    import jax

    from cai_jax import checkpoints
    from cai_jax.algorithms import ppo
    from cai_jax.core import keys, mesh, sharding, training
    from cai_jax.core.metrics import MetricsWriter
    from cai_jax.core.progress import Progress
    from cai_jax.data.bad_records import BadRecords
    from cai_jax.data.schema import write_records
    from cai_jax.models.language_model import LanguageModel

    check(config, inputs)
    device_mesh = mesh.make_mesh(config.mesh)
    check_divides(config, sharding.batch_parts(device_mesh))
    reference = checkpoints.load_model(inputs["model"], device_mesh)
    preference = checkpoints.load_model(inputs["preference_model"], device_mesh)
    bad = BadRecords(config.data.on_bad_record)
    prompts, ids, dropped = read_prompts(config, inputs["prompts"], reference, bad)
    check_models(config, reference, preference, ids)
    key = keys.base_key(config.seed, folder.name)
    sample_key, update_key = jax.random.split(key)
    draws = draw_prompts(prompts, ids, config, sample_key)

    num_updates = config.iterations * config.epochs * config.minibatches
    optimizer = optimizers.make_optimizer(config, num_updates)
    state, shardings = training.create_state(with_value_head(reference), optimizer, device_mesh)
    rows, whole = sharding.batch_sharding(device_mesh), sharding.replicated(device_mesh)
    rollout = jax.jit(
        make_rollout(config, reference, preference.config),
        in_shardings=(
            shardings.params,
            sharding.tree_shardings(reference.params, device_mesh),
            sharding.tree_shardings(preference.params, device_mesh),
            rows,
        ),
        out_shardings=rows,
    )
    update = jax.jit(
        ppo.make_update(
            config,
            functools.partial(evaluate, reference.config, config.max_new_tokens),
            functools.partial(training.apply_gradients, optimizer=optimizer),
        ),
        donate_argnums=0,
        in_shardings=(shardings, rows, whole, whole),
        out_shardings=(shardings, whole),
    )
    records: list[Rollout] = []
    history: list[dict[str, float]] = []
    offset = np.float32(0)
    with (
        MetricsWriter(folder) as writer,
        Progress(f"{folder.name} (ppo)", config.iterations, "iterations") as progress,
    ):
        for iteration, (drawn, batch) in zip(range(1, config.iterations + 1), draws):
            batch = jax.device_put(batch, rows)
            experience = rollout(state.params, reference.params, preference.params, batch)
            if iteration == 1:
                # The scores of a preference model mean something up to a constant alone. This one
                # puts the reference at 0, where the values begin.
                offset = np.mean(jax.device_get(experience.scores))
            state, metrics = update(
                state, experience, offset, jax.random.fold_in(update_key, iteration)
            )
            if (iteration - 1) % config.record_every == 0 or iteration == config.iterations:
                records += to_records(experience, iteration, drawn, reference.tokenizer)
            history.append(finite(jax.device_get(metrics), iteration))
            writer.write(iteration, **history[-1])
            progress.advance(1, "score {score:.3f}, KL {kl:.3f}".format(**history[-1]))
    write_records(folder / "rollouts.jsonl", records)
    policy = LanguageModel(reference.config, state.params["policy"], reference.tokenizer)
    checkpoints.save_model(folder, policy)
    responses = config.prompts_per_iteration * config.samples_per_prompt
    return {
        "records": config.iterations * responses,
        "tokens": round(sum(line["length"] for line in history) * responses),
        "dropped": dropped,
        "first_score": history[0]["score"],
        "score": history[-1]["score"],
        "kl": history[-1]["kl"],
    } | bad.report(folder)


def check(config: ConfigDict, inputs: dict[str, Any]) -> None:
    """Refuses what `run` would refuse, before the run begins.

    Raises:
        InputError: a role is missing, a number means nothing, or batches do not divide.
    """
    for role in ("model", "preference_model", "prompts"):
        if not inputs.get(role):
            raise InputError(
                f"inputs: expected model, preference_model and prompts, found no {role}"
            )
    for names, least in ((COUNTS, 1), (RATES, 0)):
        for name in names:
            if config[name] < least:
                raise InputError(f"{name}: expected at least {least}, found {config[name]}")
    if config.on_long not in ON_LONG:
        raise InputError(f"on_long: expected {' or '.join(ON_LONG)}, found {config.on_long!r}")
    optimizers.check(config)
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
) -> tuple[list[Prompt], list[list[int]], int]:
    """The prompts that fit, their token ids, and how many do not."""
    from cai_jax.text.dialogue import render

    prompts = readers.read_all_prompts(sources, 0, config.fields, bad)
    encoded = model.tokenizer.encode_prompts([render(prompt.dialogue) for prompt in prompts])
    kept = [i for i, ids in enumerate(encoded) if len(ids) <= config.max_prompt_tokens]
    dropped = len(prompts) - len(kept)
    if dropped and (config.on_long == "refuse" or not kept):
        i = next(i for i, ids in enumerate(encoded) if len(ids) > config.max_prompt_tokens)
        raise InputError(
            f"prompt {prompts[i].id}: expected at most {config.max_prompt_tokens} tokens, found "
            f"{len(encoded[i])}; raise max_prompt_tokens"
        )
    return [prompts[i] for i in kept], [encoded[i] for i in kept], dropped


def check_models(
    config: ConfigDict, policy: LanguageModel, preference: LanguageModel, ids: list[list[int]]
) -> None:
    """Refuses models that do not hold the texts, or whose tokens are not the same.

    Raises:
        InputError: in one line, what does not fit.
    """
    if "score_head" in policy.params:
        raise InputError("model: expected a language model, found a preference model")
    if "score_head" not in preference.params:
        raise InputError("preference_model: expected a score head, found a language model")
    texts = [policy.tokenizer.decode(of_prompt) for of_prompt in ids[:100]]
    tokenizers = (policy.tokenizer, preference.tokenizer)
    seen = [(t.vocab_size, t.eos_id, t.encode_batch(texts)) for t in tokenizers]
    if seen[0] != seen[1]:
        raise InputError(
            "preference_model: expected the tokenizer of the policy, found another one; "
            "train the preference model from a model of the same family"
        )
    length = max(map(len, ids)) + config.max_new_tokens + 1
    largest = max(policy.tokenizer.eos_id, max(map(max, ids)))
    for role, model in (("model", policy), ("preference_model", preference)):
        if length > model.config.max_positions:
            raise InputError(
                f"{role}: expected room for {length} tokens (prompt, max_new_tokens and end), "
                f"found {model.config.max_positions} positions; lower max_prompt_tokens"
            )
        if largest >= model.config.vocab_size:
            raise InputError(
                f"{role}: its tokenizer gives id {largest}, but its vocabulary has only "
                f"{model.config.vocab_size} entries; the folder's files do not belong together"
            )


def draw_prompts(
    prompts: Sequence[Prompt], ids: Sequence[list[int]], config: ConfigDict, key: jax.Array
) -> Iterator[tuple[list[Prompt], PromptBatch]]:
    """Batches without end. All prompts come once, in some order, before one comes again.

    The rows of one prompt stand together. What is sampled from a prompt depends on its id and on
    how often it was sampled before, not on the batch that it is in.
    """
    import jax

    from cai_jax.generation.batching import record_keys

    width = max(map(len, ids))
    tokens, mask = (np.zeros((len(ids), width), np.int32) for _ in range(2))
    for row, of_prompt in enumerate(ids):
        tokens[row, width - len(of_prompt) :] = of_prompt
        mask[row, width - len(of_prompt) :] = 1
    bits = record_keys(key, [prompt.id for prompt in prompts])
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    samples = config.samples_per_prompt
    stream = (
        (index, turn * samples + sample)
        for turn in itertools.count()
        for index in rng.permutation(len(prompts))
        for sample in range(samples)
    )
    while True:
        drawn = list(itertools.islice(stream, config.prompts_per_iteration * samples))
        chosen = [index for index, _ in drawn]
        visits = np.array([visit for _, visit in drawn], np.uint32)
        yield (
            [prompts[index] for index in chosen],
            PromptBatch(tokens[chosen], mask[chosen], bits[chosen], visits),
        )


def with_value_head(model: LanguageModel) -> dict[str, Any]:
    """What is trained: the policy, and a value head (zeros) that reads its hidden states."""
    from cai_jax.models import transformer

    return {"policy": model.params, "value": transformer.add_score_head({}, model.config)}


def make_rollout(
    config: ConfigDict, model: LanguageModel, preference_config: ModelConfig
) -> Callable[..., Experience]:
    """The pure program rollout(params, reference, preference, prompts) -> Experience.

    `params` are as `with_value_head` makes them; `reference` and `preference` are those of a
    language model and of a preference model. A row of the result depends on its prompt alone.
    """
    import jax
    import jax.numpy as jnp

    from cai_jax.algorithms.ppo import Experience
    from cai_jax.generation.rollout import rollout as sample

    eos_id = model.tokenizer.eos_id
    opinion = functools.partial(evaluate, model.config, config.max_new_tokens)

    def rollout(params: Any, reference: Any, preference: Any, prompts: PromptBatch) -> Experience:
        row_keys = jax.vmap(jax.random.fold_in)(
            jax.random.wrap_key_data(prompts.keys), prompts.visits
        )
        sampled = sample(
            params["policy"],
            model.config,
            prompts.tokens,
            prompts.mask,
            row_keys,
            max_new_tokens=config.max_new_tokens,
            stop_ids=(eos_id,),
        )
        tokens = jnp.concatenate([prompts.tokens, sampled.tokens], axis=1)
        mask = jnp.concatenate([prompts.mask, sampled.mask.astype(jnp.int32)], axis=1)
        # Of both by the same program, not of the policy by the sampler: before the first update
        # their difference is 0, not rounding.
        logprobs, values = opinion(params, tokens, mask)
        frozen = {"policy": reference, "value": params["value"]}
        ref_logprobs, _ = opinion(frozen, tokens, mask)
        ends = sampled.mask & (sampled.tokens == eos_id)
        lengths = jnp.sum(sampled.mask & ~ends, axis=1)
        return Experience(
            tokens=tokens,
            mask=mask,
            response=sampled.mask,
            logprobs=logprobs,
            ref_logprobs=ref_logprobs,
            values=values,
            scores=score(
                preference, preference_config, tokens, mask, prompts.mask.shape[1] + lengths, eos_id
            ),
            ended=jnp.any(ends, axis=1),
        )

    return rollout


def evaluate(
    config: ModelConfig, response_length: int, params: Any, tokens: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the last R tokens of [B, P + R], and the values before them, [B, R].

    The value head reads the policy's hidden states and does not shape them: in a small model the
    errors of the first values, far larger than any advantage, would undo what it can say.
    """
    import jax
    import jax.numpy as jnp

    from cai_jax.algorithms import losses
    from cai_jax.models import transformer

    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    hidden, _ = transformer.forward(
        params["policy"],
        config,
        tokens[:, :-1],
        positions=positions[:, :-1],
        segments=mask[:, :-1],
    )
    hidden = hidden[:, -response_length:]  # [B, R, D], each before its token
    unembed = transformer.unembedding(params["policy"], config)
    logprobs = losses.token_logprobs(
        hidden, unembed, tokens[:, -response_length:], soft_cap=config.logits_soft_cap
    )
    return logprobs, transformer.scores(params["value"], jax.lax.stop_gradient(hidden))


def score(
    params: Any,
    config: ModelConfig,
    tokens: jax.Array,
    mask: jax.Array,
    ends: jax.Array,
    eos_id: int,
) -> jax.Array:
    """The preference model's scores [B] of texts [B, T] whose end token is put at `ends` [B].

    What stands at an end, or follows it, is not part of the text.
    """
    import jax.numpy as jnp

    from cai_jax.models import transformer

    columns, ends = jnp.arange(tokens.shape[1] + 1), ends[:, None]
    tokens, mask = (jnp.pad(x, ((0, 0), (0, 1))) for x in (tokens, mask))
    tokens = jnp.where(columns == ends, eos_id, tokens)
    mask = jnp.where(columns == ends, 1, jnp.where(columns < ends, mask, 0))
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    hidden, _ = transformer.forward(params, config, tokens, positions=positions, segments=mask)
    last = jnp.take_along_axis(hidden, ends[..., None], axis=1)[:, 0]
    return transformer.scores(params, last)


def to_records(
    experience: Experience, iteration: int, prompts: Sequence[Prompt], tokenizer: Any
) -> list[Rollout]:
    """The responses of an iteration as records; a response's text is without its end token."""
    import jax

    from cai_jax.data.schema import Rollout

    experience = jax.device_get(experience)
    response_length = experience.response.shape[1]
    records = []
    for row, prompt in enumerate(prompts):
        present = experience.response[row]
        ids = experience.tokens[row, -response_length:][present].tolist()
        kl = (experience.logprobs[row] - experience.ref_logprobs[row])[present].sum()
        ended = bool(experience.ended[row])
        records.append(
            Rollout(
                id=prompt.id,
                iteration=iteration,
                dialogue=prompt.dialogue,
                response=tokenizer.decode(ids[:-1] if ended else ids).strip(),
                score=round(float(experience.scores[row]), 5),
                kl=round(float(kl), 5),
                finish_reason="stop" if ended else "length",
            )
        )
    return records


def finite(metrics: dict[str, Any], iteration: int) -> dict[str, float]:
    """The metrics as numbers; stops where one is not finite."""
    for name, value in metrics.items():
        if not np.isfinite(value):
            raise FloatingPointError(
                f"iteration {iteration}: {name} is {float(value)}; lower the learning rate, or "
                "look at the preference model if it is the score"
            )
    return {name: float(value) for name, value in metrics.items()}


def plan(config: ConfigDict, planned: dict[str, Any]) -> dict[str, Any]:
    """Responses, their tokens at most, and FLOPs of sampling, evaluating and training on them."""
    responses = config.iterations * config.prompts_per_iteration * config.samples_per_prompt
    tokens = responses * (config.max_prompt_tokens + config.max_new_tokens)
    policy, preference = (
        planned.get(role, {}).get("parameters", 0) for role in ("model", "preference_model")
    )
    # 2 a parameter and token forward: sampling, evaluating, the reference; and 6 for each pass.
    flops = tokens * ((3 * 2 + 6 * config.epochs) * policy + 2 * preference)
    return {
        "records": responses,
        "tokens": responses * config.max_new_tokens,
        "flops": float(flops),
        "updates": config.iterations * config.epochs * config.minibatches,
    }
