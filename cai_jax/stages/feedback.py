"""AI feedback: preference labels from a feedback model (paper sections 4.1, 4.3).

The model is asked, in a multiple choice under one principle a pair, which response is better; the
label is the probability of " (A)" against " (B)". With chain of thought it reasons first. Asked
more than once (in both placements, after several reasonings, under every principle), the label is
the mean of its answers.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cai_jax.data import readers
from cai_jax.errors import InputError
from cai_jax.generation import planning
from cai_jax.generation.room import ON_LONG, keep_fitting

if typing.TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh

    from cai_jax.core.progress import Progress
    from cai_jax.data.schema import Asked, Comparison, Pair
    from cai_jax.models.language_model import LanguageModel
    from cai_jax.text.constitution import Constitution
    from cai_jax.text.questions import Question

LABELS = ("soft", "hard")

# What is drawn, each with a key of its own.
QUESTION, REASONING = range(2)

# Questions worked on at a time: their prompts lie in the host's memory together.
BLOCK = 4096


def default_config() -> ConfigDict:
    """Every parameter of the step."""
    config = ConfigDict()
    config.principles = ()  # ids to draw from; (): all of the constitution's
    config.num_principles = 0  # of these so many, drawn by the seed; 0: all
    config.principles_seed = -1  # of that draw; -1: the step's own
    config.ensemble = "none"  # one principle a pair; or "principles": the mean under each of them
    # A question is plain text; or "chat": a human's turn in the feedback model's chat template.
    config.dialogue_format = "plain"
    config.placement = "random"  # response_a stands at (A) by a coin; "both" in turn; or "fixed"
    config.labels = "soft"  # or "hard": 1 or 0, whichever is nearer
    config.clamp = (0.0, 1.0)  # the range of each answer, without chain of thought
    config.num_few_shots = 0  # at most so many of the constitution's, each under its own principle
    config.chain_of_thought = False
    config.num_reasonings = 1  # samples of it for each question, whose answers are averaged
    config.reasoning_clamp = (0.4, 0.6)  # the range of each answer with chain of thought
    config.max_reasoning_tokens = 256
    config.temperature = 1.0  # of the reasoning, as top_k and top_p
    config.top_k = 0
    config.top_p = 1.0
    config.limit = 0  # at most so many pairs; 0: all
    config.on_long = "refuse"  # pairs that the model's positions do not hold: "refuse" or "drop"
    config.batch_size = 64
    config.fields = readers.default_fields()  # what the pairs' file calls its columns
    config.data = readers.default_data()
    return config


def run(config: ConfigDict, inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Writes comparisons.jsonl, and the constitution beside it.

    A comparison has every question that was asked with its raw log-probabilities, from which
    `labels.averaged_label` gives its label.

    Args:
        config: as `default_config`, with `seed` and `mesh`.
        inputs: `model` (the feedback model), `pairs` (a file or a finished step; comparisons count
            as pairs whose label is known), `constitution`.
        folder: the step's own, empty.

    Returns:
        Counts: records (comparisons), tokens (read and generated); identical (pairs left out whose
        responses read the same); too_long (pairs left out); few_shots_dropped (for want of room);
        neutralised (pairs whose text could have steered the question, and was changed in it);
        truncated_reasonings (ended by their maximum of tokens). The ids of the `principles` that
        could be drawn. The measures of `algorithms/judgements.py`.

    Raises:
        InputError: as `check`, and for inputs that cannot be read or do not fit.
    """
    import numpy as np

    from cai_jax import checkpoints
    from cai_jax.algorithms.judgements import judgement_measures
    from cai_jax.core import artifact, keys, mesh
    from cai_jax.core.blocks import kept_in_blocks
    from cai_jax.core.progress import Progress
    from cai_jax.data.bad_records import BadRecords
    from cai_jax.data.judged import answer_arrays, known_label, read_pairs
    from cai_jax.data.schema import Comparison, read_records, write_file, write_records
    from cai_jax.text.questions import identical

    constitution = check(config, inputs)
    bad = BadRecords(config.data.on_bad_record)
    given = read_pairs(inputs["pairs"], config.fields, bad)[: config.limit or None]
    pairs = [pair for pair in given if not identical(pair)]
    asked_each = questions_each(config, len(constitution.principles))
    size = max(BLOCK // asked_each, 1)
    blocks = [pairs[first : first + size] for first in range(0, len(pairs), size)]
    device_mesh = mesh.make_mesh(config.mesh)
    model = checkpoints.load_model(inputs["model"], device_mesh)
    model = checkpoints.in_format(model, config.dialogue_format)
    counts = Counter(identical=len(given) - len(pairs), **bad.report(folder))
    counts.update(tokens=0, too_long=0, few_shots_dropped=0, neutralised=0)
    total = asked_each * len(pairs) * (2 if config.chain_of_thought else 1)
    with Progress(f"{folder.name} (feedback)", total, "questions") as progress:
        key = keys.base_key(config.seed, folder.name)
        job = Job(config, model, constitution, key, device_mesh, progress, counts)
        if config.on_long == "refuse":
            refuse_long(job, blocks)
        read = functools.partial(read_records, record_type=Comparison)
        make = functools.partial(judge, job)
        comparisons = kept_in_blocks(folder, counts, pairs, size, make, write_file, read)
    if not comparisons:
        raise InputError(
            f"pairs {inputs['pairs']}: expected at least one to judge, found {len(given)} pairs, "
            f"of which {counts['identical']} have equal responses and {counts['too_long']} do not "
            "fit the model"
        )
    write_records(folder / "comparisons.jsonl", comparisons)
    artifact.write_json(folder / "constitution.json", dataclasses.asdict(constitution))
    logps, a_is_first = answer_arrays([comparison.asked for comparison in comparisons])
    labels = np.array([comparison.p_a for comparison in comparisons])
    known = np.array([known_label(comparison) for comparison in comparisons], np.float64)
    measures = judgement_measures(logps, a_is_first, labels, known)
    ids = [principle.id for principle in constitution.principles]
    return {"records": len(comparisons), **counts, "principles": ids, **measures}


def check(config: ConfigDict, inputs: Mapping[str, Any]) -> Constitution:
    """Refuses what `run` would refuse of the config and the constitution; gives the latter.

    Returns:
        The constitution with the principles alone that the config takes.

    Raises:
        InputError: naming the parameter, what was expected and found.
    """
    from cai_jax import checkpoints
    from cai_jax.text.constitution import load_constitution
    from cai_jax.text.formats import dialogue_format
    from cai_jax.text.questions import ENSEMBLES, PLACEMENTS

    known = {"placement": PLACEMENTS, "labels": LABELS, "on_long": ON_LONG, "ensemble": ENSEMBLES}
    dialogue_format(config.dialogue_format)
    for name, values in known.items():
        if config[name] not in values:
            raise InputError(f"{name}: expected one of {', '.join(values)}, found {config[name]!r}")
    for name in ("clamp", "reasoning_clamp"):
        ends = list(config[name])
        if len(ends) != 2 or not 0 <= ends[0] <= 0.5 <= ends[1] <= 1:
            raise InputError(f"{name}: expected 0 <= low <= 0.5 <= high <= 1, found {ends}")
    lowest = {"num_few_shots": 0, "num_reasonings": 1, "principles_seed": -1, "limit": 0}
    for name, least in lowest.items():
        if config[name] < least:
            raise InputError(f"{name}: expected {least} or more, found {config[name]}")
    if config.num_reasonings > 1 and not config.chain_of_thought:
        raise InputError(
            f"num_reasonings: expected 1 without chain_of_thought, found {config.num_reasonings}"
        )
    settings(config)
    constitution = load_constitution(checkpoints.resolve(inputs["constitution"]))
    seed = config.seed if config.principles_seed < 0 else config.principles_seed
    return constitution.subset(config.principles).drawn(config.num_principles, seed)


def questions_each(config: ConfigDict, num_principles: int) -> int:
    """How many questions are asked about a pair."""
    asked_under = num_principles if config.ensemble == "principles" else 1
    return asked_under * (2 if config.placement == "both" else 1) * config.num_reasonings


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
    """What all questions of the step have in common; `counts` are added to."""

    config: ConfigDict
    model: LanguageModel
    constitution: Constitution
    key: jax.Array
    mesh: Mesh
    progress: Progress
    counts: Counter[str]


def judge(job: Job, pairs: Sequence[Pair]) -> list[Comparison]:
    """Labels some pairs, in their order, without those that do not fit (counted too_long)."""
    from cai_jax.algorithms.labels import averaged_label
    from cai_jax.data.judged import answer_arrays, judged

    config = job.config
    about = questions(job, pairs)
    ids = [pair.id for pair, of_pair in zip(pairs, about) for _ in of_pair]
    found = iter(answer(job, ids, [question for of_pair in about for question in of_pair]))
    given = [[asked for _ in of_pair if (asked := next(found)) is not None] for of_pair in about]
    kept = [i for i, of_pair in enumerate(about) if len(given[i]) == len(of_pair)]
    job.counts["too_long"] += len(pairs) - len(kept)
    job.counts["neutralised"] += sum(about[i][0].neutralised for i in kept)
    if not kept:
        return []
    low, high = config.reasoning_clamp if config.chain_of_thought else config.clamp
    logps, a_is_first = answer_arrays([given[i] for i in kept])
    labels = averaged_label(logps, a_is_first, low, high, hard=config.labels == "hard")
    return [judged(pairs[i], given[i], p_a) for i, p_a in zip(kept, labels.tolist())]


def questions(job: Job, pairs: Sequence[Pair]) -> list[list[Question]]:
    """The questions about each pair, drawn by its id alone."""
    import jax

    from cai_jax.generation.batching import record_keys
    from cai_jax.text.questions import questions_about

    config = job.config
    bits = record_keys(jax.random.fold_in(job.key, QUESTION), [pair.id for pair in pairs])
    return [
        questions_about(
            pair,
            job.constitution,
            random.Random(words.tobytes()),
            placement=config.placement,
            num_few_shots=config.num_few_shots,
            chain_of_thought=config.chain_of_thought,
            ensemble=config.ensemble,
            num_reasonings=config.num_reasonings,
        )
        for pair, words in zip(pairs, bits)
    ]


def answer(job: Job, ids: Sequence[str], about: Sequence[Question]) -> list[Asked | None]:
    """Asks the model each question about the pair of that id; None where one does not fit."""
    import jax

    from cai_jax.data.schema import Asked
    from cai_jax.generation.choices import Thinking, answer_choices
    from cai_jax.text.dialogue import cut_at_stop
    from cai_jax.text.few_shots import fit
    from cai_jax.text.formats import dialogue_format
    from cai_jax.text.prompts import SO_THE_ANSWER

    asked_as = dialogue_format(job.config.dialogue_format)
    fitted = fit(
        [question.lay_out for question in about],
        [question.few_shots for question in about],
        functools.partial(encode_questions, job),
        room(job),
    )
    there = [i for i, prompt in enumerate(fitted) if prompt is not None]
    prompts = [prompt for prompt in fitted if prompt is not None]
    # Each question about a pair has a name of its own, and its reasoning a key.
    names = [f"{ids[i]} {about[i].name}" for i in there]
    thinking = Thinking(
        settings(job.config),
        (jax.random.fold_in(job.key, REASONING), names),
        cut_at_stop,
        lambda number, reasoning: asked_as.question(
            f"{prompts[number].text} {reasoning}{SO_THE_ANSWER}"
        ),
    )
    answers = answer_choices(
        job.model,
        [prompt.ids for prompt in prompts],
        choices(job),
        thinking if job.config.chain_of_thought else None,
        batch_size=job.config.batch_size,
        names=[f"pair {name}" for name in names],
        mesh=job.mesh,
        progress=job.progress,
    )
    job.counts["few_shots_dropped"] += sum(prompt.dropped for prompt in prompts)
    job.counts["tokens"] += sum(one.num_tokens for one in answers)
    job.counts["truncated_reasonings"] += sum(one.truncated for one in answers)
    asked: list[Asked | None] = [None] * len(about)
    for question, i, one in zip([about[i] for i in there], there, answers):
        if one.logps is not None:
            logp_a, logp_b = one.logps.tolist()
            asked[i] = Asked(
                question.principle.id, question.a_is_first, logp_a, logp_b, one.reasoning
            )
    return asked


def encode_questions(job: Job, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of questions in the step's dialogue format."""
    from cai_jax.text.formats import dialogue_format

    asked_as = dialogue_format(job.config.dialogue_format)
    ids: list[list[int]] = job.model.tokenizer.encode_prompts(map(asked_as.question, texts))
    return ids


def choices(job: Job) -> list[list[int]]:
    """The tokens of both answers."""
    from cai_jax.text.prompts import CHOICES

    return [job.model.tokenizer.encode(choice) for choice in CHOICES]


def room(job: Job) -> int:
    """The most tokens that a question may have, so that its reasoning and answer fit behind it."""
    from cai_jax.text.prompts import SO_THE_ANSWER

    most = job.model.config.max_positions - max(map(len, choices(job)))
    if job.config.chain_of_thought:
        most -= job.config.max_reasoning_tokens + len(job.model.tokenizer.encode(SO_THE_ANSWER))
    return most


def refuse_long(job: Job, blocks: Sequence[Sequence[Pair]]) -> None:
    """Refuses pairs that do not fit even without few-shots, before any is judged."""
    lengths: list[int] = []
    for pairs in blocks:
        # One placement of each principle stands for all.
        about = [{q.principle.id: q for q in of_pair} for of_pair in questions(job, pairs)]
        texts = [question.lay_out(()) for of_pair in about for question in of_pair.values()]
        encoded = iter(encode_questions(job, texts))
        lengths += [max(len(next(encoded)) for _ in of_pair) for of_pair in about]
    ids = [pair.id for pairs in blocks for pair in pairs]
    positions = job.model.config.max_positions
    remedy = "lower max_reasoning_tokens" if job.config.chain_of_thought else "shorten them"
    why = f"the model has {positions} positions, less reasoning and answer; {remedy}"
    keep_fitting("pairs", ids, lengths, room(job), job.config.on_long, why)


def plan(config: ConfigDict, planned: Mapping[str, Any]) -> dict[str, Any]:
    """Comparisons, tokens (read and generated) and FLOPs, if every few-shot fits."""
    pairs, constitution = planned["pairs"], planned["constitution"]
    records = min(pairs["records"], config.limit) if config.limit else pairs["records"]
    share = records / max(pairs["records"], 1)
    kind = "reasoning" if config.chain_of_thought else "comparison"
    shots = planning.few_shot_tokens(constitution, kind, config.num_few_shots)
    principles = config.num_principles or len(config.principles) or constitution["records"]
    asked = questions_each(config, principles)
    of_pairs = (pairs["tokens"] + pairs.get("prompt_tokens", 0)) * share
    tokens = asked * round(of_pairs + records * shots)
    if config.chain_of_thought:  # written, and the question read again with it
        tokens = 2 * tokens + 2 * asked * records * config.max_reasoning_tokens
    return {
        "records": records,
        "tokens": tokens,
        "flops": planning.forward_flops(planned["model"], tokens),
    }
