"""Streisand effect: forgotten examples that stand out by losses which no unseen example has.

A method that drives losses on the forget set up as far as it can hides nothing: whoever looks for examples that the model
is strangely wrong about finds those that were to be forgotten. Accuracy cannot show it, and an attacker who looks for
small losses only does not either.
"""

from __future__ import annotations

import math

import numpy as np

from expunge.metrics.base import Estimate, Readings, Undefined, by_group, finite_values, metric
from expunge.metrics.membership import in_groups_of
from expunge.stats.intervals import wilson

SHARE = 0.05
"""Share of never-seen rows that may lie above the threshold."""
FEWEST_ROWS = math.ceil(1 / SHARE) - 1
"""Never-seen rows below which even the largest loss is exceeded by chance more often than that."""


@metric(
    "streisand",
    title="Forget rows with unnaturally high loss",
    reads={("model", "*"): ["loss"], ("model", "holdout"): ["loss"]},
    splits=["forget"],
    direction="match",
    unit="share",
    low=0.0,
    high=1.0,
    source="Streisand effect of Golatkar et al., CVPR 2020, arXiv:1911.04933; threshold by conformal prediction",
)
def streisand(readings: Readings) -> Estimate:
    """Share of forget rows whose loss exceeds nearly every loss of matched rows that were never seen.

    The threshold is the k-th largest loss of the m holdout rows of groups that occur in the forget set, ``k =
    floor(0.05 (m + 1))``: a forget row exchangeable with them exceeds it with probability ``k / (m + 1)``, at most 5 %.
    The value to match is the retrained models', which is near that unless forget rows are harder than holdout rows.
    The interval is Wilson's, over forget rows, with the threshold held fixed. Undefined with fewer than 19 matched
    holdout rows.
    """
    holdout = readings["model", "holdout"]
    unseen = finite_values(holdout.select(in_groups_of(holdout, readings.model))["loss"], "loss")
    asked = finite_values(readings.model["loss"], "loss")
    if len(unseen) < FEWEST_ROWS:
        raise Undefined(
            f"only {len(unseen)} holdout rows of the groups in the forget set; at least {FEWEST_ROWS} are needed"
        )
    # Without the 1e-9, 0.05 * 20 could fall short of 1.
    k = math.floor(SHARE * (len(unseen) + 1) + 1e-9)
    above = asked > np.sort(unseen)[-k]
    return Estimate(
        float(above.mean()),
        len(asked),
        wilson(int(above.sum()), len(asked)),
        by_group(above, readings.model.groups),
    )
