"""Pruning: what comes back when the smallest weights are taken out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field
from torch import nn
from torch.nn.utils import prune

from expunge.attacks.base import Scene
from expunge.attacks.tampering import Tampering, recovery_measures, weight_matrices
from expunge.families.models import clone
from expunge.parameters import param


class Pruning(Tampering):
    """Set the weights of smallest magnitude to zero, and ask what the model knows.

    Unlearning by many small changes, or by weights that did nothing before, is undone by taking the smallest away.
    ``global`` ranks the weights of all matrices together, ``layer`` those of each by themselves; at each sparsity the
    scope that recovers most is taken. Pruned are linear and convolution layers, attention and experts; not biases, norms
    and embeddings.
    """

    name = "pruning"
    paper = (
        "Han et al., NeurIPS 2015, arXiv:1506.02626 (magnitude pruning); as an attack on unlearning: Lucki et al., 2024, "
        "arXiv:2409.18025, who rank weights by their use for the forget set"
    )
    threat_model = "weights; no data, no training"
    over = "share of weights set to zero"
    measures = recovery_measures(name, "setting the smallest weights to zero")

    sparsities: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = param(
        (0.1, 0.2, 0.3, 0.5, 0.7, 0.9),
        "shares of the weights that are set to zero, each above 0 and below 1",
        source="ours",
        min_length=1,
    )
    scopes: tuple[Literal["global", "layer"], ...] = param(
        ("global", "layer"), "which weights are ranked together", source="ours", min_length=1
    )
    head: bool = param(True, "prune the output layer too", source="ours")

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {"models": len(self.sparsities) * len(self.scopes)}

    def variants(self, scene: Scene) -> Iterator[tuple[float, nn.Module]]:  # noqa: D102
        for sparsity in self.sparsities:
            for scope in self.scopes:
                model = clone(scene.model)
                matrices = weight_matrices(scene.problem.family, model, head=self.head)
                if scope == "global":
                    prune.global_unstructured(matrices, prune.L1Unstructured, amount=sparsity)
                else:
                    for module, name in matrices:
                        prune.l1_unstructured(module, name, amount=sparsity)
                for module, name in matrices:
                    prune.remove(module, name)
                yield sparsity, model
