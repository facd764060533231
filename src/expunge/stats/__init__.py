"""Statistics of scores: intervals, and tests of equivalence with the retrained models."""

from expunge.stats.bands import NullBand, null_band, null_curve_band, null_distance
from expunge.stats.equivalence import MARGINS, Margin, Outcome, equivalence_p, judge, verdict
from expunge.stats.intervals import bca, clustered_bootstrap, delong, t_interval, wilson
from expunge.stats.multiplicity import benjamini_hochberg, holm
from expunge.stats.prediction import judge_one, prediction_interval, single_case_p

__all__ = [
    "MARGINS",
    "Margin",
    "NullBand",
    "Outcome",
    "bca",
    "benjamini_hochberg",
    "clustered_bootstrap",
    "delong",
    "equivalence_p",
    "holm",
    "judge",
    "judge_one",
    "null_band",
    "null_curve_band",
    "null_distance",
    "prediction_interval",
    "single_case_p",
    "t_interval",
    "verdict",
    "wilson",
]
