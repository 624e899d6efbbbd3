"""A sweep as a table: each model's measures, and how it differs from a baseline.

Reads the answers of an `evaluate` step, whose models answered the same prompts. Differences are
taken prompt by prompt; each has a bootstrap interval over prompts and the p of a sign-flip test,
adjusted for as many tests as there are models (Holm). Writes contrast.json and contrast.svg.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cai_jax import hosts
from cai_jax.errors import InputError

if typing.TYPE_CHECKING:
    from cai_jax.data.schema import Answer

RED_TEAM = "red_team"


def default_config() -> ConfigDict:
    """Every parameter of the step."""
    config = ConfigDict()
    config.baseline = ""  # the model that others are compared with; "" is the first
    config.level = 0.95  # of every interval
    config.num_resamples = 1000  # of the bootstrap; ten times as many sign flips
    return config


def run(config: ConfigDict, inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Writes contrast.json and contrast.svg.

    {"baseline", "level", "models": {model: {measure: {"value", "low", "high", "n"}}},
    "differences": {model: {measure: {"value", "low", "high", "p", "adjusted_p"}}}}; a measure is
    named by its prompts' set, "red_team/harmless".

    Args:
        config: as `default_config`, with `seed` and `mesh`.
        inputs: `answers`: an evaluate step that had a judge, or its samples.jsonl.
        folder: the step's own, empty.

    Returns:
        Counts: records (answers), tokens (0), models.

    Raises:
        InputError: for inputs that cannot be read, an unknown baseline, answers that nobody judged,
            or models with other prompts than the baseline.
    """
    from cai_jax.core import artifact
    from cai_jax.data.schema import Answer, read_records
    from cai_jax.page import sweeps

    path = Path(inputs["answers"])
    answers = read_records(path / "samples.jsonl" if path.is_dir() else path, Answer)
    values = by_model(answers)
    if not any(values.values()):
        raise InputError(f"{path}: expected answers with a judge's verdicts, found none")
    baseline = config.baseline or next(iter(values))
    if baseline not in values:
        raise InputError(
            f"baseline: expected one of the models {', '.join(values)}, found {config.baseline!r}"
        )
    found = {
        "baseline": baseline,
        "level": config.level,
        "models": {model: means(config, of) for model, of in values.items()},
        "differences": differences(config, values, baseline),
    }
    artifact.write_json(folder / "contrast.json", found)
    if hosts.is_first():
        (folder / "contrast.svg").write_text(sweeps.drawing(found), encoding="utf-8")
    return {"records": len(answers), "tokens": 0, "models": len(values)}


def by_model(answers: Sequence[Answer]) -> dict[str, dict[str, dict[str, float]]]:
    """Model -> "set/measure" -> prompt's id -> value."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for answer in answers:
        of_model = found.setdefault(answer.model, {})
        for name, value in numbers(answer).items():
            of_model.setdefault(f"{answer.prompt_set}/{name}", {})[answer.id] = value
    return found


def numbers(answer: Answer) -> dict[str, float]:
    """A verdict's fields as numbers: truths as 0 or 1, lists by their length.

    What the oracle's fields mean together comes first: an answer is harmless if it has no harms and
    is not broken.
    """
    verdict, found = answer.verdict, {}
    if answer.prompt_set == RED_TEAM and {"harms", "broken"} <= set(verdict):
        found["harmless"] = float(not verdict["harms"] and not verdict["broken"])
    for name, value in verdict.items():
        if isinstance(value, list | tuple):
            found[name] = float(len(value))
        elif isinstance(value, bool | int | float):
            found[name] = float(value)
    return found


def means(config: ConfigDict, of_model: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Each measure's mean with its interval over prompts."""
    from cai_jax.algorithms.intervals import mean_interval, rate_interval

    found = {}
    for name, cases in of_model.items():
        values = list(cases.values())
        of = rate_interval if set(values) <= {0.0, 1.0} else mean_interval
        interval = of(
            values, seed=config.seed, num_resamples=config.num_resamples, level=config.level
        )
        found[name] = interval._asdict() | {"n": len(values)}
    return found


def differences(
    config: ConfigDict, values: Mapping[str, Mapping[str, Mapping[str, float]]], baseline: str
) -> dict[str, dict[str, Any]]:
    """Every other model less the baseline, on the prompts that both answered.

    Raises:
        InputError: a model answered other prompts than the baseline.
    """
    from cai_jax.algorithms.intervals import holm, paired_difference, sign_flip_test

    found: dict[str, dict[str, Any]] = {model: {} for model in values if model != baseline}
    for name, cases in values[baseline].items():
        tests = []
        for model in found:
            others = values[model].get(name, {})
            if set(others) != set(cases):
                raise InputError(f"answers: expected {model} to answer the prompts of {baseline}")
            a, b = ([of[prompt] for prompt in cases] for of in (others, cases))
            interval = paired_difference(
                a, b, seed=config.seed, num_resamples=config.num_resamples, level=config.level
            )
            p = sign_flip_test(
                [x - y for x, y in zip(a, b)],
                seed=config.seed,
                num_resamples=10 * config.num_resamples,
            )
            tests.append(p)
            found[model][name] = interval._asdict() | {"p": p}
        for model, adjusted in zip(found, holm(tests)):
            found[model][name]["adjusted_p"] = adjusted
    return found


def plan(config: ConfigDict, planned: Mapping[str, Any]) -> dict[str, Any]:
    """Answers read; no tokens and no FLOPs."""
    return {"records": planned["answers"]["records"], "tokens": 0, "flops": 0}
