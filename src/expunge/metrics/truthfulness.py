"""Does a language model still tell the right answer from wrong ones of the same form?"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from expunge.evidence import Evidence
from expunge.metrics.base import Estimate, Readings, Undefined, finite_values, mean_estimate, metric

FURTHER = ["paraphrase_loss", "perturbed_loss"]


def truth_ratios(evidence: Evidence) -> np.ndarray:
    """`[n]` R = P_wrong / P_right of each row.

    P_right = exp(-loss) of the paraphrased answer (of the answer itself where a row has no paraphrase), P_wrong the
    GEOMETRIC mean of exp(-loss) over the perturbed answers, as in the authors' evaluation code; the paper's formula has
    the arithmetic mean.

    Raises:
        Undefined: the rows have no perturbed answers.
    """
    wrong = _perturbed(evidence)
    right = finite_values(evidence["paraphrase_loss"], "the loss of the paraphrased answers")
    # Ratios of probabilities that underflow must not become 0/0: the difference of the losses is exact.
    return np.exp(np.minimum(right - np.nanmean(wrong, axis=1), 700.0))


def _perturbed(evidence: Evidence) -> np.ndarray:
    """`[n, K]` losses; every row has one at least."""
    wrong = evidence["perturbed_loss"].astype(np.float64)
    if np.isnan(wrong).all(axis=1).any():
        raise Undefined("the rows have no perturbed answers to compare with")
    return wrong


@metric(
    "truth-ratio",
    title="Truth ratio",
    reads={("model", "*"): FURTHER},
    splits=["forget", "retain", "authors", "world", "holdout"],
    direction={"forget": "match", "holdout": "match", "*": "higher"},
    unit="ratio",
    low=0,
    high=1,
    families=["causal_lm"],
    source="Maini et al., COLM 2024, arXiv:2401.06121",
)
def truth_ratio(readings: Readings) -> Estimate:
    """R = P_wrong / P_right per row; on forget and holdout the mean of min(R, 1/R), elsewhere of max(0, 1 - R).

    P_right is exp(-mean token loss) of the paraphrased answer, P_wrong the geometric mean of that over the perturbed
    answers (the paper's formula has the arithmetic mean, its code the geometric). On forget 1 says that right and wrong
    answers are equally likely, but the value to match is the retrained model's, which is not 1. Elsewhere 1 says that wrong
    answers are impossible. The t interval is over rows.
    """
    ratios = truth_ratios(readings.model)
    if readings.split in ("forget", "holdout"):
        return mean_estimate(
            np.minimum(ratios, 1 / np.maximum(ratios, 1e-300)), readings.model, "the truth ratio"
        )
    return mean_estimate(np.maximum(0.0, 1 - ratios), readings.model, "the truth ratio")


@metric(
    "choice-probability",
    title="Probability among choices",
    reads={("model", "*"): ["loss", "perturbed_loss"]},
    splits=["authors", "world"],
    direction="higher",
    unit="probability",
    low=0,
    high=1,
    families=["causal_lm"],
    source="Maini et al., COLM 2024, arXiv:2401.06121",
)
def choice_probability(readings: Readings) -> Estimate:
    """Mean over rows of P(answer) / (P(answer) + sum of P(wrong answers)), P = exp(-mean token loss).

    As if the model had to choose. The t interval is over rows.
    """
    evidence = readings.model
    right = finite_values(evidence["loss"], "the loss of the answers")
    # Relative to the answer, in which form nothing underflows.
    odds = np.nansum(np.exp(np.minimum(right[:, None] - _perturbed(evidence), 700.0)), axis=1)
    return mean_estimate(1 / (1 + odds), evidence, "the probability among choices")


@metric(
    "forget-quality",
    title="Forget quality (KS p-value)",
    reads={(role, "forget"): FURTHER for role in ("model", "retrained")},
    splits=["forget"],
    direction="higher",
    unit="p-value",
    low=0,
    high=1,
    families=["causal_lm"],
    source="Maini et al., COLM 2024, arXiv:2401.06121",
)
def forget_quality(readings: Readings) -> Estimate:
    """p-value of the two-sample Kolmogorov-Smirnov test between the truth ratios of the model and of the retrained model.

    Both on the forget rows, two-sided. High means that the test finds no difference, which with few rows it hardly ever
    does: a p-value is no measure of size. `truth-ratio-distance` is the statistic itself.
    """
    found = _kolmogorov_smirnov(readings)
    return Estimate(float(found.pvalue), len(readings.model))


@metric(
    "truth-ratio-distance",
    title="Distance of truth ratios (KS statistic)",
    reads={(role, "forget"): FURTHER for role in ("model", "retrained")},
    splits=["forget"],
    direction="lower",
    unit="KS distance",
    low=0,
    high=1,
    families=["causal_lm"],
    source="Maini et al., COLM 2024, arXiv:2401.06121",
)
def truth_ratio_distance(readings: Readings) -> Estimate:
    """Largest difference between the distribution functions of the truth ratios of the model and the retrained model.

    On the forget rows. 0 where the distributions are the same; does not shrink or grow with the number of rows, as the
    p-value does.
    """
    found = _kolmogorov_smirnov(readings)
    return Estimate(float(found.statistic), len(readings.model))


def _kolmogorov_smirnov(readings: Readings) -> Any:
    model, retrained = readings.paired("retrained")
    return stats.ks_2samp(truth_ratios(model), truth_ratios(retrained))
