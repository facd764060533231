"""SSD: selective synaptic dampening, a one-shot edit without training."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.families import Batch, Family, Outputs
from expunge.find.importance import Importance, batch_importance, sample_importance
from expunge.methods.base import Edit, Workplace
from expunge.parameters import param
from expunge.problem import Problem


class SSD(Edit):
    """Shrink the weights that matter far more for the forget set than for all training data.

    Importance of weight i over a set S: the mean over batches of S of the squared gradient of the batch-mean
    negative log-likelihood (``importance="batch"``, the reference code), or the mean over examples of the
    squared gradient of each (``"sample"``, the Fisher diagonal of the paper). With f over the forget set and
    d over all training rows, forget rows included, in eval mode: where ``f_i > alpha * d_i``, ``theta_i <-
    min(1, lam * d_i / f_i) * theta_i``.

    As f_i > alpha * d_i, every selected weight shrinks at least to the share lam / alpha. Biases and
    normalization weights are edited too; batch-norm statistics are not.

    The "batch" importance depends on the batch size, because gradients cancel within a batch; that
    cancellation is stronger in mixed batches, so that it selects much more than "sample". In "sample" mode d
    >= (n_forget / n) f, so that nothing can be selected once alpha >= n / n_forget.
    """

    name = "ssd"
    paper = "Foster et al., AAAI 2024, arXiv:2308.07707"
    needs = frozenset({"retain", "labels"})
    power: ClassVar[Literal[1, 2]] = 2
    """Exponent of the gradient in the importance."""

    alpha: float = param(
        10.0, "selection: how many times more important for forget than for all", source="the paper: 10", gt=0
    )
    lam: float = param(1.0, "dampening constant lambda; smaller shrinks more", source="the paper: 1", ge=0)
    importance: Literal["batch", "sample"] = param(
        "batch",
        "gradient of each batch's mean loss, or of each example's loss",
        source="reference code: batch",
    )
    batch_size: int = param(
        64, "examples per gradient in batch mode", source="the paper's training batch size", ge=1
    )

    def sensitivity(self, family: Family, outputs: Outputs, batch: Batch) -> Tensor:
        """`[B]` what is differentiated: the negative log-likelihood of each example."""
        return family.nll(outputs, batch)

    def edit(self, problem: Problem, model: nn.Module, workplace: Workplace) -> None:  # noqa: D102
        over_forget = self._importance(problem, model, workplace, "forget")
        over_all = self._importance(problem, model, workplace, "train")
        selected = total = 0
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                total += parameter.numel()
                if name in over_forget:
                    factor, chosen = dampening(over_forget[name], over_all[name], self.alpha, self.lam)
                    parameter.mul_(factor.to(parameter.dtype))
                    selected += int(chosen.sum())
        workplace.notes.append(self._note(problem, selected, total))

    def _note(self, problem: Problem, selected: int, total: int) -> str:
        if selected:
            return f"{selected} of {total} weights selected ({selected / total:.3%})"
        ratio = len(problem.train) / len(problem.forget_rows)
        impossible = self.importance == "sample" and self.alpha >= ratio
        reason = f"none can be with {ratio:.3g} training rows per forget row; " if impossible else ""
        return (
            f"no weight is {self.alpha:g} times more important for the forget set than for all data, so "
            f"that the model is unchanged; {reason}lower alpha"
        )

    def _importance(self, problem: Problem, model: nn.Module, workplace: Workplace, split: str) -> Importance:
        family = problem.family
        measure = batch_importance if self.importance == "batch" else sample_importance
        return measure(
            family,
            model,
            workplace.batches(problem, split),
            self.batch_size,
            lambda outputs, batch: self.sensitivity(family, outputs, batch),
            self.power,
        )


def dampening(forget: Tensor, everything: Tensor, alpha: float, lam: float) -> tuple[Tensor, Tensor]:
    """Factor of each weight (1 where not selected) and the bool selection, both of the importances' shape."""
    selected = forget > alpha * everything
    factor = torch.ones_like(forget)
    # The ratio only where selected (there forget > 0): elsewhere 0/0 would be NaN.
    factor[selected] = (lam * everything[selected] / forget[selected]).clamp(max=1.0)
    return factor, selected
