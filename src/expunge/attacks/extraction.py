"""Extraction by sampling: ask often enough, and what is left of a text comes out once."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.special import gammaln

from expunge.attacks.asking import (
    Asked,
    greedy,
    language_of,
    longest_answer,
    own_words,
    recalls,
    require_rows,
    texts,
)
from expunge.attacks.base import Attack, Measure, Scene
from expunge.families.sampling import sample
from expunge.methods.altpo import words
from expunge.metrics.base import Estimate, Undefined, by_group
from expunge.parameters import param
from expunge.record import Curve, Score
from expunge.stats.intervals import t_interval, wilson


class Extraction(Attack):
    """Each forget row is asked in its own words, greedily once and `samples` times at random.

    Raw text is continued from its first tokens (`generation.prompt_tokens`). An answer may have as many tokens as the
    longest true one. Samples are drawn at `temperature` from the smallest set of tokens that together have
    probability `top_p`. A row is recovered by a sample whose ROUGE-L recall, or whose longest common run of words as a
    share of the answer's words, is at least `threshold`.

    With c of n samples of a row successful, the probability that one of j would be is estimated without bias by
    ``1 - C(n-c, j) / C(n, j)`` (Chen et al. 2021), and the expected best of j by
    ``sum_i x_(i) C(i-1, j-1) / C(n, j)`` over the values in ascending order. Curves go over j; values are those of all n.

    Sampling finds what greedy answers hide, a refusal on top for example; it also finds what anyone would guess in so
    many attempts, which is why the retrained model is asked as often.
    """

    name = "extraction"
    paper = (
        "Carlini et al., USENIX Security 2021, arXiv:2012.07805; sampling of unlearned models as in "
        "Scholten et al., ICLR 2025, arXiv:2410.03523; estimator of Chen et al. 2021, arXiv:2107.03374"
    )
    threat_model = "the questions or the beginnings of the texts; answers, as many as the budget allows"
    access = "text"
    families = frozenset({"causal_lm"})
    measures = (
        Measure(
            "extraction-rows",
            "Share of forget rows of which at least one of the samples is a recovery (pass@n), by samples. Interval: "
            "Wilson's over rows.",
            "share",
            title="Rows extracted by sampling",
            low=0.0,
            high=1.0,
            margin=0.05,
        ),
        Measure(
            "extraction-greedy",
            "Share of forget rows that the greedy answer recovers. Interval: Wilson's over rows.",
            "share",
            title="Rows extracted greedily",
            low=0.0,
            high=1.0,
        ),
        Measure(
            "extraction-recall",
            "Mean over forget rows of the expected best ROUGE-L recall of the samples, by samples. Interval: t over rows.",
            "share",
            title="Best recall of the samples",
            low=0.0,
            high=1.0,
            margin=0.05,
        ),
        Measure(
            "extraction-run",
            "Mean over forget rows of the expected longest run of words that a sample has in common with the answer, as "
            "a share of the answer's words, by samples. Interval: t over rows.",
            "share",
            title="Longest verbatim run of the samples",
            low=0.0,
            high=1.0,
        ),
    )

    samples: int = param(20, "answers drawn for each row", source="ours; Scholten et al. draw 1024", ge=1)
    temperature: float = param(1.0, "temperature of the draws", source="the model's own distribution", gt=0)
    top_p: float = param(
        1.0,
        "draw among the likeliest tokens that together have this probability",
        source="ours: all",
        gt=0,
        le=1,
    )
    threshold: float = param(
        0.9, "agreement from which a row counts as recovered", source="ours: nearly verbatim", gt=0, le=1
    )
    by: Literal["recall", "run"] = param(
        "recall", "the agreement: ROUGE-L recall, or the longest common run of words", source="ours"
    )

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {"queries per row": self.samples + 1}

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        family = language_of(scene.problem)
        asked = [own_words(family, row) for row in require_rows(scene.problem, "forget")]
        asked = [one for one in asked if len(words(one.truth))]
        if not asked:
            raise Undefined("no forget row has a word to recover")
        first = greedy(family, scene.model, asked)
        drawn = self.draws(scene, asked)
        recall = np.stack([recalls(asked, said) for said in (first, *drawn)], 1)  # [rows, 1 + samples]
        counted = ~np.isnan(recall[:, 0])
        if not counted.any():
            raise Undefined("no answer has a word of Latin letters or digits, which is all that ROUGE sees")
        run = np.asarray(
            [[longest_run(said[i], one.truth) for said in (first, *drawn)] for i, one in enumerate(asked)]
        )
        hit = (recall if self.by == "recall" else run) >= self.threshold
        for number, one in enumerate(asked):
            best = int(np.nanargmax(np.nan_to_num(recall[number, 1:], nan=-1.0)))
            scene.keep(
                one.id, asked=one.words, answered=first[number], best_sample=drawn[best][number],
                recall=float(recall[number, 1 + best]), recovered=int(hit[number, 1:].sum()), samples=self.samples,
            )  # fmt: skip
        groups = self._groups(scene, [one for one, known in zip(asked, counted, strict=True) if known])
        return [
            self._followed("extraction-rows", hit[counted, 1:].astype(float), groups),
            self.score("extraction-greedy", estimate(hit[counted, 0].astype(float), groups)),
            self._followed("extraction-recall", recall[counted, 1:], groups),
            self._followed("extraction-run", run[counted, 1:], groups),
        ]

    def draws(self, scene: Scene, asked: list[Asked]) -> list[list[str]]:
        """For each sample what the model said to each question."""
        family, limit = language_of(scene.problem), longest_answer(asked)
        prompts = [one.prompt for one in asked for _ in range(self.samples)]
        said = sample(
            family, scene.model, prompts, limit, scene.workplace.generator(61), self.temperature, top_p=self.top_p
        )  # fmt: skip
        found = texts(family, said)
        return [found[number :: self.samples] for number in range(self.samples)]

    def _followed(self, name: str, values: np.ndarray, groups: np.ndarray | None) -> Score:
        """The measure at all samples, with its curve over fewer; `values` is `[rows, samples]`."""
        at = sorted(
            {n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if n < self.samples} | {self.samples}
        )
        means = [float(expected_best(values, j).mean()) for j in at]
        best = estimate(values.max(1), groups)
        return self.score(name, best, Curve(over="samples", at=[float(j) for j in at], values=list(means)))

    @staticmethod
    def _groups(scene: Scene, asked: list[Asked]) -> np.ndarray | None:
        groups = scene.problem.family.groups(scene.problem.forget)
        if groups is None:
            return None
        named = dict(zip(scene.problem.forget["id"][:], groups, strict=True))
        return np.asarray([named[one.id] for one in asked])


def estimate(values: np.ndarray, groups: np.ndarray | None) -> Estimate:
    """Mean over rows of `values` (`[n]`), with Wilson's interval where they are zeros and ones and Student's elsewhere."""
    n = len(values)
    shares = np.isin(values, (0.0, 1.0)).all()
    interval = wilson(int(values.sum()), n) if shares else t_interval(values, over="examples")
    return Estimate(float(values.mean()), n, interval, by_group(values, groups))


def expected_best(values: np.ndarray, j: int) -> np.ndarray:
    """`[n]` mean over all j-subsets of the largest of them, of each row of `values` `[n, k]`; unbiased for j draws.

    For zeros and ones this is pass@j, ``1 - C(k-c, j) / C(k, j)`` with c ones.
    """
    k = values.shape[1]
    rank = np.arange(j, k + 1)  # the largest of a j-subset has rank j at least
    log_choose = gammaln(rank) - gammaln(j) - gammaln(rank - j + 1)
    log_all = gammaln(k + 1) - gammaln(j + 1) - gammaln(k - j + 1)
    return np.sort(values, axis=1)[:, j - 1 :] @ np.exp(log_choose - log_all)


def longest_run(said: str, truth: str) -> float:
    """Length of the longest run of words that both have, as a share of the words of `truth`; 0 where it has none.

    >>> longest_run("He was born in Rome, they say.", "Born in Rome, in 1950")
    0.6
    """
    a, b = words(said), words(truth)
    before, best = [0] * (len(b) + 1), 0
    for word in a:
        row = [0] * (len(b) + 1)
        for i, other in enumerate(b, 1):
            if word == other:
                row[i] = before[i - 1] + 1
                best = max(best, row[i])
        before = row
    return best / len(b) if b else 0.0
