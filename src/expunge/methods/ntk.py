"""NTK scrubbing: the difference that the forget set makes to the linearized model."""

from __future__ import annotations

from typing import Literal

from torch import nn

from expunge.find.linearized import Linearized, head_parameters
from expunge.methods.base import Edit, Workplace
from expunge.parameters import param
from expunge.problem import Problem, Training


class NTK(Edit):
    """Add the difference between the linearized model trained on the retain rows and on all rows.

    With f linearized at the target, ``f(x; theta + u) ~ f(x; theta) + J(x) u``, and w_S the minimizer u of
    ``mean_S -ln p(y | x) + decay / 2 ||theta + u||^2``: ``theta <- theta + scale * (w_retain - w_train)``. w_S
    is found by `steps` Gauss-Newton steps, in the space of weights or, with the tangent kernel ``J J'``, in
    that of outputs, whichever is smaller.

    For a linear model under squared error one step is exact: a target that was trained to convergence becomes
    the ridge solution on the retain rows, whatever the forget set. For a linear classifier one step is Newton's
    and more of them reach the retrained solution. For a network it is as good as the linearization. Where a
    classifier fits its data, p (1 - p) and with it the curvature vanish at the target, so that one step moves
    too little: there the head alone with many steps (`weights` = "head", `steps` = 30) forgets more.

    Deviations: the loss is the family's likelihood instead of squared error throughout (the same for
    regressors); weights decay to zero, as they do in training, instead of to their initial values, which a
    deletion request comes without; and `scale` is given, where the paper predicts it from the initial values.
    Batch-norm statistics stay as they are.

    Cost: Jacobians of all training rows, n x outputs x weights x 8 bytes; for large models vary the head.
    """

    name = "ntk"
    paper = "Golatkar et al., ECCV 2020, arXiv:2003.02960"
    families = frozenset({"classifier", "regressor"})
    needs = frozenset({"retain", "labels"})

    weights: Literal["all", "head"] = param(
        "all", "which weights are linearized and changed", source="the paper: all"
    )
    steps: int = param(1, "Gauss-Newton steps to each minimizer", source="the paper: a linear system", ge=1)
    scale: float = param(1.0, "factor of the difference", source="ours: the linearized model's own", ge=0)
    decay: float | None = param(
        None,
        "weight decay of the loss; None means the target's, or 5e-4 where that is 0 or unknown",
        source="ours",
        gt=0,
    )

    def edit(self, problem: Problem, model: nn.Module, workplace: Workplace) -> None:  # noqa: D102
        names = None if self.weights == "all" else head_parameters(problem.family, model)
        rows = Linearized.of(problem.family, model, workplace.batches(problem, "train"), names)
        decay = trained_decay(problem, self.decay)
        on_all = rows.minimize(decay, self.steps)
        on_retain = rows.without(problem.forget_rows).minimize(decay, self.steps)
        change = self.scale * (on_retain - on_all)
        rows.add_to(model, change)
        workplace.notes.append(
            f"weights moved by {float(change.norm()):.3g}, {float(change.norm() / rows.weights.norm()):.3%} of their "
            "norm"
        )


def trained_decay(problem: Problem, given: float | None) -> float:
    """`given`, else the weight decay of the target's recipe where there is any, else 5e-4."""
    if given is not None:
        return given
    of_recipe = 0.0 if problem.recipe is None else problem.recipe.weight_decay
    return of_recipe or Training().weight_decay
