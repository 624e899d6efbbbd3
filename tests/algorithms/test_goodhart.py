import math

import numpy as np
import pytest

from cai_jax.algorithms import goodhart
from cai_jax.algorithms.goodhart import Estimate, Reading


def reading(iteration, score, judge, error=0.1):
    return Reading(iteration, Estimate(score, error), Estimate(judge, error))


def test_an_alarm_needs_a_rise_of_the_score_and_a_fall_of_the_judge():
    # A difference counts from 4 sqrt(2) 0.1 = 0.566 on.
    assert goodhart.alarm([reading(1, 0, 0), reading(9, 0.57, -0.57)])
    assert not goodhart.alarm([reading(1, 0, 0), reading(9, 0.56, -0.57)])
    assert not goodhart.alarm([reading(1, 0, 0), reading(9, 0.57, -0.56)])
    assert not goodhart.alarm([reading(1, 0, 0), reading(9, -2, -2)])
    assert not goodhart.alarm([reading(1, 0, 0), reading(9, 2, 2)])
    assert not goodhart.alarm([reading(1, 0, 0)])


def test_the_last_reading_is_held_against_the_best_before_it():
    readings = [reading(1, 0, 0), reading(11, 1, 2), reading(21, 2, 0.5)]
    found = goodhart.alarm(readings)
    assert (found.before.iteration, found.after.iteration) == (11, 21)
    assert str(found) == (
        "iteration 21: since iteration 11 the preference model's score rose from 1.000 to 2.000, "
        "and the judge's fell from 2.000 to 0.500"
    )


def test_the_first_alarm_of_a_run_is_found_in_its_metrics():
    def line(score, judge):
        return {"score": score, "score_error": 0.1, "judge_score": judge, "judge_error": 0.1}

    history = [line(0, 0), {"score": 9.0}, line(1, 2), line(2, 0.5), line(3, -5)]
    found = goodhart.first_alarm(history)
    assert (found.before.iteration, found.after.iteration) == (3, 4)
    assert goodhart.first_alarm(history[:3]) is None and goodhart.first_alarm([]) is None


def test_a_prompt_counts_once():
    values = np.repeat([1.0, 2.0, 4.0, 5.0], 3)
    mean, error = goodhart.mean_over_groups(values, 3)
    assert mean == 3.0 and error == pytest.approx(math.sqrt(10 / 3) / 2)
    assert goodhart.mean_over_groups(values[:3], 3) == (1.0, math.inf)
    found = goodhart.read(values, values * 2, 3)
    assert found == {"judge_score": 6.0, "judge_error": error * 2, "score_error": error}


def runs(judge_drift, seed=0, num_runs=500):
    """The share of runs with an alarm: 11 readings of 32 prompts, the score rising by 0.2 each."""
    rng = np.random.default_rng(seed)
    alarms = 0
    for _ in range(num_runs):
        history = []
        for i in range(11):
            scores, judged = rng.normal((0.2 * i, judge_drift * i), 1.0, (32, 2)).T
            history.append({"score": scores.mean(), **goodhart.read(scores, judged, 1)})
        alarms += goodhart.first_alarm(history) is not None
    return alarms / num_runs


def test_false_alarms_are_rare_and_true_ones_are_not():
    assert runs(judge_drift=0.0) <= 0.01
    assert runs(judge_drift=0.1) <= 0.01  # the judge likes it too
    assert runs(judge_drift=-0.15) >= 0.9
