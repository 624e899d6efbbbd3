"""Quantities without a verdict, by which explanations of claims that fail can be checked."""

from collections.abc import Callable, Sequence

from cai_jax.algorithms.intervals import student_interval
from cai_jax.laboratory.claims import first_share
from cai_jax.laboratory.measured import (
    Measure,
    Missing,
    Part,
    Run,
    accuracy,
    number,
    of_model,
    ratio,
    score,
    values_of,
)
from cai_jax.laboratory.steps import SIZES


def _general_gain(run: Run) -> float:
    """What revision 4 gains under the four general principles, in gains under all sixteen."""
    step = "revision_scores"
    general, every = (
        score(run, step, chains, 4) - score(run, step, chains, 0) for chains in ("general", "m")
    )
    return ratio(general, every)


def _broken(step: str) -> Measure:
    return lambda run: number(run, step, "chains", "revisions", 4, "broken_rate")


def _harmless(step: str) -> Measure:
    return lambda run: number(run, step, "chains", "revisions", 4, "harmless_rate")


def _evasive(model: str) -> Measure:
    return lambda run: of_model(run, "variants", model, "evasive_rate")


def _accuracy(size: str, labels: str) -> Measure:
    return lambda run: accuracy(run, size, labels)


def _calibration(size: str, labels: str, measure: str) -> Measure:
    return lambda run: number(run, f"judged_labels_{size}", "calibration", labels, measure)


CHECKS: dict[str, Callable[[Run], float]] = {
    **{
        f"1, 2: accuracy, {labels.replace('_', ' ')}, {size}": _accuracy(size, labels)
        for labels in ("direct", "with_reasoning", "ensemble")
        for size in SIZES
    },
    **{
        f"3: calibration error, direct, {size}": _calibration(size, "direct", "calibration_error")
        for size in SIZES
    },
    **{
        f"3: confidence less accuracy, {labels.replace('_', ' ')}, {size}": _calibration(
            size, labels, "overconfidence"
        )
        for labels in ("direct", "with_reasoning")
        for size in SIZES
    },
    "5: share of the gain of revision 1, general principles alone": first_share("general"),
    "7: gain under four general principles, in gains under sixteen": _general_gain,
    "8: broken after four direct revisions, m": _broken("judged_direct_m"),
    "8: broken after four critiqued revisions, m": _broken("judged_chains_m"),
    **{
        f"8: harmless after four {name} revisions, {size}": _harmless(f"judged_{step}_{size}")
        for name, step in (("direct", "direct"), ("critiqued", "chains"))
        for size in SIZES
    },
    "12: evasive, HH RLHF from SL-CAI": _evasive("hh_from_sl_cai"),
    "12: evasive, RL-CAI from the pretrained model": _evasive("rl_cai_from_pretrained"),
}


def checked(runs: Sequence[Run]) -> list[Part]:
    """The checks that the runs have numbers for."""
    found = []
    for name, of in CHECKS.items():
        try:
            interval = student_interval(values_of(runs, of)) if runs else None
        except Missing:
            continue
        if interval:
            found.append(Part(name, interval, "no claim", True))
    return found
