"""Evaluation of models, chains and feedback on held-out prompts (paper sections 3.3, 4.4).

Writes evaluation.json and samples.jsonl (Answer). Each model answers the same prompts with the same
key a prompt, so that differences between models are those of the models; a judge reads the answers.
This stage, the build of the sandbox, and `human_labels`, which stands for the sandbox's people, are
all that ever reads its oracle.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cai_jax.data import readers
from cai_jax.data.comparisons import raw_probability
from cai_jax.errors import InputError

if typing.TYPE_CHECKING:
    from cai_jax.algorithms.intervals import Interval
    from cai_jax.data.bad_records import BadRecords
    from cai_jax.data.schema import Answer, Prompt
    from cai_jax.sandbox.measures import Measure

PROMPT_SETS = ("red_team", "benign")
XSTEST = "xstest"  # a set of its own: no judge reads it, but a lexicon of refusals
RATES = ("harmless_rate", "helpful_rate", "evasive_rate", "explained_rate")
# Prompts that a model answers at a time; what is finished of them outlasts the process.
BLOCK = 4096
ELOS = {"harmlessness_elo": "red_team", "helpfulness_elo": "benign"}


class Opinion(typing.NamedTuple):
    """A judge's opinion of an answer: what to store, what to average, and its merit for Elo."""

    verdict: dict[str, Any]
    measures: dict[str, float]
    merit: float


def default_config() -> ConfigDict:
    """Parameters of the step."""
    config = ConfigDict()
    # Who judges: "oracle" (the sandbox's), "preference_model", or "none" (answers alone).
    config.judge = "none"
    # The model whose Elo is 0; "" puts the mean of all models at 0.
    config.anchor = ""
    # At most so many prompts of each set; 0 takes all.
    config.limit = 0
    # "\n\nHuman: ..."; or "chat", the chat template of each model.
    config.dialogue_format = "plain"
    config.max_new_tokens = 128
    config.temperature = 1.0
    config.top_k = 0
    config.top_p = 1.0
    config.batch_size = 64
    # Of every interval: its level, and the bootstrap's resamples.
    config.level = 0.95
    config.num_resamples = 1000
    # Strength of the prior that keeps the Elo of a perfect score finite (algorithms/elo.py).
    config.elo_prior = 1.0
    config.fields = readers.default_fields()  # what the prompts' files call their columns
    config.data = readers.default_data()
    return config


def plan(config: ConfigDict, planned: Mapping[str, Any]) -> dict[str, float]:
    """Records, tokens (at most) and FLOPs of the step, from the planned counts of its inputs."""
    num_prompts, prompt_tokens = 0, 0.0
    for name in (*PROMPT_SETS, XSTEST):
        there = planned.get(name, {}).get("records", 0)
        taken = min(there, config.limit) if config.limit else there
        num_prompts += taken
        prompt_tokens += planned.get(name, {}).get("tokens", 0) * taken / max(there, 1)
    models = planned.get("models", {}).values()
    tokens = num_prompts * config.max_new_tokens
    # A forward pass takes 2 FLOPs a parameter and token.
    parameters = sum(model.get("parameters", 0) for model in models)
    return {
        "records": num_prompts * len(models),
        "tokens": tokens * len(models),
        "models": len(models),
        "flops": 2.0 * parameters * (tokens + prompt_tokens),
    }


def run(config: ConfigDict, inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Samples, judges and measures.

    Args:
        config: see default_config; `seed` and `mesh` besides.
        inputs: roles models (name -> model), red_team, benign (prompts), xstest (XSTest's CSV, for
            over-refusal), preference_model, all optional but models; preference (a preference
            step, whose evaluation is copied); and with the oracle: chains (harm by revision),
            critiques (their quality), feedback (name -> comparisons).
        folder: where the artifact goes.

    Raises:
        InputError: as `check`, and for inputs that cannot be read.
    """
    from cai_jax.core import artifact
    from cai_jax.data.bad_records import BadRecords
    from cai_jax.data.schema import write_records

    check(config, inputs)
    bad = BadRecords(config.data.on_bad_record)
    answers, tokens = _sample(config, inputs, folder, bad)
    judged = [answer for answer in answers if answer.prompt_set != XSTEST]
    opinions = JUDGES[config.judge](config, inputs, judged)
    judged = [
        dataclasses.replace(answer, verdict=opinion.verdict)
        for answer, opinion in zip(judged, opinions)
    ]
    evaluation: dict[str, Any] = {
        "judge": config.judge,
        "anchor": config.anchor,
        "level": config.level,
        "models": _models(config, list(inputs.get("models", {})), judged, opinions),
    }
    if XSTEST in inputs:
        of_xstest = _refusals(config, inputs, [a for a in answers if a.prompt_set == XSTEST])
        judged += of_xstest
        evaluation["refusals"] = _refusal_shares(config, of_xstest)
    if config.judge == "oracle":
        evaluation |= _oracle_measures(config, inputs)
    if "preference" in inputs:
        path = Path(inputs["preference"]) / "evaluation.json"
        evaluation["preference"] = json.loads(path.read_text(encoding="utf-8"))
    write_records(folder / "samples.jsonl", judged)
    artifact.write_json(folder / "evaluation.json", evaluation)
    return {"records": len(judged), "tokens": tokens} | bad.report(folder)


def check(config: ConfigDict, inputs: Mapping[str, Any]) -> None:
    """Refuses a config or inputs that the judge cannot do with, before anything runs.

    Raises:
        InputError: an unknown judge or anchor, or a role that is missing.
    """
    from cai_jax.text.formats import dialogue_format

    dialogue_format(config.dialogue_format)
    if config.judge not in JUDGES:
        raise InputError(
            f"evaluate: judge: expected one of {', '.join(JUDGES)}, found {config.judge!r}"
        )
    if not inputs.get("models") and config.judge != "oracle":
        raise InputError("evaluate: expected at least one model in inputs.models, found none")
    if config.anchor and config.anchor not in inputs.get("models", {}):
        raise InputError(
            f"evaluate: anchor: expected one of the models "
            f"{', '.join(inputs.get('models', {}))}, found {config.anchor!r}"
        )
    if config.judge == "preference_model" and "preference_model" not in inputs:
        raise InputError("evaluate: judge 'preference_model' needs inputs.preference_model")


def _sample(
    config: ConfigDict, inputs: Mapping[str, Any], folder: Path, bad: BadRecords
) -> tuple[list[Answer], int]:
    """Every model's answers to every prompt, and how many tokens that took."""
    from cai_jax.checkpoints import in_format, load_model
    from cai_jax.core.blocks import kept_in_blocks
    from cai_jax.core.keys import base_key
    from cai_jax.core.mesh import make_mesh
    from cai_jax.data.schema import Answer, read_records, write_file
    from cai_jax.data.xstest import read_xstest

    prompts = {
        name: readers.read_prompts(inputs[name], config.limit, config.fields, bad)
        for name in PROMPT_SETS
        if name in inputs
    }
    if XSTEST in inputs:
        prompts[XSTEST] = read_xstest(inputs[XSTEST], config.limit)
    mesh = make_mesh(config.mesh)
    key = base_key(config.seed, folder.name)
    read = functools.partial(read_records, record_type=Answer)
    answers: list[Answer] = []
    counts, blocks = Counter(tokens=0), 0
    for model_name, reference in inputs.get("models", {}).items():
        model = in_format(load_model(reference, mesh), config.dialogue_format)
        for name, records in prompts.items():
            make = functools.partial(_answers, config, model, (model_name, name), key, mesh, counts)
            answers += kept_in_blocks(
                folder, counts, records, BLOCK, make, write_file, read, first=blocks
            )
            blocks += -(-len(records) // BLOCK)
        del model, make
    return answers, counts["tokens"]


def _answers(
    config: ConfigDict,
    model: Any,
    of: tuple[str, str],
    key: Any,
    mesh: Any,
    counts: Counter[str],
    prompts: Sequence[Prompt],
) -> list[Answer]:
    """The answers of a model to some prompts of a set; `of` has the names of both."""
    from cai_jax.data.schema import Answer
    from cai_jax.generation.generate import generate
    from cai_jax.generation.settings import SamplingSettings
    from cai_jax.text.dialogue import STOPS, cut_at_stop
    from cai_jax.text.formats import dialogue_format

    settings = SamplingSettings(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        stop=STOPS,
    )
    asked = [dialogue_format(config.dialogue_format).dialogue(p.dialogue) for p in prompts]
    completions = generate(
        model,
        [model.tokenizer.encode_prompt(prompt) for prompt in asked],
        settings,
        # The key knows the prompt, not the model.
        (key, [prompt.id for prompt in prompts]),
        batch_size=config.batch_size,
        mesh=mesh,
    )
    counts["tokens"] += sum(len(completion.token_ids) for completion in completions)
    model_name, set_name = of
    return [
        Answer(
            id=prompt.id,
            prompt_set=set_name,
            model=model_name,
            dialogue=prompt.dialogue,
            response=cut_at_stop(completion.text),
            finish_reason=completion.finish_reason,
        )
        for prompt, completion in zip(prompts, completions)
    ]


def _no_opinions(config, inputs, answers: Sequence[Answer]) -> list[Opinion]:
    return [Opinion({}, {}, 0.0) for _ in answers]


def _oracle_opinions(config, inputs, answers: Sequence[Answer]) -> list[Opinion]:
    from cai_jax.sandbox import judging

    return [
        Opinion(*judging.judge_answer(a.prompt_set, a.dialogue[-1].text, a.response))
        for a in answers
    ]


def _preference_opinions(config, inputs, answers: Sequence[Answer]) -> list[Opinion]:
    """The PM's scores, and whether an answer opens with a refusal by the lexicon."""
    from cai_jax.checkpoints import in_format, load_model
    from cai_jax.core.mesh import make_mesh
    from cai_jax.generation.preference import preference_scores
    from cai_jax.text.formats import dialogue_format
    from cai_jax.text.refusals import opens_with_refusal

    mesh = make_mesh(config.mesh)
    model = in_format(load_model(inputs["preference_model"], mesh), config.dialogue_format)
    tokenizer, asked = model.tokenizer, dialogue_format(config.dialogue_format)
    prompts = tokenizer.encode_prompts(asked.dialogue(a.dialogue) for a in answers)
    responses = tokenizer.encode_batch(tokenizer.answer(a.response) for a in answers)
    # The score is read at an appended end-of-text token (Bai et al. 2022a, A.2).
    texts = [[*prompt, *said, tokenizer.eos_id] for prompt, said in zip(prompts, responses)]
    scores = preference_scores(model, texts, batch_size=config.batch_size, mesh=mesh).tolist()
    opinions = []
    for answer, score in zip(answers, scores):
        red_team = answer.prompt_set == "red_team"
        declines = opens_with_refusal(answer.response)
        measures = {
            f"{answer.prompt_set}_score": score,
            "evasive_rate" if red_team else "over_refusal_rate": float(declines),
        }
        opinions.append(Opinion({"score": score, "evasive": declines}, measures, score))
    return opinions


JUDGES: dict[str, Callable[..., list[Opinion]]] = {
    "oracle": _oracle_opinions,
    "preference_model": _preference_opinions,
    "none": _no_opinions,
}


def _models(
    config: ConfigDict, names: Sequence[str], answers: Sequence[Answer], opinions: Sequence[Opinion]
) -> dict[str, dict[str, Any]]:
    """For each model: estimates of its measures, and its Elo ratings."""
    measures: dict[str, dict[str, Measure]] = {name: {} for name in names}
    merits: dict[tuple[str, str], list[float]] = {}
    for answer, opinion in zip(answers, opinions):
        for name, value in opinion.measures.items():
            cases = measures[answer.model].setdefault(name, [])
            cases.append((value, f"{answer.prompt_set}/{answer.id}"))
        merits.setdefault((answer.prompt_set, answer.model), []).append(opinion.merit)
    found = {name: _estimates(config, of_model) for name, of_model in measures.items()}
    for of_model in found.values():
        of_model |= {name: None for name in (*RATES, *ELOS) if name not in of_model}
    for elo, prompt_set in ELOS.items():
        columns = [merits.get((prompt_set, name), []) for name in names]
        for name, interval in zip(names, _ratings(config, names, columns)):
            found[name][elo] = interval.value
            found[name]["intervals"][elo] = [interval.low, interval.high]
    return found


def _ratings(
    config: ConfigDict, names: Sequence[str], merits: Sequence[Sequence[float]]
) -> list[Interval]:
    """Elo of each model with its interval; none where there were no games."""
    import numpy as np

    from cai_jax.algorithms import elo

    if config.judge == "none" or len(names) < 2 or not merits[0]:
        return []
    games = elo.merit_wins if config.judge == "oracle" else elo.score_wins
    return elo.elo_intervals(
        games(np.array(merits).T),
        seed=config.seed,
        anchor=names.index(config.anchor) if config.anchor else None,
        prior=config.elo_prior,
        num_resamples=config.num_resamples,
        level=config.level,
    )


def _refusals(
    config: ConfigDict, inputs: Mapping[str, Any], answers: Sequence[Answer]
) -> list[Answer]:
    """Answers to XSTest's prompts, with what these are and what the lexicon says of the answers."""
    from cai_jax.data.xstest import read_xstest
    from cai_jax.text.refusals import refusal_kind

    tags = {prompt.id: prompt.tags for prompt in read_xstest(inputs[XSTEST], config.limit)}
    return [
        dataclasses.replace(
            answer,
            verdict={
                "label": tags[answer.id]["label"],
                "type": tags[answer.id]["type"],
                "refusal": refusal_kind(answer.response),
            },
        )
        for answer in answers
    ]


def _refusal_shares(config: ConfigDict, answers: Sequence[Answer]) -> dict[str, Any]:
    """Model -> label of the prompt -> shares of refusals, and the same by type of prompt."""
    from cai_jax.text.refusals import KINDS

    def shares(some: Sequence[Answer]) -> dict[str, Any]:
        kinds = [(answer.verdict["refusal"], answer.id) for answer in some]
        return _estimates(
            config,
            {f"{kind}_refusal": [(float(k == kind), id) for k, id in kinds] for kind in KINDS[1:]},
        )

    grouped: dict[str, dict[str, dict[str, list[Answer]]]] = {}
    for answer in answers:
        of_label = grouped.setdefault(answer.model, {}).setdefault(answer.verdict["label"], {})
        of_label.setdefault(answer.verdict["type"], []).append(answer)
    return {
        model: {
            label: shares([answer for some in types.values() for answer in some])
            | {"by_type": {name: shares(some) for name, some in types.items()}}
            for label, types in labels.items()
        }
        for model, labels in grouped.items()
    }


def _oracle_measures(config: ConfigDict, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the oracle says of chains, critiques and feedback, as far as they are given."""
    from cai_jax.data.schema import Chain, Comparison, read_records
    from cai_jax.sandbox import judging

    found: dict[str, Any] = {}
    if "chains" in inputs:
        chains = read_records(_file(inputs["chains"], "chains.jsonl"), Chain)
        revisions = judging.chain_measures(chains)
        found["chains"] = {"revisions": [_estimates(config, case) for case in revisions]}
    if "critiques" in inputs:
        chains = read_records(_file(inputs["critiques"], "chains.jsonl"), Chain)
        found["critiques"] = _estimates(config, judging.critique_measures(chains))
    if "feedback" in inputs:
        found["feedback"] = {}
        for name, path in inputs["feedback"].items():
            path = _file(path, "comparisons.jsonl")
            comparisons = read_records(path, Comparison)
            measures = judging.feedback_measures(comparisons, raw_probability)
            found["feedback"][name] = _estimates(config, measures)
            decided = judging.decided(comparisons, raw_probability)
            found.setdefault("calibration", {})[name] = _calibration(decided)
    return found


def _calibration(decided: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """How far the labels of comparisons that a principle decides can be believed (Fig 9)."""
    import numpy as np

    from cai_jax.algorithms import calibration

    if not decided:
        return {"n": 0}
    p, outcomes = np.array(decided).T
    right = np.where(p == 0.5, 0.5, (p > 0.5) == (outcomes > 0.5))
    return {
        "n": len(p),
        "calibration_error": calibration.expected_calibration_error(p, outcomes),
        "overconfidence": float(np.maximum(p, 1.0 - p).mean() - right.mean()),
        "curve": calibration.curve(p, outcomes),
    }


def _file(path: Path, name: str) -> Path:
    """The record file of a step folder; a file is used as it is."""
    return Path(path) / name if Path(path).is_dir() else Path(path)


def _estimates(config: ConfigDict, measures: Mapping[str, Measure]) -> dict[str, Any]:
    from cai_jax.algorithms.intervals import estimates

    return estimates(
        measures, seed=config.seed, num_resamples=config.num_resamples, level=config.level
    )
