"""ESD: train the denoiser to say, under the concept's prompt, what negative guidance away from it would."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from expunge.families import Batch, Diffusion
from expunge.families.base import Outputs
from expunge.families.denoising import part_drawn
from expunge.methods.denoiser_parts import DenoiserPart, trainable_part
from expunge.methods.objective import Objective, Pass, State, Step, same_draws
from expunge.parameters import param
from expunge.problem import Problem


class ESD(Objective):
    """Fine-tune so that the concept's prompt points away from the concept.

    ``mean | eps(x_t, c) - (eps_0(x_t, b) - eta (eps_0(x_t, c) - eps_0(x_t, nothing))) |^2`` with the frozen target eps_0,
    b the empty prompt. It holds for whatever the model predicts, the maps between predictions being affine at x_t. The
    prompts c are those of the forget rows. x_t is what the frozen target is drawing after a random number of its steps
    under c with guidance; ``start: data`` takes noised forget images instead.

    `eta` is the paper's. Of public code, the current script's ``negative_guidance 2`` is eta 1 here, because its base is
    the concept's own prediction; the earlier script's 1 is 1.

    Nothing protects what is near the concept; `preserve` adds the same distance to the target on retain rows.
    Deviation: errors are weighted by timestep as the model was trained (not at all for usual checkpoints).
    """

    name = "esd"
    paper = "Gandikota et al., ICCV 2023, arXiv:2303.07345"
    families = frozenset({"diffusion"})
    reference_on = ("forget",)

    eta: float = param(1.0, "strength of the guidance away from the concept", source="the paper")
    part: DenoiserPart = param(
        "x",
        "what is trained: x cross-attention, x-strict its keys and values, u everything else, all the whole denoiser",
        source="the paper: x for styles and names, u for objects and nudity",
    )
    start: Literal["sample", "data"] = param("sample", "where noisy latents come from", source="the paper")
    guidance: float = param(3.0, "guidance under which they are drawn", source="reference code", ge=1)
    preserve: float = param(
        0.0,
        "weight of staying at the target's answers on retain rows",
        source="ours; the paper has none",
        ge=0,
    )
    lr: float = param(1e-5, "learning rate", source="the paper", ge=0)
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = param("adam", "update rule", source="the paper")
    weight_decay: float = param(0.0, "L2 coefficient", source="the paper", ge=0)

    def passes(self, epoch: int) -> list[Pass]:  # noqa: D102
        return [Pass("forget", paired="retain" if self.preserve else None)]

    def references(self) -> tuple[str, ...]:  # noqa: D102
        return ("forget", "retain") if self.preserve else ("forget",)

    def trainable(self, problem: Problem, model: nn.Module, state: State) -> Collection[str] | None:  # noqa: D102
        return trainable_part(model, self.part)

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        family = cast(Diffusion, step.family)
        batch = step.forget if self.start == "data" else self.drawn(step, family)
        target = step.state.frozen["reference"]
        nothing = family.tokens([""]).to(batch.targets.device).expand_as(batch.inputs["input_ids"])
        named = target.ask(batch).prediction
        without = target.ask(replace(batch, inputs={**batch.inputs, "input_ids": nothing})).prediction
        wanted = Outputs(without - self.eta * (named - without))
        said = family.forward(step.model, batch)
        terms = {"erase": step.mean("forget", family.divergence(wanted, said, batch))}
        if self.preserve:
            kept = family.divergence(step.reference("retain"), step.outputs("retain"), step.retain)
            terms["preserve"] = self.preserve * step.mean("retain", kept)
        return terms

    def drawn(self, step: Step, family: Diffusion) -> Batch:
        """The step's prompts, asked about what the target is drawing of them."""
        until = int(torch.randint(family.steps, (), generator=same_draws(step)))
        with step.state.frozen["reference"].calling() as target:
            return part_drawn(family, target, step.forget, until, self.guidance)
