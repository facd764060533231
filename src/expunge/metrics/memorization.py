"""How much of a given text a language model has stored: probability, exact memorization, extraction strength."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from expunge.evidence import Evidence
from expunge.metrics.base import Estimate, Readings, Undefined, by_group, decided, mean_estimate, metric
from expunge.stats.intervals import t_interval

SPLITS = ("forget", "retain", "test", "holdout")


def answer_tokens(evidence: Evidence, quantity: str) -> list[np.ndarray]:
    """One array per row of a token-level quantity, without the end-of-sequence token where a row ends with one.

    A model that knows nothing of a text may still know that sentences end. Public code drops the last token whatever it
    is, which loses a real one where no end-of-sequence token was appended.
    """
    return [
        values[:-1] if ends else values
        for values, ends in zip(evidence[quantity], evidence["ends"], strict=True)
    ]


def exact_memorization(correct: np.ndarray) -> float:
    """Share of a text's tokens (`[T]` of 0 and 1) that are the most likely ones given the true tokens before."""
    return float(np.mean(correct)) if len(correct) else np.nan


def extraction_strength(correct: np.ndarray) -> float:
    """Share of a text's tokens (`[T]` of 0 and 1) that need not be given: 1 - k/T.

    k is the smallest number of leading tokens after which all others are predicted right, T where there is none; so 1
    where everything is predicted and 0 where the last token is not.
    """
    wrong = np.flatnonzero(np.asarray(correct) == 0)
    if not len(correct) or np.isnan(correct).any():
        return np.nan
    return 1.0 - (wrong[-1] + 1) / len(correct) if len(wrong) else 1.0


def published_extraction_strength(correct: np.ndarray) -> float:
    """As public code has it: never below 1/T where a text has tokens, and 0 where it has none."""
    return max(extraction_strength(correct), 1 / len(correct)) if len(correct) else 0.0


@metric(
    "probability",
    title="Probability of the answer",
    reads={("model", "*"): ["loss"]},
    splits=SPLITS,
    direction={"forget": "match", "holdout": "match", "*": "higher"},
    unit="probability",
    low=0,
    high=1,
    families=["causal_lm"],
    source="Maini et al., COLM 2024, arXiv:2401.06121",
)
def probability(readings: Readings) -> Estimate:
    """Mean over rows of exp(-loss), the loss being the mean over the completion's tokens, the end included.

    The geometric mean of the tokens' probabilities: the same for answers of any length, and not the probability of the
    whole answer. The t interval is over rows.
    """
    return mean_estimate(np.exp(-readings.model["loss"]), readings.model, "probability")


def _decided(evidence: Evidence) -> None:
    # A sum is NaN where one of its terms is, and 0 of nothing.
    decided(np.asarray([row.sum() for row in evidence["token_correct"]]))


def _mean_over_texts(readings: Readings, score: Callable[[np.ndarray], float]) -> Estimate:
    evidence = readings.model
    _decided(evidence)
    values = np.asarray([score(row) for row in answer_tokens(evidence, "token_correct")])
    counted = np.isfinite(values)
    if not counted.any():
        raise Undefined("no row has a token besides the end of the sequence")
    kept = evidence.select(counted)
    return Estimate(
        float(values[counted].mean()),
        int(counted.sum()),
        t_interval(values[counted], over="examples"),
        by_group(values[counted], kept.groups),
    )


@metric(
    "exact-memorization",
    title="Exact memorization",
    reads={("model", "*"): ["token_correct", "ends"]},
    splits=SPLITS,
    direction={"forget": "match", "holdout": "match", "*": "higher"},
    unit="share",
    low=0,
    high=1,
    families=["causal_lm"],
    source="Tirumala et al., NeurIPS 2022, arXiv:2205.10770",
)
def mean_exact_memorization(readings: Readings) -> Estimate:
    """Mean over rows of the share of answer tokens that are the most likely ones given the true tokens before.

    The end-of-sequence token is left out; rows that consist of nothing else are not counted. The t interval is over
    rows.
    """
    return _mean_over_texts(readings, exact_memorization)


@metric(
    "extraction-strength",
    title="Extraction strength",
    reads={("model", "*"): ["token_correct", "ends"]},
    splits=SPLITS,
    direction={"forget": "match", "holdout": "match", "*": "higher"},
    unit="share",
    low=0,
    high=1,
    families=["causal_lm"],
    source="Carlini et al., USENIX Security 2021, arXiv:2012.07805; as in OpenUnlearning, arXiv:2506.12618",
)
def mean_extraction_strength(readings: Readings) -> Estimate:
    """Mean over rows of 1 - k/T: the share of the answer that need not be given before the model says the rest right.

    k is the smallest number of true leading tokens after which every later token is the most likely one. Without the
    end-of-sequence token. 0 where the last token is wrong; public code gives 1/T there. The t interval is over rows.
    """
    return _mean_over_texts(readings, extraction_strength)


@metric(
    "extraction-strength-openunlearning",
    title="Extraction strength (as in OpenUnlearning)",
    reads={("model", "*"): ["token_correct"]},
    splits=["forget", "retain"],
    direction={"forget": "match", "holdout": "match", "*": "higher"},
    unit="share",
    low=0,
    high=1,
    families=["causal_lm"],
    source="OpenUnlearning (Dorna et al. 2025, arXiv:2506.12618)",
)
def mean_published_extraction_strength(readings: Readings) -> Estimate:
    """Mean over rows of extraction strength as public code computes it, for comparison with published tables.

    It differs from `extraction-strength` in two ways: where the last token is wrong a text of T tokens counts 1/T instead
    of 0, and the last token is always left out, be it the end of the sequence or not. The t interval is over rows.
    """
    evidence = readings.model
    _decided(evidence)
    values = [published_extraction_strength(row[:-1]) for row in evidence["token_correct"]]
    return mean_estimate(np.asarray(values), evidence, "extraction strength")
