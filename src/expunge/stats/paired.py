"""Paired tests: two models on the same examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import permutation_test

from expunge.errors import BadInput
from expunge.record import Interval
from expunge.stats.intervals import bca, clustered_bootstrap, finite_values

FLIPS = 9999


class Paired(NamedTuple):
    """Two models compared example by example."""

    difference: float
    """Mean over examples of the first minus the second."""
    interval: Interval | None
    """BCa bootstrap over examples, or percentile bootstrap over clusters; None where nothing varies."""
    p_value: float
    """Two-sided, of the hypothesis that exchanging the two within an example (or a cluster) changes nothing."""


def paired_test(
    one: ArrayLike,
    two: ArrayLike,
    clusters: Sequence[object] | np.ndarray | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Paired:
    """Mean difference with its interval, and a sign-flip permutation test (Fisher 1935).

    All 2^n flips are tried where they are at most 9999, else that many are drawn. With clusters (author, identity, class) whole
    clusters are flipped and resampled: their examples are not independent. It is about these two models; whether two *methods*
    differ is a question about seeds (`judge`).

    Args:
        one: `[n]` scores of one model by example.
        two: `[n]` of the other, of the same examples in the same order.
        clusters: `[n]`, or None.
        level: of the interval.
        seed: of flips and resamples.
    """
    one, two = finite_values(one), finite_values(two)
    if len(one) != len(two) or not len(one):
        raise BadInput(
            f"a paired test needs the same examples of both models, got {len(one)} and {len(two)} values"
        )
    difference = one - two
    units = difference
    if clusters is None:
        interval = bca(difference, level=level, seed=seed)
    else:
        interval = clustered_bootstrap(difference, clusters, level=level, seed=seed)
        names, index = np.unique(np.asarray(clusters), return_inverse=True)
        units = np.bincount(index, difference, minlength=len(names))
    if not units.any():
        return Paired(0.0, None, 1.0)
    found = permutation_test(
        (units,), np.sum, permutation_type="samples", n_resamples=FLIPS, vectorized=True,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return Paired(float(difference.mean()), interval, float(found.pvalue))
