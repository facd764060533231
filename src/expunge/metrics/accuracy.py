"""How often the most likely class is the label."""

from __future__ import annotations

from expunge.metrics.base import Estimate, Readings, by_group, decided, metric
from expunge.stats.intervals import wilson


@metric(
    "accuracy",
    title="Accuracy",
    reads={("model", "*"): ["correct"]},
    splits=["forget", "retain", "test", "ood", "holdout"],
    direction={"forget": "match", "*": "higher"},
    unit="share",
    low=0.0,
    high=1.0,
    source="UA = 1 - forget accuracy, RA, TA in Jia et al., NeurIPS 2023, arXiv:2304.04934",
)
def accuracy(readings: Readings) -> Estimate:
    """Share of examples whose most likely class is the label, in [0, 1].

    On `forget` the best value is that of the retrained model, not 0: a retrained model still gets right
    what it generalizes to, and an error above its own leaks which examples were forgotten. The interval is
    Wilson's, over examples. Groups: accuracy per class, or per value of the group column.
    """
    correct = decided(readings.model["correct"])
    successes = int(correct.sum())
    return Estimate(
        successes / len(correct),
        len(correct),
        wilson(successes, len(correct)),
        by_group(correct, readings.model.groups),
    )
