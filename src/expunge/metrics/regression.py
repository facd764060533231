"""Errors of regressors, in the target's own unit, and the share of variance explained."""

from __future__ import annotations

import numpy as np

from expunge.metrics.base import Estimate, Readings, Undefined, by_group, finite_values, mean_estimate, metric

SPLITS = ["forget", "retain", "test", "holdout"]


@metric(
    "mae",
    title="Mean absolute error",
    reads={("model", "*"): ["absolute_error"]},
    splits=SPLITS,
    direction={"forget": "match", "*": "lower"},
    unit="target's unit",
    low=0.0,
    source="error on the forget and retain sets in Tarun et al., ICML 2023, arXiv:2210.08196",
)
def mae(readings: Readings) -> Estimate:
    """Mean over examples and target columns of |predicted - target|. The t interval is over examples."""
    return mean_estimate(readings.model["absolute_error"], readings.model, "absolute error")


@metric(
    "rmse",
    title="Root mean squared error",
    reads={("model", "*"): ["error"]},
    splits=SPLITS,
    direction={"forget": "match", "*": "lower"},
    unit="target's unit",
    low=0.0,
    source="definition",
)
def rmse(readings: Readings) -> Estimate:
    """Root of the mean over examples and target columns of (predicted - target)²."""
    error = finite_values(readings.model["error"], "error")
    return Estimate(
        root_mean_square(error), len(error), groups=by_group(error, readings.model.groups, root_mean_square)
    )


def root_mean_square(error: np.ndarray) -> float:
    """``sqrt(mean(error²))`` over all entries."""
    return float(np.sqrt(np.mean(np.square(error))))


@metric(
    "r2",
    title="R²",
    reads={("model", "*"): ["predicted", "target"]},
    splits=SPLITS,
    direction={"forget": "match", "*": "higher"},
    unit="share of variance",
    high=1.0,
    families=["regressor"],
    source="definition",
)
def r2(readings: Readings) -> Estimate:
    """Coefficient of determination: 1 - sum (target - predicted)² / sum (target - mean target)².

    The mean is that of the split (or group), and several target columns are averaged. Undefined where a
    target column is constant. Below 0 where predicting the mean would be better. Groups in which a target
    is constant are left out.
    """
    predicted = finite_values(readings.model["predicted"], "prediction")
    target = readings.model["target"].astype(np.float64)
    value = explained(target, predicted)
    if not np.isfinite(value):
        raise Undefined(
            f"the target is the same for all {len(target)} examples, so there is no variance to explain"
        )
    groups = by_group(
        np.arange(len(target)), readings.model.groups, lambda rows: explained(target[rows], predicted[rows])
    )
    return Estimate(value, len(target), groups={g: v for g, v in groups.items() if np.isfinite(v)})


def explained(target: np.ndarray, predicted: np.ndarray) -> float:
    """R² of `[n]` or `[n, C]` predictions; NaN where a target column is constant."""
    if (np.ptp(target, axis=0) == 0).any():
        return float("nan")
    residual = np.square(target - predicted).sum(0)
    total = np.square(target - target.mean(0)).sum(0)
    return float(np.mean(1 - residual / total))
