"""Conformal prediction sets: how many labels a model needs to be right as often as was promised.

Where calibration and test rows are exchangeable, sets hold the true label with probability 1 - alpha at least, whatever
the model. A forgotten class is not exchangeable with rows to keep: there sets describe, and promise nothing. Calibration
is of one model; after forgetting it has to be done anew.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from expunge.errors import BadInput


def threshold(scores: ArrayLike, alpha: float) -> float:
    """The k-th smallest of n calibration scores, ``k = ceil((n + 1) (1 - alpha))``; infinite where k > n."""
    ordered = np.sort(np.asarray(scores, dtype=float))
    if not 0 < alpha < 1:
        raise BadInput(f"alpha is the share of sets that may miss, between 0 and 1, got {alpha}")
    # 0.9 times 100 is 90.00000000000001 in floating point.
    k = math.ceil(round((len(ordered) + 1) * (1 - alpha), 9))
    return float(ordered[k - 1]) if k <= len(ordered) else math.inf


def lac_scores(probabilities: ArrayLike) -> np.ndarray:
    """`[n, C]` one minus the probability of each label (LAC: Sadinle, Lei & Wasserman, JASA 2019)."""
    return 1 - np.asarray(probabilities, dtype=float)


def aps_scores(probabilities: ArrayLike, rng: np.random.Generator) -> np.ndarray:
    """`[n, C]` probability of all likelier labels plus a uniform share of the label's own (APS: Romano et al., NeurIPS 2020).

    One uniform number per row.
    """
    p = np.asarray(probabilities, dtype=float)
    order = np.argsort(-p, axis=1, kind="stable")
    sorted_p = np.take_along_axis(p, order, 1)
    before = np.cumsum(sorted_p, 1) - sorted_p + rng.random((len(p), 1)) * sorted_p
    scores = np.empty_like(p)
    np.put_along_axis(scores, order, before, 1)
    return scores


def prediction_sets(
    calibration: ArrayLike,
    labels: ArrayLike,
    scores: ArrayLike,
    alpha: float = 0.1,
    *,
    by_class: bool = False,
) -> np.ndarray:
    """`[m, C]` bool: labels whose score is at most the calibrated threshold.

    Args:
        calibration: `[n, C]` scores of the calibration rows, by `lac_scores` or `aps_scores`.
        labels: `[n]` their true labels.
        scores: `[m, C]` scores of the rows that sets are wanted for.
        alpha: share of sets that may miss.
        by_class: a threshold for each label from the rows that have it, so that the promise holds class by class
            (Mondrian); a label with too few of them is in every set.
    """
    known, truth, asked = np.asarray(calibration, float), np.asarray(labels, int), np.asarray(scores, float)
    if known.ndim != 2 or asked.ndim != 2 or known.shape[1] != asked.shape[1] or len(truth) != len(known):
        raise BadInput(
            f"calibration and test scores must be [n, C] and [m, C], got {known.shape} and {asked.shape} with {len(truth)} labels"
        )
    of_truth = known[np.arange(len(known)), truth]
    if not by_class:
        return asked <= threshold(of_truth, alpha)
    return asked <= np.asarray([threshold(of_truth[truth == c], alpha) for c in range(known.shape[1])])
