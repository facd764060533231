"""Plackett and Luce's model: a strength for each competitor, from ballots that may be partial and sparse.

The probability of an order is that of drawing its places one after another, each in proportion to the strength of those left:
``P(i1 > i2 > ... > im) = prod_r exp(theta_ir) / sum_{l >= r} exp(theta_il)`` (Luce 1959; Plackett 1975). With two on a ballot
it is Bradley and Terry's. It corrects for whom one met, which the Borda count does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.sparse.csgraph import connected_components
from scipy.special import logsumexp

from expunge.errors import BadInput
from expunge.stats.borda import ballots_of, weights_of


class Strengths(NamedTuple):
    """A fit of the model."""

    strength: np.ndarray | None
    """`[k]` log-strengths with mean 0; None where no finite ones exist."""
    log_likelihood: float | None
    """Of the ballots, nats, without the penalty."""
    reason: str
    """Why there are none, or what they rest on beside the ballots; '' where there is nothing to say."""


@dataclass(frozen=True)
class Choices:
    """Ballots as choices: each says that one competitor was taken before certain others.

    On a ballot with the distinct values v1 > v2 > ..., whoever holds v1 was chosen from itself and all strictly below, then
    the same for v2, and so on. Of those tied at one value each is one such choice of weight 1/g, g being their number, and
    nothing is said between them; a ballot on which all are equal says nothing. So a ballot without ties is a ranking of the
    model, and one of successes and failures counts as one choice in all, however many succeed.
    """

    competitors: int
    winner: np.ndarray
    """`[events]`."""
    among: np.ndarray
    """`[events, k]` bool: from whom it was chosen, itself included."""
    ballot: np.ndarray
    """`[events]` column of the ballot."""
    weight: np.ndarray
    """`[events]`."""

    @classmethod
    def of(cls, scores: ArrayLike, weights: ArrayLike | None = None) -> Choices:
        """From scores `[k, ballots]`, higher is better, NaN where there is none, and weights of the ballots."""
        table = ballots_of(scores)
        weights = weights_of(weights, table)
        winners, among, ballot, weight = [], [], [], []
        for t, column in enumerate(table.T):
            levels = np.unique(column[~np.isnan(column)])[::-1]
            for level, _ in pairwise(levels):
                below = column < level
                tied = np.flatnonzero(column == level)
                for i in tied:
                    chosen_from = below.copy()
                    chosen_from[i] = True
                    winners.append(i)
                    among.append(chosen_from)
                    ballot.append(t)
                    weight.append(weights[t] / len(tied))
        shape = (len(winners), len(table))
        return cls(
            len(table), np.array(winners, dtype=int), np.array(among, dtype=bool).reshape(shape),
            np.array(ballot, dtype=int), np.array(weight),
        )  # fmt: skip

    @cached_property
    def kinds(self) -> tuple[np.ndarray, np.ndarray]:
        """The first event of each kind (one winner, one set), and `[events]` the kind of each."""
        keys = np.column_stack([self.winner, self.among])
        _, first, kind = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        return first, kind.ravel()

    def totals(self, ballots: np.ndarray | None = None) -> np.ndarray:
        """`[kinds]` weight of each kind of event; `ballots` (`[ballots]`) says how often each ballot counts, once by default."""
        weight = self.weight if ballots is None else self.weight * ballots[self.ballot]
        return np.bincount(self.kinds[1], weight, minlength=len(self.kinds[0]))


def plackett_luce(
    scores: ArrayLike, regularization: float = 0.0, weights: ArrayLike | None = None
) -> Strengths:
    """Fit the strengths by (penalized) maximum likelihood.

    Minimizes ``-log likelihood + regularization * sum theta²`` with Newton steps; the objective is convex. A regularization
    of r is a normal prior of variance 1/(2 r) on every strength.

    Without it, finite strengths exist only where the competitors cannot be divided into two groups such that nobody of the
    one ever beats anybody of the other (Ford 1957; Hunter 2004): else the reason is given, and no number. With it they
    always exist; where groups were never compared, what lies between them is the prior alone, and the reason says so.

    Args:
        scores: `[k, ballots]`, higher is better, NaN where there is none; ties as `Choices` says.
        regularization: 0 or more.
        weights: `[ballots]`, 1 each by default.
    """
    return fit(Choices.of(scores, weights), regularization)


def fit(choices: Choices, regularization: float = 0.0, ballots: np.ndarray | None = None) -> Strengths:
    """As `plackett_luce`, of choices made from ballots before; `ballots` says how often each counts, for a bootstrap."""
    if not regularization >= 0 or not math.isfinite(regularization):
        raise BadInput(f"the regularization must be a number of 0 or more, got {regularization}")
    first, total = choices.kinds[0], choices.totals(ballots)
    first, total = first[total > 0], total[total > 0]
    winner, among = choices.winner[first], choices.among[first]
    reason = _obstacle(choices.competitors, winner, among, regularization)
    if reason and not regularization:
        return Strengths(None, None, reason)
    k, rows = choices.competitors, np.arange(len(winner))

    def losses(theta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Objective, gradient, Hessian; the square of the sum fixes the mean at 0 and changes nothing else."""
        within = np.where(among, theta, -np.inf)
        norm = np.asarray(logsumexp(within, axis=1))
        p = np.exp(within - norm[:, None])
        value = total @ (norm - theta[winner]) + regularization * theta @ theta + theta.sum() ** 2
        gradient = p.T @ total - np.bincount(winner, total, minlength=k)
        gradient += 2 * regularization * theta + 2 * theta.sum()
        hessian = np.diag(p.T @ total) - (p * total[:, None]).T @ p
        return value, gradient, hessian + 2 * regularization * np.eye(k) + 2.0

    found = minimize(
        lambda t: losses(t)[:2], np.zeros(k), jac=True, hess=lambda t: losses(t)[2], method="trust-exact",
        options={"gtol": 1e-9 * max(1.0, float(total.sum())), "maxiter": 500},
    )  # fmt: skip
    theta = found.x - found.x.mean()
    within = np.where(among, theta, -np.inf)
    fitted = -float(total @ (logsumexp(within, axis=1) - within[rows, winner]))
    return Strengths(theta, fitted, reason)


def _obstacle(k: int, winner: np.ndarray, among: np.ndarray, regularization: float) -> str:
    """Why the likelihood alone does not determine the strengths; '' where it does."""
    beats = np.zeros((k, k), dtype=bool)
    for w, chosen_from in zip(winner, among, strict=True):
        beats[w] |= chosen_from
    np.fill_diagonal(beats, False)
    apart, _ = connected_components(beats, directed=True, connection="weak")
    if apart > 1:
        said = f"{apart} groups of competitors were never compared with one another"
        return (
            f"{said}; their distance is the prior's alone"
            if regularization
            else f"{said}; their distance is unknown"
        )
    strong, label = connected_components(beats, directed=True, connection="strong")
    if strong > 1 and not regularization:
        sizes = np.bincount(label)
        return (
            f"{strong} groups of competitors (of {', '.join(str(s) for s in sizes)}) lost to one another in one direction only, "
            "so that no finite strengths fit best; regularize"
        )
    return ""
