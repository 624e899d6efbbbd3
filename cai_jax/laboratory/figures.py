"""The paper's figures as panels of curves, from runs; beside them the paper's own."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from cai_jax.algorithms.intervals import Interval, student_interval
from cai_jax.laboratory import paper
from cai_jax.laboratory.measured import (
    Measure,
    Missing,
    Run,
    accuracy,
    number,
    of_model,
    score,
    values_of,
)
from cai_jax.laboratory.panels import ACCURACY, PEOPLE, RUNS, Curve, Panel, exact
from cai_jax.laboratory.steps import NUM_PRINCIPLES, SIZES, named

PARAMETERS = {"xs": 55_456, "s": 104_688, "m": 208_320}
STARTS = {"helpful_rlhf": "pretrained", "hh_rlhf": "pretrained"}  # the others: sl_cai


class Figure(NamedTuple):
    """A figure of the paper: the steps it reads, our panels, and the paper's if digitised.

    The n-th panel of either is of the same thing; `note` is what to know to read them.
    """

    title: str
    steps: tuple[str, ...]
    ours: Callable[[Sequence[Run]], list[Panel]]
    paper: Callable[[], list[Panel]]
    note: str = ""


def along(runs: Sequence[Run], name: str, step: str) -> dict[int, str]:
    """Iteration -> the model there, from the start of RL on."""
    models = runs[0].get(step, {}).get("models", {})
    kept = {int(m.rpartition("@")[2]): m for m in models if m.startswith(f"{name}@")}
    if not kept:
        raise Missing(step)
    return {0: STARTS.get(name, "sl_cai")} | dict(sorted(kept.items()))


def curve(name: str, runs: Sequence[Run], measures: Mapping[float, Measure]) -> Curve:
    """A curve through (x, what the measure there gives)."""
    y = [student_interval(values_of(runs, of)) for of in measures.values()]
    return Curve(name, list(measures), y)


def _model(step: str, model: str, measure: str) -> Measure:
    return lambda run: of_model(run, step, model, measure)


def frontier(runs: Sequence[Run]) -> list[Panel]:
    """Figure 2: harmlessness against helpfulness Elo along RL."""
    curves = []
    for name, title in RUNS.items():
        models = along(runs, name, "along_rl").values()
        x = [values_of(runs, _model("along_rl", m, "helpfulness_elo")).mean() for m in models]
        y = [
            student_interval(values_of(runs, _model("along_rl", m, "harmlessness_elo")))
            for m in models
        ]
        curves.append(Curve(title, [float(value) for value in x], y))
    return [Panel("Harmlessness Elo along RL", "helpfulness Elo", curves)]


def along_training(runs: Sequence[Run]) -> list[Panel]:
    """Figure 8: both Elo scores along RL."""
    return [
        Panel(f"{what.capitalize()} Elo along RL", "iterations of RL", _curves(runs, what))
        for what in ("helpfulness", "harmlessness")
    ]


def _curves(runs: Sequence[Run], what: str) -> list[Curve]:
    return [
        curve(
            title,
            runs,
            {
                float(n): _model("along_rl", m, f"{what}_elo")
                for n, m in along(runs, name, "along_rl").items()
            },
        )
        for name, title in RUNS.items()
    ]


def by_size(runs: Sequence[Run]) -> list[Panel]:
    """Figure 3: Elo at the end of RL by size."""
    models = runs[0].get("by_size", {}).get("models", {})
    if not models:
        raise Missing("by_size")
    sizes = [size for size in SIZES if size == "m" or f"rl_cai_{size}" in models]

    def curves(what: str) -> list[Curve]:
        # The paper has no SL-CAI here; what both have comes first, in the same colours.
        models = {**RUNS, "sl_cai": "SL-CAI"}
        return [
            curve(
                title,
                runs,
                {thousands(n): _model("by_size", named(name, n), what) for n in sizes},
            )
            for name, title in models.items()
        ]

    return [
        Panel(
            f"{what.capitalize()} Elo by size",
            "thousand parameters",
            curves(f"{what}_elo"),
            log_x=True,
        )
        for what in ("helpfulness", "harmlessness")
    ]


def identification(runs: Sequence[Run]) -> list[Panel]:
    """Figure 4: accuracy on held-out pairs by size and method."""
    asked = {
        "direct": "multiple choice",
        "with_reasoning": "chain of thought",
        "ensemble": "ensemble of five",
    }

    def by(labels: str) -> dict[float, Measure]:
        return by_sizes(lambda run, size: accuracy(run, size, labels))

    # On its own held-out comparisons, of fewer against more harms.
    measure = "harmlessness_held_out_accuracy"
    people = by_sizes(lambda run, size: number(run, named("hh_preference", size), measure))
    return [
        Panel(
            "Accuracy on held-out pairs",
            "thousand parameters",
            [
                *(curve(title, runs, by(labels)) for labels, title in asked.items()),
                curve("HH preference model", runs, people),
            ],
            y_range=ACCURACY,
            log_x=True,
        )
    ]


def revisions(runs: Sequence[Run]) -> list[Panel]:
    """Figure 5: scores by revision."""
    return [
        Panel(
            f"PM score of {what}",
            "revision (0: the response)",
            [
                curve(f"size {size}", runs, by_revision("revision_scores", size, judge))
                for size in SIZES
            ],
        )
        for judge, what in PEOPLE.items()
    ]


def by_revision(step: str, chains: str, judge: str = "harmless") -> dict[float, Measure]:
    """Revision -> its mean score."""

    def of(run: Run, revision: int) -> float:
        return score(run, step, chains, revision, judge)

    return {float(n): functools.partial(of, revision=n) for n in range(5)}


def principle_counts(runs: Sequence[Run]) -> list[Panel]:
    """Figure 6: score and diversity by number of principles."""
    step = "principle_scores"

    def distinct(n: int, count: int) -> Measure:
        return lambda run: number(run, step, "distinct_2", str(count), n)

    scores = [
        curve(f"{count} principle{'s'[: count - 1]}", runs, by_revision(step, str(count)))
        for count in NUM_PRINCIPLES
    ]
    diversity = curve(
        "distinct-2", runs, {float(count): distinct(4, count) for count in NUM_PRINCIPLES}
    )
    return [
        Panel("PM score of harmlessness", "revision (0: the response)", scores),
        Panel("Distinct-2 of revision 4", "number of principles", [diversity], log_x=True),
    ]


def critiqued_or_direct(runs: Sequence[Run]) -> list[Panel]:
    """Figure 7: revisions with and without critiques."""
    return [
        Panel(
            f"PM score of harmlessness, size {size}",
            "revision (0: the response)",
            [
                curve("critiqued", runs, by_revision("direct_scores", size)),
                curve("direct", runs, by_revision("direct_scores", f"direct_{size}")),
            ],
        )
        for size in SIZES
    ]


def calibration(runs: Sequence[Run]) -> list[Panel]:
    """Figure 9: how often labels of a probability are right, of all seeds together."""

    def reliability(size: str, labels: str) -> Curve:
        bins: dict[int, list[tuple[float, float, float]]] = {}
        for run in runs:
            found = run.get(f"judged_labels_{size}", {}).get("calibration", {}).get(labels)
            if found is None:
                raise Missing(f"judged_labels_{size}")
            for one in found.get("curve", ()):
                case = (one["probability"], one["frequency"], one["n"])
                bins.setdefault(min(int(one["probability"] * 10), 9), []).append(case)
        x, y = [], []
        for cases in (bins[i] for i in sorted(bins)):
            total = sum(n for _, _, n in cases)
            x.append(sum(p * n for p, _, n in cases) / total)
            share = sum(f * n for _, f, n in cases) / total
            y.append(binomial(share, total))
        return Curve(labels.replace("_", " "), x, y)

    return [
        Panel(
            f"Share that is right, size {size}",
            "probability of the label",
            [reliability(size, labels) for labels in ("direct", "with_reasoning")]
            + [exact("calibrated", (0.0, 1.0), (0.0, 1.0))],
            y_range=(0.0, 1.0),
        )
        for size in SIZES
    ]


def binomial(share: float, n: float, z: float = 1.96) -> Interval:
    """Wilson's interval of a share of n cases."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(share, middle - reach, middle + reach)


def absolute_harm(runs: Sequence[Run]) -> list[Panel]:
    """Figure 10: harms per answer along RL."""

    def curves(step: str) -> list[Curve]:
        return [
            curve(
                title,
                runs,
                {
                    float(n): _model(step, m, "mean_harms")
                    for n, m in along(runs, name, step).items()
                },
            )
            for name, title in RUNS.items()
        ]

    return [
        Panel(f"Harms per answer, T = {t}", "iterations of RL", curves(step))
        for t, step in ((1, "along_rl"), (0, "along_rl_greedy"))
    ]


def naming(runs: Sequence[Run]) -> list[Panel]:
    """Figure 12: harms named by critiques, by size."""
    kinds = {
        "names_every_harm": "names exactly the harms there",
        "says_fine": "sees nothing wrong where nothing is",
    }

    def by(measure: str) -> dict[float, Measure]:
        return by_sizes(
            lambda run, size: number(run, f"judged_chains_{size}", "critiques", measure)
        )

    curves = [curve(title, runs, by(measure)) for measure, title in kinds.items()]
    return [
        Panel("Share of critiques", "thousand parameters", curves, y_range=(0.0, 1.0), log_x=True)
    ]


VARIANT_MEASURES = (
    *("harmless_rate", "explained_rate", "evasive_rate", "broken_rate", "boilerplate_rate"),
    *("helpful_rate", "harmlessness_elo", "helpfulness_elo"),
)


def variants(runs: Sequence[Run]) -> dict[str, dict[str, Interval]]:
    """Model -> measure -> its mean over seeds: the findings without a number."""
    models = runs[0].get("variants", {}).get("models", {}) if runs else {}
    return {
        model: {
            measure: student_interval(values_of(runs, _model("variants", model, measure)))
            for measure in VARIANT_MEASURES
        }
        for model in models
    }


def by_sizes(of: Callable[[Run, str], float]) -> dict[float, Measure]:
    """Thousand parameters -> a measure of each size."""

    def of_size(run: Run, size: str) -> float:
        return of(run, size)

    return {thousands(size): functools.partial(of_size, size=size) for size in SIZES}


def thousands(size: str) -> float:
    """Thousand parameters of a size."""
    return round(PARAMETERS[size] / 1000, 1)


def _each(name: str) -> tuple[str, ...]:
    return tuple(f"{name}_{size}" for size in SIZES)


ELO = "Elo 0 is SL-CAI. Ours and the paper's are not to one scale."
ENDS = "A line runs along RL; its largest dot is the end."
PEOPLES = "Scores of preference models that learned from people; ours learned from the world's."

FIGURES = {
    "2": Figure(
        "Harmlessness against helpfulness",
        ("along_rl",),
        frontier,
        paper.frontier,
        f"{ENDS} {ELO} Intervals are of harmlessness; those of helpfulness are in figure 8.",
    ),
    "3": Figure("Elo by size", ("by_size",), by_size, paper.by_size, ELO),
    "4": Figure(
        "AI identification of harm",
        (*_each("judged_labels"), *(named("hh_preference", size) for size in SIZES)),
        identification,
        paper.identification,
        "Chance is 0.5. Ours are pairs that the principle decides, with equal numbers of harms.",
    ),
    "5": Figure("Scores by revision", ("revision_scores",), revisions, paper.revisions, PEOPLES),
    "6": Figure("Number of principles", ("principle_scores",), principle_counts, list, PEOPLES),
    "7": Figure(
        "Critiqued or direct revisions",
        ("direct_scores", *_each("judged_direct"), *_each("judged_chains")),
        critiqued_or_direct,
        list,
        PEOPLES,
    ),
    "8": Figure("Elo along RL", ("along_rl",), along_training, paper.along_training, ELO),
    "9": Figure(
        "Calibration of labels",
        _each("judged_labels"),
        calibration,
        list,
        "Labels of all seeds together, in tenths; Wilson's intervals.",
    ),
    "10": Figure(
        "Absolute harmfulness along RL",
        ("along_rl", "along_rl_greedy"),
        absolute_harm,
        paper.absolute_harm,
        "Ours counts the harms in an answer; the paper has a model's score from 0 to 4.",
    ),
    "12": Figure("Identification of harms", _each("judged_chains"), naming, list),
    "variants": Figure("Findings without a figure", ("variants",), lambda runs: [], list),
}
