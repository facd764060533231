"""Metrics: pure functions of evidence."""

from expunge.metrics.base import METRICS, Estimate, Metric, Readings, Undefined, metric, standard_metrics

__all__ = ["METRICS", "Estimate", "Metric", "Readings", "Undefined", "metric", "standard_metrics"]
