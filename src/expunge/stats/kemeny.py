"""The Kemeny consensus: the order that contradicts the ballots least.

It minimizes the pairs of competitors that a ballot orders the other way, summed over ballots: the median of the rankings under
Kendall's distance, and the maximum-likelihood center of Mallows' model. It puts first whoever beats every other by majority.
Finding it is NP-hard in the number of competitors, and several orders can be equally good (Kemeny 1959; Young & Levenglick
1978).
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from expunge.errors import BadInput

ENUMERATED = 13
"""Competitors in one knot of the majority relation up to which every optimum is found, by dynamic programming over subsets."""
PROGRAMMED = 40
"""Up to this many an integer program proves one optimum, given the time."""
SECONDS = 20.0
"""That the integer program may take for one knot."""
EQUAL = 1e-9


class Consensus(NamedTuple):
    """A Kemeny order."""

    order: list[int]
    """Competitors, best first; of several optima the one with the lowest numbers first."""
    disagreements: float
    """Weight of the (ballot, pair) that it contradicts; a tie on a ballot contradicts nothing."""
    exact: bool
    """Whether no other order contradicts less. False: a local search found it, and nothing is proven."""
    best: np.ndarray
    """`[k]` best rank over all optima, from 1; where the optima were not enumerated, the rank in `order`."""
    worst: np.ndarray
    """`[k]` worst rank, likewise."""
    optima: int | None
    """How many orders are equally good; None where they were not enumerated."""


def kemeny(wins: ArrayLike) -> Consensus:
    """The Kemeny consensus of a matrix of pairwise wins, as `pairwise_wins` makes it of complete, partial or tied ballots.

    First the competitors are divided where every one before beats every one after by a strict majority, which all optima
    respect (Truchon 1998). Each knot that is left is solved by dynamic programming up to 13 competitors, by an integer
    program up to 40 (`scipy.optimize.milp`, at most 20 s), and else by local search from the order of net wins; `exact`
    says whether an optimum is proven.

    Args:
        wins: `[k, k]` weight of the ballots that prefer the row's competitor to the column's.
    """
    cost = _checked(wins).T  # [i, j]: what it costs to put i above j
    order: list[int] = []
    exact, optima, total = True, 1, 0.0
    best, worst = np.empty(len(cost), dtype=int), np.empty(len(cost), dtype=int)
    for knot in _knots(cost):
        found = _solve(cost[np.ix_(knot, knot)])
        before = len(order)
        best[knot], worst[knot] = found.best + before, found.worst + before
        order += [knot[i] for i in found.order]
        exact &= found.exact
        optima = None if optima is None or found.optima is None else optima * found.optima
    for place, i in enumerate(order):
        total += float(cost[i, order[place + 1 :]].sum())
    return Consensus(order, total, exact, best, worst, optima)


def _checked(wins: ArrayLike) -> np.ndarray:
    wins = np.asarray(wins, dtype=np.float64)
    if wins.ndim != 2 or wins.shape[0] != wins.shape[1] or not len(wins):
        raise BadInput(f"wins between k competitors are an array [k, k], got one of shape {wins.shape}")
    if not np.isfinite(wins).all() or (wins < 0).any():
        raise BadInput("pairwise wins must be numbers of 0 or more")
    return wins * (1 - np.eye(len(wins)))


def _knots(cost: np.ndarray) -> list[list[int]]:
    """The classes that majority alone puts in order, best first."""
    not_worse = cost <= cost.T + EQUAL  # [i, j]: putting i above j costs no more than the reverse
    count, label = connected_components(not_worse, directed=True, connection="strong")
    classes = [np.flatnonzero(label == c).tolist() for c in range(count)]
    # Between two classes one side wins every pair, so the number of others beaten orders them.
    return sorted(classes, key=lambda members: -int(not_worse[members[0]].sum()))


def _solve(cost: np.ndarray) -> Consensus:
    if len(cost) <= ENUMERATED:
        return _by_subsets(cost)
    if len(cost) <= PROGRAMMED:
        found = _by_program(cost)
        if found is not None:
            return _single(cost, found, exact=True)
    order = _by_local_search(cost)
    least = sum(min(cost[i, j], cost[j, i]) for i, j in combinations(range(len(cost)), 2))
    return _single(cost, order, exact=bool(_cost_of(cost, order) <= least + EQUAL))


def _single(cost: np.ndarray, order: list[int], *, exact: bool) -> Consensus:
    place = np.argsort(order) + 1
    return Consensus(order, _cost_of(cost, order), exact, place, place, None)


def _cost_of(cost: np.ndarray, order: list[int]) -> float:
    return float(np.triu(cost[np.ix_(order, order)], 1).sum())


def _by_subsets(cost: np.ndarray) -> Consensus:
    """All optima at once: `ahead[S]` is the least cost of putting the set S first, `behind[S]` that of the others after it."""
    k = len(cost)
    sets = np.arange(1 << k)
    size = np.array([int(s).bit_count() for s in sets])
    # [i, S]: what it costs to put all of S above i.
    after = np.zeros((k, 1 << k))
    for j in range(k):
        after[:, 1 << j : 2 << j] = after[:, : 1 << j] + cost[j][:, None]
    ahead, behind = np.full(1 << k, np.inf), np.full(1 << k, np.inf)
    ahead[0], behind[-1] = 0.0, 0.0
    layers = [sets[size == n] for n in range(k + 1)]
    for layer in layers[1:]:
        for i in range(k):
            mine = layer[(layer >> i) & 1 == 1]
            rest = mine ^ (1 << i)
            ahead[mine] = np.minimum(ahead[mine], ahead[rest] + after[i, rest])
    for layer in layers[-2::-1]:
        for i in range(k):
            mine = layer[(layer >> i) & 1 == 0]
            behind[mine] = np.minimum(behind[mine], after[i, mine] + behind[mine | (1 << i)])
    total = ahead[-1]
    best, worst = np.full(k, k), np.zeros(k, dtype=int)
    paths = np.zeros(1 << k, dtype=object)
    paths[-1] = 1
    optimal: dict[int, list[int]] = {}
    for layer in layers[-2::-1]:
        for s in layer[ahead[layer] + behind[layer] <= total + EQUAL].tolist():
            steps = [
                i
                for i in range(k)
                if not s >> i & 1 and ahead[s] + after[i, s] + behind[s | 1 << i] <= total + EQUAL
            ]
            optimal[s] = steps
            paths[s] = sum(paths[s | 1 << i] for i in steps)
            place = int(size[s]) + 1
            best[steps], worst[steps] = np.minimum(best[steps], place), np.maximum(worst[steps], place)
    order, s = [], 0
    while len(order) < k:
        order.append(optimal[s][0])
        s |= 1 << order[-1]
    return Consensus(order, float(total), True, best, worst, int(paths[0]))


def _by_program(cost: np.ndarray) -> list[int] | None:
    """The linear ordering problem: x of a pair is 1 where the first stands above the second; no three form a circle."""
    k = len(cost)
    number = {pair: n for n, pair in enumerate(combinations(range(k), 2))}
    gain = np.array([cost[i, j] - cost[j, i] for i, j in number])
    triples = list(combinations(range(k), 3))
    columns = np.array([[number[i, j], number[j, m], number[i, m]] for i, j, m in triples])
    rows = np.repeat(np.arange(len(triples)), 3)
    signs = np.tile([1.0, 1.0, -1.0], len(triples))
    circles = coo_array((signs, (rows, columns.ravel())), shape=(len(triples), len(number))).tocsr()
    found = milp(
        gain, integrality=np.ones(len(gain)), bounds=Bounds(0, 1), constraints=LinearConstraint(circles, 0, 1),
        options={"time_limit": SECONDS, "mip_rel_gap": 0.0},
    )  # fmt: skip
    if found.status != 0 or found.x is None:
        return None
    above = np.zeros(k)
    for (i, j), x in zip(number, np.round(found.x), strict=True):
        above[i] += x
        above[j] += 1 - x
    return np.argsort(-above, kind="stable").tolist()


def _by_local_search(cost: np.ndarray) -> list[int]:
    """From the order of net wins, each competitor to its best place, until none moves."""
    order: list[int] = np.argsort((cost - cost.T).sum(1), kind="stable").tolist()
    moved = True
    while moved:
        moved = False
        for i in list(order):
            rest = [j for j in order if j != i]
            # [p]: cost of i's pairs with i at place p.
            places = np.concatenate([[0.0], np.cumsum(cost[rest, i])]) + np.concatenate(
                [np.cumsum(cost[i, rest][::-1])[::-1], [0.0]]
            )
            p = int(np.argmin(places))
            if places[p] < places[order.index(i)] - EQUAL:
                order, moved = [*rest[:p], i, *rest[p:]], True
    return order
