"""Comparing in pairs: Bradley and Terry's strengths, Elo's scale, and single-elimination tournaments.

For outputs that have no score of their own, only a judge who prefers one of two. A tournament among k competitors takes k - 1
judgements per prompt where all pairs would take k (k - 1) / 2 (Son et al. 2024, arXiv:2411.01281).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from expunge.errors import BadInput
from expunge.stats.plackett_luce import Strengths, plackett_luce


class Match(NamedTuple):
    """One judgement."""

    winner: int
    loser: int


def bradley_terry(wins: ArrayLike, regularization: float = 0.0) -> Strengths:
    """Log-strengths from a matrix of wins: ``P(i beats j) = 1 / (1 + exp(theta_j - theta_i))`` (Bradley & Terry 1952).

    Fitted over all matches at once, so that their order does not matter, unlike Elo's own updates. A tie is half a win each way.

    Args:
        wins: `[k, k]` how often the row's competitor beat the column's; halves are fine.
        regularization: as of `plackett_luce`; needed where somebody never lost.
    """
    wins = np.asarray(wins, dtype=np.float64)
    if wins.ndim != 2 or wins.shape[0] != wins.shape[1] or not np.isfinite(wins).all() or (wins < 0).any():
        raise BadInput(
            f"wins between k competitors are an array [k, k] of numbers of 0 or more, got shape {wins.shape}"
        )
    winners, losers = np.nonzero(wins * (1 - np.eye(len(wins))))
    ballots = np.full((len(wins), len(winners)), np.nan)
    ballots[winners, np.arange(len(winners))] = 1.0
    ballots[losers, np.arange(len(winners))] = 0.0
    return plackett_luce(ballots, regularization, wins[winners, losers])


def wins_of(matches: Sequence[Match], competitors: int) -> np.ndarray:
    """`[k, k]` how often the row's competitor beat the column's."""
    wins = np.zeros((competitors, competitors))
    for match in matches:
        wins[match.winner, match.loser] += 1
    return wins


def elo(strength: ArrayLike, center: float = 1000.0) -> np.ndarray:
    """`[k]` log-strengths on Elo's scale: 400 points are odds of 10 to 1, and the mean is `center`."""
    strength = np.asarray(strength, dtype=np.float64)
    return center + (strength - strength.mean()) * 400 / math.log(10)


def single_elimination(
    competitors: int, play: Callable[[int, int], int], generator: np.random.Generator
) -> list[Match]:
    """One tournament with a bracket drawn anew: halves play among themselves, their winners meet; k - 1 matches.

    Strong competitors play up to log2 k matches and weak ones a single one, so the lower ranks are less certain: draw a
    bracket per prompt, and resample prompts for intervals.

    Args:
        competitors: k, at least 2.
        play: the winner of two; called with them in random order, against judges who prefer what they read first.
        generator: of brackets and orders.
    """
    if competitors < 2:
        raise BadInput(f"a tournament needs two competitors at least, got {competitors}")
    matches: list[Match] = []

    def winner_of(some: list[int]) -> int:
        if len(some) == 1:
            return some[0]
        half = (len(some) + 1) // 2
        pair = [winner_of(some[:half]), winner_of(some[half:])]
        if generator.random() < 0.5:
            pair.reverse()
        won = play(*pair)
        if won not in pair:
            raise BadInput(f"the judge named {won} the winner of {pair[0]} against {pair[1]}")
        matches.append(Match(won, pair[0] if won == pair[1] else pair[1]))
        return won

    winner_of(generator.permutation(competitors).tolist())
    return matches
