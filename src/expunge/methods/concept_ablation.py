"""Concept ablation: under the concept's prompt, say what the target says under the anchor's."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from expunge.families import Diffusion
from expunge.methods.denoiser_parts import DenoiserPart, trainable_part
from expunge.methods.objective import Objective, Pass, State, Step
from expunge.parameters import param
from expunge.problem import Problem


class ConceptAblation(Objective):
    """Match the concept's prompt to its anchor's, on noised anchor images.

    ``mean | eps(x_t, concept) - sg eps_0(x_t, anchor) |^2``, x_t a noised image of the anchor. With ``match: noise`` the
    target is the image itself: plain training of the concept's prompt on anchor images. `prior` adds the usual loss on
    the anchor's own prompts, which keeps them where the anchor's words are part of the concept's.

    The teacher is the frozen target, or, as in public code, the model itself without gradient.
    Rows need an anchor prompt and an anchor image; those whose prompt does not name the concept teach nothing.
    """

    name = "concept-ablation"
    paper = "Kumari et al., ICCV 2023, arXiv:2303.13516"
    families = frozenset({"diffusion"})
    needs = frozenset({"concept", "images"})
    reference_on = ("forget",)

    part: DenoiserPart = param(
        "x-strict", "what is trained", source="the paper: keys and values of cross-attention"
    )
    match: Literal["model", "noise"] = param(
        "model", "what the concept's prompt is to say", source="the paper: model"
    )
    teacher: Literal["target", "self"] = param(
        "target", "who says it", source="the paper; public code takes the model itself"
    )
    prior: float = param(
        0.0, "weight of the loss on the anchor's own prompts", source="the paper: 1 where words overlap", ge=0
    )
    lr: float = param(
        2e-6, "learning rate", source="reference code, before its factor of batch size times devices", ge=0
    )
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = param(
        "adamw", "update rule", source="reference code"
    )

    def passes(self, epoch: int) -> list[Pass]:  # noqa: D102
        return [Pass("forget")]

    def trainable(self, problem: Problem, model: nn.Module, state: State) -> Collection[str] | None:  # noqa: D102
        return trainable_part(model, self.part)

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        family = cast(Diffusion, step.family)
        shown = {**step.forget.inputs, "clean": step.forget.inputs["anchor"]}
        image = shown["clean"].unsqueeze(1).expand_as(step.forget.targets)
        named = replace(step.forget, inputs=shown, targets=image)
        anchored = replace(named, inputs={**shown, "input_ids": shown["anchor_ids"]})
        said = family.forward(step.model, named)
        if self.match == "noise":
            values = family.nll(said, named)
        elif self.teacher == "target":
            values = family.divergence(step.state.frozen["reference"].ask(anchored), said, named)
        else:
            with torch.no_grad():
                own = family.forward(step.model, anchored)
            values = family.divergence(own, said, named)
        differs = (shown["input_ids"] != shown["anchor_ids"]).any(1)
        terms = {"ablate": step.mean("forget", values, differs)}
        if self.prior:
            terms["prior"] = self.prior * step.mean(
                "forget", family.nll(family.forward(step.model, anchored), anchored)
            )
        return terms
