"""Accuracy in the group that fares worst."""

from __future__ import annotations

import numpy as np

from expunge.metrics.base import Estimate, Readings, Undefined, decided, metric
from expunge.record import Interval
from expunge.stats.intervals import wilson

SMALLEST = 10
"""Rows that a group must have to count: the worst of many tiny groups is noise."""


@metric(
    "worst-group-accuracy",
    title="Worst-group accuracy",
    reads={("model", "*"): ["correct"]},
    splits=["retain", "test", "ood", "holdout"],
    direction="higher",
    unit="share",
    low=0.0,
    high=1.0,
    source="Sagawa et al., ICLR 2020, arXiv:1911.08731; Koh et al., ICML 2021, arXiv:2012.07421",
)
def worst_group_accuracy(readings: Readings) -> Estimate:
    """Smallest accuracy of any group: min over groups g of the share of rows of g that are classified correctly.

    Groups are the values of the group column, the classes where there is none; those with fewer than 10 rows are
    left out. `n` is the number of rows of all groups that count. The worst of several estimates lies below the
    worst of the true values on average; the interval allows for it: from the smallest lower to the smallest upper
    bound of Wilson intervals at level 1 - 0.05 / number of groups, which all hold at once with 95 %.
    """
    correct, groups = decided(readings.model["correct"]), readings.model.groups
    if groups is None:
        raise Undefined(f"the rows of '{readings.split}' have no groups")
    counts = {
        str(g): (int(correct[groups == g].sum()), int((groups == g).sum()))
        for g in np.unique(groups)
        if (groups == g).sum() >= SMALLEST
    }
    if not counts:
        raise Undefined(f"no group of '{readings.split}' has {SMALLEST} or more rows")
    level = 1 - 0.05 / len(counts)
    bounds = [found for hits, n in counts.values() if (found := wilson(hits, n, level)) is not None]
    return Estimate(
        min(hits / n for hits, n in counts.values()),
        sum(n for _, n in counts.values()),
        Interval(
            low=min(b.low for b in bounds),
            high=min(b.high for b in bounds),
            method="Wilson with Bonferroni's correction",
        ),
        {g: hits / n for g, (hits, n) in counts.items()},
    )
