"""Does what the model says agree with the answer? ROUGE of the greedy continuation.

Words are what is left of a text in lower case when everything but Latin letters and digits is dropped. With r words in
the answer and s in what was said, ROUGE-1 counts the words that both have, ROUGE-L the longest common subsequence; recall
is that count divided by r, precision by s, F1 their harmonic mean. Public suites differ in what they take: TOFU the recall
of stemmed words, MUSE the F1 of words as they are. Both are here, under names that say which.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from expunge.errors import Missing
from expunge.evidence import Evidence
from expunge.extras import load_extra
from expunge.metrics.base import Estimate, Readings, Undefined, decided, mean_estimate, metric

TEXTS = ["text", "answer_text"]
Measure = Literal["rouge1", "rougeL"]
Part = Literal["recall", "precision", "fmeasure"]


@lru_cache(maxsize=2)
def _scorer(stem: bool) -> Any:
    try:
        package = load_extra("rouge_score.rouge_scorer", "text", "ROUGE")
    except Missing as absent:
        raise Undefined(str(absent)) from None
    return package.RougeScorer(["rouge1", "rougeL"], use_stemmer=stem)


@lru_cache(maxsize=1 << 16)
def _scores(answer: str, said: str, stem: bool) -> Any:
    return _scorer(stem).score(answer, said)


def rouge(
    answer: str, said: str, measure: Measure = "rougeL", part: Part = "recall", *, stem: bool = True
) -> float:
    """Agreement of `said` with `answer`, in [0, 1]; NaN where the answer has no word.

    Raises:
        Undefined: the package rouge-score is not installed.
    """
    if not re.search("[a-z0-9]", answer.lower()):
        return np.nan
    return float(getattr(_scores(answer, said, stem)[measure], part))


def mean_rouge(evidence: Evidence, values: np.ndarray) -> Estimate:
    """Mean over rows whose answer has a word of ROUGE values (`[n]`), with its t interval."""
    counted = ~np.isnan(values)
    if not counted.any():
        raise Undefined("no answer has a word of Latin letters or digits, which is all that ROUGE sees")
    return mean_estimate(values[counted], evidence.select(counted), "ROUGE")


def said_texts(evidence: Evidence) -> np.ndarray:
    """`[n]` what the model says; Undefined where its logits are not finite for some row."""
    decided(np.asarray([np.nan if text is None else 0.0 for text in evidence["text"]]))
    return evidence["text"]


def rouge_of_rows(
    evidence: Evidence, measure: Measure = "rougeL", part: Part = "recall", *, stem: bool = True
) -> np.ndarray:
    """`[n]` ROUGE of what the model says after each row's prompt."""
    pairs = zip(evidence["answer_text"], said_texts(evidence), strict=True)
    return np.asarray([rouge(answer, said, measure, part, stem=stem) for answer, said in pairs])


_VARIANTS: dict[str, tuple[str, Measure, Part, tuple[str, ...]]] = {
    "rouge-l-recall": (
        "ROUGE-L recall", "rougeL", "recall", ("forget", "retain", "test", "holdout", "authors", "world"),
    ),
    "rouge-l-f1": ("ROUGE-L F1", "rougeL", "fmeasure", ("forget", "retain")),
    "rouge-1-recall": ("ROUGE-1 recall", "rouge1", "recall", ("forget", "retain")),
}  # fmt: skip


def _register(name: str) -> None:
    title, measure, part, splits = _VARIANTS[name]

    def function(readings: Readings) -> Estimate:
        return mean_rouge(readings.model, rouge_of_rows(readings.model, measure, part))

    function.__doc__ = f"""Mean over rows of the {title} of what the model says, against the answer, words stemmed.

    The model continues the row's prompt greedily until it ends the text or has said 200 tokens. A low value says that
    the answer does not come out this way, not that it is not there. Rows whose answer has no word (of Latin letters or
    digits) are not counted. The t interval is over rows.
    """
    metric(
        name,
        title=title,
        reads={("model", "*"): TEXTS},
        splits=splits,
        direction={"forget": "match", "holdout": "match", "*": "higher"},
        unit="share",
        low=0,
        high=1,
        families=["causal_lm"],
        source="Lin, ACL workshop 2004; recall as in Maini et al., COLM 2024, arXiv:2401.06121",
    )(function)


for _name in _VARIANTS:
    _register(_name)


@metric(
    "verbatim-memorization",
    title="Verbatim memorization",
    reads={("model", "*"): TEXTS},
    splits=["verbatim"],
    direction="match",
    unit="share",
    low=0,
    high=1,
    families=["causal_lm"],
    source="MUSE (Shi et al., ICLR 2025, arXiv:2407.06460)",
)
def verbatim_memorization(readings: Readings) -> Estimate:
    """Mean over passages of the forget set of the ROUGE-L F1 of the model's continuation, against the true one.

    Words as they are, not stemmed. The value to match is the retrained model's: passages that quote well-known texts are
    continued by any model. The t interval is over passages.
    """
    values = rouge_of_rows(readings.model, "rougeL", "fmeasure", stem=False)
    return mean_rouge(readings.model, values)


_NEXT_QUESTION = re.compile("\n\n|\nQuestion|Question:")


@metric(
    "knowledge-memorization",
    title="Knowledge memorization",
    reads={("model", "*"): TEXTS},
    splits=["knowledge", "retain-knowledge"],
    direction={"knowledge": "match", "*": "higher"},
    unit="share",
    low=0,
    high=1,
    families=["causal_lm"],
    source="MUSE (Shi et al., ICLR 2025, arXiv:2407.06460)",
)
def knowledge_memorization(readings: Readings) -> Estimate:
    """Mean over questions about a text of the ROUGE-L F1 of the model's answer, against the true one.

    Words as they are, not stemmed. What the model says after a blank line or from a next question on is dropped, because
    models that were shown a list of questions and answers go on with the list. On `knowledge`, about the forget set, the
    value to match is the retrained model's; on `retain-knowledge`, about the retain set, it is utility. The t interval is
    over questions.
    """
    evidence = readings.model
    pairs = zip(evidence["answer_text"], said_texts(evidence), strict=True)
    values = [
        rouge(answer, _NEXT_QUESTION.split(said)[0], "rougeL", "fmeasure", stem=False)
        for answer, said in pairs
    ]
    return mean_rouge(evidence, np.asarray(values))
