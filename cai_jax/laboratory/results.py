"""All that `python -m cai_jax.reproduce` says of its runs, as plain data for claims.json."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cai_jax.algorithms.intervals import Interval, student_interval
from cai_jax.laboratory import checks, claims, figures
from cai_jax.laboratory.measured import Missing, Run, of_model, values_of
from cai_jax.laboratory.panels import RUNS
from cai_jax.laboratory.paper import digitised

STATEMENT = (
    "The models behind these numbers are tiny and live in a small templated world with an oracle "
    "that knows the truth. They show how the method behaves there; they say nothing about real "
    "language models, and agreement with the paper's curves is of shape at best."
)
CARD_MEASURES = ("harmlessness_elo", "helpfulness_elo", "evasive_rate")


def results(runs: Sequence[Run], names: Sequence[str], about: str) -> dict[str, Any]:
    """Claims, figures and what stands beside them; numbers that are not finite are None.

    Args:
        runs: one a seed; may be none.
        names: of FIGURES.
        about: what was run: scale and seeds.
    """
    tested = claims.results(runs)
    found = {
        "statement": STATEMENT,
        "about": about,
        "source": digitised()["source"],
        "card": card(runs),
        "claims": [dataclasses.asdict(result) for result in tested],
        "required": dataclasses.asdict(claims.tested(claims.REQUIREMENT, runs, 0)),
        "checks": [dataclasses.asdict(check) for check in checks.checked(runs)],
        "figures": {name: figure(runs, name) for name in names},
        "variants": figures.variants(runs),
    }
    plain: dict[str, Any] = _plain(found)
    return plain


def figure(runs: Sequence[Run], name: str) -> dict[str, Any]:
    """A figure as cai_jax/page/figures.py draws it."""
    of = figures.FIGURES[name]
    shown: dict[str, Any] = {"title": of.title, "note": of.note, "missing": ""}
    try:
        ours = of.ours(runs) if runs else []
    except Missing as missing:
        return shown | {"ours": [], "paper": [], "missing": f"Not there: needs the step {missing}."}
    return shown | {"ours": ours, "paper": of.paper()}


def card(runs: Sequence[Run]) -> dict[str, Any]:
    """The models that the method is about, on one scale, at the end of their training.

    Returns:
        {"step": where their answers are, "models": {model in that step: {"title", and intervals
        over seeds by measure}}}; no models if the step was not run.
    """
    shown: dict[str, dict[str, Any]] = {}
    try:
        for model, title in _final(runs).items():
            measures = {measure: _of(runs, model, measure) for measure in CARD_MEASURES}
            shown[model] = {"title": title, **measures}
    except Missing:
        shown = {}
    return {"step": "along_rl", "models": shown}


def _final(runs: Sequence[Run]) -> dict[str, str]:
    """Model -> its title, baselines first."""
    if not runs:
        return {}
    titles = {"helpful_only": "helpful only"}
    for run, title in RUNS.items():
        if run == "rl_cai":
            titles["sl_cai"] = "SL-CAI"
        (*_, last) = figures.along(runs, run, "along_rl").values()
        titles[last] = title
    return titles


def _of(runs: Sequence[Run], model: str, measure: str) -> Interval:
    return student_interval(values_of(runs, lambda run: of_model(run, "along_rl", model, measure)))


def _plain(value: Any) -> Any:
    """For JSON: named tuples as objects, and None for what is not finite."""
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
