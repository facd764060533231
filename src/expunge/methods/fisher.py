"""Fisher forgetting: drown in noise what the retain set does not pin down."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from expunge.find.linearized import Linearized, fisher_diagonal
from expunge.methods.base import Edit, Workplace
from expunge.methods.ntk import trained_decay
from expunge.parameters import param
from expunge.problem import Problem

FLOOR = 1e-8
"""Added to the Fisher information before it is inverted."""
RESET_VARIANCE = 1e-4
"""Of the head's row of a class that is forgotten as a whole."""


class Fisher(Edit):
    """Add Gaussian noise to every weight, the more the less the retain set depends on it.

    ``theta' = theta + sqrt(v) * N(0, 1)`` with ``v_i = alpha * min((F_i + 1e-8)^(-2 power), ceiling)`` and F the
    Fisher diagonal on the retain rows, per example and over the model's own answers
    (`fisher_diagonal`). As in the reference code, the head has a ceiling of its own; in tensors of two and
    more dimensions v is averaged over the second one (for a linear layer: over the inputs of a unit); and v of
    the head and of one-dimensional tensors (biases, batch norm) is multiplied by `boost`. A class of which no
    row is retained has its row of the head set to zero, with variance 1e-4.

    With ``shift="newton"`` the mean moves first by one Gauss-Newton step on the retain loss with weight decay,
    the optimal shift of the paper for a quadratic loss: for ridge regression it lands on the retrained solution
    exactly, for softmax regression near it, and ``alpha -> 0`` then removes the noise. The paper leaves it out
    for networks.

    What is saturated (``(F + 1e-8)^(-2 power) > ceiling``) gets the same noise everywhere; the notes give the
    share. Where the forget rows are like the retained ones, F is that of all data, and the noise cannot select:
    use it for classes. One draw is one sample: report several seeds. Batch-norm statistics stay as they are.

    Limit: ``alpha = 0`` without shift and class reset changes nothing. Cost: as many backward passes per
    retained row as there are outputs, vectorized.
    """

    name = "fisher"
    paper = "Golatkar et al., CVPR 2020, arXiv:1911.04933"
    families = frozenset({"classifier", "regressor"})
    needs = frozenset({"retain"})

    alpha: float = param(
        1e-6, "scale of the variance", source="reference code, small networks; search 1e-9 to 1e-4", ge=0
    )
    power: float = param(
        0.5,
        "standard deviation ~ F^-power",
        source="reference code: 1/2; the paper's optimum: 1/4",
        gt=0,
        le=1,
    )
    ceiling: float = param(1e3, "largest v / alpha before boost", source="reference code: 1e3", gt=0)
    head_ceiling: float = param(1e2, "the same in the head", source="reference code: 1e2", gt=0)
    boost: float = param(
        10.0, "factor of v in the head and in one-dimensional tensors", source="reference code: 10", gt=0
    )
    reset_classes: bool = param(
        True, "zero the head's row of classes of which no row is retained", source="reference code"
    )
    shift: Literal["none", "newton"] = param(
        "none", "move of the mean before the noise", source="the paper: none for networks"
    )
    decay: float | None = param(
        None,
        "weight decay of the shift's loss; None means the target's, or 5e-4 where that is 0 or unknown",
        source="ours",
        gt=0,
    )

    def edit(self, problem: Problem, model: nn.Module, workplace: Workplace) -> None:  # noqa: D102
        retain, generator = workplace.batches(problem, "retain"), workplace.generator(21)
        if self.shift == "newton":
            rows = Linearized.of(problem.family, model, retain)
            rows.add_to(model, rows.minimize(trained_decay(problem, self.decay), steps=1))
        information = fisher_diagonal(problem.family, model, retain)
        head = f"{problem.family.head(model)}."
        forgotten = self._forgotten_classes(problem, model.get_parameter(f"{head}weight"), workplace)
        saturated = total = 0
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name not in information:
                    continue
                in_head = name.startswith(head)
                variance, n_saturated = self.variance(information[name], in_head)
                saturated, total = saturated + n_saturated, total + parameter.numel()
                if in_head and len(forgotten):
                    parameter[forgotten] = 0
                    variance[forgotten] = RESET_VARIANCE
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_((variance.sqrt() * noise.to(variance)).to(parameter.dtype))
        workplace.notes.append(
            f"the variance is at its ceiling in {saturated / total:.1%} of {total} weights"
        )

    def variance(self, information: Tensor, in_head: bool) -> tuple[Tensor, int]:
        """Variance of the noise of one tensor, in its shape, and how many of its weights are at the ceiling."""
        ceiling = self.head_ceiling if in_head else self.ceiling
        inverse = (information + FLOOR).pow(-2 * self.power)
        n_saturated = int((inverse > ceiling).sum())
        variance = self.alpha * inverse.clamp(max=ceiling)
        if variance.dim() > 1:
            variance = variance.mean(1, keepdim=True).expand_as(information).clone()
        return (self.boost * variance if in_head or variance.dim() == 1 else variance), n_saturated

    def _forgotten_classes(self, problem: Problem, head: Tensor, workplace: Workplace) -> Tensor:
        """Rows of the head that belong to classes without a retained row; none where the head is not one row per class."""
        none = torch.tensor([], dtype=torch.long)
        if not self.reset_classes or problem.family.name != "classifier":
            return none
        forget, retain = (_classes(problem, split, workplace) for split in ("forget", "retain"))
        gone = torch.tensor(sorted(forget - retain), dtype=torch.long)
        if not len(gone) or len(head) <= int(gone.max()):
            return none
        workplace.notes.append(
            f"no row of class {', '.join(str(int(c)) for c in gone)} is retained: its row of the head is reset"
        )
        return gone


def _classes(problem: Problem, split: str, workplace: Workplace) -> set[int]:
    """Classes that occur in a split."""
    batches = workplace.batches(problem, split)
    return {int(c) for _, batch in batches.sequential(256) for c in batch.targets.flatten()}
