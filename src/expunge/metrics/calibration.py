"""Whether a confidence of 80 % is right 80 % of the time."""

from __future__ import annotations

import numpy as np

from expunge.metrics.base import Estimate, Readings, finite_values, metric

BINS = 15


@metric(
    "ece",
    title="Expected calibration error",
    reads={("model", "*"): ["logp", "correct"]},
    splits=["retain", "test"],
    direction="lower",
    unit="share",
    low=0.0,
    high=1.0,
    source="Guo et al., ICML 2017, arXiv:1706.04599",
)
def ece(readings: Readings) -> Estimate:
    """sum over bins of (n_b / n) |accuracy_b - confidence_b|, confidence being the largest class probability.

    15 bins of equal width, closed on the right. A plug-in estimate: biased upward, the more so the fewer
    examples there are, so compare only values over the same data.
    """
    confidence = np.exp(finite_values(readings.model["logp"], "log-probability").max(-1))
    value = expected_calibration_error(confidence, readings.model["correct"])
    return Estimate(value, len(confidence))


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """The error of `[n]` confidences in (0, 1] against `[n]` zeros and ones."""
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    # n_b |accuracy_b - confidence_b| is the absolute sum of the differences within the bin.
    gaps = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))
