import numpy as np
import pytest

from cai_jax.algorithms.intervals import (
    estimates,
    mean_interval,
    paired_difference,
    rate_interval,
    resample_counts,
)


def test_the_draw_depends_on_the_seed_alone():
    first = resample_counts(50, seed=1, num_resamples=20)
    np.testing.assert_array_equal(first, resample_counts(50, seed=1, num_resamples=20))
    assert (first != resample_counts(50, seed=2, num_resamples=20)).any()
    assert (first.sum(1) == 50).all()


def test_records_of_a_cluster_are_drawn_together():
    counts = resample_counts(5, seed=0, num_resamples=200, clusters=["x", "y", "x", "z", "y"])
    np.testing.assert_array_equal(counts[:, 0], counts[:, 2])
    np.testing.assert_array_equal(counts[:, 1], counts[:, 4])
    assert (counts[:, [0, 1, 3]].sum(1) == 3).all()


def test_the_interval_is_that_of_the_normal_limit():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    interval = mean_interval(values, seed=1, num_resamples=4000)
    half = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.02)


def test_clusters_widen_the_interval_of_repeated_records():
    values = np.random.default_rng(0).integers(0, 2, 100).astype(float)
    once = mean_interval(values, seed=0)
    repeated = np.repeat(values, 9)
    naive = mean_interval(repeated, seed=0)
    clustered = mean_interval(repeated, seed=0, clusters=list(np.repeat(np.arange(100), 9)))
    assert clustered.high - clustered.low == pytest.approx(once.high - once.low)
    assert naive.high - naive.low == pytest.approx((once.high - once.low) / 3, rel=0.15)


def test_covers_the_true_rate():
    outcomes = np.random.default_rng(5).binomial(1, 0.8, (200, 150))
    intervals = [rate_interval(row, seed=i, num_resamples=300) for i, row in enumerate(outcomes)]
    covered = np.mean([interval.low <= 0.8 <= interval.high for interval in intervals])
    assert 0.90 <= covered <= 0.99


def test_a_perfect_rate_keeps_its_doubt():
    perfect = rate_interval(np.ones(600), seed=0)
    assert perfect == (1.0, pytest.approx(0.025 ** (1 / 600)), 1.0)
    assert perfect.low == pytest.approx(0.99387, abs=1e-5)
    none = rate_interval(np.zeros(6), seed=0, clusters=[0, 0, 0, 1, 1, 1])
    assert none == (0.0, 0.0, pytest.approx(1 - 0.025**0.5))


def test_paired_difference_uses_the_pairing():
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 10, 300)
    a, b = shared + 0.5 + generator.normal(0, 0.1, 300), shared
    interval = paired_difference(a, b, seed=0)
    assert 0.45 < interval.low < interval.value < interval.high < 0.55
    with pytest.raises(ValueError, match="equal lengths, found 2 and 1"):
        paired_difference([1, 2], [1], seed=0)
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([], seed=0)


def test_estimates_of_measures():
    cases = [(1.0, "a"), (0.0, "a"), (1.0, "b"), (0.0, "b")]
    found = estimates({"rate": cases, "mean": [(2.5, "a")] * 3, "none": []}, seed=0)
    assert found["rate"] == 0.5 and found["mean"] == 2.5 and found["none"] is None
    assert found["n"] == {"rate": 4, "mean": 3, "none": 0}
    # Each cluster has mean 1/2, so resampling clusters changes nothing.
    assert found["intervals"] == {"rate": [0.5, 0.5], "mean": [2.5, 2.5]}
