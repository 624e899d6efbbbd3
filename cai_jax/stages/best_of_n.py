"""Best of n: of n responses to each prompt, the one that the preference model scores highest.

What reinforcement learning is measured against: it needs no training, and its divergence from the
sampled policy is known to be at most log n - (n - 1) / n nats (Stiennon et al. 2020; Beirami et al.
2024). Its choices are demonstrations, so that `finetune` can teach them (rejection sampling).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cai_jax.data import readers
from cai_jax.errors import InputError
from cai_jax.generation import planning

if typing.TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh

    from cai_jax.core.progress import Progress
    from cai_jax.data.schema import Candidates, Prompt
    from cai_jax.models.language_model import LanguageModel

# Responses worked on at a time, all of a prompt together; what is finished outlasts the process.
BLOCK = 4096


def default_config() -> ConfigDict:
    """Every parameter of the step."""
    config = ConfigDict()
    config.num_samples = 16  # n; those of a smaller n are the first of these
    config.temperature = 1.0
    config.top_k = 0
    config.top_p = 1.0
    config.max_prompt_tokens = 256
    config.on_long = "drop"  # prompts that are longer: "drop" or "refuse"
    config.max_new_tokens = 256
    config.limit = 0  # at most so many prompts of each file; 0: all
    config.batch_size = 128
    config.dialogue_format = "plain"  # "\n\nHuman: ..."; or "chat", the model's own template
    config.fields = readers.default_fields()  # what the prompts' files call their columns
    config.data = readers.default_data()
    return config


def run(config: ConfigDict, inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Writes candidates.jsonl, all responses with their scores, and demonstrations.jsonl, the best.

    Args:
        config: as `default_config`, with `seed` and `mesh`.
        inputs: `model`; `preference_model`, with the same tokenizer; `prompts`: files, mixed.
        folder: the step's own, empty.

    Returns:
        Counts: records (prompts), tokens (generated), dropped (prompts), truncated_responses; the
        mean score of all responses (`first_score`) and of the best ones (`score`), and `kl`, the
        bound on the divergence from the sampled policy.

    Raises:
        InputError: as `check`, and for inputs that cannot be read or do not fit.
    """
    import numpy as np

    from cai_jax import checkpoints
    from cai_jax.core import keys, mesh
    from cai_jax.core.blocks import kept_in_blocks
    from cai_jax.core.progress import Progress
    from cai_jax.data.bad_records import BadRecords
    from cai_jax.data.prompt_batches import fit_prompts
    from cai_jax.data.schema import (
        Candidates,
        Demonstration,
        read_records,
        write_file,
        write_records,
    )
    from cai_jax.generation.preference import check_models
    from cai_jax.text.formats import dialogue_format

    check(config, inputs)
    bad = BadRecords(config.data.on_bad_record)
    device_mesh = mesh.make_mesh(config.mesh)
    model = checkpoints.load_model(inputs["model"], device_mesh)
    preference = checkpoints.load_model(inputs["preference_model"], device_mesh)
    model, preference = (
        checkpoints.in_format(of, config.dialogue_format) for of in (model, preference)
    )
    render = dialogue_format(config.dialogue_format).dialogue
    prompts = readers.read_all_prompts(inputs["prompts"], config.limit, config.fields, bad)
    fitted = fit_prompts(prompts, model.tokenizer, render, config.max_prompt_tokens, config.on_long)
    check_models(model, preference, fitted.ids, config.max_new_tokens + 1)
    counts = Counter(tokens=0, truncated_responses=0)
    total = len(fitted.prompts) * config.num_samples
    with Progress(f"{folder.name} (best_of_n)", total, "responses") as progress:
        key = keys.base_key(config.seed, folder.name)
        job = Job(config, model, preference, key, device_mesh, progress, counts)
        candidates = kept_in_blocks(
            folder,
            counts,
            list(zip(fitted.prompts, fitted.ids, strict=True)),
            max(BLOCK // config.num_samples, 1),
            functools.partial(make_candidates, job),
            write_file,
            functools.partial(read_records, record_type=Candidates),
        )
    write_records(
        folder / "candidates.jsonl",
        (
            dataclasses.replace(of, scores=tuple(round(score, 5) for score in of.scores))
            for of in candidates
        ),
    )
    write_records(
        folder / "demonstrations.jsonl",
        (Demonstration(of.id, of.dialogue, of.responses[of.best]) for of in candidates),
    )
    scores = np.array([of.scores for of in candidates], np.float32)
    n = config.num_samples
    return {
        "records": len(candidates),
        "dropped": fitted.dropped,
        **counts,
        "first_score": float(scores.mean()),
        "score": float(scores.max(axis=1).mean()),
        "kl": math.log(n) - (n - 1) / n,
    } | bad.report(folder)


class Job(typing.NamedTuple):
    """What everything that is sampled in the step has in common; `counts` are added to."""

    config: ConfigDict
    model: LanguageModel
    preference: LanguageModel
    key: jax.Array
    mesh: Mesh
    progress: Progress
    counts: Counter[str]


def make_candidates(job: Job, fitted: Sequence[tuple[Prompt, Sequence[int]]]) -> list[Candidates]:
    """All responses to some prompts, with their scores as they are."""
    import jax
    import numpy as np

    from cai_jax.data.schema import Candidates
    from cai_jax.generation.generate import generate
    from cai_jax.generation.preference import preference_scores
    from cai_jax.text.dialogue import cut_at_stop

    config, tokenizer = job.config, job.model.tokenizer
    ids = [prompt.id for prompt, _ in fitted]
    prompts = [encoded for _, encoded in fitted]
    responses: list[list[str]] = [[] for _ in ids]
    scores = np.zeros((len(ids), config.num_samples), np.float32)
    for number in range(config.num_samples):
        completions = generate(
            job.model,
            prompts,
            settings(config),
            (jax.random.fold_in(job.key, number), ids),
            batch_size=config.batch_size,
            names=[f"prompt {identifier}" for identifier in ids],
            mesh=job.mesh,
            progress=job.progress,
        )
        texts = [cut_at_stop(completion.text) for completion in completions]
        # Tokenized as the preference model has learned responses, and with their end.
        ends = [
            [*tokenizer.encode(tokenizer.answer(text))[: config.max_new_tokens], tokenizer.eos_id]
            for text in texts
        ]
        scores[:, number] = preference_scores(
            job.preference,
            [[*prompt, *end] for prompt, end in zip(prompts, ends)],
            batch_size=config.batch_size,
            mesh=job.mesh,
        )
        for of_prompt, text in zip(responses, texts):
            of_prompt.append(text)
        job.counts["tokens"] += sum(len(completion.token_ids) for completion in completions)
        job.counts["truncated_responses"] += sum(
            completion.finish_reason == "length" for completion in completions
        )
    best = scores.argmax(axis=1)  # the first of equals
    return [
        Candidates(prompt.id, prompt.dialogue, tuple(texts), tuple(of_prompt.tolist()), int(number))
        for (prompt, _), texts, of_prompt, number in zip(fitted, responses, scores, best)
    ]


def check(config: ConfigDict, inputs: Mapping[str, Any]) -> None:
    """Refuses what `run` would refuse, before the run begins.

    Raises:
        InputError: naming the parameter, what was expected and found.
    """
    from cai_jax.data.prompt_batches import ON_LONG
    from cai_jax.text.formats import dialogue_format

    for role in ("model", "preference_model", "prompts"):
        if not inputs.get(role):
            raise InputError(
                f"inputs: expected model, preference_model and prompts, found no {role}"
            )
    for name in ("num_samples", "max_prompt_tokens", "batch_size"):
        if config[name] < 1:
            raise InputError(f"{name}: expected at least 1, found {config[name]}")
    if config.limit < 0:
        raise InputError(f"limit: expected 0 (all) or more, found {config.limit}")
    if config.on_long not in ON_LONG:
        raise InputError(f"on_long: expected {' or '.join(ON_LONG)}, found {config.on_long!r}")
    if config.num_samples > 1 and config.temperature == 0:
        raise InputError(
            "temperature: expected more than 0, found 0, which gives n equal responses"
        )
    dialogue_format(config.dialogue_format)
    settings(config)


def settings(config: ConfigDict) -> Any:
    """How responses are sampled."""
    from cai_jax.generation.settings import SamplingSettings
    from cai_jax.text.dialogue import STOPS

    return SamplingSettings(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        stop=STOPS,
    )


def plan(config: ConfigDict, planned: Mapping[str, Any]) -> dict[str, Any]:
    """Prompts, tokens (generated, at most) and FLOPs of writing and scoring."""
    records, prompt_tokens = planning.prompts_taken(planned["prompts"], config.limit)
    written = config.num_samples * records * config.max_new_tokens
    read = config.num_samples * prompt_tokens + written
    return {
        "records": records,
        "tokens": written,
        "flops": sum(
            planning.forward_flops(planned[role], read)
            for role in ("model", "preference_model")
            if role in planned
        ),
        "prompt_tokens": round(prompt_tokens),
    }
