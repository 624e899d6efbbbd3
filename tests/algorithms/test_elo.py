import numpy as np
import pytest

from cai_jax.algorithms.elo import (
    ELO_PER_NAT,
    elo_intervals,
    fit_elo,
    merit_wins,
    pair_wins,
    score_wins,
    win_probability,
)


def simulate(strengths, num_games, num_simulations, seed):
    """Win matrices [simulations, M, M] of `num_games` games between each two players."""
    strengths = np.asarray(strengths, float)
    probability = win_probability(strengths[:, None] - strengths[None, :])
    upper = np.triu(np.ones_like(probability), 1).astype(bool)
    generator = np.random.default_rng(seed)
    won = generator.binomial(num_games, probability, (num_simulations, *probability.shape))
    return np.where(upper, won, 0) + np.swapaxes(np.where(upper, num_games - won, 0), -1, -2)


def test_one_nat_is_174_elo():
    assert abs(ELO_PER_NAT - 173.7178) < 1e-4
    assert win_probability(400.0) == pytest.approx(10 / 11)


def test_two_players_have_the_closed_form():
    wins = np.array([[0, 30], [10, 0]])
    plain = fit_elo(wins, anchor=1, prior=0.0)
    assert plain.ratings[1] == 0
    assert plain.ratings[0] == pytest.approx(400 * np.log10(3), abs=1e-6)
    # Fisher information of 40 games at p = 3/4 is 40 * 3/16 per nat squared.
    assert plain.standard_errors[0] == pytest.approx(ELO_PER_NAT / np.sqrt(40 * 3 / 16), abs=1e-6)
    assert plain.standard_errors[1] == 0
    with_prior = fit_elo(wins, anchor=1)
    assert with_prior.ratings[0] == pytest.approx(400 * np.log10(30.5 / 10.5), abs=1e-6)


def test_a_perfect_score_stays_finite():
    fit = fit_elo(np.array([[0, 600], [0, 0]]), anchor=1)
    assert fit.ratings[0] == pytest.approx(400 * np.log10(600.5 / 0.5), abs=1e-5)
    assert fit.standard_errors[0] > 100
    with pytest.raises(ValueError, match="prior above 0"):
        fit_elo(np.array([[0, 600], [0, 0]]), prior=0.0)


def test_without_games_all_ratings_are_equal():
    np.testing.assert_allclose(fit_elo(np.zeros((3, 3))).ratings, 0.0, atol=1e-9)


def test_anchor_moves_all_ratings_together():
    wins = simulate([0, 100, -50], 40, 1, seed=3)[0]
    free, anchored = fit_elo(wins), fit_elo(wins, anchor=2)
    assert free.ratings.sum() == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(anchored.ratings, free.ratings - free.ratings[2], atol=1e-6)


def test_recovers_known_strengths_with_honest_intervals():
    strengths = np.array([0.0, 60.0, 150.0, 300.0])
    fit = fit_elo(simulate(strengths, num_games=120, num_simulations=500, seed=1), anchor=0)
    bias = (fit.ratings - strengths).mean(0)
    assert np.abs(bias).max() < 3.0
    covered = np.abs(fit.ratings - strengths)[:, 1:] <= 1.96 * fit.standard_errors[:, 1:]
    assert 0.93 <= covered.mean() <= 0.97


def test_the_optimum_has_expected_wins_equal_to_counted_ones():
    wins = simulate([0, 900, -900, 200, 40], 25, 1, seed=9)[0].astype(float)
    ratings = fit_elo(wins, prior=1.0).ratings
    credited = wins + 0.2 * (1 - np.eye(5))
    expected = (credited + credited.T) * win_probability(ratings[:, None] - ratings[None, :])
    np.testing.assert_allclose(expected.sum(1), credited.sum(1), atol=1e-6)


def test_merits_and_scores_become_games():
    np.testing.assert_array_equal(
        merit_wins(np.array([[2, 1, 1]])), [[[0, 1, 1], [0, 0, 0], [0, 0, 0]]]
    )
    games = score_wins(np.array([[1.0, 0.0]]))
    assert games[0, 0, 1] == pytest.approx(0.7310586)
    assert games[0, 0, 1] + games[0, 1, 0] == pytest.approx(1)
    fit = fit_elo(100_000 * games[0], anchor=1)
    assert fit.ratings[0] == pytest.approx(173.7178, abs=0.01)


def test_intervals_over_prompts_are_wider_than_for_independent_games():
    # On each prompt the stronger answer wins against both others at once: games are correlated.
    generator = np.random.default_rng(0)
    merits = generator.normal([0.6, 0.0, 0.0], 1.0, (400, 3))
    won = merit_wins(merits)
    found = elo_intervals(won, seed=1, anchor=1, num_resamples=400)
    fit = fit_elo(won.sum(0), anchor=1)
    assert [interval.value for interval in found] == pytest.approx(fit.ratings.tolist())
    assert found[1] == (0.0, 0.0, 0.0)
    half = (found[0].high - found[0].low) / 2
    assert half == pytest.approx(1.96 * fit.standard_errors[0], rel=0.35)
    assert found[0].low < found[0].value < found[0].high
    assert found == elo_intervals(won, seed=1, anchor=1, num_resamples=400)


def test_games_are_gathered_by_prompt():
    won = pair_wins(["x", "y", "x", "x"], [0, 1, 2, 0], [1, 2, 0, 1], [1.0, 0.25, 0.0, 1.0], 3)
    assert won[0].tolist() == [[0, 2, 1], [0, 0, 0], [0, 0, 0]]
    assert won[1].tolist() == [[0, 0, 0], [0, 0, 0.25], [0, 0.75, 0]]


def coverage(num_simulations, num_prompts, num_resamples, seed):
    """Mean errors of ratings (Elo), and the share of 95 % intervals that hold the truth."""
    strengths = np.array([0.0, 60.0, 150.0, 300.0])
    generator = np.random.default_rng(seed)
    errors, held = [], []
    for number in range(num_simulations):
        p = win_probability(strengths[:, None] - strengths[None, :])
        upper = np.triu(generator.uniform(size=(num_prompts, 4, 4)) < p, 1)
        lost = np.triu(~upper, 1)
        found = elo_intervals(
            upper + np.swapaxes(lost, 1, 2),
            seed=number,
            anchor=0,
            num_resamples=num_resamples,
        )
        errors.append([interval.value for interval in found] - strengths)
        held += [i.low <= s <= i.high for i, s in zip(found[1:], strengths[1:])]
    return np.mean(errors, axis=0), np.mean(held)


def test_bootstrap_intervals_hold_the_truth_in_a_small_simulation():
    bias, held = coverage(60, num_prompts=150, num_resamples=200, seed=0)
    # 180 intervals, three a simulation: a standard error of two to three per cent.
    assert 0.88 <= held <= 0.99
    assert np.abs(bias).max() < 12.0


@pytest.mark.nightly
def test_bootstrap_intervals_hold_the_truth_in_95_per_cent_of_simulations():
    bias, held = coverage(500, num_prompts=300, num_resamples=1000, seed=1)
    assert np.abs(bias).max() < 3.0
    assert 0.93 <= held <= 0.97
