"""Estimators that forget by themselves: what they learned from the rows is taken out of them."""

from __future__ import annotations

from typing import Any

from torch import nn

from expunge.errors import BadInput
from expunge.families.fitted import FittedModel, estimator_class
from expunge.methods.base import Method, Workplace
from expunge.problem import Problem


def _class_of(problem: Problem) -> type[Any] | None:
    """The class of the problem's estimator; None where the model is no estimator."""
    if isinstance(problem.model, FittedModel):
        return type(problem.model.estimator)
    if problem.architecture is not None and problem.architecture.kind == "estimator":
        return estimator_class(problem.architecture.name)
    return None


class DecrementalRemoval(Method):
    """The estimator's own ``forget(ids)``: what the rows added to sums, inverses, lists or trees is taken out again.

    The estimators of `expunge.exact.estimators` keep what that takes, and end where fitting on the other rows ends: bit by bit
    (nearest neighbors, multinomial naive Bayes of counts, DaRE forests of an equal `random_state`), to 1e-8 (ridge and
    kernel ridge, Gaussian naive Bayes, nearest centroid, linear discriminants), or certified (epsilon, delta)
    (`CertifiedClassifier`). Their docstrings say how. The retain set is not read; the estimator has its rows inside, and
    is as sensitive as they are.

    Other estimators of scikit-learn cannot take anything back; ``retrain`` fits them again.
    """

    name = "decremental"
    paper = "Cao & Yang, IEEE S&P 2015; Schelter, CIDR 2020"
    kind = "exact"
    guarantee = "exact, as the estimator has it: bitwise, numeric (1e-8) or certified (epsilon, delta)"
    families = frozenset({"estimator"})
    needs = frozenset({"retain"})

    @classmethod
    def obstacles(cls, problem: Problem) -> list[str]:  # noqa: D102
        found = super().obstacles(problem)
        if found:
            return found
        kind = _class_of(problem)
        if kind is None or not hasattr(kind, "forget"):
            named = "this model" if kind is None else f"a {kind.__name__}"
            return [
                f"it needs an estimator that forgets by itself, which {named} does not; retrain fits it again"
            ]
        return cls.unfit(kind)

    @classmethod
    def unfit(cls, kind: type[Any]) -> list[str]:
        """Why it is not for this class of estimators that forget."""
        return []

    def promise(self, problem: Problem) -> str:
        """That of the problem's estimator."""
        kind = _class_of(problem)
        return self.guarantee if kind is None else str(kind.guarantee)

    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:  # noqa: D102
        if not isinstance(model, FittedModel):
            raise BadInput(f"method '{self.name}': a {type(model).__name__} is no estimator")
        inside = getattr(model.estimator, "rows_", None)
        if inside is None:
            raise BadInput(f"method '{self.name}': the estimator was fitted to nothing yet")
        before = len(inside)
        model.estimator.forget(problem.forget_ids)
        workplace.notes.append(
            f"{before - len(model.estimator.rows_)} of {before} rows left the {type(model.estimator).__name__}; "
            f"guarantee: {self.promise(problem)}"
        )
        return model


class Dare(DecrementalRemoval):
    """Deletion from a DaRE forest: counts along the path of a row fall, and a subtree grows again where another split is best.

    The target must be a DaRE forest (an estimator `dare`); what it samples is a function of its `random_state` and of the
    rows that are there, so the result is, bit for bit, the forest that is grown with this `random_state` on the
    retain set, and over random states has the law of a forest that never saw the rows. A note says how many rows were in
    subtrees that grew again. `expunge.exact.estimators.DaREForestClassifier` gives the definition and the deviations from the
    paper.
    """

    name = "dare"
    paper = "Brophy & Lowd, ICML 2021, arXiv:2009.05567"
    guarantee = "bitwise (equal random_state)"

    @classmethod
    def unfit(cls, kind: type[Any]) -> list[str]:  # noqa: D102
        from expunge.exact.estimators import DaREForestClassifier

        if issubclass(kind, DaREForestClassifier):
            return []
        return [f"it needs a DaRE forest, not a {kind.__name__}; 'decremental' forgets from that one"]

    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:  # noqa: D102
        made = super().produce(problem, model, workplace)
        if isinstance(made, FittedModel):
            forest = made.estimator
            workplace.notes.append(
                f"subtrees with {forest.regrown_} rows, over all {forest.n_estimators} trees, grew again"
            )
        return made
