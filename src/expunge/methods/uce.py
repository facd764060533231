"""UCE: a ridge regression of every cross-attention projection, from a concept to its anchor."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from expunge.families import Diffusion
from expunge.families.models import innermost
from expunge.families.pipelines import DiffusionModel
from expunge.methods.base import Edit, Workplace
from expunge.methods.cross_attention import Rows, projections, prompt_rows
from expunge.parameters import param
from expunge.problem import Problem


class UCE(Edit):
    """Map the embeddings of concept prompts to what the layers gave for their anchors, and keep the others.

    For every key and value projection W of cross-attention, W0 before the edit,
    ``min_W  e sum |W c_i - W0 g_i|^2 + p sum |W r_j - W0 r_j|^2 + ridge |W - W0|_F^2``
    over embeddings c of the concept's prompts, g of their anchors and r of prompts to preserve; solved exactly in float64:
    ``W = (ridge W0 + e sum W0 g c^T + p sum W0 r r^T) (ridge I + e sum c c^T + p sum r r^T)^-1``.

    How far others move is bounded by what the edit moves, ``E = sum |W0 (c - g)|^2``: together the preserved embeddings by
    ``sum |(W - W0) r|^2 <= e/p E``, and any embedding x by ``|(W - W0) x|^2 <= e/ridge E |x|^2``, since no solution is worse
    than W0 itself.

    Only the ratio of scales to ridge matters, and it should be read against the embeddings' squared length: CLIP's are
    near 700, so that the default ridge hardly holds anything back. Other wordings of the concept are not touched.

    Deviation: published code takes its anchor as one prompt for all ("" or "art"); here every prompt has its own.
    """

    name = "uce"
    paper = "Gandikota et al., WACV 2024, arXiv:2308.14761"
    families = frozenset({"diffusion"})
    needs = frozenset({"concept"})

    ridge: float = param(
        0.5, "weight of staying near the original", source="reference code (earlier 0.1)", gt=0
    )
    erase_scale: float = param(1.0, "weight of the concept's prompts", source="reference code", gt=0)
    preserve_scale: float = param(1.0, "weight of the prompts to preserve", source="reference code", ge=0)
    tokens: Rows = param(
        "last",
        "which positions of a prompt are edited: the last word's, or all, padding included",
        source="reference code (its first release took all)",
    )
    target: Literal["replace", "tensor"] = param(
        "replace",
        "what a concept is mapped to: its anchor's value, or the anchor's without its part along the concept's own value",
        source="the paper calls both; reference code replaces",
    )

    def edit(self, problem: Problem, model: nn.Module, workplace: Workplace) -> None:  # noqa: D102
        family, inner = cast(Diffusion, problem.family), cast(DiffusionModel, innermost(model))
        assert problem.concept is not None
        concept, anchor = prompt_rows(
            family, inner, problem.concept.prompts, problem.concept.anchors, self.tokens
        )
        kept = prompt_rows(family, inner, problem.concept.preserve, problem.concept.preserve, self.tokens)[0]
        edit = RidgeEdit(concept, kept, self.ridge, self.erase_scale, self.preserve_scale)
        moved = []
        for projection in projections(inner):
            original = projection.weight.detach().double()
            solved = edit(original, self.wanted(original, concept, anchor))
            moved.append(float((solved - original).norm() / original.norm()))
            with torch.no_grad():
                projection.weight.copy_(solved)
        workplace.notes.append(
            f"{len(moved)} projections moved by {min(moved):.2g} to {max(moved):.2g} of their norm, for {len(concept)} "
            f"embeddings to edit and {len(kept)} to preserve"
        )

    def wanted(self, original: Tensor, concept: Tensor, anchor: Tensor) -> Tensor:
        """`[n, o]` values that the concept's embeddings are to be mapped to."""
        values = anchor @ original.T
        if self.target == "replace":
            return values
        own = torch.nn.functional.normalize(concept @ original.T, dim=-1)
        return values - (values * own).sum(-1, keepdim=True) * own


class RidgeEdit:
    """What UCE's objective asks of embeddings, ready for any number of matrices: its system is the same for all of them.

    Args:
        concept: `[n, d]` embeddings to be mapped elsewhere.
        kept: `[m, d]` embeddings whose values stay.
        ridge: weight of staying near the original.
        erase_scale: weight of the concept's embeddings.
        preserve_scale: weight of the kept ones.
    """

    def __init__(
        self, concept: Tensor, kept: Tensor, ridge: float, erase_scale: float, preserve_scale: float
    ) -> None:
        identity = torch.eye(concept.shape[1], dtype=concept.dtype, device=concept.device)
        self.asked = erase_scale * concept
        self.staying = ridge * identity + preserve_scale * kept.T @ kept
        self.factor = torch.linalg.cholesky(self.staying + self.asked.T @ concept)

    def __call__(self, original: Tensor, wanted: Tensor) -> Tensor:
        """The `[o, d]` matrix nearest to `original` that gives `wanted` (`[n, o]`) for the concept: the exact minimum."""
        left = original @ self.staying + wanted.T @ self.asked
        return torch.cholesky_solve(left.T, self.factor).T
