"""LFSSD: selective synaptic dampening without labels."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from expunge.families import Batch, Family, Outputs
from expunge.methods.ssd import SSD


class LFSSD(SSD):
    """SSD whose importance is the sensitivity of the outputs, so that no labels are needed.

    Importance: the mean over batches (or examples) of the ABSOLUTE gradient, not its square, of the mean
    squared norm of the prediction ``||f(x)||^2`` (logits, or predicted values). Selection and dampening are
    those of SSD.
    """

    name = "lfssd"
    paper = "Foster et al., ICLR 2024 Tiny Papers, arXiv:2402.19308"
    needs = frozenset({"retain"})
    power: ClassVar[Literal[1, 2]] = 1

    def sensitivity(self, family: Family, outputs: Outputs, batch: Batch) -> Tensor:
        """`[B]` squared norm of each example's prediction, over valid positions."""
        return (outputs.prediction.square().sum(-1) * batch.mask).sum(-1)
