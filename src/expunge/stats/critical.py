"""Critical differences: which of several methods differ over many problems, by their ranks (Demšar, JMLR 2006)."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from expunge.stats.borda import ballots_of, ranks_of
from expunge.stats.multiplicity import holm


class CriticalDifference(NamedTuple):
    """What the tests say of k methods on n blocks."""

    average_ranks: np.ndarray
    """`[k]` over the blocks, 1 is best."""
    blocks: int
    """Complete ballots that it rests on."""
    statistic: float
    """F of Iman and Davenport (1980): Friedman's chi-squared with fewer false alarms lost."""
    p_value: float
    """Of the hypothesis that all methods are alike."""
    difference: float
    """Nemenyi's critical difference: average ranks nearer than this are not told apart."""
    groups: list[list[int]]
    """Largest sets of methods that are not told apart, best first; alone in one who differs from all."""


def critical_difference(scores: ArrayLike, level: float = 0.95) -> CriticalDifference | str:
    """Friedman's test with Iman and Davenport's correction, and Nemenyi's critical difference.

    ``CD = q sqrt(k (k + 1) / (6 n))`` with q the `level` quantile of the studentized range of k and infinitely many degrees of
    freedom, over sqrt 2. Only blocks on which every method has a value count. Blocks should be independent, which several metrics
    of one model are not: the difference is then too small.

    Args:
        scores: `[k, blocks]`, higher is better, NaN where there is none.
        level: 1 minus the error over all pairs.

    A reason in words where fewer than 3 methods, or fewer than 2 complete blocks, leave nothing to test.
    """
    table = ballots_of(scores)
    k, complete = len(table), table[:, ~np.isnan(table).any(0)]
    n = complete.shape[1]
    if k < 3:
        return (
            f"critical differences are for 3 methods at least, there are {k}; compare two with a paired test"
        )
    if n < 2:
        return f"{n} of {table.shape[1]} columns have a value of every method; 2 are needed"
    ranks = np.stack([ranks_of(column) for column in complete.T], axis=1)
    if np.ptp(ranks) == 0:
        return "all methods are tied everywhere"
    chi2 = float(stats.friedmanchisquare(*complete).statistic)
    room = n * (k - 1) - chi2
    f = math.inf if room <= 1e-12 else (n - 1) * chi2 / room
    p = 0.0 if math.isinf(f) else float(stats.f.sf(f, k - 1, (k - 1) * (n - 1)))
    difference, average = _nemenyi(level, k) * math.sqrt(k * (k + 1) / (6 * n)), ranks.mean(1)
    return CriticalDifference(average, n, f, p, difference, _groups(average, difference))


@cache
def _nemenyi(level: float, k: int) -> float:
    """Quantile of the studentized range over sqrt 2; it takes half a second."""
    return float(stats.studentized_range.ppf(level, k, np.inf)) / math.sqrt(2)


def _groups(average: np.ndarray, difference: float) -> list[list[int]]:
    order = np.argsort(average, kind="stable")
    groups: list[list[int]] = []
    for start, i in enumerate(order):
        members = [int(j) for j in order[start:] if average[j] - average[i] <= difference]
        if not groups or not set(members) <= set(groups[-1]):
            groups.append(members)
    return groups


def signed_rank_tests(scores: ArrayLike) -> dict[tuple[int, int], float | None]:
    """Holm-adjusted p-values of Wilcoxon's signed-rank test for each pair of methods, over the blocks that have both.

    Unlike a difference of average ranks it does not depend on who else competes (Benavoli et al., JMLR 2016). None where two
    have no block in common or never differ.

    Args:
        scores: `[k, blocks]`, higher is better, NaN where there is none.
    """
    table = ballots_of(scores)
    found: dict[tuple[int, int], float | None] = {}
    for i in range(len(table)):
        for j in range(i + 1, len(table)):
            difference = table[i] - table[j]
            difference = difference[~np.isnan(difference)]
            found[i, j] = float(stats.wilcoxon(difference)[1]) if difference.any() else None  # pyright: ignore
    return holm(found)
