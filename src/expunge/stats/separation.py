"""How well one number per row tells two models apart: thresholds, error rates and what they bound.

The attacker sees a statistic of a row and says which of two models it came from: the unlearned one ("positive") or a
retrained one. At a threshold the error rates are FPR = share of the retrained model's values called unlearned and
FNR = share of the unlearned model's values called retrained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from expunge.errors import BadInput
from expunge.stats.epsilon import DELTA


@dataclass(frozen=True)
class Cut:
    """A threshold with the errors that it makes."""

    threshold: float
    above: bool
    """Whether values above the threshold, rather than those at or below it, are called unlearned."""
    fpr: float
    fnr: float

    @property
    def advantage(self) -> float:
        """TPR - FPR, in [-1, 1]."""
        return 1.0 - self.fnr - self.fpr


def epsilons(fpr: float, fnr: float, delta: float = DELTA) -> tuple[float, float]:
    """The two values below which (epsilon, delta)-indistinguishability is contradicted by these error rates, nats.

    ``ln((1 - delta - fpr) / fnr)`` and ``ln((1 - delta - fnr) / fpr)`` (Kairouz et al., ICML 2015); minus infinity where
    the numerator is not positive, infinite where only the denominator is 0.
    """
    if not (0 <= fpr <= 1 and 0 <= fnr <= 1):
        raise BadInput(f"error rates lie in 0 to 1, got fpr={fpr}, fnr={fnr}")
    return _log_ratio(1 - delta - fpr, fnr), _log_ratio(1 - delta - fnr, fpr)


def _log_ratio(above: float, below: float) -> float:
    if above <= 0:
        return -math.inf
    return math.inf if below == 0 else math.log(above / below)


def cuts(unlearned: np.ndarray, retrained: np.ndarray, above: bool) -> list[Cut]:
    """A cut for every threshold that gives another division of the pooled values, in increasing order."""
    pooled = np.unique(np.concatenate([unlearned, retrained]))
    thresholds = np.concatenate([[np.nextafter(pooled[0], -np.inf)], pooled])
    low_u = np.searchsorted(np.sort(unlearned), thresholds, side="right") / len(unlearned)
    low_r = np.searchsorted(np.sort(retrained), thresholds, side="right") / len(retrained)
    fpr, fnr = (1 - low_r, low_u) if above else (low_r, 1 - low_u)
    return [Cut(float(t), above, float(p), float(n)) for t, p, n in zip(thresholds, fpr, fnr, strict=True)]


def worst_cut(unlearned: np.ndarray, retrained: np.ndarray) -> Cut:
    """The threshold and direction with the largest TPR - FPR: the Kolmogorov-Smirnov distance of the two samples.

    Raises:
        BadInput: a side has no values, or values that are not finite.
    """
    for side, values in (("unlearned", unlearned), ("retrained", retrained)):
        if not len(values) or not np.isfinite(values).all():
            raise BadInput(f"the {side} model's values are {'not all finite' if len(values) else 'empty'}")
    every = [c for above in (True, False) for c in cuts(unlearned, retrained, above)]
    return max(every, key=lambda c: c.advantage)


def forgetting_quality(fpr: float, fnr: float, delta: float = DELTA) -> float:
    """``2^-epsilon`` of one threshold as the Unlearning Comparator computes it, in [0, 1]; 1 is indistinguishable.

    0 where no value is mistaken, 1 where one error rate is 1 - delta or more. epsilon is the *smaller* of the two logs,
    floored at 0, where the NeurIPS 2023 challenge takes the larger: read it as optimistic (Lee et al., IEEE TVCG 2026,
    arXiv:2508.12730).
    """
    if fpr == 0 and fnr == 0:
        return 0.0
    if fpr >= 1 - delta or fnr >= 1 - delta:
        return 1.0
    return 2.0 ** -max(0.0, min(epsilons(fpr, fnr, delta)))


def privacy_score(unlearned: np.ndarray, retrained: np.ndarray, delta: float = DELTA) -> float:
    """1 minus the largest attack score over thresholds and directions, in [0, 1]; 1 is indistinguishable from retraining.

    Attack score = 1 - `forgetting_quality`. Deviation from the publication: all thresholds that divide the values
    differently are tried, not a grid of 51, and values are not clipped, so that other statistics than the entropy of
    ten classes can be judged. One retrained model against another gives what can be reached.
    """
    every = [c for above in (True, False) for c in cuts(unlearned, retrained, above)]
    return min(forgetting_quality(c.fpr, c.fnr, delta) for c in every)
