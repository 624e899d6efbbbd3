import numpy as np
import pytest

from cai_jax.algorithms.calibration import (
    binary_cross_entropy,
    binary_entropy,
    curve,
    expected_calibration_error,
    reliability,
)


def test_bins_hold_their_lower_edge_and_the_last_holds_one():
    bins = reliability(np.array([0.0, 0.05, 0.1, 0.95, 1.0]), np.array([0, 1, 1, 1, 1]), 10)
    assert bins.num_cases.tolist() == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert bins.mean_probability[0] == pytest.approx(0.025)
    assert bins.frequency[0] == 0.5
    assert bins.frequency[-1] == 1.0
    assert np.isnan(bins.frequency[4])


def test_calibration_error_in_a_worked_case():
    # Two bins: three forecasts of .8 of which two come true, one of .3 that does not.
    error = expected_calibration_error(np.array([0.8, 0.8, 0.8, 0.3]), np.array([1, 1, 0, 0]))
    assert error == pytest.approx((3 * abs(0.8 - 2 / 3) + 1 * 0.3) / 4)


def test_calibrated_forecasts_have_a_small_error():
    generator = np.random.default_rng(0)
    p = generator.uniform(size=20_000)
    y = generator.binomial(1, p)
    assert expected_calibration_error(p, y) < 0.015
    assert expected_calibration_error(np.where(p > 0.5, 0.99, 0.01), y) > 0.2


def test_entropies():
    np.testing.assert_allclose(binary_entropy(np.array([0.0, 0.5, 1.0])), [0, np.log(2), 0])
    assert binary_entropy(np.array(0.786)) == pytest.approx(0.51921, abs=1e-5)
    assert binary_cross_entropy(np.array(1.0), np.array(0.25)) == pytest.approx(np.log(4))
    assert np.isinf(binary_cross_entropy(np.array(1.0), np.array(0.0)))
    # A soft label cannot be predicted better than by itself.
    q = np.linspace(0.01, 0.99, 99)
    assert binary_cross_entropy(np.full(99, 0.3), q).argmin() == 29


@pytest.mark.parametrize("num_bins", [1, 3, 7, 10, 49, 100])
def test_bins_and_error_equal_a_slow_loop_on_every_edge(num_bins):
    generator = np.random.default_rng(num_bins)
    edges = [i / num_bins for i in range(num_bins + 1)]
    p = np.array([*edges, *np.nextafter(edges[1:], 0), *generator.uniform(size=50)])
    y = generator.uniform(size=len(p))
    count, forecast, seen = np.zeros(num_bins), np.zeros(num_bins), np.zeros(num_bins)
    for value, outcome in zip(p, y):
        inside = [i for i in range(num_bins) if i / num_bins <= value][-1]
        count[inside] += 1
        forecast[inside] += value
        seen[inside] += outcome
    bins = reliability(p, y, num_bins)
    np.testing.assert_array_equal(bins.num_cases, count)
    np.testing.assert_allclose(bins.mean_probability, forecast / count, rtol=1e-12)
    np.testing.assert_allclose(bins.frequency, seen / count, rtol=1e-12)
    error = expected_calibration_error(p, y, num_bins)
    assert error == pytest.approx(np.abs(forecast - seen).sum() / len(p))


def test_the_curve_has_the_bins_that_are_not_empty():
    assert curve(np.array([0.1, 0.15, 1.0]), np.array([0, 1, 1]), 10) == [
        {"probability": pytest.approx(0.125), "frequency": 0.5, "n": 2},
        {"probability": 1.0, "frequency": 1.0, "n": 1},
    ]
