"""Confidence intervals.

Each function returns None where the data do not say how uncertain the number is (fewer than two values, no
variation to resample): an interval of width zero there would read as certainty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from expunge.errors import BadInput
from expunge.record import Interval

Statistic = Callable[[np.ndarray], float | np.floating]


def t_interval(values: ArrayLike, level: float = 0.95, over: str = "seeds") -> Interval | None:
    """Student's t interval of the mean: ``mean ± t(n-1) s / sqrt(n)``; None for fewer than two values.

    Args:
        values: `[n]` independent values, such as one per seed.
        level: coverage, in (0, 1).
        over: what the values are one of, for the interval's `method`.
    """
    values = finite_values(values)
    if len(values) < 2:
        return None
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * values.std(ddof=1) / math.sqrt(len(values))
    mean = values.mean()
    return Interval(low=float(mean - half), high=float(mean + half), level=level, method=f"t over {over}")


def wilson(successes: int, n: int, level: float = 0.95) -> Interval | None:
    """Wilson's score interval of a share; None of nothing.

    Never of width zero, also where all or none of the `n` succeed.
    """
    if not 0 <= successes <= n:
        raise BadInput(f"{successes} successes of {n} cannot be; successes are between 0 and n")
    if n == 0:
        return None
    found = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return Interval(low=float(found.low), high=float(found.high), level=level, method="wilson")


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Interval | None:
    """Exact interval of a share (Clopper & Pearson 1934): covers with at least `level`, whatever the share; None of nothing."""
    if not 0 <= successes <= n:
        raise BadInput(f"{successes} successes of {n} cannot be; successes are between 0 and n")
    if n == 0:
        return None
    found = stats.binomtest(successes, n).proportion_ci(level, method="exact")
    return Interval(low=float(found.low), high=float(found.high), level=level, method="clopper-pearson")


def bca(
    values: ArrayLike,
    statistic: Statistic = np.mean,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Bias-corrected and accelerated bootstrap interval of `statistic` (Efron 1987) over independent values.

    Time and memory grow with n², from the jackknife. None for fewer than two values, or where the statistic
    is the same in every resample.
    """
    values = finite_values(values)
    if len(values) < 2 or np.ptp(values) == 0:
        return None
    # scipy hands a batch of resamples to a statistic that takes `axis`, which numpy's do.
    found = stats.bootstrap(
        (values,), statistic, confidence_level=level, n_resamples=resamples, method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return None
    return Interval(low=float(found.low), high=float(found.high), level=level, method="bca bootstrap")


def clustered_bootstrap(
    values: ArrayLike,
    clusters: Sequence[object] | np.ndarray,
    statistic: Statistic = np.mean,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    *,
    corrected: bool = False,
) -> Interval | None:
    """Bootstrap interval that resamples whole clusters (Field & Welsh 2007), of percentiles or bias-corrected.

    For rows that are not independent: several texts of one author, several photos of one person, all rows of a class.

    Args:
        values: `[n]`.
        clusters: `[n]` cluster of each value.
        statistic: of all values in the drawn clusters together.
        level: coverage, in (0, 1).
        resamples: draws.
        seed: of the draws.
        corrected: BCa (Efron 1987) with the jackknife over clusters, for skewed statistics; with a cluster for each value it is
            `bca`, and so are its None.

    None for fewer than two clusters.
    """
    values = finite_values(values)
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    if len(index) != len(values):
        raise BadInput(f"{len(values)} values but {len(index)} cluster ids; there must be one for each value")
    if len(names) < 2:
        return None
    members = [values[index == c] for c in range(len(names))]
    draws = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    drawn = [float(statistic(np.concatenate([members[c] for c in draw]))) for draw in draws]
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if corrected:
        estimate = float(statistic(values))
        left_out = np.array(
            [statistic(np.delete(values, index == c)) for c in range(len(names))], dtype=float
        )
        found = _corrected(tails, np.array(drawn), estimate, left_out)
        if found is None:
            return None
        tails = found
    low, high = np.quantile(drawn, tails)
    method = f"{'bca ' * corrected}bootstrap over clusters"
    return Interval(low=float(low), high=float(high), level=level, method=method)


def _corrected(
    tails: np.ndarray, drawn: np.ndarray, estimate: float, left_out: np.ndarray
) -> np.ndarray | None:
    """The percentiles that BCa takes in the place of `tails`; None where bias or acceleration is undefined."""
    below = float((drawn < estimate).mean() + (drawn == estimate).mean() / 2)
    pull = left_out.mean() - left_out
    spread = float((pull**2).sum())
    if not 0 < below < 1 or spread == 0:
        return None
    bias, acceleration = stats.norm.ppf(below), float((pull**3).sum()) / (6 * spread**1.5)
    moved = bias + stats.norm.ppf(tails)
    return np.asarray(stats.norm.cdf(bias + moved / (1 - acceleration * moved)))


def delong(positives: ArrayLike, negatives: ArrayLike, level: float = 0.95) -> tuple[float, Interval | None]:
    """Area under the ROC curve and its interval (DeLong et al. 1988), through ranks (Sun & Xu 2014).

    ``AUC = P(positive > negative) + P(equal) / 2`` over all pairs. Its variance is that of the placements:
    for each positive the share of negatives below it, and the reverse. The interval is symmetric on the
    logit scale, so it stays within (0, 1). None at complete separation, where the estimated variance is 0,
    and for fewer than two on a side.

    Args:
        positives: `[m]` scores of the positives.
        negatives: `[n]` scores of the negatives.
        level: coverage, in (0, 1).
    """
    positives, negatives = finite_values(positives), finite_values(negatives)
    m, n = len(positives), len(negatives)
    if m == 0 or n == 0:
        raise BadInput(f"an ROC curve needs scores on both sides, got {m} positives and {n} negatives")
    rank = stats.rankdata(np.concatenate([positives, negatives]))
    of_positives = (rank[:m] - stats.rankdata(positives)) / n
    of_negatives = 1 - (rank[m:] - stats.rankdata(negatives)) / m
    area = float(of_positives.mean())
    if m < 2 or n < 2:
        return area, None
    variance = of_positives.var(ddof=1) / m + of_negatives.var(ddof=1) / n
    if variance == 0 or not 0 < area < 1:
        return area, None
    half = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt(variance) / (area * (1 - area))
    low, high = (1 / (1 + math.exp(-(math.log(area / (1 - area)) + side * half))) for side in (-1, 1))
    return area, Interval(low=low, high=high, level=level, method="delong")


def finite_values(values: ArrayLike) -> np.ndarray:
    """`[n]` float64; BadInput for another shape and for NaN or infinity."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise BadInput(f"an interval is over a list of numbers, got an array of shape {array.shape}")
    if not np.isfinite(array).all():
        raise BadInput(
            f"an interval over {array[~np.isfinite(array)][0]} has no meaning; leave undefined values out"
        )
    return array
