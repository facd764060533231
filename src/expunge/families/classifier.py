"""Classifiers of images, tables and text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.base import Batch, Family, Outputs, Rows, where_finite, wide
from expunge.families.inputs import Inputs, restore_inputs
from expunge.families.models import call

if TYPE_CHECKING:
    from datasets import Dataset


IGNORED = -100
"""Target of masked-out positions: the `ignore_index` of torch's cross-entropy."""


class Classifier(Family):
    """One label out of `classes`; predictions are logits `[B, 1, C]`."""

    name = "classifier"
    likelihood = "exact"
    quantities = {
        "loss": "cross-entropy -ln p(y), nats, [n]",
        "correct": "1 where the most likely class is the label, else 0; NaN where the logits are not finite, [n]",
        "confidence": "probability of the label p(y), [n]",
        "margin": "z_y - logsumexp of the other logits = ln p(y) - ln(1 - p(y)), [n]",
        "entropy": "-sum p ln p, nats, [n]",
        "modified_entropy": "-(1-p_y) ln p_y - sum over other classes of p_k ln(1-p_k), nats (Song & Mittal 2021), [n]",
        "predicted": "most likely class; NaN where the logits are not finite, [n]",
        "target": "the label, [n]",
        "logp": "log-probability of every class, [n, C]",
        "features:LAYER": "activations of LAYER averaged over positions, [n, d]",
    }
    relabelings = {
        "random": "uniform over all classes, the true one included",
        "random-other": "uniform over the classes that are not the label",
    }

    def __init__(
        self, inputs: Inputs, classes: Sequence[str] | int, target: str = "label", group: str | None = None
    ) -> None:
        self.inputs = inputs
        self.classes = (
            [str(i) for i in range(classes)] if isinstance(classes, int) else [str(c) for c in classes]
        )
        self.target, self.group = target, group
        if len(self.classes) < 2:
            raise BadInput(f"a classifier needs two or more classes, got {len(self.classes)}")

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {
            "family": self.name,
            "inputs": self.inputs.describe(),
            "classes": self.classes,
            "target": self.target,
            "group": self.group,
        }

    @classmethod
    def restore(cls, description: dict[str, Any]) -> Classifier:
        """The inverse of `describe`."""
        return cls(
            restore_inputs(description["inputs"]),
            description["classes"],
            description["target"],
            description["group"],
        )

    def collate(self, rows: Rows) -> Batch:  # noqa: D102
        targets = torch.from_numpy(np.asarray(rows[self.target], dtype=np.int64)).reshape(-1, 1)
        return Batch(
            [str(i) for i in rows["id"]],
            self.inputs.encode(rows),
            targets,
            torch.ones_like(targets, dtype=torch.bool),
        )

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:  # noqa: D102
        return call(model, batch.inputs).unsqueeze(1)

    def nll(self, outputs: Outputs, batch: Batch) -> Tensor:  # noqa: D102
        logits = wide(outputs.prediction)
        # Masking the targets instead of the losses leaves nothing to differentiate.
        targets = torch.where(batch.mask, batch.targets, IGNORED)
        if targets.shape[1] == 1:
            return F.cross_entropy(logits.squeeze(1), targets.squeeze(1), reduction="none")
        return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(-1)

    def divergence(self, p: Outputs, q: Outputs, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Categorical KL divergence of the softmax of logits divided by the temperature."""
        log_p = F.log_softmax(wide(p.prediction) / temperature, -1)
        log_q = F.log_softmax(wide(q.prediction) / temperature, -1)
        return ((log_p.exp() * (log_p - log_q)).sum(-1) * batch.mask).sum(-1)

    def relabel(self, batch: Batch, how: str, generator: torch.Generator) -> Batch:  # noqa: D102
        n = len(self.classes)
        if how == "random":
            drawn = torch.randint(n, batch.targets.shape, generator=generator)
        elif how == "random-other":
            shift = torch.randint(1, n, batch.targets.shape, generator=generator)
            drawn = (batch.targets.cpu() + shift) % n
        else:
            raise BadInput(f"classifier cannot relabel by '{how}'; known: {', '.join(self.relabelings)}")
        return Batch(batch.ids, batch.inputs, drawn.to(batch.targets), batch.mask)

    def observe(self, outputs: Outputs, batch: Batch, quantities: Sequence[str]) -> dict[str, Tensor]:  # noqa: D102
        logits = wide(outputs.prediction).squeeze(1)
        target = batch.targets.squeeze(1)
        logp = F.log_softmax(logits, -1)
        logp_y = logp.gather(1, target[:, None]).squeeze(1)
        others = logits.masked_fill(F.one_hot(target, logits.shape[1]).bool(), -math.inf)
        margin = logits.gather(1, target[:, None]).squeeze(1) - others.logsumexp(-1)
        made: dict[str, Tensor] = {}
        for quantity in quantities:
            if quantity.startswith("features:"):
                made[quantity] = outputs.hidden[quantity.removeprefix("features:")].float().mean(1)
            elif quantity == "loss":
                made[quantity] = -logp_y
            elif quantity == "correct":
                made[quantity] = where_finite((logits.argmax(-1) == target).to(torch.int8), logp_y)
            elif quantity == "confidence":
                made[quantity] = logp_y.exp()
            elif quantity == "margin":
                made[quantity] = margin
            elif quantity == "entropy":
                made[quantity] = -(logp.exp() * logp).sum(-1)
            elif quantity == "modified_entropy":
                made[quantity] = modified_entropy(logp, target, margin)
            elif quantity == "predicted":
                made[quantity] = where_finite(logits.argmax(-1), logp_y)
            elif quantity == "target":
                made[quantity] = target
            elif quantity == "logp":
                made[quantity] = logp
            else:
                raise BadInput(
                    f"classifier has no quantity '{quantity}'; known: {', '.join(self.quantities)}"
                )
        return made

    def groups(self, dataset: Dataset) -> np.ndarray:
        """The `group` column where one is named, else the class."""
        if self.group is not None:
            return np.asarray([str(v) for v in dataset[self.group][:]])
        return np.asarray([self.classes[int(v)] for v in dataset[self.target][:]])

    def trim(self, batch: Batch) -> Batch:  # noqa: D102
        inputs = self.inputs.trim(batch.inputs)
        return batch if inputs is batch.inputs else replace(batch, inputs=inputs)

    def check(self, dataset: Dataset, name: str) -> None:  # noqa: D102
        self.inputs.check(dataset, name)
        if self.target not in dataset.column_names:
            raise BadInput(
                f"{name} has no label column '{self.target}'; it has {', '.join(dataset.column_names)}"
            )
        labels = list(dataset[self.target][:])
        for row, label in enumerate(labels):
            if not isinstance(label, (int, np.integer)) or not 0 <= label < len(self.classes):
                raise BadInput(
                    f"{name}: label {label!r} of id '{dataset['id'][row]}' is outside 0..{len(self.classes) - 1}; "
                    f"the model has {len(self.classes)} classes"
                )


def modified_entropy(logp: Tensor, target: Tensor, margin: Tensor) -> Tensor:
    """Modified entropy of Song & Mittal (USENIX Security 2021), per row.

    ``-(1 - p_y) ln p_y - sum_{k != y} p_k ln(1 - p_k)``. Small for confident correct answers, large for confident
    wrong ones. ``ln(1 - p_k)`` comes from the logits, so that p_k near 1 stays finite.
    """
    p = logp.exp()
    # ln(1 - p_k) as log1p(-p_k) loses its digits only where p_k is near 1, which is one class at most: there it is the
    # log of the sum of the other probabilities.
    top = logp.argmax(-1, keepdim=True)
    log_rest = torch.log1p(-p.clamp(max=0.75))
    log_rest = log_rest.scatter(1, top, logp.scatter(1, top, -math.inf).logsumexp(-1, keepdim=True))
    terms = (p * log_rest).scatter(1, target[:, None], 0.0)
    logp_y = logp.gather(1, target[:, None]).squeeze(1)
    return -torch.sigmoid(-margin) * logp_y - terms.sum(-1)
