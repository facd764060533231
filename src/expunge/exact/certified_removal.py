"""Certified removal from a linear head on a frozen backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import nn

from expunge.errors import BadInput
from expunge.exact.acu import MASKED, head_inputs, says_of_backbone
from expunge.families import Classifier
from expunge.methods.base import Method, Workplace
from expunge.parameters import param
from expunge.problem import Problem

if TYPE_CHECKING:
    from expunge.exact.estimators import CertifiedClassifier


class CertifiedRemoval(Method):
    """The head is trained with secret noise on what the frozen backbone makes of each row; a Newton step removes rows.

    With features x of norm at most 1, each class against the others minimizes

        sum_i l(y_i x_i w) + penalty n / 2 |w|^2 + b w,   b ~ N(0, sigma^2 I),

    first on all training rows, then, by ``w + H^-1 sum_forget (grad l + penalty w)`` with the Hessian H of the retain
    set, without the forget set. The gradient that is left is measured; where it exceeds what sigma, epsilon and delta
    allow, the head is trained again on the retain set with other noise. See
    `expunge.exact.estimators.CertifiedClassifier`, which takes one request after another, for the guarantee.

    The certificate is about the head alone, and about requests that do not depend on published weights. The ledger draws
    the noise from the operating system and keeps it nowhere. Everywhere else it is drawn from the run's seed, so that the run
    can be repeated: whoever knows the seed knows the noise, and has no guarantee. How much of the budget is used up depends
    on the rows too, and is written nowhere. The target's own head is replaced. Rows are shortened each by itself, which
    divides all scores of a row by one positive number; the head that is handed out gives the undivided scores, hence the same
    classes.

    Deviations from Guo et al. (2020): the gradient is measured instead of bounded, and the gradients of all classes are
    held against one budget.
    """

    name = "certified-removal"
    paper = "Guo et al., ICML 2020, arXiv:1911.03030"
    kind = "exact"
    guarantee = "certified (epsilon, delta) (the head alone)"
    families = frozenset({"classifier"})
    needs = frozenset({"retain", "labels"})

    loss: Literal["logistic", "squared"] = param("logistic", "loss of each class", source="section 3")
    penalty: float = param(
        1e-3,
        "of squared weights, per row; chosen without the forget set",
        source="reference code, MNIST",
        gt=0,
    )
    sigma: float = param(1.0, "standard deviation of the noise", source="ours; reference code: 10", gt=0)
    epsilon: float = param(1.0, "of the certificate", source="section 4", gt=0)
    delta: float = param(1e-4, "of the certificate", source="section 4", gt=0, lt=1)
    radius: float = param(
        1.0,
        "norm of features that counts as 1, longer rows are shortened; chosen without the forget set",
        source="ours",
        gt=0,
    )
    batch_size: int = param(256, "rows that go through the backbone at once", source="ours", ge=1)

    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:  # noqa: D102
        # Importing scikit-learn takes seconds, which listing methods must not spend.
        from expunge.exact.estimators import CertifiedClassifier

        layer = model.get_submodule(problem.family.head(model))
        if not isinstance(layer, nn.Linear):
            raise AssertionError("a head is linear")
        biased = layer.bias is not None
        ids, x, y = [], [], []
        for _, batch in workplace.batches(problem, "train").sequential(self.batch_size):
            ids += batch.ids
            x.append(head_inputs(problem, model, layer, batch)[:, : layer.in_features])
            y.append(batch.targets[:, 0].cpu().numpy())
        head = CertifiedClassifier(
            self.loss,
            self.penalty,
            self.sigma,
            self.epsilon,
            self.delta,
            self.radius,
            fit_intercept=biased,
            random_state=None if workplace.secret_noise else workplace.seed,
        )
        head.fit(np.concatenate(x), np.concatenate(y), ids).forget(problem.forget_ids)
        self._install(problem, layer, head, workplace)
        again = "trained again with new noise, as the budget was spent" if head.trainings_ > 1 else "one step"
        noise = (
            "secret noise"
            if workplace.secret_noise
            else (
                "noise drawn by the seed, so without a guarantee towards anybody who knows it; the ledger draws it secretly"
            )
        )
        workplace.notes += [
            f"certified ({self.epsilon:g}, {self.delta:g}): {again}; a gradient of {head.budget_.limit:.1e} is allowed; "
            f"{noise}",
            says_of_backbone(problem),
        ]
        return model

    def _install(
        self, problem: Problem, layer: nn.Linear, head: CertifiedClassifier, workplace: Workplace
    ) -> None:
        if not isinstance(problem.family, Classifier):
            raise AssertionError("checked by `families`")
        there = [int(c) for c in head.classes_]
        weights = head.coef_
        if len(there) == 2:
            weights = np.concatenate([-weights, weights]) / 2
        elif len(there) == 1:
            raise BadInput("rows of one class alone remain, which leaves nothing to classify")
        solved = np.zeros((layer.out_features, layer.in_features + 1))
        solved[there, : weights.shape[1]] = weights
        solved[:, : layer.in_features] /= self.radius
        gone = sorted(set(range(len(problem.family.classes))) - set(there))
        solved[gone, -1] = MASKED
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(solved[:, :-1]))
            if layer.bias is not None:
                layer.bias.copy_(torch.from_numpy(solved[:, -1]))
        if gone:
            named = ", ".join(problem.family.classes[c] for c in gone)
            ruled = (
                "its bias rules it out"
                if layer.bias is not None
                else "the head has no bias to rule it out by"
            )
            workplace.notes.append(f"no rows of {named} are left; {ruled}")
