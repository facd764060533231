"""Evidence: what was measured of one model on one data set, a row per example."""

from expunge.evidence.collect import Evidence, collect, observed

__all__ = ["Evidence", "collect", "observed"]
