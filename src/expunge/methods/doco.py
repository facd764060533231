"""DoCo: what is drawn for a concept must look like what is drawn for its anchor, to a discriminator that learns along."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families import Batch, Diffusion
from expunge.families.base import count_examples
from expunge.families.denoising import sample_latents
from expunge.families.noise import row_seed
from expunge.methods.concept_words import names_concept, require_concept
from expunge.methods.denoiser_parts import DenoiserPart, trainable_part
from expunge.methods.discriminator import Discriminator
from expunge.methods.objective import Objective, Pass, State, Step
from expunge.parameters import param
from expunge.problem import Problem


class DoCo(Objective):
    """Concept domain correction with a concept-preserving gradient.

    Of an anchor image under noise, x_t, the model answers the concept's prompt, eps_s, and the frozen target the anchor's,
    eps_r. A discriminator D looks at patches of the clean latents that these mean, x_0(eps): anchors are 0, the concept 1.
    ``L_D = BCE(D(x_0(eps_r)), 0) + BCE(D(x_0(eps_s)), 1)``; the model is trained by ``L_u = BCE(D(x_0(eps_s)), 0)``, with its
    gradient g kept from working against h, that of the usual loss L_p on the anchor's own prompt and image: per parameter
    tensor, where <g, h> < 0, ``g <- g - strength <g, h> h / |h|^2``. h itself is no part of the update.

    D is trained alone for a while first, then once after each step of the model. Anchor images are drawn by the target
    before training, evenly for all anchor prompts; ``images: data`` takes the rows' own.

    `surgery` ``published`` is that of the reference code: g is cut to the norm `clip`, and ``cos(g, h) h / |h|`` taken from
    it, which is a projection only where |g| = 1. ``none`` adds `prior_weight` times h instead.

    Deviations from the reference code: D gets no gradient from L_u; groups are normalized in it instead of batches;
    x_0 is computed at each row's timestep in closed form.
    """

    name = "doco"
    paper = "Wu et al., AAAI 2025, arXiv:2405.15304"
    families = frozenset({"diffusion"})
    needs = frozenset({"concept"})
    reference_on = ("forget",)

    part: DenoiserPart = param(
        "x-strict", "what is trained", source="the paper: keys and values of cross-attention"
    )
    images: Literal["drawn", "data"] = param(
        "drawn", "where anchor images come from", source="the paper: drawn"
    )
    n_images: int = param(
        200, "images to draw, shared evenly by the anchor prompts", source="reference code: hundreds", ge=1
    )
    discriminator_lr: float = param(
        5e-4, "learning rate of D", source="reference code: 5e-4 for styles, 1e-4 else", ge=0
    )
    discriminator_steps: int = param(
        1000, "steps of D before the model's first", source="reference code", ge=0
    )
    width: int = param(64, "channels of D's first layer", source="reference code", ge=1)
    surgery: Literal["exact", "published", "none"] = param(
        "exact", "how the gradient is kept from undoing the anchor", source="the paper; published is reference code"
    )  # fmt: skip
    strength: float = param(1.0, "share of the opposing part that is taken out", source="the paper", ge=0)
    prior_weight: float = param(0.1, "weight of L_p without surgery", source="reference code", ge=0)
    lr: float = param(4.8e-5, "learning rate", source="reference code: 6e-6 times a batch of 8", ge=0)
    batch_size: int = param(8, "rows per optimizer step", source="reference code", ge=1)
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = param(
        "adamw", "update rule", source="reference code"
    )
    weight_decay: float = param(0.01, "L2 coefficient (decoupled for adamw)", source="reference code", ge=0)
    clip: float | None = param(1.0, "largest gradient norm", source="reference code", gt=0)

    def passes(self, epoch: int) -> list[Pass]:  # noqa: D102
        return [Pass("forget")]

    def trainable(self, problem: Problem, model: nn.Module, state: State) -> Collection[str] | None:  # noqa: D102
        return trainable_part(model, self.part)

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:  # noqa: D102
        family = cast(Diffusion, problem.family)
        require_concept(problem, anchored=True)
        if not self.epochs:
            return
        if self.images == "drawn":
            self._draw_anchors(problem, family, model, state)
        elif "images" not in problem.offers():
            raise BadInput(f"{problem.name} has no images of anchors; leave 'images' at 'drawn'")
        discriminator = Discriminator(state.kept, "discriminator")
        discriminator.draw(family.shape, self.width, state.workplace.generator(21), state.workplace.device)
        rows, forget = state.workplace.generator(22), state.sources["forget"]
        for number in range(self.discriminator_steps):
            generator = state.workplace.generator(23, number)
            chosen = torch.randperm(len(forget), generator=rows)[: self.batch_size]
            batch = self.anchored(family.redraw(forget.take(chosen), generator), family, state, generator)
            with torch.no_grad():
                seen = [self.clean(family, model, part) for part in self.asked(batch)]
            discriminator.learn(*seen, weight=names_concept(batch) / len(batch))
            discriminator.step(self.discriminator_lr, state.workplace.device)
        state.workplace.notes.append(
            f"before the first step the discriminator was right on {discriminator.accuracy:.2f} of the patches"
        )

    def _draw_anchors(self, problem: Problem, family: Diffusion, model: nn.Module, state: State) -> None:
        """Keep the target's images for every distinct anchor prompt: ``prompts`` `[P, L]`, ``images`` `[P, n, D]`."""
        ids = state.sources["forget"].take(torch.arange(len(problem.forget_rows))).inputs["anchor_ids"]
        prompts = ids.unique(dim=0)
        each = -(-self.n_images // len(prompts))
        generator, drawn = state.workplace.generator(24), []
        for part in prompts.repeat_interleave(each, 0).split(64):
            noise = torch.randn(len(part), *family.shape, generator=generator)
            drawn.append(sample_latents(family, model, part, noise)[0].flatten(1))
        count_examples(each * len(prompts))
        state.kept["prompts"] = prompts
        state.kept["images"] = torch.cat(drawn).unflatten(0, (len(prompts), each))

    def anchored(self, batch: Batch, family: Diffusion, state: State, generator: torch.Generator) -> Batch:
        """The rows with an image of their anchor as their own."""
        if self.images == "data":
            clean = batch.inputs["anchor"]
        else:
            prompts, images = (state.kept[k].to(batch.targets.device) for k in ("prompts", "images"))
            which = (batch.inputs["anchor_ids"][:, None] == prompts).all(-1).int().argmax(1)
            # By row and step, whatever the micro-batch.
            seed = generator.initial_seed()
            chosen = [row_seed(f"{seed} {name}") % images.shape[1] for name in batch.ids]
            clean = images[which, torch.tensor(chosen, device=which.device)]
        return replace(
            batch, inputs={**batch.inputs, "clean": clean}, targets=clean.unsqueeze(1),
            mask=torch.ones_like(batch.mask),
        )  # fmt: skip

    def asked(self, batch: Batch) -> tuple[Batch, Batch]:
        """The rows under their anchor's prompt, and under their own."""
        return replace(batch, inputs={**batch.inputs, "input_ids": batch.inputs["anchor_ids"]}), batch

    def clean(self, family: Diffusion, model: nn.Module, batch: Batch) -> Tensor:
        """`[B, C, h, w]` clean latents that the model's answer means."""
        return shown(family, family.forward(model, batch).prediction, batch)

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        family, kept = cast(Diffusion, step.family), step.state.kept
        batch = self.anchored(step.forget, family, step.state, step.generator)
        anchor, named = self.asked(batch)
        discriminator, counts = Discriminator(kept, "discriminator"), names_concept(batch)
        wanted = shown(family, step.state.frozen["reference"].ask(anchor).prediction, anchor)
        said = self.clean(family, step.model, named)
        taken = F.softplus(discriminator(said)).flatten(1).mean(1)
        prior = family.nll(family.forward(step.model, anchor), anchor)
        share = step.mean("forget", counts.float()) / counts.sum().clamp(
            min=1
        )  # one over the rows of the whole step
        discriminator.learn(wanted, said.detach(), weight=counts * share)
        return {"align": step.mean("forget", taken, counts), "prior": step.mean("forget", prior)}

    def combine(  # noqa: D102
        self, gradients: dict[str, list[Tensor]], lr: float, state: State, terms: dict[str, Tensor]
    ) -> list[Tensor]:
        terms["discriminator"] = Discriminator(state.kept, "discriminator").loss
        pairs = list(zip(gradients["align"], gradients["prior"], strict=True))
        if self.surgery == "none":
            return [g + self.prior_weight * h for g, h in pairs]
        cosines = torch.stack([F.cosine_similarity(g.flatten(), h.flatten(), dim=0) for g, h in pairs])
        terms["opposed"] = (cosines < 0).float().mean()
        if self.surgery == "published" and self.clip is not None:
            norms = [
                torch.stack([part.norm() for part in parts]).norm() for parts in zip(*pairs, strict=True)
            ]
            cut = [(self.clip / n.clamp(min=self.clip)) for n in norms]
            pairs = [(g * cut[0], h * cut[1]) for g, h in pairs]
        return [without_conflict(g, h, self.strength, exact=self.surgery == "exact") for g, h in pairs]

    def after_step(self, model: nn.Module, state: State, progress: float) -> None:  # noqa: D102
        Discriminator(state.kept, "discriminator").step(self.discriminator_lr, state.workplace.device)

    def finish(self, problem: Problem, model: nn.Module, state: State) -> None:  # noqa: D102
        if self.epochs:
            right = Discriminator(state.kept, "discriminator").accuracy
            state.workplace.notes.append(
                f"at the last step it was right on {right:.2f}; at best it cannot tell them apart and is right on half"
            )


def without_conflict(g: Tensor, h: Tensor, strength: float, *, exact: bool) -> Tensor:
    """g without `strength` of its part against h: ``g - strength <g, h> h / |h|^2`` where <g, h> < 0, else g.

    Not `exact`: ``g - strength cos(g, h) h / |h|``, as the reference code has it.
    """
    along = (g * h).sum()
    if along >= 0:
        return g
    scale = h.norm().square() if exact else g.norm() * h.norm().square()
    return g - strength * along / scale * h


def shown(family: Diffusion, prediction: Tensor, batch: Batch) -> Tensor:
    """`[B, C, h, w]` clean latents that a prediction `[B, 1, D]` means."""
    clean = family.noise.clean(prediction, family.noisy(batch), batch.inputs["timesteps"])
    return clean[:, 0].unflatten(1, family.shape)
