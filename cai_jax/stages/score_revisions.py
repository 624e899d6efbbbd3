"""Preference models' scores of revisions 0..N of chains, and how diverse these are (Figs 5 to 7).

The paper's figures show the mean score by revision of preference models that learned from people.
Diversity is of a revision's texts together: the share of their word pairs that differ (distinct-2).
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cai_jax.errors import InputError
from cai_jax.generation import planning

if typing.TYPE_CHECKING:
    from cai_jax.data.schema import Chain, Dialogue


def default_config() -> ConfigDict:
    """Every parameter of the step."""
    config = ConfigDict()
    config.dialogue_format = "plain"  # "\n\nHuman: ..."; or "chat", the model's own template
    config.batch_size = 128
    # Of every interval: its level, and the bootstrap's resamples, over chains.
    config.level = 0.95
    config.num_resamples = 1000
    return config


def check(config: ConfigDict, inputs: Mapping[str, Any]) -> None:
    """Refuses what `run` would refuse of the config, before anything runs.

    Raises:
        InputError: a role is missing or has no names, or an unknown dialogue format.
    """
    from cai_jax.text.formats import dialogue_format

    dialogue_format(config.dialogue_format)
    for role in ("chains", "preference_model"):
        if not isinstance(inputs.get(role), Mapping) or not inputs[role]:
            raise InputError(f"inputs.{role}: expected a group of named steps, found none")


def run(config: ConfigDict, inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Writes evaluation.json.

    {"level", "chains": {name: [{model: mean score, ..., "intervals", "n"}, one a revision]},
    "distinct_2": {name: [share, one a revision]}}

    Args:
        config: as `default_config`, with `seed` and `mesh`.
        inputs: `chains` and `preference_model`, each {name: step}.
        folder: the step's own, empty.

    Returns:
        Counts: records (texts scored by each model), tokens (read).

    Raises:
        InputError: as `check`, and for inputs that cannot be read or do not fit a model.
    """
    from cai_jax import checkpoints
    from cai_jax.algorithms.intervals import estimates
    from cai_jax.core import artifact, mesh
    from cai_jax.data.schema import Chain, read_records

    check(config, inputs)
    device_mesh = mesh.make_mesh(config.mesh)
    chains = {
        name: read_records(Path(path) / "chains.jsonl" if Path(path).is_dir() else path, Chain)
        for name, path in inputs["chains"].items()
    }
    revisions = {name: by_revision(of_name) for name, of_name in chains.items()}
    texts = [case for of_name in revisions.values() for cases in of_name for case in cases]
    measures: dict[str, list[float]] = {}
    tokens = 0
    for model_name, reference in inputs["preference_model"].items():
        model = checkpoints.load_model(reference, device_mesh)
        model = checkpoints.in_format(model, config.dialogue_format)
        found, read = scores(config, model, [case[1:] for case in texts], device_mesh)
        measures[model_name] = found
        tokens += read
    evaluation: dict[str, Any] = {"level": config.level, "chains": {}, "distinct_2": {}}
    first = 0
    for name, of_name in revisions.items():
        evaluation["chains"][name] = []
        for cases in of_name:
            own = slice(first, first + len(cases))
            first = own.stop
            ids = [case[0] for case in cases]
            evaluation["chains"][name].append(
                estimates(
                    {model: list(zip(found[own], ids)) for model, found in measures.items()},
                    seed=config.seed,
                    num_resamples=config.num_resamples,
                    level=config.level,
                )
            )
        evaluation["distinct_2"][name] = [distinct(case[2] for case in cases) for cases in of_name]
    artifact.write_json(folder / "evaluation.json", evaluation)
    return {"records": len(texts), "tokens": tokens}


def by_revision(chains: Sequence[Chain]) -> list[list[tuple[str, Dialogue, str]]]:
    """For each revision 0..N the (id, dialogue, text) of the chains that have it."""
    longest = max((len(chain.rounds) for chain in chains), default=-1)
    found: list[list[tuple[str, Dialogue, str]]] = [[] for _ in range(longest + 1)]
    for chain in chains:
        for number, text in enumerate([chain.response, *(r.revision for r in chain.rounds)]):
            found[number].append((chain.id, chain.dialogue, text))
    return found


def scores(
    config: ConfigDict, model: Any, answers: Sequence[tuple[Dialogue, str]], device_mesh: Any
) -> tuple[list[float], int]:
    """The score of each (dialogue, response), and how many tokens were read."""
    from cai_jax.generation.preference import preference_scores
    from cai_jax.text.formats import dialogue_format

    tokenizer, asked = model.tokenizer, dialogue_format(config.dialogue_format)
    prompts = tokenizer.encode_prompts(asked.dialogue(dialogue) for dialogue, _ in answers)
    responses = tokenizer.encode_batch(tokenizer.answer(text) for _, text in answers)
    # The score is read at an appended end-of-text token (Bai et al. 2022a, A.2).
    texts = [[*prompt, *said, tokenizer.eos_id] for prompt, said in zip(prompts, responses)]
    found = preference_scores(model, texts, batch_size=config.batch_size, mesh=device_mesh)
    return found.tolist(), sum(map(len, texts))


def distinct(texts: typing.Iterable[str], length: int = 2) -> float:
    """Distinct-n (Li et al. 2016): of all runs of `length` words, the share that differ."""
    runs = [
        tuple(words[i : i + length])
        for words in map(str.split, texts)
        for i in range(len(words) - length + 1)
    ]
    return len(set(runs)) / len(runs) if runs else 0.0


def plan(config: ConfigDict, planned: Mapping[str, Any]) -> dict[str, Any]:
    """Texts, their tokens at most, and FLOPs of reading them with each model."""
    records = sum(
        chains["records"] + chains.get("revisions", 0) for chains in planned["chains"].values()
    )
    models = list(planned["preference_model"].values())
    tokens = sum(
        chains["tokens"] + chains.get("prompt_tokens", 0) for chains in planned["chains"].values()
    )
    return {
        "records": records,
        "tokens": tokens * len(models),
        "flops": sum(planning.forward_flops(model, tokens) for model in models),
    }
