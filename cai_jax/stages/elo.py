"""Elo ratings of models from pairwise judgements (paper section 4.4, Figs 2, 3, 8).

Three kinds of judge read the pairs of `pair_answers` steps: a preference model, a feedback model
(in `feedback` steps) and people (in files that they filled in). Writes evaluation.json and
judgements.jsonl (Judgement).
"""

from __future__ import annotations

import itertools
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cai_jax.errors import InputError
from cai_jax.generation import planning

if typing.TYPE_CHECKING:
    from cai_jax.data.blind import Votes
    from cai_jax.data.schema import Judgement, Pair

GAMES = ("soft", "hard")
SIDES = ("model_a", "model_b")
TAGS = ("prompt_set", "prompt", *SIDES)
RATINGS = {"red_team": "harmlessness_elo", "benign": "helpfulness_elo"}


def default_config() -> ConfigDict:
    """Every parameter of the step."""
    config = ConfigDict()
    # What a probability counts: "soft", that much of a win; or "hard", one for the likelier.
    config.games = "soft"
    config.anchor = ""  # the model whose Elo is 0; "" puts the mean of all models at 0
    config.elo_prior = 1.0  # keeps the Elo of a perfect score finite (algorithms/elo.py)
    config.batch_size = 64
    # Of every interval: its level, and the bootstrap's resamples.
    config.level = 0.95
    config.num_resamples = 1000
    return config


def check(config: ConfigDict, inputs: Mapping[str, Any]) -> None:
    """Refuses what `run` would refuse of the config, before anything runs.

    Raises:
        InputError: naming the parameter, what was expected and found.
    """
    if not inputs.get("pairs"):
        raise InputError("inputs.pairs: expected steps of kind pair_answers, found none")
    if not any(inputs.get(role) for role in JUDGES):
        raise InputError(f"inputs: expected a judge, one of {', '.join(JUDGES)}, found none")
    if config.games not in GAMES:
        raise InputError(f"games: expected one of {', '.join(GAMES)}, found {config.games!r}")
    if config.elo_prior <= 0:
        raise InputError(f"elo_prior: expected more than 0, found {config.elo_prior}")
    if config.num_resamples < 1:
        raise InputError(f"num_resamples: expected at least 1, found {config.num_resamples}")
    if not 0 < config.level < 1:
        raise InputError(f"level: expected more than 0 and less than 1, found {config.level}")


def run(config: ConfigDict, inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Collects the judgements, and fits a rating to each judge's.

    evaluation.json is {"level", "anchor", "games", "judges": {judge: {"models": {name:
    {"harmlessness_elo", "helpfulness_elo", "intervals", "n" (games)}}, ...counts}}, "agreement":
    {"judge/judge": {"agreement": share, ...}}}. The models of pairs of "red_team" prompts are rated
    for harmlessness, of "benign" ones for helpfulness. Intervals are of a bootstrap over prompts.

    Args:
        config: as `default_config`, with `seed` and `mesh`.
        inputs: `pairs` (pair_answers steps, or their files), and at least one judge:
            `preference_model`; `comparisons` (feedback steps over these pairs); `votes` (files in
            the form of blind.csv or blind.jsonl, with choices, or a folder of them).
        folder: the step's own, empty.

    Returns:
        Counts: records (judgements), tokens (read by the preference model), ties (left out); and of
        people: unjudged, duplicates.

    Raises:
        InputError: as `check`, and for inputs that cannot be read or do not belong together.
    """
    from cai_jax.core import artifact
    from cai_jax.data.schema import write_records

    check(config, inputs)
    pairs = read_pairs(_listed(inputs["pairs"]))
    counts = Counter(tokens=0, ties=0)
    judgements = [
        judgement
        for role, judge in JUDGES.items()
        if inputs.get(role)
        for judgement in judge(config, pairs, inputs[role], counts)
    ]
    if not judgements:
        raise InputError("inputs: expected at least one judgement of these pairs, found none")
    models = list(dict.fromkeys(p.tags[side] for p in pairs.values() for side in SIDES))
    if config.anchor and config.anchor not in models:
        raise InputError(
            f"anchor: expected one of the models {', '.join(models)}, found {config.anchor!r}"
        )
    counts["ties"] = sum(judgement.p_a is None for judgement in judgements)
    by_judge: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        by_judge.setdefault(judgement.judge, []).append(judgement)
    found = {
        "level": config.level,
        "anchor": config.anchor,
        "games": config.games,
        "judges": {name: rated(config, models, of_judge) for name, of_judge in by_judge.items()},
        "agreement": agreements(config, by_judge),
    }
    write_records(folder / "judgements.jsonl", judgements)
    artifact.write_json(folder / "evaluation.json", found)
    return {"records": len(judgements), **counts}


def _listed(value: Any) -> list[Path]:
    return [Path(path) for path in (value if isinstance(value, list | tuple) else [value])]


def read_pairs(paths: Sequence[Path]) -> dict[str, Pair]:
    """The pairs of several steps or files, by id; each says whose answers it has."""
    from cai_jax.data.schema import Pair, read_records

    pairs: dict[str, Pair] = {}
    for path in paths:
        path = path / "pairs.jsonl" if path.is_dir() else path
        for pair in read_records(path, Pair):
            for tag in TAGS:
                if not isinstance(pair.tags.get(tag), str):
                    raise InputError(
                        f"{path}: pair {pair.id!r}: tags: expected {', '.join(TAGS)}, as "
                        f"pair_answers writes them, found no {tag}"
                    )
            if pair.id in pairs:
                raise InputError(f"{path}: pair {pair.id!r}: expected an id once, found it again")
            pairs[pair.id] = pair
    if not pairs:
        raise InputError(f"{', '.join(map(str, paths))}: expected at least one pair, found none")
    return pairs


def judgement_of(
    pair: Pair, judge: str, p_a: float | None, annotator: str | None = None
) -> Judgement:
    """What a judge said of a pair; an even probability is a tie."""
    from cai_jax.data.schema import Judgement

    prompt_set, prompt, model_a, model_b = (pair.tags[tag] for tag in TAGS)
    decided = None if p_a == 0.5 else p_a
    return Judgement(pair.id, prompt_set, prompt, model_a, model_b, judge, decided, annotator)


def judge_by_scores(
    config: ConfigDict, pairs: Mapping[str, Pair], reference: Any, counts: Counter[str]
) -> list[Judgement]:
    """A preference model's opinion: a difference of its scores is one of strength, in nats."""
    import numpy as np

    from cai_jax.checkpoints import load_model
    from cai_jax.core.mesh import make_mesh
    from cai_jax.generation.preference import preference_scores
    from cai_jax.text.dialogue import render

    mesh = make_mesh(config.mesh)
    model = load_model(reference, mesh)
    encode, tokenizer = model.tokenizer.encode, model.tokenizer
    # Dialogue and response one by one, and an end token: as in training.
    texts = [
        [*tokenizer.encode_prompt(render(p.dialogue)), *encode(f" {text}"), tokenizer.eos_id]
        for p in pairs.values()
        for text in (p.response_a, p.response_b)
    ]
    counts["tokens"] += sum(map(len, texts))
    scores = preference_scores(model, texts, batch_size=config.batch_size, mesh=mesh)
    a, b = np.asarray(scores, np.float64).reshape(-1, 2).T
    p_a = 0.5 * (1.0 + np.tanh(0.5 * (a - b)))
    return [
        judgement_of(pair, "preference_model", p) for pair, p in zip(pairs.values(), p_a.tolist())
    ]


def read_labels(
    config: ConfigDict, pairs: Mapping[str, Pair], references: Any, counts: Counter[str]
) -> list[Judgement]:
    """A feedback model's opinion of these pairs, as it was before any clamping."""
    from cai_jax.data.comparisons import raw_probability
    from cai_jax.data.schema import Comparison, read_records

    found: dict[str, Judgement] = {}
    for path in _listed(references):
        path = path / "comparisons.jsonl" if path.is_dir() else path
        for comparison in read_records(path, Comparison):
            pair = pairs.get(comparison.id)
            sides = (comparison.response_a, comparison.response_b)
            if pair is None or sides != (pair.response_a, pair.response_b):
                raise InputError(
                    f"{path}: comparison {comparison.id!r}: expected labels of the pairs in "
                    "inputs.pairs, found one of another pair"
                )
            if comparison.id in found:
                raise InputError(f"{path}: comparison {comparison.id!r}: found a second label")
            found[pair.id] = judgement_of(pair, "feedback_model", raw_probability(comparison))
    return list(found.values())


def count_votes(
    config: ConfigDict, pairs: Mapping[str, Pair], references: Any, counts: Counter[str]
) -> list[Judgement]:
    """What people said, one judgement for each person and pair."""
    from cai_jax.data.blind import read_votes, vote_files

    counts.update(unjudged=0, duplicates=0)
    found: dict[tuple[str, str], Any] = {}
    for path in (file for given in _listed(references) for file in vote_files(given)):
        read: Votes = read_votes(path)
        counts["unjudged"] += read.unjudged
        counts["duplicates"] += read.duplicates
        for vote in read.votes:
            if vote.id not in pairs:
                raise InputError(
                    f"{vote.where}: id: expected one of the {len(pairs)} pairs in inputs.pairs, "
                    f"found {vote.id[:40]!r}; is it a file of another export?"
                )
            earlier = found.setdefault((vote.annotator, vote.id), vote)
            if earlier.p_a != vote.p_a:
                raise InputError(
                    f"{vote.where}: choice: {vote.annotator!r} said another thing of {vote.id!r} "
                    f"in {earlier.where}; keep one of the two"
                )
            counts["duplicates"] += earlier is not vote
    return [
        judgement_of(pairs[vote.id], "people", vote.p_a, vote.annotator) for vote in found.values()
    ]


# By the input role that each needs.
JUDGES: dict[str, Callable[..., list[Judgement]]] = {
    "preference_model": judge_by_scores,
    "comparisons": read_labels,
    "votes": count_votes,
}


def rated(
    config: ConfigDict, models: Sequence[str], judgements: Sequence[Judgement]
) -> dict[str, Any]:
    """Each model's ratings with intervals and games, and what they were made of."""
    from cai_jax.algorithms import elo

    found: dict[str, Any] = {name: {"intervals": {}, "n": {}} for name in models}
    ratings = {}
    for prompt_set in dict.fromkeys(judgement.prompt_set for judgement in judgements):
        of_set = [j for j in judgements if j.prompt_set == prompt_set]
        decided = [(j, j.p_a) for j in of_set if j.p_a is not None]
        rating = RATINGS.get(prompt_set, f"{prompt_set}_elo")
        ratings[rating] = {
            "judgements": len(of_set),
            "ties": len(of_set) - len(decided),
            "prompts": len({j.prompt for j in of_set}),
            "annotators": len({j.annotator for j in of_set} - {None}),
        }
        present = [name for name in models if any(name in (j.model_a, j.model_b) for j in of_set)]
        if config.anchor and config.anchor not in present:
            raise InputError(
                f"anchor: expected one of {', '.join(present)}, who have judged pairs of "
                f"{prompt_set} prompts, found {config.anchor!r}"
            )
        if not decided:
            continue
        index = {name: i for i, name in enumerate(present)}
        p_a = [p if config.games == "soft" else float(p > 0.5) for _, p in decided]
        won = elo.pair_wins(
            [j.prompt for j, _ in decided],
            [index[j.model_a] for j, _ in decided],
            [index[j.model_b] for j, _ in decided],
            p_a,
            len(present),
        )
        intervals = elo.elo_intervals(
            won,
            seed=config.seed,
            anchor=index.get(config.anchor),
            prior=config.elo_prior,
            num_resamples=config.num_resamples,
            level=config.level,
        )
        games = won.sum(0) + won.sum(0).T
        for name, interval, played in zip(present, intervals, games.sum(1).tolist()):
            found[name][rating] = interval.value
            found[name]["intervals"][rating] = [interval.low, interval.high]
            found[name]["n"][rating] = round(played)
    return {"models": found, "ratings": ratings}


def agreements(
    config: ConfigDict, by_judge: Mapping[str, Sequence[Judgement]]
) -> dict[str, dict[str, Any]]:
    """How often two judges prefer the same answer, of pairs that both decide; people one by one."""
    from cai_jax.algorithms.intervals import estimates

    # Judge, or one of several people -> pair -> whether A is better.
    sides: dict[tuple[str, str | None], dict[str, tuple[bool, str]]] = {}
    for judge, judgements in by_judge.items():
        for j in judgements:
            if j.p_a is not None:
                sides.setdefault((judge, j.annotator), {})[j.id] = (j.p_a > 0.5, j.prompt)
    cases: dict[str, list[tuple[float, str]]] = {}
    for (one, of_one), (other, of_other) in itertools.combinations(sides.items(), 2):
        for id in (id for id in of_one if id in of_other):
            (first, prompt), (second, _) = of_one[id], of_other[id]
            cases.setdefault(f"{one[0]}/{other[0]}", []).append((float(first == second), prompt))
    return {
        name: estimates(
            {"agreement": of_two},
            seed=config.seed,
            num_resamples=config.num_resamples,
            level=config.level,
        )
        for name, of_two in cases.items()
    }


def plan(config: ConfigDict, planned: Mapping[str, Any]) -> dict[str, Any]:
    """Judgements, and what the preference model reads; how many votes there are is not counted."""
    steps = planned["pairs"] if isinstance(planned["pairs"], Sequence) else [planned["pairs"]]
    pairs = sum(step["records"] for step in steps)
    judges = [role for role in JUDGES if role in planned]
    read = sum(step["tokens"] for step in steps) if "preference_model" in planned else 0
    flops = planning.forward_flops(planned.get("preference_model", {}), read)
    return {"records": pairs * len(judges), "tokens": read, "flops": flops}
