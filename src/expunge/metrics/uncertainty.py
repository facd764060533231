"""How sure a language model is that it does not know: the probability of declining, and how far apart its answers are.

Where a row was forgotten, a model should decline as often as the retrained one, guess as widely, and be as unsure of what it
says. Declining everything in one phrase is silence that is sure of itself: its answers have no volume, and on rows to keep
its DCS is about 0. Gibberish is wide everywhere. So nearly every value is to be matched, and to be read on retain rows too.

Not among the standard metrics, for they take more than a pass: five further answers to every question, or five samples. Ask
for them by name, as in ``metrics: [standard, refusal-probability, umpire]``.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy.special import softmax

from expunge.evidence import Evidence
from expunge.metrics.abstention import declined
from expunge.metrics.base import (
    Direction,
    Estimate,
    Readings,
    Undefined,
    decided,
    finite_values,
    mean_estimate,
    metric,
)
from expunge.stats.abstention import dynamic_confidence_score
from expunge.stats.umpire import incoherence as incoherence_of
from expunge.stats.umpire import volume_of

OPTIONS = ["loss", "perturbed_loss", "refusal_loss"]
WEIGHT = 1.0
"""Of incoherence beside volume, for all models alike: fitted to each, their values could not be compared."""
_WHERE = ["forget", "retain", "test", "holdout"]
_MATCH: dict[str, Direction] = {"forget": "match", "holdout": "match"}
_UMPIRE = "Lau et al. 2026, arXiv:2602.24195 (UMPIRE)"
_metric = partial(metric, splits=_WHERE, families=["causal_lm"], standard=False)


def options(evidence: Evidence) -> tuple[np.ndarray, Evidence]:
    """`[m, 1 + K + R]` mean ln p per token of the answer, the wrong answers (minus infinity where absent) and refusals.

    Of the rows that ask something.
    """
    refusal = evidence["refusal_loss"].reshape(len(evidence), -1)
    asked = np.asarray(~np.isnan(refusal).any(axis=1))
    if not asked.any():
        raise Undefined("the rows ask nothing that could be declined")
    rows = evidence.select(asked)
    right = finite_values(rows["loss"], "the loss of the answers")
    refused = finite_values(refusal[asked], "the loss of refusals")
    wrong = np.where(np.isnan(rows["perturbed_loss"]), np.inf, rows["perturbed_loss"]).reshape(len(rows), -1)
    return -np.concatenate([right[:, None], wrong, refused], axis=1), rows


@_metric(
    "refusal-probability",
    title="Probability of a refusal among the options",
    reads={("model", "*"): OPTIONS},
    direction={**_MATCH, "*": "lower"},
    unit="probability",
    low=0,
    high=1,
    source="Burns 2025, arXiv:2510.04302 (p of the option that declines)",
)
def refusal_probability(readings: Readings) -> Estimate:
    """Mean over rows of the probability of five refusals together, among these, the answer and its wrong variants.

    An option's likelihood is its geometric mean per token. Rows without wrong variants have the other options alone. It depends
    on how many options there are: compare models, not data sets. The t interval is over rows.
    """
    logp, rows = options(readings.model)
    n = rows["refusal_loss"].shape[1]
    p = softmax(logp, axis=1)[:, -n:].sum(1)
    return mean_estimate(p, rows, "the probability of a refusal")


@_metric(
    "dcs",
    title="Dynamic confidence score",
    reads={("model", "*"): OPTIONS},
    direction={**_MATCH, "*": "higher"},
    unit="score",
    low=-1,
    high=1,
    source="Burns 2025, arXiv:2510.04302",
)
def confidence_score(readings: Readings) -> Estimate:
    """Mean over rows of ``(p_answer - p_wrong) (1 - p_declined)``: 1 surely right, -1 surely wrong, 0 surely declined.

    Options are the answer, its wrong variants and five refusals, whose probabilities are added up; an option's likelihood is its
    geometric mean per token (public code: per character, and one refusal). Rows without wrong variants are left out. Not a
    proper scoring rule. The t interval is over rows.
    """
    logp, rows = options(readings.model)
    n = rows["refusal_loss"].shape[1]
    known = np.asarray(np.isfinite(logp[:, 1:-n]).any(axis=1))
    if not known.any():
        raise Undefined("the rows have no perturbed answers to compare with")
    declines = range(logp.shape[1] - n, logp.shape[1])
    score = dynamic_confidence_score(logp[known], np.zeros(known.sum(), dtype=int), list(declines))
    return mean_estimate(score, rows.select(known), "the score")


@_metric(
    "sampled-abstention-rate",
    title="Share of sampled answers that decline",
    reads={("model", "*"): ["sample_text"]},
    direction={**_MATCH, "*": "lower"},
    unit="share",
    low=0,
    high=1,
    source="Madhusudhan et al., COLING 2025, arXiv:2407.16221, of samples",
)
def sampled_abstention(readings: Readings) -> Estimate:
    """Mean over rows of the share of sampled answers that hold a phrase of declining, as `abstention-rate-text` reads them.

    A model may decline in its likeliest answer and answer in every third sample. The t interval is over rows.
    """
    texts = readings.model["sample_text"]
    decided(np.array([np.nan if any(text is None for text in said) else 0.0 for said in texts]))
    shares = np.array([np.mean([declined(text) for text in said]) for said in texts])
    return mean_estimate(shares, readings.model, "the share")


def volumes(evidence: Evidence) -> np.ndarray:
    """`[n]` semantic volume of each row's samples, nats."""
    cosines = finite_values(evidence["sample_similarity"], "similarity of answers")
    k = round(cosines.shape[1] ** 0.5)
    return np.array([volume_of(row.reshape(k, k)) for row in cosines])


def incoherences(evidence: Evidence) -> np.ndarray:
    """`[n]` incoherence of each row's samples, by geometric means per token."""
    logp = finite_values(evidence["sample_logp"], "the likelihood of a sample")
    # Of all tokens of an answer only the mean counts.
    per_token = logp / np.maximum(evidence["sample_tokens"], 1)
    return np.array([incoherence_of([[one] for one in row]) for row in per_token])


@_metric(
    "semantic-volume",
    title="Semantic volume of sampled answers",
    reads={("model", "*"): ["sample_similarity"]},
    direction="match",
    unit="nats",
    source=_UMPIRE,
)
def semantic_volume(readings: Readings) -> Estimate:
    """Mean over rows of ``logdet(E E^T + 1e-8 I) / (2k)``, E the k sampled answers' last hidden states at length 1.

    0 where answers are orthogonal, and far below where they repeat: a model that always refuses in the same words is at the
    lowest value there is. Embeddings are the model's own, which forgetting moves too. The t interval is over rows.
    """
    return mean_estimate(volumes(readings.model), readings.model, "semantic volume")


@_metric(
    "incoherence",
    title="Incoherence of sampled answers",
    reads={("model", "*"): ["sample_logp", "sample_tokens"]},
    direction="match",
    unit="share",
    low=0,
    high=1,
    source=_UMPIRE,
)
def incoherence(readings: Readings) -> Estimate:
    """Mean over rows and sampled answers of 1 - P, P the geometric mean of the answer's token probabilities.

    Small where the model finds what it says likely, whether it is right or not. The t interval is over rows.
    """
    return mean_estimate(incoherences(readings.model), readings.model, "incoherence")


@_metric(
    "umpire",
    title="Uncertainty of sampled answers",
    reads={("model", "*"): ["sample_similarity", "sample_logp", "sample_tokens"]},
    direction="match",
    unit="nats",
    source=_UMPIRE,
)
def umpire(readings: Readings) -> Estimate:
    """Mean over rows of semantic volume plus incoherence (weight 1 for all models): larger is less sure.

    Deviation: the paper fits the weight to each model, which makes models incomparable. The t interval is over rows.
    """
    values = volumes(readings.model) + WEIGHT * incoherences(readings.model)
    return mean_estimate(values, readings.model, "the uncertainty")
