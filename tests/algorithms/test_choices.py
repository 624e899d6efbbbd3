import math
from collections import namedtuple

import numpy as np
import pytest

from cai_jax.algorithms.choices import choice_measures, log_loss

Choice = namedtuple("Choice", "context correct chosen probabilities mass", defaults=(None,))


def random_choices(number, seed=0):
    generator = np.random.default_rng(seed)
    found = []
    for i in range(number):
        p = generator.dirichlet(np.ones(3 if i % 4 else 2))
        correct = int(generator.integers(len(p)))
        found.append(Choice(f"c{i // 3}", correct, int(p.argmax()), tuple(p), float(p[0])))
    return found


def slow_ece(cases, num_bins=10):
    total = 0.0
    for number in range(num_bins):
        low, high = number / num_bins, (number + 1) / num_bins
        inside = [(p, y) for p, y in cases if low <= p and (p < high or number == num_bins - 1)]
        if inside:
            total += abs(sum(p for p, _ in inside) - sum(y for _, y in inside))
    return total / len(cases)


def test_measures_equal_slow_loops():
    choices = random_choices(60)
    found = choice_measures(choices, "ABC", seed=0, num_resamples=300)
    right = [choice.chosen == choice.correct for choice in choices]
    assert found["accuracy"] == pytest.approx(sum(right) / 60)
    losses = [-math.log(choice.probabilities[choice.correct]) for choice in choices]
    assert found["log_loss"] == pytest.approx(sum(losses) / 60)
    assert found["mass"] == pytest.approx(sum(choice.mass for choice in choices) / 60)
    chosen = [(choice.probabilities[choice.chosen], y) for choice, y in zip(choices, right)]
    options = [(p, i == c.correct) for c in choices for i, p in enumerate(c.probabilities)]
    assert found["ece"] == pytest.approx(slow_ece(chosen))
    assert found["option_ece"] == pytest.approx(slow_ece(options))
    for name, cases in (("calibration", chosen), ("option_calibration", options)):
        assert sum(of_bin["n"] for of_bin in found[name]) == len(cases)
        total = sum(of_bin["n"] * of_bin["frequency"] for of_bin in found[name])
        assert total == pytest.approx(sum(y for _, y in cases))
        total = sum(of_bin["n"] * of_bin["probability"] for of_bin in found[name])
        assert total == pytest.approx(sum(p for p, _ in cases))
    assert found["contexts"] == 20 and found["n"]["accuracy"] == 60
    for name, answer in zip("ABC", range(3)):
        of_answer = [y for choice, y in zip(choices, right) if choice.correct == answer]
        assert found["by_answer"][name]["accuracy"] == pytest.approx(np.mean(of_answer))
        assert found["by_answer"][name]["chosen"] == sum(c.chosen == answer for c in choices)


def test_intervals_are_over_contexts():
    # Thirty questions about one thing tell no more than one of them.
    copies = [
        choice._replace(context=f"{i}")
        for i, choice in enumerate(random_choices(40))
        for _ in "abc"
    ]
    apart = [choice._replace(context=f"{i}") for i, choice in enumerate(copies)]
    widths = []
    for choices in (copies, apart):
        low, high = choice_measures(choices, "ABC", seed=0)["intervals"]["accuracy"]
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(3), rel=0.15)


def test_an_answer_that_is_never_right_has_no_accuracy():
    found = choice_measures([Choice("c", 0, 1, (0.25, 0.75))], "AB", seed=0)
    assert found["accuracy"] == 0 and found["log_loss"] == pytest.approx(math.log(4))
    assert found["ece"] == pytest.approx(0.75) and "mass" not in found
    assert found["by_answer"]["B"] | {} == {
        "accuracy": None,
        "intervals": {},
        "n": {"accuracy": 0},
        "chosen": 1,
    }
    assert log_loss(0.0) == pytest.approx(708.396, abs=1e-3)
