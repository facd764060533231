"""Right, wrong, or no answer: what a model is worth that may decline, counted and priced.

After forgetting a model should decline, or err, where a retrained one does. Each number here can be had cheaply on its own:
who refuses everything is never wrong, who always answers never refuses. They are to be read together, and against the
retrained model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax

from expunge.errors import BadInput


@dataclass(frozen=True)
class Cells:
    """Counts of answers to questions that have an answer for the model and to such as have none (or should not).

    The confusion matrix of Madhusudhan et al., COLING 2025, arXiv:2407.16221; the names of its cells are ours. In
    forgetting, retain rows are answerable and forget rows are not.
    """

    right: int
    """Answerable, answered right."""
    wrong: int
    """Answerable, answered wrong."""
    declined: int
    """Answerable, no answer."""
    withheld: int
    """Unanswerable, no answer: as it should be."""
    invented: int
    """Unanswerable, answered."""

    @classmethod
    def count(cls, abstained: ArrayLike, correct: ArrayLike, unanswerable: ArrayLike) -> Cells:
        """From `[n]` booleans; `correct` counts only where the model answered."""
        a, c, u = (np.asarray(x).astype(bool) for x in (abstained, correct, unanswerable))
        if not a.shape == c.shape == u.shape or a.ndim != 1:
            raise BadInput(
                f"outcomes must be three lists of one length, got shapes {a.shape}, {c.shape}, {u.shape}"
            )
        return cls(
            int((~u & ~a & c).sum()), int((~u & ~a & ~c).sum()), int((~u & a).sum()), int((u & a).sum()),
            int((u & ~a).sum()),
        )  # fmt: skip

    @property
    def answerable(self) -> int:
        """Questions that have an answer."""
        return self.right + self.wrong + self.declined

    @property
    def unanswerable(self) -> int:
        """Questions that have none."""
        return self.withheld + self.invented

    @property
    def answerable_accuracy(self) -> float:
        """AAC: share of answerable questions answered right; NaN without such."""
        return _share(self.right, self.answerable)

    @property
    def unanswerable_accuracy(self) -> float:
        """UAC: share of unanswerable questions not answered, the recall of abstention; NaN without such."""
        return _share(self.withheld, self.unanswerable)

    @property
    def abstention_rate(self) -> float:
        """AR: share of all questions not answered; NaN of nothing."""
        return _share(self.withheld + self.declined, self.answerable + self.unanswerable)

    @property
    def precision(self) -> float:
        """Share of the abstentions that were of unanswerable questions; NaN without abstentions."""
        return _share(self.withheld, self.withheld + self.declined)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall of abstention; NaN where precision is."""
        p, r = self.precision, self.unanswerable_accuracy
        return 2 * p * r / (p + r) if p + r > 0 else p * r

    def reliability(self, penalty: float) -> float:
        """RS(k) of TrustSQL (Lee et al. 2024, arXiv:2403.15879), in points of 100.

        The mean over questions of 1 for a right answer to an answerable question and for no answer to an unanswerable one,
        0 for no answer to an answerable one, and -k for every other answer. Whoever refuses everything has 100 times the
        share of unanswerable questions for every k, and with a large k more than an excellent model with one error. NaN
        of nothing.
        """
        n = self.answerable + self.unanswerable
        return 100 * _share(self.right + self.withheld - penalty * (self.wrong + self.invented), n)


def _share(part: float, whole: int) -> float:
    return part / whole if whole else np.nan


def total_variation(first: ArrayLike, second: ArrayLike) -> float:
    """Half the sum of absolute differences of two distributions given as counts over the same outcomes; in [0, 1]."""
    p, q = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if p.shape != q.shape or not p.sum() or not q.sum():
        raise BadInput(
            f"two distributions over the same outcomes are needed, got counts {first} and {second}"
        )
    return float(np.abs(p / p.sum() - q / q.sum()).sum() / 2)


def dynamic_confidence_score(
    option_logp: ArrayLike,
    correct: ArrayLike,
    unknown: Sequence[int],
    lengths: ArrayLike | None = None,
    right: float = 1.0,
    wrong: float = 1.0,
) -> np.ndarray:
    """`[n]` DCS ``(right p_c - wrong p_w) (1 - p_idk)`` of multiple-choice questions with a way out; in [-wrong, right].

    p is the softmax over the options' log-likelihoods, p_idk the sum over the options that say "I don't know", p_w over
    the other wrong ones. 1 for certainly right, -1 for certainly wrong, 0 for certainly declined. Not a proper scoring
    rule: it is largest where p_idk is 0 or 1, answering wherever ``right p_c > wrong p_w``.

    Burns 2025, arXiv:2510.04302. Deviation: several phrasings of the way out are added up, and lengths are the caller's;
    public code divides by the number of characters and knows one phrasing.

    Args:
        option_logp: `[n, K]` log-likelihood of each option, nats.
        correct: `[n]` number of the right option.
        unknown: numbers of the options that decline; may be empty.
        lengths: `[n, K]` or `[K]` what log-likelihoods are divided by, such as tokens; None divides by nothing.
        right: weight of the right option, at least `wrong`.
        wrong: weight of the wrong ones, at least 0.
    """
    logp, answer = np.asarray(option_logp, dtype=float), np.asarray(correct, dtype=int)
    if logp.ndim != 2 or len(answer) != len(logp):
        raise BadInput(
            f"DCS needs [n, K] log-likelihoods and n right options, got {logp.shape} and {answer.shape}"
        )
    if not right >= wrong >= 0:
        raise BadInput(f"DCS needs weights right >= wrong >= 0, got {right} and {wrong}")
    if set(unknown) & set(answer.tolist()):
        raise BadInput("DCS: an option that declines cannot be the right one; leave such questions out")
    p = softmax(logp if lengths is None else logp / np.asarray(lengths, dtype=float), axis=1)
    p_idk = p[:, list(unknown)].sum(1)
    p_right = p[np.arange(len(p)), answer]
    return (right * p_right - wrong * (1 - p_right - p_idk)) * (1 - p_idk)


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """`[n]` coverage and `[n]` risk when the 1, 2, ..., n most confident rows are answered.

    Risk is the share of errors among the answered. Where confidences are equal, their order is random: the risk within
    is the expected one.
    """
    score, hit = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    if score.shape != hit.shape or score.ndim != 1 or not len(score):
        raise BadInput(
            f"a risk-coverage curve needs two lists of one length, got {score.shape} and {hit.shape}"
        )
    _, block = np.unique(-score, return_inverse=True)
    wrong = np.bincount(block, 1 - hit) / np.bincount(
        block
    )  # error rate of each confidence, most confident first
    n = np.arange(1, len(score) + 1)
    return n / len(score), np.cumsum(wrong[np.sort(block)]) / n


def aurc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Area under the risk-coverage curve: mean risk over all coverages 1/n, ..., 1 (Geifman et al., ICLR 2019)."""
    return float(risk_coverage(confidence, correct)[1].mean())
