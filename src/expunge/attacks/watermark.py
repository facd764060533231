"""Ownership mark: does the owner still recognize the model after forgetting?"""

from __future__ import annotations

import numpy as np
from scipy.stats import binom

from expunge.attacks.base import Attack, Measure, Scene
from expunge.data.canaries import mark_in
from expunge.metrics.base import Estimate, decided
from expunge.problem import Problem
from expunge.record import Score
from expunge.stats.intervals import wilson


class Watermark(Attack):
    """Accuracy on trigger rows whose random labels only the owner knows.

    The mark was planted before training: inputs without meaning, with labels drawn uniformly from k classes by a secret
    key. A model that never saw it agrees with each label with probability 1/k at most, independently, whatever it
    answers: the number of hits is binomial, and the test exact without any control model. Where the mark is among the
    retained rows it should survive forgetting as it survives retraining; where it is part of the forget set it should
    vanish.

    It asks for hard labels only. Deviation from StealthMark, which marks medical segmentation by soft outputs whose
    hard decision does not change, and explains them by pictures: here the evidence is the labels.
    """

    name = "watermark"
    paper = "Adi et al., USENIX Security 2018, arXiv:1802.04633 (trigger set); question of Yu et al., 2026, arXiv:2601.17107"
    threat_model = "the owner: the secret key of the mark, and predicted classes"
    access = "text"
    families = frozenset({"classifier"})
    measures = (
        Measure(
            "watermark-accuracy",
            "Share of trigger rows that are answered with their secret label. Wilson's interval over rows.",
            "share",
            split="mark",
            title="Ownership mark recognized",
            low=0.0,
            high=1.0,
        ),
        Measure(
            "watermark-p-value",
            "Probability that a model without the mark answers at least as many trigger rows as expected: exact "
            "binomial tail with success probability 1/k.",
            "probability",
            split="mark",
            title="p-value of the ownership mark",
            low=0.0,
            high=1.0,
        ),
    )

    @classmethod
    def obstacles(cls, problem: Problem) -> list[str]:  # noqa: D102
        found = super().obstacles(problem)
        if mark_in(problem) is None:
            found.append("it needs an ownership mark that was planted before training (benchmark canaries)")
        return found

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {"queries per row": 1}

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        mark = mark_in(scene.problem)
        if mark is None:
            raise AssertionError("checked by `obstacles`")
        evidence = scene.evidence(mark.within, ["correct"])
        correct = evidence.select(np.isin(evidence.ids, mark.ids))["correct"]
        correct = decided(correct)
        n, hits = len(correct), int(correct.sum())
        return [
            self.score("watermark-accuracy", Estimate(hits / n, n, wilson(hits, n))),
            self.score("watermark-p-value", Estimate(p_value(hits, n, mark.classes), n)),
        ]


def p_value(hits: int, n: int, classes: int) -> float:
    """Probability of at least `hits` of `n` secret labels by chance, each drawn from `classes` classes.

    >>> f"{p_value(48, 50, 2):.1e}"
    '1.1e-12'
    """
    return float(binom.sf(hits - 1, n, 1 / classes))
