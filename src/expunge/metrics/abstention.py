"""Right, wrong, or no answer: whether a model declines where the retrained one does.

A classifier declines where its largest probability is below 0.8. A language model declines in words: its greedy answer
holds one of the phrases of `DECLINES`; otherwise it is right where its ROUGE-L recall of the true answer is at least 1/2, and
wrong elsewhere. An empty answer or gibberish is wrong, not an abstention. A list of phrases finds polite refusals and
misses evasions.

Retain rows count as answerable, forget rows as such that should not be answered; whether a retrained model declines on
forgotten rows, or guesses, is not for us to say, so that nearly every value here is to be matched. Declining is not
forgetting: what a model can be made to say is what attacks measure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from expunge.evidence import Evidence
from expunge.metrics.base import (
    Direction,
    Estimate,
    Readings,
    Reads,
    Role,
    Undefined,
    finite_values,
    mean_estimate,
    metric,
)
from expunge.metrics.rouge import TEXTS, rouge_of_rows
from expunge.stats.abstention import Cells, aurc, total_variation
from expunge.stats.intervals import wilson

CONFIDENT = 0.8
"""Probability from which a classifier counts as answering: the default of MediQ (Li et al., NeurIPS 2024)."""
RIGHT = 0.5
"""ROUGE-L recall from which an answer in words counts as right; ours."""
DECLINES = (
    "i don't", "i do not", "i can't", "i cannot", "i couldn't", "i could not", "i'm not", "i am not", "i wasn't", "i was not",
    "i haven't", "i have not", "i have no", "i've no", "i've got no", "i've heard nothing", "i have never", "i've never",
    "i never", "i lack", "i'm unable", "i am unable", "i'm unaware", "i am unaware", "i'm unsure", "i am unsure",
    "i'm afraid", "i am afraid", "i'm sorry", "i am sorry", "i wouldn't", "i would not", "i wish i", "i must admit",
    "i must confess", "i have to pass", "i'd rather not", "i would rather not", "i would prefer not", "i would have to guess",
    "i can only guess", "i decline", "sorry,", "apologies", "apologize", "unfortunately", "no idea", "no information",
    "no knowledge", "unknown to me", "unfamiliar to me", "new to me", "beyond what i", "beyond me", "beyond my", "outside my",
    "outside of my", "outside what i", "scope of what i", "not within my", "not part of my", "my knowledge", "my training",
    "what i know", "nothing i know", "nothing i can", "escapes me", "in the dark", "possible for me", "no way for me",
    "wrong of me", "known to me", "i simply", "nothing comes to mind", "isn't something i",
    "is not something i", "not something i",
)  # fmt: skip
"""Phrases, version 1, that begin at the beginning of a word; letters are made small and apostrophes straight before."""
_DECLINES = re.compile(r"\b(?:" + "|".join(map(re.escape, DECLINES)) + ")")

Form = Literal["classifier", "causal_lm"]

_READS: dict[Form, list[str]] = {"classifier": ["logp", "correct"], "causal_lm": TEXTS}


def declined(text: str) -> bool:
    """Whether an answer in words says that there is none.

    >>> declined("I'm sorry, but I have no information about this."), declined("She was born in Rome."), declined("")
    (True, False, False)
    """
    return _DECLINES.search(text.lower().replace("\u2019", "'")) is not None


def outcomes(evidence: Evidence) -> tuple[np.ndarray, np.ndarray, Evidence]:
    """`[n]` whether each row was declined, `[n]` whether it was answered right, and the rows that can be judged."""
    if "logp" in evidence.table.column_names:
        confidence = np.exp(finite_values(evidence["logp"], "log-probability").max(-1))
        abstained = confidence < CONFIDENT
        return abstained, ~abstained & (evidence["correct"] > 0), evidence
    recall = rouge_of_rows(evidence)
    judged = ~np.isnan(recall)
    if not judged.any():
        raise Undefined("no answer has a word of Latin letters or digits, which is all that ROUGE sees")
    kept = evidence.select(judged)
    abstained = np.asarray([declined(text) for text in kept["text"]])
    return abstained, ~abstained & (recall[judged] >= RIGHT), kept


def cells(readings: Readings, role: Role = "model") -> Cells:
    """The counts over retain (answerable) and forget rows (not)."""
    found = [outcomes(readings[role, split])[:2] for split in ("retain", "forget")]
    abstained, correct = (np.concatenate([pair[i] for pair in found]) for i in (0, 1))
    return Cells.count(abstained, correct, np.repeat([False, True], [len(pair[0]) for pair in found]))


def abstention_rate(readings: Readings) -> Estimate:
    """Share of rows that are declined: 1 minus coverage.

    On forget rows this is the accuracy on unanswerable questions (UAC of Madhusudhan et al.) if one holds that they should
    be declined; the value to match is the retrained model's. Wilson's interval over rows.
    """
    abstained, _, kept = outcomes(readings.model)
    return _share(abstained, kept)


def answerable_accuracy(readings: Readings) -> Estimate:
    """Share of all rows that are answered, and answered right (AAC).

    Unlike accuracy among the answered it cannot be had by answering little. Wilson's interval over rows.
    """
    _, correct, kept = outcomes(readings.model)
    return _share(correct, kept)


def selective_accuracy(readings: Readings) -> Estimate:
    """Share of the answered rows that are answered right; undefined where none is answered.

    To be read with the abstention rate, which says on how many rows it rests. Wilson's interval over answered rows.
    """
    abstained, correct, kept = outcomes(readings.model)
    if abstained.all():
        raise Undefined("every row was declined; there are no answers to judge")
    return _share(correct[~abstained], kept.select(~abstained))


def abstention_f1(readings: Readings) -> Estimate:
    """Harmonic mean of precision and recall of declining, forget rows being those to decline and retain rows those not to.

    Precision is undefined, and so is this, where nothing is declined.
    """
    found = cells(readings)
    if not found.withheld + found.declined:
        raise Undefined("nothing was declined")
    return Estimate(found.f1, found.answerable + found.unanswerable)


def reliability(penalty: float) -> Callable[[Readings], Estimate]:
    """RS(k) of the rows of one split."""

    def function(readings: Readings) -> Estimate:
        abstained, correct, kept = outcomes(readings.model)
        unanswerable = np.full(len(kept), readings.split in ("forget", "holdout"))
        found = Cells.count(abstained, correct, unanswerable).reliability(penalty)
        return Estimate(found, len(kept))

    function.__doc__ = f"""100 times the mean over rows of what answers are worth if an error costs {penalty:g} (RS of TrustSQL).

    Retain and test rows: +1 right, 0 declined, -{penalty:g} wrong. Forget and holdout rows, which a model cannot know:
    +1 declined, -{penalty:g} answered; a retrained model that guesses pays as much, so the value to match is its own.

    Deviation: TrustSQL pools both kinds of questions into one number, in which declining everything can come out exactly
    where an honest model does; here each split has its own.
    """
    return function


def outcome_distance(readings: Readings) -> Estimate:
    """Total variation between the shares of right, wrong and declined rows of the model and of the retrained model.

    On forget and on retain rows; the larger of the two. 0 where the model answers right, answers wrong and declines as
    often as the retrained one. Declining everything, or talking gibberish, may come near on forget rows and is far on
    retain rows.
    """
    found = []
    for split in ("forget", "retain"):
        counts = []
        for role in ("model", "retrained"):
            abstained, correct, _ = outcomes(readings[role, split])
            counts.append([correct.sum(), (~correct & ~abstained).sum(), abstained.sum()])
        found.append(total_variation(*counts))
    return Estimate(max(found), len(readings["model", "forget"]) + len(readings["model", "retain"]))


def _share(hits: np.ndarray, kept: Evidence) -> Estimate:
    n, found = len(hits), mean_estimate(hits.astype(float), kept, "the outcome")
    return Estimate(found.value, n, wilson(int(hits.sum()), n), found.groups)


_EVERYWHERE = ("forget", "retain", "test", "holdout")
_AS_RETRAINED: dict[str, Direction] = {"forget": "match", "holdout": "match"}
_BOTH: Sequence[tuple[Role, str]] = (("model", "retain"), ("model", "forget"))
_SOURCE = "Madhusudhan et al., COLING 2025, arXiv:2407.16221"
_TRUST = "Lee et al. 2024, arXiv:2403.15879 (TrustSQL)"

_DECLARED: list[tuple[str, str, Callable[[Readings], Estimate], Sequence[tuple[Role, str]], Sequence[str],
                      dict[str, Direction], str, float, float, str]] = [
    ("abstention-rate", "Abstention rate", abstention_rate, [("model", "*")], _EVERYWHERE,
     {**_AS_RETRAINED, "*": "lower"}, "share", 0, 1, _SOURCE),
    ("answerable-accuracy", "Accuracy, abstentions counted as errors", answerable_accuracy, [("model", "*")],
     ("retain", "test"), {"*": "higher"}, "share", 0, 1, _SOURCE),
    ("selective-accuracy", "Accuracy among the answered", selective_accuracy, [("model", "*")], _EVERYWHERE,
     {**_AS_RETRAINED, "*": "higher"}, "share", 0, 1, "El-Yaniv & Wiener, JMLR 2010"),
    ("abstention-f1", "F1 of abstention", abstention_f1, _BOTH, ("forget",), {"*": "match"}, "F1", 0, 1, _SOURCE),
    ("reliability-1", "Reliability, an error costs 1", reliability(1), [("model", "*")], _EVERYWHERE,
     {**_AS_RETRAINED, "*": "higher"}, "points", -100,
     100, _TRUST),
    ("reliability-10", "Reliability, an error costs 10", reliability(10), [("model", "*")], _EVERYWHERE,
     {**_AS_RETRAINED, "*": "higher"}, "points",
     -1000, 100, _TRUST),
    ("outcome-distance", "Distance of outcomes to retrained", outcome_distance,
     [*_BOTH, ("retrained", "retain"), ("retrained", "forget")], ("forget",), {"*": "lower"}, "total variation", 0, 1,
     "ours, of the counts of Madhusudhan et al., COLING 2025, arXiv:2407.16221"),
]  # fmt: skip


_FORMS: tuple[tuple[Form, str, str], ...] = (
    ("classifier", "", "confidence"),
    ("causal_lm", "-text", "in words"),
)


def _register() -> None:
    for name, title, function, where, splits, direction, unit, low, high, source in _DECLARED:
        for family, suffix, how in _FORMS:
            reads: Reads = dict.fromkeys(where, _READS[family])
            metric(
                name + suffix, title=f"{title} ({how})", reads=reads, splits=splits, direction=direction, unit=unit, low=low,
                high=high, families=[family], source=source,
            )(function)  # fmt: skip


_register()


@metric(
    "aurc",
    title="Area under the risk-coverage curve",
    reads={("model", "*"): ["logp", "correct"]},
    splits=["retain", "test"],
    direction="lower",
    unit="share",
    low=0.0,
    high=1.0,
    families=["classifier"],
    source="Geifman et al., ICLR 2019, arXiv:1805.08206",
)
def area_under_risk_coverage(readings: Readings) -> Estimate:
    """Mean over coverages 1/n, 2/n, ..., 1 of the error rate among the most confident rows.

    Confidence is the largest class probability; rows of equal confidence count as in random order. Small where errors are
    few, or where the model is unsure of them.
    """
    confidence = finite_values(readings.model["logp"], "log-probability").max(-1)
    return Estimate(aurc(confidence, readings.model["correct"]), len(confidence))
