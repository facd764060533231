"""Ballots: who beats whom in a table of scores, and the Borda count.

Scores of different metrics cannot be averaged; their order can. A *ballot* is one column of scores, of one metric on one
problem or of one example: it ranks the competitors that it has a value of. Which of the others are missing does not matter,
as long as it does not depend on how they would have done: a run that failed is a loss, not a gap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from expunge.errors import BadInput


@dataclass(frozen=True)
class Borda:
    """The Borda count of each competitor."""

    count: np.ndarray
    """`[k]` weighted sum over ballots of the competitors beaten, ties one half; 0 (worst) to k - 1 (best) per full ballot."""
    share: np.ndarray
    """`[k]` of the comparisons on the ballots that it is on, the share won; NaN for a competitor on no ballot."""
    ballots: np.ndarray
    """`[k]` ballots on which it is compared with another."""


def ballots_of(scores: ArrayLike) -> np.ndarray:
    """`[k, ballots]` in float64, checked: higher is better, NaN where a competitor is not on the ballot."""
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or len(table) < 2:
        raise BadInput(
            f"a ranking needs an array [competitors, ballots] of two competitors at least, got shape {table.shape}"
        )
    if np.isinf(table).any():
        raise BadInput("scores must be finite, or NaN where there is none; infinity has no place in a table")
    return table


def weights_of(weights: ArrayLike | None, table: np.ndarray) -> np.ndarray:
    """`[ballots]` weights of the ballots of `table`, checked; 1 where None."""
    if weights is None:
        return np.ones(table.shape[1])
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (table.shape[1],) or not np.isfinite(given).all() or (given < 0).any():
        raise BadInput(f"there must be one weight of 0 or more for each of {table.shape[1]} ballots")
    return given


def pairwise_wins(scores: ArrayLike, margin: float = 0.0, weights: ArrayLike | None = None) -> np.ndarray:
    """`[k, k]` weight of the ballots on which the row's competitor beats the column's by more than `margin`.

    Args:
        scores: `[k, ballots]`, higher is better, NaN where there is none.
        margin: differences up to this are ties, in the scores' unit.
        weights: `[ballots]`, 1 each by default.
    """
    table = ballots_of(scores)
    weights = weights_of(weights, table)
    with np.errstate(invalid="ignore"):
        return np.stack([((row - table) > margin) @ weights for row in table])


def borda(scores: ArrayLike, margin: float = 0.0, weights: ArrayLike | None = None) -> Borda:
    """The Borda count (1781), with ties as one half and ballots that need not be complete.

    On complete ballots order by `count` and by `share` are the same. On sparse ones only `share` can be ordered by: whoever was
    measured more often would otherwise win. It does not correct for whom one met; Plackett and Luce's model does. Arguments
    as of `pairwise_wins`; with a margin of 0 the count is that of average ranks.
    """
    table = ballots_of(scores)
    weights = weights_of(weights, table)
    on = ~np.isnan(table)
    met = np.where(on, on.sum(0) - 1, 0)
    with np.errstate(invalid="ignore"):
        beaten = np.stack([((row - table) > margin).sum(0) for row in table])
        tied = np.stack([(abs(row - table) <= margin).sum(0) for row in table]) - on
    won = (beaten + tied / 2) * weights
    count = won.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = count / (met * weights).sum(1)
    return Borda(count, share, (met > 0).sum(1))


def two_level_borda(tables: list[np.ndarray], margin: float = 0.0) -> Borda:
    """Borda over tasks, of each task's order by Borda over its instances (Colombo et al., NeurIPS 2022).

    Every task then counts the same, however many instances it has. A competitor without an instance of a task is not on that
    task's ballot.

    Args:
        tables: `[k, instances]` for each task.
        margin: as in `pairwise_wins`, for instances.
    """
    return borda(np.stack([borda(table, margin).share for table in tables], axis=1))


def ranks_of(values: ArrayLike) -> np.ndarray:
    """`[k]` ranks from 1 for the highest value, ties averaged; NaN stays NaN."""
    values = np.asarray(values, dtype=np.float64)
    return rankdata(-values, nan_policy="omit")
