"""Gradient-norm attack: texts that a model was trained on have small gradients."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from torch import nn

from expunge.attacks.base import Attack, Measure, Scene
from expunge.families import Batches, CausalLM
from expunge.metrics.text_membership import auc_of_scores
from expunge.parameters import param
from expunge.record import Score


class GradientNormMia(Attack):
    """AUC of telling holdout from forget rows by the norm of the gradient of their loss.

    The score of a row is the mean over parameter tensors of the L_p norm of the gradient of its mean loss per token, the
    end-of-sequence token left out, one row at a time, in eval mode. 1: every forget row has smaller gradients than every
    holdout row, as where it is still memorized; below 0.5: larger, which gives it away too. The value to match is the
    retrained model's. Mean over tensors rather than the norm of all: small tensors, such as scales, count as much as
    large ones.

    A gradient is dropped as soon as its norm is known, so that memory is that of one tensor. Cost: a forward and a
    backward pass of each forget and holdout row.

    Deviation: public code takes the gradients in train mode, with dropout, and leaves the last token out whatever it is.
    """

    name = "gradient-norm-mia"
    paper = (
        "Gradient-norm attack of arXiv:2402.17012; as in OpenUnlearning (Dorna et al. 2025, arXiv:2506.12618)"
    )
    threat_model = "weights (gradients of the loss); one threshold for all rows (population attack)"
    access = "weights"
    measures = (
        Measure(
            "gradient-norm-mia-auc",
            "AUC of telling holdout rows (larger) from forget rows by the norm of the gradient of their loss. Interval: "
            "DeLong's, over rows.",
            "AUC",
            title="Membership AUC (gradient norm)",
            low=0.0,
            high=1.0,
            margin=0.05,
        ),
    )
    needs = frozenset({"holdout"})
    families = frozenset({"causal_lm"})

    p: float = param(2.0, "order of the norm", source="OpenUnlearning", gt=0)

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {"gradients per row": 1}

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        problem, workplace = scene.problem, scene.workplace
        family = cast(CausalLM, problem.family)
        forget, holdout = (
            gradient_norms(family, scene.model, workplace.batches(problem, split), self.p)
            for split in ("forget", "holdout")
        )
        return [self.score("gradient-norm-mia-auc", auc_of_scores(forget, holdout))]


def gradient_norms(family: CausalLM, model: nn.Module, rows: Batches, p: float = 2.0) -> np.ndarray:
    """`[n]` mean over parameter tensors of the L_p norm of the gradient of each row's mean loss per token.

    NaN for rows without a token besides the end-of-sequence token, infinite where the gradient is not
    finite. Tensors that a row does not reach count as 0. The model must be in eval mode; its own gradients are left alone.
    """
    parameters = list(model.parameters())
    norms: list[torch.Tensor] = []

    def note(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None  # the hook runs behind its accumulation
        norms.append(torch.linalg.vector_norm(parameter.grad.float(), p))
        parameter.grad = None

    own = [(q, q.grad, q.requires_grad) for q in parameters]
    for q in parameters:
        q.grad, q.requires_grad = None, True
    hooks = [q.register_post_accumulate_grad_hook(note) for q in parameters]
    found = np.full(len(rows), np.nan)
    try:
        for row in range(len(rows)):
            batch = family.without_ends(rows.take(torch.tensor([row])))
            if not batch.mask.any():
                continue
            norms.clear()
            (family.nll(family.forward(model, batch), batch) / family.terms(batch)).sum().backward()
            norm = float(torch.stack(norms).sum()) / len(parameters)
            found[row] = norm if math.isfinite(norm) else math.inf
    finally:
        for hook in hooks:
            hook.remove()
        for q, grad, required in own:
            q.grad, q.requires_grad = grad, required
    return found
