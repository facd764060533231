"""Statistics of scores: intervals, and tests of equivalence with the retrained models."""

from expunge.stats.equivalence import MARGINS, Margin, Outcome, judge, verdict
from expunge.stats.intervals import bca, clustered_bootstrap, delong, t_interval, wilson

__all__ = [
    "MARGINS",
    "Margin",
    "Outcome",
    "bca",
    "clustered_bootstrap",
    "delong",
    "judge",
    "t_interval",
    "verdict",
    "wilson",
]
