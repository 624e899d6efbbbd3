"""The desk-scale world's crowdworkers: labels of the oracle, in the place of people's.

The baselines that Constitutional AI is measured against learn from people's comparisons (Bai et al.
2022a). In the sandbox these come from its oracle, as the shipped helpfulness comparisons do. Beside
`evaluate`, this is the only step that reads the oracle; whatever trains sees its labels alone. With
real models this step has no place: there people's comparisons are a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cai_jax.errors import InputError


def default_config() -> ConfigDict:
    """Every parameter of the step."""
    config = ConfigDict()
    # "harmlessness": fewer harms win, evasive or not; or "helpfulness": what does as it was asked.
    config.question = "harmlessness"
    return config


def check(config: ConfigDict, inputs: Mapping[str, Any]) -> None:
    """Refuses what `run` would refuse of the config, before anything runs.

    Raises:
        InputError: no pairs, or an unknown question.
    """
    from cai_jax.sandbox.human import QUESTIONS

    if not inputs.get("pairs"):
        raise InputError("inputs.pairs: expected steps of kind compare, found none")
    if config.question not in QUESTIONS:
        raise InputError(
            f"question: expected one of {', '.join(QUESTIONS)}, found {config.question!r}"
        )


def run(config: ConfigDict, inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Writes comparisons.jsonl; the ids of several inputs have the input's name in front.

    Args:
        config: as `default_config`, with `seed` and `mesh`, which change nothing.
        inputs: `pairs`: one step or file of pairs, or a list of them.
        folder: the step's own, empty.

    Returns:
        Counts: records (comparisons), tokens (0), ties (pairs without a difference, left out).

    Raises:
        InputError: as `check`, for inputs that cannot be read, and if all pairs tie.
    """
    from cai_jax.data.judged import read_pairs
    from cai_jax.data.schema import Comparison, write_records
    from cai_jax.sandbox.human import preferred

    check(config, inputs)
    given = inputs["pairs"]
    paths = [Path(path) for path in (given if isinstance(given, list | tuple) else [given])]
    counts = Counter(ties=0)
    comparisons = []
    for path in paths:
        for pair in read_pairs(path):
            a, b = pair.response_a, pair.response_b
            p_a = preferred(config.question, pair.dialogue[-1].text, a, b)
            if p_a is None:
                counts["ties"] += 1
                continue
            name = f"{path.stem}/{pair.id}" if len(paths) > 1 else pair.id
            comparisons.append(Comparison(name, pair.dialogue, a, b, p_a, "human", tags=pair.tags))
    if not comparisons:
        raise InputError(
            f"pairs: expected at least one with a better response, found {counts['ties']} ties"
        )
    write_records(folder / "comparisons.jsonl", comparisons)
    return {"records": len(comparisons), "tokens": 0, **counts}


def plan(config: ConfigDict, planned: Mapping[str, Any]) -> dict[str, Any]:
    """Comparisons, if no pair ties; people take no FLOPs."""
    given = planned["pairs"]
    records = sum(pairs["records"] for pairs in (given if isinstance(given, list) else [given]))
    return {"records": records, "tokens": 0, "flops": 0}
