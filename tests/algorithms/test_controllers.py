import numpy as np
import pytest

from cai_jax.algorithms.controllers import Moments, adapted_kl_coef


def adapted(kl_coef, kl):
    return adapted_kl_coef(kl_coef, kl, target=6.0, horizon=100, responses=50)


def test_the_coefficient_by_hand():
    assert adapted(0.2, 6.0) == 0.2
    assert adapted(0.2, 6.6) == pytest.approx(0.2 * (1 + 0.1 * 0.5))
    # The error is clipped at a fifth, both ways.
    assert adapted(0.2, 60.0) == pytest.approx(0.2 * 1.1)
    assert adapted(0.2, -3.0) == pytest.approx(0.2 * 0.9)


def test_it_settles_where_the_policy_keeps_the_target():
    """A policy whose KL is 1.2 / beta: the fixed point is beta = 0.2."""
    kl_coef = 1.0
    for _ in range(300):
        kl_coef = adapted(kl_coef, 1.2 / kl_coef)
    assert kl_coef == pytest.approx(0.2, rel=1e-3)


def test_moments_of_batches_are_those_of_all_numbers():
    rng = np.random.default_rng(0)
    batches = [rng.normal(1e3, 2.0, size=n).astype(np.float32) for n in (1, 7, 3, 20)]
    moments = Moments()
    for batch in batches:
        moments = moments.updated(batch)
    every = np.concatenate(batches).astype(np.float64)
    assert moments.seen == 31
    assert moments.mean == pytest.approx(every.mean(), rel=1e-12)
    assert moments.deviation == pytest.approx(every.std(ddof=1), rel=1e-9)


def test_equal_numbers_have_deviation_1_so_that_nothing_is_divided_by_0():
    assert Moments().updated(np.array([3.0])).deviation == 1
    assert Moments().updated(np.array([3.0, 3.0])).deviation == 1
