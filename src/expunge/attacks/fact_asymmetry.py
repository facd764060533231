"""Asymmetry of facts: is what is forgotten from subject to object forgotten from object to subject, too?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from expunge.attacks.asking import Asked, Asker, batches, language_of, require_rows
from expunge.attacks.base import Attack, Measure, Scene
from expunge.metrics.base import Estimate, Undefined
from expunge.metrics.membership import hash_order
from expunge.parameters import param
from expunge.record import Score
from expunge.stats.intervals import clustered_bootstrap, t_interval

FEW_DISCORDANT = 25
"""Below so many facts that are recognized one way only McNemar's test is exact."""


class FactAsymmetry(Attack):
    """Ask for facts both ways: is the true statement likelier than `false` ones with another object?

    A fact has a subject (column `subject`), an object (`object`) and a relation (`relation`; without it all rows have one).
    *Forward*: the row's question, and its answer up to the object; false statements have objects of other rows of the
    relation there, none of them true of the subject. *Backward*: the row's `reversed_question`, or one made by
    `backward`, with the true or a false object in it, and the subject as the answer. A fact is recognized where the
    log-likelihood of the answer, its end left out, is strictly largest for the true object; chance is ``1 / (false +
    1)``. Choosing among statements knows no bias towards yes, and the subject's own likelihood is in all of them.

    - *asymmetry*: mean of recognized forward less backward; its p is McNemar's over facts recognized one way only: exact,
      mid-p, below 25 of them, chi-squared without correction from there on.
    - *direction gap*: what was forgotten forward, target's less the model's, minus the same backward. Its value to match is the
      retrained model's. Undefined where the target recognizes no more backward facts than chance (binomial, one-sided
      0.05): a model that never learned a fact backward, as small ones trained on forward questions only, cannot show what
      was forgotten there.

    Deviation: the paper has models verify statements by yes or no, which takes a model that follows instructions.
    """

    name = "fact-asymmetry"
    paper = "He et al., COLM 2025, arXiv:2503.22362"
    threat_model = (
        "log-likelihoods of answers; facts with subject and object; the target before forgetting for the gap"
    )
    access = "logits"
    families = frozenset({"causal_lm"})
    measures = (
        Measure(
            "fact-asymmetry-forward",
            "Share of forgotten facts that are recognized from subject to object. Interval: bootstrap over subjects.",
            "share", title="Facts recognized forward", low=0.0, high=1.0, margin=0.05,
        ),
        Measure(
            "fact-asymmetry-backward",
            "Share of forgotten facts that are recognized from object to subject. Interval: bootstrap over subjects.",
            "share", title="Facts recognized backward", low=0.0, high=1.0, margin=0.05,
        ),
        Measure(
            "fact-asymmetry-difference",
            "Recognized forward less backward, mean over facts. Interval: bootstrap over subjects.",
            "share", title="Asymmetry of facts", low=-1.0, high=1.0,
        ),
        Measure(
            "fact-asymmetry-p",
            "p of McNemar's test that as many facts are recognized forward only as backward only.",
            "p-value", title="Asymmetry of facts, p", low=0.0, high=1.0,
        ),
        Measure(
            "fact-asymmetry-gap",
            "Facts forgotten forward less facts forgotten backward, target's recognition less the model's, mean over facts. "
            "Interval: bootstrap over subjects.",
            "share", title="Direction gap of forgetting", low=-2.0, high=2.0, margin=0.1,
        ),
    )  # fmt: skip

    false: int = param(4, "false statements for each fact", source="ours", ge=1)
    subject: str = param("author", "column with the subject", source="ours")
    object: str = param("value", "column with the object", source="ours")
    relation: str = param("kind", "column with the relation", source="ours")
    backward: str = param(
        "Which {subject} has the {relation} {object}?",
        "how a reversed question is asked, where rows have no reversed_question",
        source="ours",
    )

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {"statements per fact": 2 * (self.false + 1)}

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        pairs = self.statements(scene)
        forward, backward = (self.recognized(scene, scene.model, asked) for asked in pairs)
        subjects = [one[0].id for one in pairs[0]]
        names = ("forward", "backward", "difference")
        made = [
            self.score(f"fact-asymmetry-{name}", _over(values, subjects))
            for name, values in zip(names, (forward, backward, forward - backward), strict=True)
        ]
        one_way = int(((forward == 1) & (backward == 0)).sum()), int(((forward == 0) & (backward == 1)).sum())
        made.append(self.score("fact-asymmetry-p", Estimate(mcnemar(*one_way), len(forward))))
        return [*made, self.gap(scene, pairs, forward, backward, subjects)]

    def gap(
        self,
        scene: Scene,
        pairs: tuple[list[list[Asked]], list[list[Asked]]],
        forward: np.ndarray,
        backward: np.ndarray,
        subjects: Sequence[str],
    ) -> Score:
        """The direction gap against the target."""
        if scene.problem.model is None:
            return self.undefined(
                "fact-asymmetry-gap", "the target was not given, from which something was forgotten"
            )
        before = [self.recognized(scene, scene.problem.model, asked) for asked in pairs]
        hits, n, chance = int(before[1].sum()), len(backward), 1 / (self.false + 1)
        if stats.binomtest(hits, n, chance, alternative="greater").pvalue >= 0.05:
            return self.undefined(
                "fact-asymmetry-gap",
                f"the target itself recognizes {hits} of {n} facts backward, no more than chance: nothing to forget there",
            )
        return self.score(
            "fact-asymmetry-gap", _over((before[0] - forward) - (before[1] - backward), subjects)
        )

    def statements(self, scene: Scene) -> tuple[list[list[Asked]], list[list[Asked]]]:
        """Forward and backward, for each fact the true statement and the false ones; the id is the subject's."""
        asker = Asker(language_of(scene.problem))
        facts = [row for row in require_rows(scene.problem, "forget") if self._is_fact(asker, row)]
        everything = [dict(row) for row in scene.problem.train.with_format(None)]
        found: tuple[list[list[Asked]], list[list[Asked]]] = ([], [])
        for row in facts:
            others = self._false_objects(row, everything)
            if len(others) < self.false:
                continue
            both = [
                [self._forward(asker, row, it) for it in (row[self.object], *others)],
                [self._backward(asker, row, it) for it in (row[self.object], *others)],
            ]
            if all(one is not None for asked in both for one in asked):
                for side, asked in zip(found, both, strict=True):
                    side.append([one for one in asked if one is not None])
        if not found[0]:
            raise Undefined(
                f"no forgotten row has a subject ('{self.subject}') and, in its answer, an object ('{self.object}') with "
                f"{self.false} other objects to confuse it with"
            )
        return found

    def _is_fact(self, asker: Asker, row: Mapping[str, Any]) -> bool:
        if not row.get(self.subject) or not row.get(self.object) or asker.column is None:
            return False
        # Where the object is the subject itself the statement has one direction only.
        same = str(row[self.object]).lower() == str(row[self.subject]).lower()
        return not same and str(row[self.object]).lower() in asker.answer(row).lower()

    def _false_objects(self, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
        kin = [r for r in rows if r.get(self.relation) == row.get(self.relation) and r.get(self.object)]
        true = {str(r[self.object]) for r in kin if r.get(self.subject) == row[self.subject]}
        names = sorted({str(r[self.object]) for r in kin} - true)
        order = hash_order([f"{row['id']} {name}" for name in names]) if names else []
        return [names[i] for i in order[: self.false]]

    def _forward(self, asker: Asker, row: Mapping[str, Any], thing: str) -> Asked | None:
        answer = asker.answer(row)
        place = answer.lower().rfind(str(row[self.object]).lower())
        said = asker.ask(row, answer=answer[:place] + str(thing))
        return None if said is None else _named(said, row[self.subject])

    def _backward(self, asker: Asker, row: Mapping[str, Any], thing: str) -> Asked | None:
        own, subject = row.get("reversed_question"), str(row[self.subject])
        question = (
            str(own).replace(str(row[self.object]), str(thing)) if own
            else self.backward.format(subject=self.subject, relation=row.get(self.relation, ""), object=thing)
        )  # fmt: skip
        said = asker.ask(row, question=question, answer=str(row.get("reversed_answer") or subject))
        return None if said is None else _named(said, subject)

    @torch.no_grad()
    def recognized(self, scene: Scene, model: nn.Module, asked: list[list[Asked]]) -> np.ndarray:
        """`[n]` 1 where the first statement of a fact is strictly the likeliest, else 0."""
        family, flat = language_of(scene.problem), [one for statements in asked for one in statements]
        model = model.to(scene.workplace.device).eval()
        logp = np.empty(len(flat))
        for which, batch in batches(family, flat):
            batch = family.without_ends(batch.to(scene.workplace.device))
            logp[which] = -family.nll(family.forward(model, batch), batch).double().cpu().numpy()
        by_fact = logp.reshape(len(asked), -1)
        return (by_fact[:, 0] > by_fact[:, 1:].max(1)).astype(np.float64)


def mcnemar(one: int, other: int) -> float:
    """Two-sided p of McNemar's test from both kinds of discordant pairs.

    >>> round(mcnemar(9, 2), 4)
    0.0386
    """
    n = one + other
    if n == 0:
        return 1.0
    if n < FEW_DISCORDANT:
        least = min(one, other)
        return (
            float(2 * stats.binom.cdf(least, n, 0.5) - stats.binom.pmf(least, n, 0.5))
            if one != other
            else 1.0
        )
    return float(stats.chi2.sf((one - other) ** 2 / n, 1))


def _named(asked: Asked, subject: Any) -> Asked:
    return Asked(str(subject), asked.words, asked.prompt, asked.truth, asked.completion)


def _over(values: np.ndarray, subjects: Sequence[str]) -> Estimate:
    interval = clustered_bootstrap(values, subjects) or t_interval(values, over="examples")
    return Estimate(float(values.mean()), len(values), interval)
