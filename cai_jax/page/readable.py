"""Which steps have records to read, in which file, and how each is shown (page/records.py)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cai_jax.page import records


class Readable(NamedTuple):
    """How the records of a kind of step are read: cases of them, and the view of a case."""

    what: str
    file: str
    record_type: str  # its name in cai_jax/data/schema.py
    view: Callable[[Any], dict[str, Any]]
    group: str  # what groups of them are
    wording: str = ""  # of a principle, that is shown with them
    cases: Callable[[list, Mapping[str, Any]], list] = lambda found, _: found


def _with_rounds(chains: list, _: Any) -> list:
    return [chain for chain in chains if chain.rounds]


def _by_prompt(answers: list, _: Any) -> list:
    return records.grouped(answers, lambda answer: (answer.prompt_set, answer.id))


def _by_pair(judgements: list, pairs: Mapping[str, Any]) -> list:
    by_pair = records.grouped(judgements, lambda judgement: judgement.id)
    return [(pairs[of[0].id], of) for of in by_pair if of[0].id in pairs]


def _judged(case: tuple[Any, list]) -> dict[str, Any]:
    return records.judged_view(*case)


READABLE = {
    "critique_revise": Readable(
        "critiques and revisions",
        "chains.jsonl",
        "Chain",
        records.chain_view,
        group="chain",
        wording="critique_request",
        cases=_with_rounds,
    ),
    "feedback": Readable(
        "comparisons",
        "comparisons.jsonl",
        "Comparison",
        records.comparison_view,
        group="label",
        wording="comparison",
    ),
    "ppo": Readable(
        "RL samples", "rollouts.jsonl", "Rollout", records.rollout_view, group="iteration"
    ),
    "evaluate": Readable(
        "answers",
        "samples.jsonl",
        "Answer",
        records.answers_view,
        group="prompt set",
        cases=_by_prompt,
    ),
    "elo": Readable(
        "Elo pairs",
        "judgements.jsonl",
        "Judgement",
        _judged,
        group="pair of models",
        cases=_by_pair,
    ),
}
"""In the order in which the page has them."""
