"""One unlearned model against a few retrained ones.

With a single unlearned model its own variance over seeds is unknown, and no test of means can be made. What can be asked is
whether it could be one of the retrained models: whether it lies where the next one of them would.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from expunge.errors import BadInput
from expunge.record import Interval
from expunge.stats.equivalence import ALPHA, Outcome, seeds_to_decide
from expunge.stats.intervals import finite_values


def prediction_interval(references: ArrayLike, level: float = 0.95) -> Interval | None:
    """Where the value of one further model like these lies: ``mean ± t(n-1) s sqrt(1 + 1/n)``.

    For independent values from one normal law it holds the next value with probability `level`. None for fewer than two
    values, and where all are equal: their spread is then unknown, not zero.

    Args:
        references: `[n]` one per retrained model, each from a seed of its own.
        level: coverage, in (0, 1).
    """
    references = finite_values(references)
    spread = _spread(references)
    if spread is None:
        return None
    half, mean = float(stats.t.ppf((1 + level) / 2, len(references) - 1)) * spread, float(references.mean())
    return Interval(
        low=mean - half, high=mean + half, level=level, method=f"prediction from {len(references)} models"
    )


def single_case_p(value: float, references: ArrayLike) -> float | None:
    """Two-sided p-value of "this model is a further one of these" (Crawford & Howell 1998).

    ``t = (value - mean) / (s sqrt(1 + 1/n))`` with n - 1 degrees of freedom: below 1 - level exactly where `value` lies outside
    `prediction_interval` of that level. None where that is None.
    """
    references = finite_values(references)
    spread = _spread(references)
    if spread is None:
        return None
    t = (_number(value) - float(references.mean())) / spread
    return float(2 * stats.t.sf(abs(t), len(references) - 1))


def judge_one(value: float, references: ArrayLike, margin: float) -> Outcome:
    """The equivalence test of one model: `judge` with the spread of the retrained models taken for the method's own.

    The interval of the difference of means is ``value - mean ± t(n-1) s sqrt(1 + 1/n)`` at level 0.90. Its assumption, that the
    method varies over seeds as much as retraining does, cannot be checked with one model: say so beside the judgement.

    Args:
        value: of the one model.
        references: `[n]` one per retrained model.
        margin: largest difference of means that counts as none, above 0.

    `more_seeds` is the smallest k with which 1 + k against n + k models would decide, as in `judge`. Undecided without an
    interval where the spread is unknown.
    """
    if not margin > 0 or not math.isfinite(margin):
        raise BadInput(
            f"the margin must be a number above 0, got {margin}; without one equivalence cannot be tested"
        )
    references, value = finite_values(references), _number(value)
    n = len(references)
    if n == 0:
        return Outcome("undecided", None, None, None)
    difference, spread = value - float(references.mean()), _spread(references)
    if spread is None:
        return Outcome("undecided", difference, None, None)
    half = float(stats.t.ppf(1 - ALPHA, n - 1)) * spread
    interval = Interval(
        low=difference - half, high=difference + half, level=1 - 2 * ALPHA,
        method="prediction, the retrained models' spread taken for the method's own",
    )  # fmt: skip
    if max(abs(interval.low), abs(interval.high)) <= margin:
        return Outcome("no larger difference", difference, interval, None)
    if interval.low > margin or interval.high < -margin:
        return Outcome("different", difference, interval, None)
    variance = float(references.var(ddof=1))
    return Outcome(
        "undecided", difference, interval, seeds_to_decide(difference, variance, variance, 1, n, margin)
    )


def _spread(references: np.ndarray) -> float | None:
    """``s sqrt(1 + 1/n)``: standard error of the difference between one further value and the mean of these."""
    n = len(references)
    if n < 2 or np.ptp(references) == 0:
        return None
    return float(references.std(ddof=1)) * math.sqrt(1 + 1 / n)


def _number(value: float) -> float:
    if not math.isfinite(value):
        raise BadInput(f"a value of {value} cannot be compared with retraining; leave undefined values out")
    return float(value)
