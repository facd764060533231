"""Conformal prediction sets calibrated on rows never trained on: certainty lost and kept, without assumptions on the model."""

from __future__ import annotations

from functools import partial

import numpy as np

from expunge.metrics.base import Estimate, Readings, Undefined, finite_values, mean_estimate, metric
from expunge.stats.conformal import lac_scores, prediction_sets

ALPHA = 0.1
"""Share of sets that may miss the true label."""

_conformal = partial(
    metric,
    reads={("model", "*"): ["logp", "target"], ("model", "holdout"): ["logp", "target"]},
    splits=["forget", "retain", "test"],
    families=["classifier"],
    source="Sadinle, Lei & Wasserman, JASA 2019 (LAC)",
)


def sets(readings: Readings) -> np.ndarray:
    """`[n, C]` LAC sets of the split in question, at 1 - alpha = 0.9, calibrated on the model's own holdout rows."""
    known = readings["model", "holdout"]
    least = int(np.ceil(1 / ALPHA)) - 1
    if len(known) < least:
        raise Undefined(
            f"sets that miss at most {ALPHA:.0%} need {least} holdout rows to be calibrated on, and there are {len(known)}"
        )
    scores = [
        lac_scores(np.exp(finite_values(e["logp"], "log-probability"))) for e in (known, readings.model)
    ]
    return prediction_sets(scores[0], known["target"], scores[1], ALPHA)


@_conformal(
    "conformal-coverage", title="Coverage of conformal sets", direction="match", unit="share", low=0, high=1
)
def conformal_coverage(readings: Readings) -> Estimate:
    """Share of rows whose 90 % set holds the true label; sets are LAC's, calibrated on holdout rows of the same model.

    At least 0.9 in expectation on test rows that are exchangeable with them. Rows that were trained on are covered more
    often; forget rows are not exchangeable, and their coverage describes only. The t interval is over rows.
    """
    found, truth = sets(readings), readings.model["target"].astype(int)
    return mean_estimate(found[np.arange(len(truth)), truth].astype(float), readings.model, "coverage")


@_conformal("conformal-set-size", title="Size of conformal sets", direction="match", unit="labels", low=0)
def conformal_set_size(readings: Readings) -> Estimate:
    """Mean number of labels in a row's 90 % set, calibrated as for coverage: how little the model is sure of.

    The t interval is over rows.
    """
    return mean_estimate(sets(readings).sum(1).astype(float), readings.model, "set size")


@_conformal(
    "conformal-abstention",
    title="Abstention by conformal sets",
    direction="match",
    unit="share",
    low=0,
    high=1,
)
def conformal_abstention(readings: Readings) -> Estimate:
    """Share of rows whose 90 % set has not exactly one label: those that a user of the sets would decline.

    Abstentions are not counted as covered or right here, as published evaluations do. The t interval is over rows.
    """
    return mean_estimate((sets(readings).sum(1) != 1).astype(float), readings.model, "abstention")
