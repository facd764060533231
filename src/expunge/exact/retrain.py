"""Retraining from scratch: exact, and the yardstick of everything else."""

from __future__ import annotations

from torch import nn

from expunge.families.models import clone
from expunge.methods.base import Method, Workplace
from expunge.methods.loop import fit
from expunge.problem import Problem


class Retrain(Method):
    """Train a fresh model on the retain set by the target's own recipe.

    The initial weights and the data order come from the run's seed, and differ from the target's; a fine-tuned model
    starts from the same pretrained weights. A retrained model that the problem has is handed out as it is.
    """

    name = "retrain"
    paper = "definition of exact unlearning; Cao & Yang, IEEE S&P 2015"
    kind = "exact"
    guarantee = "distributional"
    gradients = False
    needs = frozenset({"retain", "architecture", "recipe"})

    @classmethod
    def obstacles(cls, problem: Problem) -> list[str]:  # noqa: D102
        return [] if problem.retrained is not None else super().obstacles(problem)

    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:  # noqa: D102
        if problem.retrained is not None:
            return clone(problem.retrained).to(workplace.device)
        recipe = problem.recipe
        if recipe is None:
            raise AssertionError("checked by `needs`")
        # Another stream than the target's: a retrained model that shares its initial weights is not independent.
        init = workplace.seed if workplace.init is None else workplace.init
        fresh = problem.fresh_model(init + 7_919).to(workplace.device)
        return fit(problem, fresh, "retain", recipe, workplace)
