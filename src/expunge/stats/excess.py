"""How far beyond the retrained models a number lies, and whether that is more than the margin.

With several seeds of a method the question is about means: two one-sided Welch tests (`equivalence`). With one model there is
no spread of its own, and the question is another: does it lie where one more retrained model would?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from expunge.errors import BadInput
from expunge.record import Interval
from expunge.stats.equivalence import ALPHA, Judgement, judge

FLOOR = 0.25
"""Smallest standard deviation of retrained models that is believed, in margins: three models that happen to agree do not show
that all would."""
RESOLUTION = 3.0
"""Where the prediction interval reaches farther than so many margins, lying within it says nothing."""


class Excess(NamedTuple):
    """What is known of a difference from retraining."""

    judgement: Judgement
    difference: float
    interval: Interval
    p_more: float
    """Of "the difference is at most the margin", one-sided."""
    p_less: float
    """Of "the difference is at least minus the margin", one-sided."""


def excess(values: Sequence[float], references: Sequence[float], margin: float) -> Excess | None:
    """Compare `values`, one per model, with `references`, one per retrained model; None where either side says too little.

    At least two references are needed. With several values: `equivalence.judge`, and the one-sided Welch tests beside it. With
    one value x and m references of mean r and standard deviation s (at least ``FLOOR * margin``), ``se = s sqrt(1 + 1/m)`` and t
    of m - 1 degrees of freedom:

    - different where ``|x - r|`` exceeds the margin by more than ``t(0.95) se``;
    - no larger difference where ``|x - r|`` is at most the margin or the half-width ``h = t(0.975) se`` of the prediction
      interval of a further retrained model, provided that h is at most ``RESOLUTION`` margins;
    - undecided otherwise. With two references it is that or different.

    The last but one is not an equivalence test: it says that the model is one that retraining might have given.
    """
    if not margin > 0 or not math.isfinite(margin):
        raise BadInput(f"the margin must be a number above 0, got {margin}")
    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(references, dtype=np.float64)
    if not len(ours) or len(theirs) < 2:
        return None
    if len(ours) > 1:
        outcome = judge(ours, theirs, margin)
        assert outcome.difference is not None and outcome.interval is not None  # two or more on each side
        parts = ours.var(ddof=1) / len(ours), theirs.var(ddof=1) / len(theirs)
        error = math.sqrt(sum(parts))
        df = (
            sum(parts) ** 2 / (parts[0] ** 2 / (len(ours) - 1) + parts[1] ** 2 / (len(theirs) - 1))
            if error
            else 1.0
        )
        return Excess(
            outcome.judgement,
            outcome.difference,
            outcome.interval,
            *_p(outcome.difference, margin, error, df),
        )
    difference, m = float(ours[0] - theirs.mean()), len(theirs)
    error = max(float(theirs.std(ddof=1)), FLOOR * margin) * math.sqrt(1 + 1 / m)
    half = float(stats.t.ppf(1 - ALPHA / 2, m - 1)) * error
    p_more, p_less = _p(difference, margin, error, m - 1)
    judgement: Judgement = "undecided"
    if min(p_more, p_less) < ALPHA:
        judgement = "different"
    elif abs(difference) <= max(margin, half) and half <= RESOLUTION * margin:
        judgement = "no larger difference"
    interval = Interval(
        low=difference - half,
        high=difference + half,
        level=1 - ALPHA,
        method=f"prediction from {m} retrained models",
    )
    return Excess(judgement, difference, interval, p_more, p_less)


def _p(difference: float, margin: float, error: float, df: float) -> tuple[float, float]:
    if error == 0:
        return float(difference <= margin), float(difference >= -margin)
    more, less = (difference - margin) / error, (-margin - difference) / error
    return float(stats.t.sf(more, df)), float(stats.t.sf(less, df))
