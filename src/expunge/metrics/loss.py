"""Mean negative log-likelihood."""

from __future__ import annotations

from expunge.metrics.base import Estimate, Readings, mean_estimate, metric


@metric(
    "mean-loss",
    title="Mean loss",
    reads={("model", "*"): ["loss"]},
    splits=["forget", "retain", "test", "holdout"],
    direction={"forget": "match", "*": "lower"},
    unit="nats",
    source="definition",
)
def mean_loss(readings: Readings) -> Estimate:
    """Mean over examples of -ln p(y | x), in nats, which is the sum over an example's positions.

    For classifiers the cross-entropy; for regressors that of a Gaussian of unit variance in standardized
    units, constant included, so it can be compared between models but not between families. A loss on
    `forget` far above the retrained model's marks the forgotten examples as surely as one far below. The t
    interval is over examples.
    """
    return mean_estimate(readings.model["loss"], readings.model, "loss")
