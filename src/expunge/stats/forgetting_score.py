"""Forgetting score of the NeurIPS 2023 machine unlearning challenge: an epsilon per forgotten example, from many models.

Per example there are N outputs of unlearned models and N of retrained ones. An attacker who knows both samples says of an
output which side it is from, by a threshold or by an interval; the false-positive and false-negative rates of the
best such rule bound the epsilon of an (epsilon, delta) definition of unlearning from below (Triantafillou et al. 2024,
arXiv:2406.09073).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from expunge.errors import BadInput
from expunge.stats.klom import margins_of

DELTA = 1e-5
LARGEST = 50.0
"""Epsilon where the samples are separated completely."""
BUFFER = 2.0
"""How far the ends of attacking intervals may lie from those of the narrower sample, logits."""
NARROW = 0.01
"""Ratio of the samples' ranges below which they count as separated completely."""


def attack_epsilon(fpr: ArrayLike, fnr: ArrayLike, delta: float = DELTA) -> np.ndarray:
    """Epsilon that attacks with these error rates show, nats; shape of `fpr`.

    ``max( ln((1 - delta - FPR) / FNR), ln((1 - delta - FNR) / FPR), 0 )``; 50 where both rates are 0. NaN where exactly
    one is: with finitely many models such an attack shows no finite epsilon, and the challenge discards it. A leak that
    shows on one side only can therefore be missed.
    """
    fpr, fnr = np.broadcast_arrays(np.asarray(fpr, dtype=np.float64), np.asarray(fnr, dtype=np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        one, two = np.log((1 - delta - fpr) / fnr), np.log((1 - delta - fnr) / fpr)
    # The logarithm of a negative number: an attack worse than guessing, which shows nothing.
    found = np.maximum(np.nan_to_num(np.fmax(one, two), nan=0.0), 0.0)
    found = np.where((fpr == 0) != (fnr == 0), np.nan, found)
    return np.where((fpr == 0) & (fnr == 0), LARGEST, found)


def epsilons(unlearned: ArrayLike, retrained: ArrayLike, delta: float = DELTA) -> np.ndarray:
    """`[n]` largest epsilon of each example over all attacks on its outputs, nats.

    Attacks: every threshold, with the sample of larger median as the positive side; and, with the sample of smaller range
    inside, every interval that ends within 2 of its largest value and is as long as its range, give or take 2. 50 where
    one range is less than 1 % of the other. Both samples play the same part: exchanging them changes nothing.

    At most about ln(N - 1) short of complete separation, and biased upward as the largest of many estimates: two halves
    of the retrained models do not score 0. Deviation: the challenge takes thresholds and interval ends from a grid of
    0.01; here every one that separates the samples differently is tried, so that values are never smaller.

    Args:
        unlearned: `[N, n]` logit-scaled confidences ``ln p_y - ln(1 - p_y)`` of n examples under N models.
        retrained: `[N, n]` of as many retrained models.
        delta: of the (epsilon, delta) definition.
    """
    unlearned, retrained = margins_of("unlearned", unlearned), margins_of("retrained", retrained)
    if unlearned.shape != retrained.shape:
        raise BadInput(
            f"the unlearned models' outputs have shape {unlearned.shape} and the retrained models' {retrained.shape}; "
            "the score needs as many models on both sides, and the same examples"
        )
    return np.array([_epsilon(a, b, delta) for a, b in zip(unlearned.T, retrained.T, strict=True)])


def _epsilon(one: np.ndarray, two: np.ndarray, delta: float) -> float:
    narrow, wide = sorted((one, two), key=np.ptp)
    if np.ptp(wide) == 0:
        return 0.0 if narrow[0] == wide[0] else LARGEST
    if np.ptp(narrow) / np.ptp(wide) < NARROW:
        return LARGEST
    negative, positive = sorted((one, two), key=np.median)
    values = np.unique(np.concatenate([one, two]))
    by_threshold = attack_epsilon(1 - _below(negative, values), _below(positive, values), delta)
    # [i, j]: share of a sample from the i-th to the j-th value.
    inside = [np.subtract.outer(-_below(x, values), -_up_to(x, values)) for x in (narrow, wide)]
    tried = _intervals(values, narrow)
    by_interval = attack_epsilon(inside[1][tried], 1 - inside[0][tried], delta)
    return float(np.nanmax(np.concatenate([by_threshold, by_interval, [0.0]])))


def _intervals(values: np.ndarray, narrow: np.ndarray) -> np.ndarray:
    """`[K, K]` bool: whether some interval of the family holds exactly the i-th to j-th of K sorted values.

    Such an interval starts after the value before the i-th, and ends before the value after the j-th.
    """
    before, after = np.append(-np.inf, values[:-1]), np.append(values[1:], np.inf)
    top, width = narrow.max(), np.ptp(narrow)
    earliest, latest = np.maximum(values, top - BUFFER), np.minimum(after, top + BUFFER)
    long_enough = latest[None, :] - before[:, None] >= width - BUFFER
    short_enough = earliest[None, :] - values[:, None] <= width + BUFFER
    return np.triu(long_enough & short_enough & (earliest <= latest)[None, :])


def _below(sample: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.sort(sample), cuts, side="left") / len(sample)


def _up_to(sample: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.sort(sample), cuts, side="right") / len(sample)


def forgetting_quality(epsilon: ArrayLike, n_models: int) -> np.ndarray:
    """Points of each example: ``2^-floor(2 epsilon)``, 0 from ``ceil(ln(N - 1))`` on, which N models cannot resolve."""
    if n_models < 3:
        raise BadInput(f"{n_models} models resolve no epsilon; give at least 3 on each side")
    epsilon = np.asarray(epsilon, dtype=np.float64)
    return np.where(epsilon < math.ceil(math.log(n_models - 1)), 0.5 ** np.floor(2 * epsilon), 0.0)


def forgetting_score(unlearned: ArrayLike, retrained: ArrayLike, delta: float = DELTA) -> float:
    """Mean over examples of their points, in [0, 1]; arguments as of `epsilons`. Higher is better.

    The challenge multiplies it by the ratios of mean retain and test accuracy to those of the retrained models; see
    `final_score`.
    """
    return float(forgetting_quality(epsilons(unlearned, retrained, delta), len(np.asarray(unlearned))).mean())


def final_score(
    score: float, retain: float, test: float, retrained_retain: float, retrained_test: float
) -> float:
    """The challenge's score: forgetting, times mean retain and mean test accuracy as shares of the retrained models'."""
    if retrained_retain <= 0 or retrained_test <= 0:
        raise BadInput(
            f"the retrained models' accuracies are {retrained_retain} and {retrained_test}; shares of 0 do not exist"
        )
    return score * (retain / retrained_retain) * (test / retrained_test)
