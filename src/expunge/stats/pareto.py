"""The Pareto front: who is beaten by nobody in everything, and how certain that is."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from expunge.errors import BadInput


def dominates(points: ArrayLike) -> np.ndarray:
    """`[k, k]` whether the row's point is at least as good as the column's in every objective and better in one.

    Args:
        points: `[k, objectives]`, higher is better. A point with a NaN neither dominates nor is dominated.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or not points.shape[1]:
        raise BadInput(f"a Pareto front is of points [k, objectives], got an array of shape {points.shape}")
    one, two = points[:, None], points[None, :]
    return np.asarray((one >= two).all(-1) & (one > two).any(-1))


def pareto_front(points: ArrayLike) -> np.ndarray:
    """`[k]` whether a point is complete and dominated by no other; arguments as of `dominates`."""
    points = np.asarray(points, dtype=np.float64)
    return np.asarray(~dominates(points).any(0) & ~np.isnan(points).any(1))


def front_probability(samples: ArrayLike) -> np.ndarray:
    """`[k]` share of the resampled tables in which each point is on the front.

    Args:
        samples: `[resamples, k, objectives]`, such as bootstrap means over seeds.
    """
    samples = np.asarray(samples, dtype=np.float64)
    if samples.ndim != 3 or not len(samples):
        raise BadInput(f"resampled points are an array [resamples, k, objectives], got shape {samples.shape}")
    return np.mean([pareto_front(points) for points in samples], axis=0)
