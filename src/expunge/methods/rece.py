"""RECE: find, in closed form, the embedding that still brings an edited concept back; erase it too; repeat."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from expunge.families import Diffusion
from expunge.families.models import innermost
from expunge.families.pipelines import DiffusionModel
from expunge.methods.base import Workplace
from expunge.methods.cross_attention import Rows, projections, prompt_rows
from expunge.methods.uce import UCE, RidgeEdit
from expunge.parameters import param
from expunge.problem import Problem


class RECE(UCE):
    """UCE, then rounds of erasing what the edited layers would still answer the concept to.

    With W0 the original projections and W the edited ones, the embedding that brings an old value back is
    ``c' = (sum W^T W + reg I)^-1 (sum W^T W0) c``, the minimum of ``sum |W c' - W0 c|^2 + reg |c'|^2`` over all layers.
    Each round maps c' to the anchor by another ridge edit, from the current weights: ``(ridge W + e sum W g c'^T +
    p sum W r r^T)(ridge I + ...)^-1``.

    The log holds for every round how long c' is beside c, and the recoverability left: the share of the old values that
    no embedding c' reaches, ``min sum |W c' - W0 c|^2 / sum |W0 c|^2`` (0: all can be brought back).

    What the text encoder's nonlinearity hides is not found: a defense at the level of cross-attention alone.
    """

    name = "rece"
    paper = "Gong et al., ECCV 2024, arXiv:2407.12383"

    ridge: float = param(0.1, "weight of staying near the original", source="reference code", gt=0)
    preserve_scale: float = param(0.1, "weight of the prompts to preserve", source="reference code", ge=0)
    tokens: Rows = param("all", "which positions of a prompt are edited", source="reference code")
    rounds: int = param(
        1,
        "how often what is left is sought and erased",
        source="reference code: 1 for styles and objects, 3 for nudity",
        ge=0,
    )
    regularization: float = param(
        1e-3,
        "what keeps the sought embedding short",
        source="reference code: 1e-3 for styles, 0.1 for nudity",
        gt=0,
    )

    def edit(self, problem: Problem, model: nn.Module, workplace: Workplace) -> None:  # noqa: D102
        family, inner = cast(Diffusion, problem.family), cast(DiffusionModel, innermost(model))
        assert problem.concept is not None
        layers = projections(inner)
        originals = [layer.weight.detach().double().clone() for layer in layers]
        super().edit(problem, model, workplace)
        concept, anchor = prompt_rows(
            family, inner, problem.concept.prompts, problem.concept.anchors, self.tokens
        )
        kept = prompt_rows(family, inner, problem.concept.preserve, problem.concept.preserve, self.tokens)[0]
        for number in range(self.rounds):
            current = [layer.weight.detach().double() for layer in layers]
            found = recovering(current, originals, concept, self.regularization)
            workplace.log.append(
                {
                    "round": number,
                    "relative length": float(found.norm() / concept.norm()),
                    "unrecoverable": unrecoverable(current, originals, concept, found),
                }
            )
            edit = RidgeEdit(found, kept, self.ridge, self.erase_scale, self.preserve_scale)
            for layer, weight in zip(layers, current, strict=True):
                solved = edit(weight, anchor @ weight.T)
                with torch.no_grad():
                    layer.weight.copy_(solved)


def recovering(
    current: list[Tensor], originals: list[Tensor], concept: Tensor, regularization: float
) -> Tensor:
    """`[n, d]` embeddings for which the current layers say most nearly what the original ones said of `concept`."""
    gram = sum(w.T @ w for w in current)
    mixed = sum(w.T @ o for w, o in zip(current, originals, strict=True))
    assert isinstance(gram, Tensor) and isinstance(mixed, Tensor)
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + regularization * identity, mixed @ concept.T).T


def unrecoverable(current: list[Tensor], originals: list[Tensor], concept: Tensor, found: Tensor) -> float:
    """Share of the original values' squared length that the embeddings `found` do not bring back."""
    left = sum(
        float((found @ w.T - concept @ o.T).square().sum()) for w, o in zip(current, originals, strict=True)
    )
    return left / sum(float((concept @ o.T).square().sum()) for o in originals)
