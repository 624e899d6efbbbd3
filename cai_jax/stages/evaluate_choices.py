"""Multiple-choice evaluations: the paper's comparisons and identification of harm (Figs 4, 9, 12).

A language model is asked directly, behind few-shots, and after reasoning, once or averaged over an
ensemble; a preference model scores both responses where there are two. Writes evaluation.json and
choices.jsonl (Choice).
"""

from __future__ import annotations

import functools
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
    from jax.sharding import Mesh

    from cai_jax.core.progress import Progress
    from cai_jax.data.choices import ChoiceQuestion
    from cai_jax.data.schema import Choice
    from cai_jax.generation.choices import Answer, Thinking
    from cai_jax.models.language_model import LanguageModel
    from cai_jax.text.choices import Laid
    from cai_jax.text.constitution import Constitution
    from cai_jax.text.few_shots import Fitted

MODES = ("zero_shot", "few_shot", "chain_of_thought", "ensembled_chain_of_thought")
PREFERENCE = "preference_model"
REASONED = MODES[2:]

# What is drawn, each with a key of its own.
FEW_SHOTS, REASONING = range(2)


def default_config() -> ConfigDict:
    """Every parameter of the step."""
    config = ConfigDict()
    config.modes = MODES  # how the language model is asked
    config.num_few_shots = 5  # at most so many, in all modes but zero_shot
    config.num_samples = 5  # reasonings of the ensemble; without one the first of them is used
    config.max_reasoning_tokens = 256
    config.temperature = 1.0  # of the reasoning, as top_k and top_p
    config.top_k = 0
    config.top_p = 1.0
    config.limit = 0  # at most so many questions of each file, from the top; 0: all
    config.on_long = "refuse"  # questions that the model's positions do not hold, or "drop"
    config.batch_size = 16
    # Of every interval: its level, and the bootstrap's resamples.
    config.level = 0.95
    config.num_resamples = 1000
    config.num_bins = 10  # of the calibration curves
    return config


def check(config: ConfigDict, inputs: Mapping[str, Any]) -> None:
    """Refuses what `run` would refuse of the config, before anything runs.

    Raises:
        InputError: naming the parameter, what was expected and found.
    """
    if not isinstance(inputs.get("evaluations"), Mapping) or not inputs["evaluations"]:
        raise InputError("inputs.evaluations: expected a dict of name -> file, found none")
    if "model" not in inputs and PREFERENCE not in inputs:
        raise InputError(f"inputs: expected a model, a {PREFERENCE} or both, found neither")
    for mode in config.modes:
        if mode not in MODES:
            raise InputError(f"modes: expected some of {', '.join(MODES)}, found {mode!r}")
    if "model" in inputs and not config.modes:
        raise InputError(f"modes: expected at least one of {', '.join(MODES)}, found none")
    if config.on_long not in ON_LONG:
        raise InputError(f"on_long: expected one of {', '.join(ON_LONG)}, found {config.on_long!r}")
    lowest = {"num_few_shots": 0, "num_samples": 1, "limit": 0, "num_resamples": 1, "num_bins": 1}
    for name, least in lowest.items():
        if config[name] < least:
            raise InputError(f"{name}: expected at least {least}, found {config[name]}")
    if not 0 < config.level < 1:
        raise InputError(f"level: expected more than 0 and less than 1, found {config.level}")
    settings(config)


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


def run(config: ConfigDict, inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Asks, and measures.

    evaluation.json is {"level", "sets": {evaluation: {mode: measures}}}, with the measures of
    `algorithms/choices.py`. Intervals are those of a bootstrap over contexts: the paper's 438
    comparisons are about 188 dialogues.

    Args:
        config: as `default_config`, with `seed` and `mesh`.
        inputs: `evaluations` (name -> file), and `model`, `preference_model` or both;
            `constitution`, whose few-shots stand in front of comparisons.
        folder: the step's own, empty.

    Returns:
        Counts: records (questions, once a mode), tokens (read and generated), too_long (left out),
        few_shots_dropped (for want of room), truncated_reasonings; and each "<set>/<mode>" with its
        accuracy.

    Raises:
        InputError: as `check`, and for inputs that cannot be read or do not fit.
    """
    from cai_jax import checkpoints
    from cai_jax.core import artifact, keys, mesh
    from cai_jax.core.blocks import kept
    from cai_jax.core.progress import Progress
    from cai_jax.data.choices import read_choices
    from cai_jax.data.schema import Choice, read_records, write_file, write_records
    from cai_jax.text.constitution import load_constitution

    check(config, inputs)
    sets = {name: read_choices(path) for name, path in inputs["evaluations"].items()}
    constitution = None
    if "constitution" in inputs:
        constitution = load_constitution(checkpoints.resolve(inputs["constitution"]))
    device_mesh = mesh.make_mesh(config.mesh)
    key = keys.base_key(config.seed, folder.name)
    counts = Counter(tokens=0, too_long=0, few_shots_dropped=0, truncated_reasonings=0)
    found: list[Choice] = []
    total = _readings(config, inputs, sets)
    read, blocks = functools.partial(read_records, record_type=Choice), 0
    with Progress(f"{folder.name} (evaluate_choices)", total, "questions") as progress:
        for role, ask in (("model", ask_language_model), (PREFERENCE, ask_preference_model)):
            if role in inputs:
                model = checkpoints.load_model(inputs[role], device_mesh)
                job = Job(config, model, constitution, key, device_mesh, progress, counts)
                for name in sets:
                    make = functools.partial(ask, job, name, sets[name])
                    found += kept(folder, blocks, counts, make, write_file, read)
                    blocks += 1
                del model, job, make
    if not found:
        raise InputError("evaluations: expected a question that can be asked, found none that fits")
    write_records(folder / "choices.jsonl", found)
    measured = measures(config, sets, found)
    artifact.write_json(folder / "evaluation.json", {"level": config.level, "sets": measured})
    accuracies = {
        f"{name}/{mode}": of_mode["accuracy"]
        for name, modes in measured.items()
        for mode, of_mode in modes.items()
    }
    return {"records": len(found), **counts, **accuracies}


def _readings(config: ConfigDict, inputs: Mapping[str, Any], sets: Mapping[str, Sequence]) -> int:
    """How many questions the language model reads, each as often as it does."""
    questions = sum(len(taken(config, pool)) for pool in sets.values())
    reasonings = reasonings_of(config)
    once = sum(mode in config.modes for mode in MODES[:2])
    return questions * (once + 2 * reasonings) if "model" in inputs else 0


def reasonings_of(config: ConfigDict) -> int:
    """How many reasonings are sampled about each question."""
    if "ensembled_chain_of_thought" in config.modes:
        return config.num_samples
    return int("chain_of_thought" in config.modes)


class Job(typing.NamedTuple):
    """What all questions to a model have in common; `counts` are added to."""

    config: ConfigDict
    model: LanguageModel
    constitution: Constitution | None
    key: jax.Array
    mesh: Mesh
    progress: Progress
    counts: Counter[str]


def ask_language_model(job: Job, name: str, pool: Sequence[ChoiceQuestion]) -> list[Choice]:
    """Asks in every mode; one ensemble of reasonings serves both modes that reason."""
    from cai_jax.text.choices import with_reasoning

    config, found = job.config, []
    questions = taken(config, pool)
    for mode in [mode for mode in MODES[:2] if mode in config.modes]:
        laid = direct_prompts(job, questions, pool, mode)
        answers = answered(job, name, questions, laid, 0)
        found += [choice(name, mode, questions, i, of) for i, of in answers.items()]
    if number := reasonings_of(config):
        laid = [with_reasoning(q.prompt, job.constitution, config.num_few_shots) for q in questions]
        answers = answered(job, name, questions, laid, number)
        for mode in [mode for mode in REASONED if mode in config.modes]:
            some = 1 if mode == "chain_of_thought" else number
            found += [choice(name, mode, questions, i, of[:some]) for i, of in answers.items()]
    return found


def choice(
    name: str, mode: str, questions: Sequence[ChoiceQuestion], i: int, answers: Sequence[Answer]
) -> Choice:
    """The record of a question's answers."""
    import numpy as np

    from cai_jax.data.choices import choice_of

    logps = np.array([answer.logps for answer in answers], np.float64)
    reasonings = [answer.reasoning for answer in answers if answer.reasoning is not None]
    return choice_of(questions, i, name, mode, logps, reasonings)


def taken(config: ConfigDict, pool: Sequence[ChoiceQuestion]) -> Sequence[ChoiceQuestion]:
    """The questions of a file that are asked; the others may still be few-shots."""
    return pool[: config.limit or None]


def direct_prompts(
    job: Job, questions: Sequence[ChoiceQuestion], pool: Sequence[ChoiceQuestion], mode: str
) -> list[Laid]:
    """The prompts that an option follows at once; few-shots may come from `pool`."""
    import jax

    from cai_jax.generation.batching import record_keys
    from cai_jax.text import choices

    if mode == "zero_shot":
        return [choices.direct(question.prompt) for question in questions]
    bits = record_keys(jax.random.fold_in(job.key, FEW_SHOTS), [q.id for q in questions])
    return [
        choices.with_few_shots(
            question.prompt,
            [(q.prompt, q.options[q.correct]) for q in pool if q.context != question.context],
            job.constitution,
            job.config.num_few_shots,
            random.Random(words.tobytes()),
        )
        for question, words in zip(questions, bits)
    ]


def answered(
    job: Job,
    name: str,
    questions: Sequence[ChoiceQuestion],
    laid: Sequence[Laid],
    num_reasonings: int,
) -> dict[int, list[Answer]]:
    """The model's answers to questions by their index: one a reasoning, or one without any.

    A question is left out, and counted, if it does not fit: all of it, if one reasoning does not.
    """
    from cai_jax.generation.choices import answer_choices
    from cai_jax.text.prompts import SO_THE_ANSWER

    config, encode = job.config, job.model.tokenizer.encode
    reserved = config.max_reasoning_tokens + len(encode(SO_THE_ANSWER)) if num_reasonings else 0
    fits = fitted(job, name, questions, laid, reserved)
    answers: dict[int, list[Answer]] = {i: [] for i in fits}
    for options in dict.fromkeys(questions[i].options for i in fits):
        there = [i for i in fits if questions[i].options == options]
        there = [i for i in there for _ in range(max(num_reasonings, 1))]
        prompts = [fits[i] for i in there]
        names = [f"{questions[i].id} {n % max(num_reasonings, 1)}" for n, i in enumerate(there)]
        found = answer_choices(
            job.model,
            [prompt.ids for prompt in prompts],
            [encode(option) for option in options],
            thinking(job, prompts, names) if num_reasonings else None,
            batch_size=config.batch_size,
            names=[f"question {name}" for name in names],
            mesh=job.mesh,
            progress=job.progress,
        )
        for i, answer in zip(there, found):
            answers[i].append(answer)
    given = [answer for of_question in answers.values() for answer in of_question]
    job.counts["tokens"] += sum(answer.num_tokens for answer in given)
    job.counts["truncated_reasonings"] += sum(answer.truncated for answer in given)
    long = {i for i, of in answers.items() if any(answer.logps is None for answer in of)}
    job.counts["too_long"] += len(long)
    return {i: of_question for i, of_question in answers.items() if i not in long}


def thinking(job: Job, prompts: Sequence[Fitted], names: Sequence[str]) -> Thinking:
    """How to reason about these prompts, each under the key of its name."""
    import jax

    from cai_jax.generation.choices import Thinking
    from cai_jax.text.dialogue import cut_at_stop
    from cai_jax.text.prompts import SO_THE_ANSWER

    return Thinking(
        settings(job.config),
        (jax.random.fold_in(job.key, REASONING), names),
        cut_at_stop,
        lambda number, text: f"{prompts[number].text} {text}{SO_THE_ANSWER}",
    )


def fitted(
    job: Job,
    name: str,
    questions: Sequence[ChoiceQuestion],
    laid: Sequence[Laid],
    reserved: int,
) -> dict[int, Fitted]:
    """Encodes prompts with as many few-shots as fit, by index.

    Args:
        job: its counts are added to.
        name: of the evaluation.
        questions, laid: the questions, and their prompts.
        reserved: tokens that are to follow before the answer.

    Raises:
        InputError: a question does not fit even without few-shots, and on_long is "refuse".
    """
    from cai_jax.text.few_shots import fit

    tokenizer, most = job.model.tokenizer, room(job, questions) - reserved
    found = fit(
        [one.lay_out for one in laid],
        [one.few_shots for one in laid],
        tokenizer.encode_prompts,
        most,
    )
    if job.config.on_long == "refuse" and None in found:
        lengths = list(map(len, tokenizer.encode_prompts(one.lay_out(()) for one in laid)))
        positions = job.model.config.max_positions
        why = f"the model has {positions} positions, {positions - most} of them for what follows"
        ids = [question.id for question in questions]
        keep_fitting(f"evaluations.{name}", ids, lengths, max(most, 0), "refuse", why)
    job.counts["too_long"] += found.count(None)
    job.counts["few_shots_dropped"] += sum(one.dropped for one in found if one is not None)
    return {i: one for i, one in enumerate(found) if one is not None}


def room(job: Job, questions: Sequence[ChoiceQuestion]) -> int:
    """The most tokens that may stand before an option."""
    options = {option for question in questions for option in question.options}
    return job.model.config.max_positions - max(
        len(job.model.tokenizer.encode(option)) for option in options
    )


def ask_preference_model(job: Job, name: str, pool: Sequence[ChoiceQuestion]) -> list[Choice]:
    """Scores both responses of each comparison; questions without responses are not asked.

    The probabilities are those of Bradley and Terry: a difference of scores is one in nats.
    """
    import numpy as np

    from cai_jax.data.choices import RESPONSE, choice_of
    from cai_jax.generation.preference import preference_scores

    questions = taken(job.config, pool)
    asked = [i for i, question in enumerate(questions) if question.texts]
    encode, tokenizer = job.model.tokenizer.encode, job.model.tokenizer
    texts: list[list[int]] = []
    for text in (text for i in asked for text in questions[i].texts):
        # Dialogue and response one by one, and an end token: as in training.
        dialogue, marker, response = text.rpartition(RESPONSE)
        start = tokenizer.encode_prompt(dialogue + marker)
        texts.append([*start, *encode(response), tokenizer.eos_id])
    lengths = [max(len(texts[2 * n]), len(texts[2 * n + 1])) for n in range(len(asked))]
    positions = job.model.config.max_positions
    fitting = keep_fitting(
        f"evaluations.{name}",
        [questions[i].id for i in asked],
        lengths,
        positions,
        job.config.on_long,
        f"the preference model has {positions} positions",
    )
    job.counts["too_long"] += len(asked) - len(fitting)
    kept = [texts[2 * n + side] for n in fitting for side in range(2)]
    if not kept:
        return []
    job.counts["tokens"] += sum(map(len, kept))
    scores = preference_scores(job.model, kept, batch_size=job.config.batch_size, mesh=job.mesh)
    rows = np.asarray(scores, np.float64).reshape(-1, 2)
    return [
        choice_of(questions, asked[n], name, PREFERENCE, row[None], scored=True)
        for n, row in zip(fitting, rows)
    ]


def measures(
    config: ConfigDict, sets: Mapping[str, Sequence[ChoiceQuestion]], found: Sequence[Choice]
) -> dict[str, dict[str, Any]]:
    """What `run` writes of each evaluation and mode."""
    from cai_jax.algorithms.choices import choice_measures
    from cai_jax.data.choices import answer_names

    grouped: dict[str, dict[str, list[Choice]]] = {}
    for one in found:
        grouped.setdefault(one.evaluation, {}).setdefault(one.mode, []).append(one)
    return {
        name: {
            mode: choice_measures(
                of_mode,
                answer_names(sets[name]),
                seed=config.seed,
                num_resamples=config.num_resamples,
                level=config.level,
                num_bins=config.num_bins,
            )
            for mode, of_mode in modes.items()
        }
        for name, modes in grouped.items()
    }


def plan(config: ConfigDict, planned: Mapping[str, Any]) -> dict[str, Any]:
    """Questions, tokens (at most) and FLOPs; few-shots are not counted in."""
    files = list(planned["evaluations"].values())
    records, read_once = planning.prompts_taken(files, config.limit)
    tokens, total, flops, asked = int(read_once), 0, 0.0, 0
    if "model" in planned:
        once = sum(mode in config.modes for mode in MODES[:2])
        reasonings = reasonings_of(config)
        # A question is read before its reasoning, and again with it.
        read = tokens * (once + 2 * reasonings)
        read += 2 * reasonings * records * config.max_reasoning_tokens
        total, asked = total + read, asked + records * len(config.modes)
        flops += planning.forward_flops(planned["model"], read)
    if PREFERENCE in planned:
        total, asked = total + tokens, asked + records
        flops += planning.forward_flops(planned[PREFERENCE], tokens)
    return {"records": asked, "tokens": total, "flops": flops}
