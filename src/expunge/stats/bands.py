"""Null bands: how far retrained models lie from one another, drawn behind whatever is compared with them.

A retrained model forgot everything, and still differs from the next one by its seed. What stays within that band shows no
difference; that it shows equality is for a test with a margin to say (`expunge.stats.equivalence`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from expunge.errors import BadInput
from expunge.record import Interval
from expunge.stats.prediction import prediction_interval


class NullBand(NamedTuple):
    """Retrained against retrained, at one point of a chart."""

    values: Interval
    """Where one further retrained model's value lies."""
    gaps: Interval
    """Where its gap lies: its value minus the mean of the models that the band was made from."""


def null_band(references: ArrayLike, level: float = 0.95) -> NullBand | None:
    """The band of a score: the prediction interval of one further retrained model, as values and as gaps.

    None for fewer than two retrained models and where they do not differ: then no band can be drawn.

    Args:
        references: `[n]` one per retrained model.
        level: share of further retrained models that lie within.
    """
    interval = prediction_interval(references, level)
    if interval is None:
        return None
    half = (interval.high - interval.low) / 2
    return NullBand(interval, interval.model_copy(update={"low": -half, "high": half}))


def null_curve_band(curves: ArrayLike, level: float = 0.95) -> list[NullBand | None]:
    """The band of a curve, point by point; a whole curve lies within it less often than each of its points.

    Args:
        curves: `[n, points]` one row per retrained model; NaN where it has no value, which leaves it out at that point.
        level: as in `null_band`.
    """
    curves = np.asarray(curves, dtype=np.float64)
    if curves.ndim != 2:
        raise BadInput(
            f"the band of a curve needs an array [models, points], got one of shape {curves.shape}"
        )
    return [null_band(column[~np.isnan(column)], level) for column in curves.T]


def null_distance(distances: ArrayLike, level: float = 0.95) -> Interval | None:
    """The band of a distance between two models, such as a divergence of their outputs: from 0 to the quantile over pairs.

    The smallest distance that at least the share `level` of the n (n - 1) / 2 pairs of retrained models does not exceed;
    with fewer than 20 pairs, at 95 %, the largest one. Pairs share models, so the quantile varies more than that of as
    many independent distances would. None for fewer than two models.

    Args:
        distances: `[n, n]` symmetric, 0 on the diagonal, between retrained models.
        level: share of the pairs within the band.
    """
    distances = np.asarray(distances, dtype=np.float64)
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1]:
        raise BadInput(f"distances between n models are an array [n, n], got one of shape {distances.shape}")
    if not np.isfinite(distances).all() or not np.allclose(distances, distances.T, rtol=1e-6, atol=1e-12):
        raise BadInput(
            "distances between models must be finite and the same both ways; average a divergence's two directions first"
        )
    pairs = distances[np.triu_indices(len(distances), 1)]
    if not len(pairs):
        return None
    high = float(np.quantile(pairs, level, method="inverted_cdf"))
    return Interval(low=0.0, high=high, level=level, method=f"quantile over {len(pairs)} pairs of models")
