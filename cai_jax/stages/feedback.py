"""AI feedback: preference labels from a feedback model (paper sections 4.1, 4.3).

The model is asked, in a multiple choice under one principle a pair, which response is better; the
label is the probability of " (A)" against " (B)". With chain of thought it reasons first.
"""

from __future__ import annotations

import dataclasses
import random
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cai_jax.errors import InputError
from cai_jax.generation import planning
from cai_jax.generation.room import ON_LONG, keep_fitting

if typing.TYPE_CHECKING:
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from cai_jax.core.progress import Progress
    from cai_jax.data.schema import Comparison, Pair
    from cai_jax.models.language_model import LanguageModel
    from cai_jax.text.constitution import Constitution
    from cai_jax.text.questions import Question

LABELS = ("soft", "hard")
MEANS = ("choice_mass", "confidence", "label_entropy")

# What is drawn, each with a key of its own.
QUESTION, REASONING = range(2)

# Pairs worked on at a time: their prompts lie in the host's memory together.
BLOCK = 4096


def default_config() -> ConfigDict:
    """Every parameter of the step."""
    config = ConfigDict()
    config.principles = ()  # ids to draw from; (): all of the constitution's
    config.placement = "random"  # response_a stands at (A) by a coin; "both" in turn; or "fixed"
    config.labels = "soft"  # or "hard": 1 or 0, whichever is nearer
    config.clamp = (0.0, 1.0)  # the labels' range, without chain of thought
    config.num_few_shots = 0  # at most so many of the constitution's, each under its own principle
    config.chain_of_thought = False
    config.reasoning_clamp = (0.4, 0.6)  # the labels' range with chain of thought
    config.max_reasoning_tokens = 256
    config.temperature = 1.0  # of the reasoning, as top_k and top_p
    config.top_k = 0
    config.top_p = 1.0
    config.on_long = "refuse"  # pairs that the model's positions do not hold: "refuse" or "drop"
    config.batch_size = 64
    return config


def run(config: ConfigDict, inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Writes comparisons.jsonl, and the constitution beside it.

    A comparison's logp_a and logp_b are those of " (A)" and " (B)", without any clamping; with both
    placements they are the logs of the averaged probabilities of response A and response B, and
    a_is_first is None.

    Args:
        config: as `default_config`, with `seed` and `mesh`.
        inputs: `model` (the feedback model), `pairs` (a file or a finished step), `constitution`.
        folder: the step's own, empty.

    Returns:
        Counts: records (comparisons), tokens (read and generated); too_long (pairs left out);
        few_shots_dropped (for want of room); neutralised (pairs whose text could have steered the
        question, and was changed in it); truncated_reasonings (ended by their maximum of tokens).
        Means over the comparisons: choice_mass (the probability that the model gave to " (A)" and
        " (B)" together), confidence (of the likelier response, before clamping), and
        label_entropy (nats).

    Raises:
        InputError: as `check`, and for inputs that cannot be read or do not fit.
    """
    from cai_jax import checkpoints
    from cai_jax.core import artifact, keys, mesh
    from cai_jax.core.progress import Progress
    from cai_jax.data.schema import Pair, read_records, write_records

    constitution = check(config, inputs)
    path = Path(inputs["pairs"])
    pairs = read_records(path / "pairs.jsonl" if path.is_dir() else path, Pair)
    blocks = [pairs[first : first + BLOCK] for first in range(0, len(pairs), BLOCK)]
    device_mesh = mesh.make_mesh(config.mesh)
    model = checkpoints.load_model(inputs["model"], device_mesh)
    counts = Counter(tokens=0, too_long=0, few_shots_dropped=0, neutralised=0)
    passes = (2 if config.placement == "both" else 1) * (2 if config.chain_of_thought else 1)
    with Progress(f"{folder.name} (feedback)", passes * len(pairs), "questions") as progress:
        key = keys.base_key(config.seed, folder.name)
        sums = dict.fromkeys(MEANS, 0.0)
        job = Job(config, model, constitution, key, device_mesh, progress, counts, sums)
        if config.on_long == "refuse":
            refuse_long(job, blocks)
        comparisons = [comparison for block in blocks for comparison in judge(job, block)]
    if not comparisons:
        raise InputError(f"pairs {path}: expected at least one that fits, found {len(pairs)} pairs")
    write_records(folder / "comparisons.jsonl", comparisons)
    artifact.write_json(folder / "constitution.json", dataclasses.asdict(constitution))
    means = {name: total / len(comparisons) for name, total in sums.items()}
    return {"records": len(comparisons), **counts, **means}


def check(config: ConfigDict, inputs: Mapping[str, Any]) -> Constitution:
    """Refuses what `run` would refuse of the config and the constitution; gives the latter.

    Raises:
        InputError: naming the parameter, what was expected and found.
    """
    from cai_jax import checkpoints
    from cai_jax.text.constitution import load_constitution
    from cai_jax.text.questions import PLACEMENTS

    known = {"placement": PLACEMENTS, "labels": LABELS, "on_long": ON_LONG}
    for name, values in known.items():
        if config[name] not in values:
            raise InputError(f"{name}: expected one of {', '.join(values)}, found {config[name]!r}")
    for name in ("clamp", "reasoning_clamp"):
        ends = list(config[name])
        if len(ends) != 2 or not 0 <= ends[0] <= 0.5 <= ends[1] <= 1:
            raise InputError(f"{name}: expected 0 <= low <= 0.5 <= high <= 1, found {ends}")
    if config.num_few_shots < 0:
        raise InputError(f"num_few_shots: expected 0 or more, found {config.num_few_shots}")
    settings(config)
    constitution = load_constitution(checkpoints.resolve(inputs["constitution"]))
    constitution.subset(config.principles)
    return constitution


def settings(config: ConfigDict) -> Any:
    """How the reasoning is sampled."""
    from cai_jax.generation.settings import SamplingSettings
    from cai_jax.text.dialogue import STOPS

    return SamplingSettings(
        max_new_tokens=config.max_reasoning_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        stop=STOPS,
    )


class Job(typing.NamedTuple):
    """What all questions of the step have in common; `counts` and `sums` are added to."""

    config: ConfigDict
    model: LanguageModel
    constitution: Constitution
    key: jax.Array
    mesh: Mesh
    progress: Progress
    counts: Counter[str]
    sums: dict[str, float]  # of what is averaged over the comparisons


class Answer(typing.NamedTuple):
    """Log-probabilities (nats) of " (A)" and " (B)" [2], and the reasoning before them."""

    logps: np.ndarray
    reasoning: str | None


def judge(job: Job, pairs: Sequence[Pair]) -> list[Comparison]:
    """Labels some pairs, in their order, without those that do not fit (counted too_long)."""
    import numpy as np

    asked = questions(job, pairs)
    ids = [pair.id for pair, of_pair in zip(pairs, asked) for _ in of_pair]
    found = iter(answer(job, ids, [question for of_pair in asked for question in of_pair]))
    given = [[a for _ in of_pair if (a := next(found)) is not None] for of_pair in asked]
    kept = [
        (pair, of_pair, answers)
        for pair, of_pair, answers in zip(pairs, asked, given)
        if len(answers) == len(of_pair)
    ]
    job.counts["too_long"] += len(pairs) - len(kept)
    job.counts["neutralised"] += sum(of_pair[0].neutralised for _, of_pair, _ in kept)
    if not kept:
        return []
    logps = np.array([[answer.logps for answer in answers] for _, _, answers in kept], np.float64)
    a_is_first = np.array([[question.a_is_first for question in asked] for _, asked, _ in kept])
    job.sums["choice_mass"] += float(np.exp(logps).sum(-1).mean(-1).sum())
    labels = label(job, logps, a_is_first)
    return [
        comparison(pair, of_pair, answers, logps[row], labels[row])
        for row, (pair, of_pair, answers) in enumerate(kept)
    ]


def label(job: Job, logps: np.ndarray, a_is_first: np.ndarray) -> list[float]:
    """The labels of pairs, from log-probabilities [B, orders, 2] and placements [B, orders]."""
    import jax.numpy as jnp

    from cai_jax.algorithms import labels

    config, (first, second) = job.config, jnp.moveaxis(jnp.asarray(logps), -1, 0)
    p = labels.soft_label(first, second)
    p = labels.placed_label(p, jnp.asarray(a_is_first)).mean(axis=-1)
    job.sums["confidence"] += float(jnp.maximum(p, 1 - p).sum())
    p = labels.hard_label(p) if config.labels == "hard" else p
    low, high = config.reasoning_clamp if config.chain_of_thought else config.clamp
    p = labels.clamped_label(p, low, high)
    job.sums["label_entropy"] += float(labels.label_entropy(p).sum())
    return p.tolist()


def comparison(
    pair: Pair,
    asked: Sequence[Question],
    answers: Sequence[Answer],
    logps: np.ndarray,
    p_a: float,
) -> Comparison:
    """The record of a pair, with the log-probabilities [orders, 2] of its answers."""
    import numpy as np

    from cai_jax.data.schema import Comparison

    logp_a, logp_b = logps[0]
    if len(asked) > 1:
        signs = np.array([1 if question.a_is_first else -1 for question in asked])
        margins = signs * (logps[:, 0] - logps[:, 1])  # nats of response A over response B
        # The log of the sigmoid's mean, without the underflow of a probability near 0.
        logp_a, logp_b = (
            np.logaddexp.reduce(-np.logaddexp(0, -side)) - np.log(len(asked))
            for side in (margins, -margins)
        )
    reasonings = [answer.reasoning for answer in answers if answer.reasoning is not None]
    return Comparison(
        pair.id,
        pair.dialogue,
        pair.response_a,
        pair.response_b,
        p_a=p_a,
        source="feedback",
        principle=asked[0].principle.id,
        logp_a=float(logp_a),
        logp_b=float(logp_b),
        a_is_first=asked[0].a_is_first if len(asked) == 1 else None,
        reasoning="\n\n".join(reasonings) if reasonings else None,
        tags=pair.tags,
    )


def questions(job: Job, pairs: Sequence[Pair]) -> list[list[Question]]:
    """The questions about each pair, drawn by its id alone."""
    import jax

    from cai_jax.generation.batching import record_keys
    from cai_jax.text.questions import questions_about

    config = job.config
    constitution = job.constitution.subset(config.principles)
    bits = record_keys(jax.random.fold_in(job.key, QUESTION), [pair.id for pair in pairs])
    return [
        questions_about(
            pair,
            constitution,
            random.Random(words.tobytes()),
            placement=config.placement,
            num_few_shots=config.num_few_shots,
            chain_of_thought=config.chain_of_thought,
        )
        for pair, words in zip(pairs, bits)
    ]


def answer(job: Job, ids: Sequence[str], asked: Sequence[Question]) -> list[Answer | None]:
    """Asks the model each question about the pair of that id; None where one does not fit."""
    from cai_jax.generation.score import choice_logprobs
    from cai_jax.text.few_shots import fit
    from cai_jax.text.prompts import CHOICES, SO_THE_ANSWER

    tokenizer = job.model.tokenizer
    fitted = fit(
        [question.lay_out for question in asked],
        [question.few_shots for question in asked],
        tokenizer.encode_prompts,
        room(job),
    )
    prompts = {i: prompt.ids for i, prompt in enumerate(fitted) if prompt is not None}
    dropped = [prompt.dropped if prompt is not None else 0 for prompt in fitted]
    reasonings: dict[int, str] = {}
    if job.config.chain_of_thought:
        reasonings = reason(job, ids, asked, prompts)
        texts = [
            f"{asked[i].lay_out(asked[i].few_shots[dropped[i] :])} {text}{SO_THE_ANSWER}"
            for i, text in reasonings.items()
        ]
        # Text that is encoded again may take more tokens than were sampled.
        most = job.model.config.max_positions - choice_length(job)
        encoded = zip(reasonings, tokenizer.encode_prompts(texts))
        prompts = {i: ids for i, ids in encoded if len(ids) <= most}
    logps = choice_logprobs(
        job.model,
        list(prompts.values()),
        [tokenizer.encode(choice) for choice in CHOICES],
        batch_size=job.config.batch_size,
        names=[f"pair {ids[i]}" for i in prompts],
        mesh=job.mesh,
        progress=job.progress,
    )
    job.counts["tokens"] += sum(map(len, prompts.values()))
    job.counts["few_shots_dropped"] += sum(dropped)
    answers: list[Answer | None] = [None] * len(asked)
    for i, row in zip(prompts, logps):
        answers[i] = Answer(row, reasonings.get(i))
    return answers


def reason(
    job: Job, ids: Sequence[str], asked: Sequence[Question], prompts: Mapping[int, list[int]]
) -> dict[int, str]:
    """Samples reasoning about the questions of `prompts` (index -> token ids); index -> text."""
    import jax

    from cai_jax.generation.generate import generate
    from cai_jax.text.dialogue import cut_at_stop

    # Each placement of a pair has a key of its own.
    names = [f"{ids[i]} {'ab' if asked[i].a_is_first else 'ba'}" for i in prompts]
    completions = generate(
        job.model,
        list(prompts.values()),
        settings(job.config),
        (jax.random.fold_in(job.key, REASONING), names),
        batch_size=job.config.batch_size,
        names=[f"pair {name}" for name in names],
        mesh=job.mesh,
        progress=job.progress,
    )
    job.counts["tokens"] += sum(len(completion.token_ids) for completion in completions)
    ends = [completion.finish_reason for completion in completions]
    job.counts["truncated_reasonings"] += ends.count("length")
    return {i: cut_at_stop(completion.text) for i, completion in zip(prompts, completions)}


def choice_length(job: Job) -> int:
    """The tokens of the longer answer."""
    from cai_jax.text.prompts import CHOICES

    return max(len(job.model.tokenizer.encode(choice)) for choice in CHOICES)


def room(job: Job) -> int:
    """The most tokens that a question may have, so that its reasoning and answer fit behind it."""
    from cai_jax.text.prompts import SO_THE_ANSWER

    most = job.model.config.max_positions - choice_length(job)
    if job.config.chain_of_thought:
        most -= job.config.max_reasoning_tokens + len(job.model.tokenizer.encode(SO_THE_ANSWER))
    return most


def refuse_long(job: Job, blocks: Sequence[Sequence[Pair]]) -> None:
    """Refuses pairs that do not fit even without few-shots, before any is judged."""
    lengths: list[int] = []
    for pairs in blocks:
        texts = [question.lay_out(()) for question, *_ in questions(job, pairs)]
        lengths += map(len, job.model.tokenizer.encode_prompts(texts))
    ids = [pair.id for pairs in blocks for pair in pairs]
    positions = job.model.config.max_positions
    remedy = "lower max_reasoning_tokens" if job.config.chain_of_thought else "shorten them"
    why = f"the model has {positions} positions, less reasoning and answer; {remedy}"
    keep_fitting("pairs", ids, lengths, room(job), job.config.on_long, why)


def plan(config: ConfigDict, planned: Mapping[str, Any]) -> dict[str, Any]:
    """Comparisons, tokens (read and generated) and FLOPs; few-shots are not counted in."""
    pairs = planned["pairs"]
    orders = 2 if config.placement == "both" else 1
    tokens = orders * (pairs["tokens"] + pairs.get("prompt_tokens", 0))
    if config.chain_of_thought:  # written, and the question read again with it
        tokens = 2 * tokens + 2 * orders * pairs["records"] * config.max_reasoning_tokens
    return {
        "records": pairs["records"],
        "tokens": tokens,
        "flops": planning.forward_flops(planned["model"], tokens),
    }
