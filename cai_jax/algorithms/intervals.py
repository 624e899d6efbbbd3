"""Intervals: bootstrap over records or clusters, exact in their seed; Student's over runs."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate and the ends of its interval."""

    value: float
    low: float
    high: float


def resample_counts(
    num_records: int,
    *,
    seed: int,
    num_resamples: int,
    clusters: Sequence[Hashable] | None = None,
) -> np.ndarray:
    """How often each record stands in each bootstrap resample, [R, n].

    Args:
        num_records: n.
        seed: the draw depends on it, on n and on the clusters alone.
        num_resamples: R.
        clusters: [n] labels; records of one cluster (the samples of one prompt, the rounds of one
            chain) are drawn together, because they are not independent.
    """
    labels = range(num_records) if clusters is None else clusters
    index = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    drawn = np.random.default_rng(seed).multinomial(
        len(index), np.full(len(index), 1.0 / len(index)), size=num_resamples
    )
    return drawn[:, [index[label] for label in labels]]


def percentile_interval(samples: np.ndarray, level: float) -> np.ndarray:
    """Ends of the central interval that holds `level` of the samples: [R, ...] -> [2, ...]."""
    return np.quantile(samples, [0.5 - level / 2, 0.5 + level / 2], axis=0)


def mean_interval(
    values: Sequence[float] | np.ndarray,
    *,
    seed: int,
    num_resamples: int = 1000,
    level: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """The mean of `values` [n] with its percentile bootstrap interval.

    Raises:
        ValueError: if there are no values.
    """
    values = np.asarray(values, np.float64)
    if values.size == 0:
        raise ValueError("mean_interval: expected at least one value, found none")
    counts = resample_counts(values.size, seed=seed, num_resamples=num_resamples, clusters=clusters)
    low, high = percentile_interval(counts @ values / counts.sum(1), level)
    return Interval(float(values.mean()), float(low), float(high))


def rate_interval(
    values: Sequence[float] | np.ndarray,
    *,
    seed: int,
    num_resamples: int = 1000,
    level: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """The mean of `values` [n], each 0 or 1, with its interval.

    Resampling outcomes that are all equal gives an interval of no width, as if nothing were left
    to doubt; there the exact binomial limit stands instead (Clopper and Pearson 1934), over
    clusters where they are given: of n successes in n, the lower end is ((1 - level) / 2) ** (1/n).
    """
    interval = mean_interval(
        values, seed=seed, num_resamples=num_resamples, level=level, clusters=clusters
    )
    num_independent = len(values) if clusters is None else len(set(clusters))
    limit = (0.5 - level / 2) ** (1.0 / num_independent)
    if interval.value == 1.0:
        return Interval(1.0, limit, 1.0)
    if interval.value == 0.0:
        return Interval(0.0, 0.0, 1.0 - limit)
    return interval


def student_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> Interval:
    """The mean of a few independent `values` [n], one a run, with Student's t interval.

    Of one value the ends are infinite: nothing is known of its spread.

    Raises:
        ValueError: if there are no values.
    """
    from scipy.special import stdtrit

    values = np.asarray(values, np.float64)
    if values.size == 0:
        raise ValueError("student_interval: expected at least one value, found none")
    mean = float(values.mean())
    if values.size == 1:
        return Interval(mean, -np.inf, np.inf)
    error = float(values.std(ddof=1) / np.sqrt(values.size))
    reach = float(stdtrit(values.size - 1, 0.5 + level / 2)) * error
    return Interval(mean, mean - reach, mean + reach)


def paired_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    *,
    seed: int,
    num_resamples: int = 1000,
    level: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """Mean of a - b, both [n] on the same records, with the interval of a paired bootstrap.

    Raises:
        ValueError: if the two have different lengths, or none.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired_difference: expected equal lengths, found {a.size} and {b.size}")
    return mean_interval(
        a - b, seed=seed, num_resamples=num_resamples, level=level, clusters=clusters
    )


def sign_flip_test(
    differences: Sequence[float] | np.ndarray, *, seed: int, num_resamples: int = 10_000
) -> float:
    """Two-sided p of a mean of paired differences [n], by flipping signs at random (Fisher 1935).

    If the two of a pair are as good as each other, either sign was as likely; p is the share of
    flips, the one observed among them, with a mean as far from 0.
    """
    differences = np.asarray(differences, np.float64)
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, (num_resamples, differences.size), dtype=np.int8) * 2 - 1
    flipped = np.abs(signs @ differences)
    # Sums of the same numbers in another order differ by rounding.
    as_far = flipped >= abs(differences.sum()) - 1e-9
    return float((1 + as_far.sum()) / (1 + num_resamples))


def holm(p_values: Sequence[float]) -> list[float]:
    """p of several tests, adjusted so that any false alarm is as rare as said (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.asarray(p_values, np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(adjusted), 1.0)
    found = np.empty(len(order))
    found[order] = adjusted
    return found.tolist()


def estimates(
    measures: Mapping[str, Sequence[tuple[float, Hashable]]],
    *,
    seed: int,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> dict[str, Any]:
    """Means of measures with their intervals and numbers of cases, ready for JSON.

    Args:
        measures: name -> (value, cluster) of each case.
        seed, num_resamples, level: of the bootstrap, over clusters.

    Returns:
        {name: mean or None without cases, "intervals": {name: [low, high]}, "n": {name: cases}}.
    """
    found: dict[str, Any] = {name: None for name in measures}
    found |= {"intervals": {}, "n": {name: len(cases) for name, cases in measures.items()}}
    for name, cases in measures.items():
        if not cases:
            continue
        values, clusters = zip(*cases)
        of = rate_interval if set(values) <= {0.0, 1.0} else mean_interval
        interval = of(
            values, seed=seed, num_resamples=num_resamples, level=level, clusters=clusters
        )
        found[name] = interval.value
        found["intervals"][name] = [interval.low, interval.high]
    return found
