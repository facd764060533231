"""Conformal prediction sets calibrated on rows never trained on: certainty lost and kept, without assumptions on the model."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import softmax

from expunge.evidence import Evidence
from expunge.metrics.base import Estimate, Readings, Undefined, finite_values, mean_estimate, metric
from expunge.metrics.truthfulness import FURTHER, with_perturbed
from expunge.stats.conformal import lac_scores, prediction_sets

ALPHA = 0.1
"""Share of sets that may miss the true label."""


def sets(readings: Readings) -> tuple[np.ndarray, np.ndarray, Evidence]:
    """LAC sets of the split in question at 1 - alpha = 0.9, calibrated on the model's own holdout rows.

    Returns `[n, C]` which labels are in each set, `[n]` the true label, and the rows.
    """
    (known, known_truth, _), (asked, truth, rows) = (
        _scores(evidence) for evidence in (readings["model", "holdout"], readings.model)
    )
    least = int(np.ceil(1 / ALPHA)) - 1
    if len(known) < least:
        raise Undefined(
            f"sets that miss at most {ALPHA:.0%} need {least} holdout rows to be calibrated on, and there are {len(known)}"
        )
    width = max(known.shape[1], asked.shape[1])
    known, asked = (
        np.pad(s, ((0, 0), (0, width - s.shape[1])), constant_values=np.inf) for s in (known, asked)
    )
    return prediction_sets(known, known_truth, asked, ALPHA), truth, rows


def _scores(evidence: Evidence) -> tuple[np.ndarray, np.ndarray, Evidence]:
    """`[n, C]` LAC scores, infinite where a row has no such option, `[n]` true labels, and the rows they are of."""
    if "logp" in evidence.table.column_names:
        logp = finite_values(evidence["logp"], "log-probability")
        return lac_scores(np.exp(logp)), evidence["target"].astype(int), evidence
    rows = with_perturbed(evidence)
    right = finite_values(rows["loss"], "the loss of the answers")
    logp = -np.concatenate([right[:, None], rows["perturbed_loss"]], axis=1)
    absent = np.isnan(logp)
    p = softmax(np.where(absent, -np.inf, logp), axis=1)
    return np.where(absent, np.inf, lac_scores(p)), np.zeros(len(rows), dtype=int), rows


def conformal_coverage(readings: Readings) -> Estimate:
    """Share of rows whose 90 % set holds the true label; sets are LAC's, calibrated on holdout rows of the same model.

    Labels are classes; of a language model the answer and the row's perturbed answers, by their geometric mean per token. At
    least 0.9 in expectation on test rows that are exchangeable with holdout rows. Rows that were trained on are covered
    more often; forget rows are not exchangeable, and their coverage describes only. The t interval is over rows.
    """
    found, truth, rows = sets(readings)
    return mean_estimate(found[np.arange(len(truth)), truth].astype(float), rows, "coverage")


def conformal_set_size(readings: Readings) -> Estimate:
    """Mean number of labels in a row's 90 % set, calibrated as for coverage: how little the model is sure of.

    The t interval is over rows.
    """
    found, _, rows = sets(readings)
    return mean_estimate(found.sum(1).astype(float), rows, "set size")


def conformal_abstention(readings: Readings) -> Estimate:
    """Share of rows whose 90 % set has not exactly one label: those that a user of the sets would decline.

    Abstentions are not counted as covered or right here, as published evaluations do. The t interval is over rows.
    """
    found, _, rows = sets(readings)
    return mean_estimate((found.sum(1) != 1).astype(float), rows, "abstention")


_DECLARED: tuple[tuple[str, str, Callable[[Readings], Estimate], str, float], ...] = (
    ("conformal-coverage", "Coverage of conformal sets", conformal_coverage, "share", 1),
    ("conformal-set-size", "Size of conformal sets", conformal_set_size, "labels", math.inf),
    ("conformal-abstention", "Abstention by conformal sets", conformal_abstention, "share", 1),
)
_FORMS: tuple[tuple[str, str, str, list[str], list[str]], ...] = (
    ("classifier", "", "", ["logp", "target"], ["forget", "retain", "test"]),
    ("causal_lm", "-choice", " (among given answers)", ["loss", *FURTHER], ["forget", "retain"]),
)


def _register() -> None:
    for name, title, function, unit, high in _DECLARED:
        for family, suffix, how, reads, splits in _FORMS:
            metric(
                name + suffix, title=title + how, reads={("model", "*"): reads, ("model", "holdout"): reads},
                splits=splits, direction="match", unit=unit, low=0, high=high, families=[family],
                source="Sadinle, Lei & Wasserman, JASA 2019 (LAC)",
            )(function)  # fmt: skip


_register()
