"""Task arithmetic: subtract what fine-tuning on the forget set would add."""

from __future__ import annotations

import torch
from torch import nn

from expunge.families.models import clone
from expunge.methods.base import Edit, Workplace
from expunge.methods.loop import fit
from expunge.parameters import param
from expunge.problem import Problem, Training


class TaskVector(Edit, Training):
    """Move the weights against the direction in which over-fitting the forget set would take them.

    ``tau = theta_forget - theta``, theta_forget fine-tuned on the forget set from theta; ``theta <- theta -
    alpha * tau``. One gradient step of fine-tuning makes it one step of gradient ascent. ``alpha = 0``
    leaves the weights alone.

    Differences are taken in float32 or wider: in half precision most of a small tau is lost. Running
    statistics of batch norm are not extrapolated: they are recomputed for the edited weights by one pass
    over the retain set where there is one, as the plain average over batches, and kept as they were where
    there is none.
    """

    name = "task-vector"
    paper = "Ilharco et al., ICLR 2023, arXiv:2212.04089"
    needs = frozenset({"labels"})

    alpha: float = param(1.0, "scale of the subtracted vector", source="reference code of MUSE: 1", ge=0)
    epochs: int = param(5, "passes of the fine-tuning over the forget set", source="ours", ge=0)
    lr: float = param(0.01, "learning rate of the fine-tuning", source="ours", ge=0)
    weight_decay: float = param(
        0.0, "L2 coefficient of the fine-tuning", source="ours: a decay would enter the task vector", ge=0
    )

    def edit(self, problem: Problem, model: nn.Module, workplace: Workplace) -> None:  # noqa: D102
        tuned = fit(problem, clone(model), "forget", self, workplace)
        moved = norm = 0.0
        with torch.no_grad():
            for parameter, other in zip(model.parameters(), tuned.parameters(), strict=True):
                dtype = torch.promote_types(parameter.dtype, torch.float32)
                tau = other.to(dtype) - parameter.to(dtype)
                moved += float((self.alpha * tau).square().sum())
                norm += float(parameter.to(dtype).square().sum())
                parameter.copy_(parameter.to(dtype) - self.alpha * tau)
        if norm > 0:
            workplace.notes.append(
                f"the edit is {(moved / norm) ** 0.5:.3g} of the weights' norm (alpha |tau| / |theta|)"
            )
        _recompute_statistics(problem, model, workplace, self.batch_size)


def _recompute_statistics(problem: Problem, model: nn.Module, workplace: Workplace, batch_size: int) -> None:
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    if not norms:
        return
    if not len(problem.retain_rows):
        workplace.notes.append("without a retain set, batch-norm statistics stay those of the target")
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # plain average over batches
        norm.train()
    batches = workplace.batches(problem, "retain")
    # Even parts: with a short last batch the plain average would favor its rows.
    parts = torch.arange(len(batches)).tensor_split(-(-len(batches) // batch_size))
    with torch.no_grad():
        for rows in parts:
            problem.family.forward(model, batches.take(rows))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
