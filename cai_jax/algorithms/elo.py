"""Elo ratings by maximum likelihood from pairwise judgements (paper section 4.4 and Fig 2).

Bradley-Terry: player i beats player j with probability sigmoid(r_i - r_j), and an Elo rating is
E = 400 / ln(10) * r, so that 174 Elo are one nat. Games may be fractions (a probability that i is
better counts as that much of a win); ties are left out by whoever counts.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from cai_jax.algorithms.intervals import Interval, percentile_interval, resample_counts

ELO_PER_NAT = 400.0 / np.log(10.0)

_MAX_NEWTON_STEPS = 500
_NO_MAXIMUM = "Elo: the likelihood has no finite maximum; use a prior above 0"


class EloFit(NamedTuple):
    """Ratings [..., M] in Elo and their covariance [..., M, M] in Elo squared."""

    ratings: np.ndarray
    covariance: np.ndarray

    @property
    def standard_errors(self) -> np.ndarray:
        """Standard error of each rating against the anchor, [..., M]; the anchor's is 0."""
        return np.sqrt(np.maximum(np.diagonal(self.covariance, axis1=-2, axis2=-1), 0.0))


def fit_elo(wins: np.ndarray, *, anchor: int | None = None, prior: float = 1.0) -> EloFit:
    """The most likely ratings of M players, given how often each beat each.

    A perfect score has no finite maximum-likelihood rating, so each pair of players is credited
    with prior / M more wins either way. At prior 1 this is Jeffreys' prior for players who meet
    equally often and are about as strong (Firth 1993): it takes out the first-order bias of the
    estimate. For two players the fit is E_0 - E_1 = 400 log10((w_01 + 1/2) / (w_10 + 1/2)).

    Args:
        wins: [..., M, M]; wins[..., i, j] counts the games in which i beat j. Leading axes are
            independent fits (bootstrap resamples).
        anchor: the player whose rating is 0; None puts the mean rating at 0.
        prior: strength of the prior; 0 is plain maximum likelihood, which needs every player to
            have won and lost against the rest.

    Returns:
        Ratings, and the covariance from the Fisher information at the fit.

    Raises:
        ValueError: if the fit does not converge (prior 0 and a player without wins or losses).
    """
    num_players = wins.shape[-1]
    between = 1.0 - np.eye(num_players)
    wins = np.asarray(wins, np.float64) * between + prior / num_players * between
    games = wins + np.swapaxes(wins, -1, -2)
    # The likelihood does not move when all ratings do; this pins the mean at 0.
    mean = np.full((num_players, num_players), 1.0 / num_players)
    strengths = np.zeros(wins.shape[:-1])
    for _ in range(_MAX_NEWTON_STEPS):
        expected, information = _expectation(strengths, games)
        gradient = wins.sum(-1) - expected
        try:
            step = np.linalg.solve(information + mean, gradient[..., None])[..., 0]
        except np.linalg.LinAlgError:
            raise ValueError(_NO_MAXIMUM) from None
        # A step of log(1 + m) / m never lowers the likelihood of a logistic model (Bach 2010).
        reach = np.ptp(step, axis=-1)[..., None]
        strengths = strengths + step * np.where(reach > 0, np.log1p(reach) / (reach + 1e-300), 1.0)
        if not reach.size or reach.max() < 1e-9:
            break
    else:
        raise ValueError(_NO_MAXIMUM)
    _, information = _expectation(strengths, games)
    to_anchor = np.eye(num_players) - (mean if anchor is None else np.eye(num_players)[anchor])
    covariance = to_anchor @ (np.linalg.inv(information + mean) - mean) @ to_anchor.T
    return EloFit(strengths @ to_anchor.T * ELO_PER_NAT, covariance * ELO_PER_NAT**2)


def elo_intervals(
    won: np.ndarray,
    *,
    seed: int,
    anchor: int | None = None,
    prior: float = 1.0,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> list[Interval]:
    """Ratings with intervals from a bootstrap over prompts.

    All games on one prompt are drawn together: players who answered the same prompt did not play
    independent games, which the Fisher information would take them for.

    Args:
        won: [n, M, M], the games of each prompt: how much player i beat player j on it.
        seed, num_resamples, level: of the bootstrap.
        anchor, prior: as in fit_elo.
    """
    fit = fit_elo(won.sum(0), anchor=anchor, prior=prior)
    counts = resample_counts(len(won), seed=seed, num_resamples=num_resamples)
    again = fit_elo(np.tensordot(counts, won, 1), anchor=anchor, prior=prior)
    low, high = percentile_interval(again.ratings, level)
    return [Interval(*map(float, ends)) for ends in zip(fit.ratings, low, high)]


def win_probability(difference: np.ndarray) -> np.ndarray:
    """Probability that a player who is `difference` Elo stronger wins."""
    return 1.0 / (1.0 + 10.0 ** (-np.asarray(difference, np.float64) / 400.0))


def merit_wins(merits: np.ndarray) -> np.ndarray:
    """Who beat whom when the higher merit wins and equal merits are dropped.

    Args:
        merits: [n, M], one row a prompt, one column a player.

    Returns:
        [n, M, M] of 0 and 1.
    """
    return (merits[:, :, None] > merits[:, None, :]).astype(np.float64)


def score_wins(scores: np.ndarray) -> np.ndarray:
    """Expected wins when a preference model's scores are strengths in nats: [n, M] -> [n, M, M]."""
    return 0.5 * (1.0 + np.tanh(0.5 * (scores[:, :, None] - scores[:, None, :])))


def pair_wins(
    clusters: Sequence[Hashable],
    a: Sequence[int],
    b: Sequence[int],
    p_a: Sequence[float],
    num_players: int,
) -> np.ndarray:
    """Games of two players each, gathered by what they are not independent in: their prompt.

    Args:
        clusters: [g], of each game.
        a, b: [g], the two players.
        p_a: [g], how much of a win it was for a: 1, 0, or a probability.
        num_players: M.

    Returns:
        [n, M, M] for n clusters, in the order of their first games.
    """
    index = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    won = np.zeros((len(index), num_players, num_players))
    rows = np.array([index[cluster] for cluster in clusters], int)
    first, second = np.array(a, int), np.array(b, int)
    wins = np.array(p_a, np.float64)
    np.add.at(won, (rows, first, second), wins)
    np.add.at(won, (rows, second, first), 1.0 - wins)
    return won


def _expectation(strengths: np.ndarray, games: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Expected wins of each player [..., M], and the Fisher information [..., M, M]."""
    p = 0.5 * (1.0 + np.tanh(0.5 * (strengths[..., :, None] - strengths[..., None, :])))
    weight = games * p * (1.0 - p)
    information = np.eye(games.shape[-1]) * weight.sum(-1)[..., None] - weight
    return (games * p).sum(-1), information
