"""AdvUnlearn: erase a concept under the tokens that bring it back best, and train the text encoder instead of the denoiser."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from expunge.families import Batch, Diffusion
from expunge.families.base import Outputs
from expunge.families.denoising import denoiser, part_drawn, under
from expunge.families.inserted_tokens import Place, encode_with, make_room, token_embeddings
from expunge.families.models import innermost
from expunge.families.noise import draw_timesteps, row_seed
from expunge.families.pipelines import DiffusionModel
from expunge.methods.concept_words import names_concept, require_concept
from expunge.methods.denoiser_parts import DenoiserPart, trainable_part
from expunge.methods.objective import Objective, Pass, State, Step
from expunge.parameters import param
from expunge.problem import Problem


class AdvUnlearn(Objective):
    """Adversarial training: an inner attack on the prompt, an outer loss that erases under it and keeps retain prompts.

    With t the text encoder that is trained, t_0 the target's, eps_0 the denoiser, which stays, c = t_0(prompt), and k
    further token embeddings d put before the prompt's words:
    inner ``min_d mean | eps_0(x_t, t([d; words])) - eps_0(x_t, c) |^2``, `attack_steps` steps of Adam;
    outer ``min_t U + gamma R`` with
    ``U = mean | eps_0(x_t, t([d*; words])) - [eps_0(x_t, b) - eta (eps_0(x_t, c) - eps_0(x_t, b))] |^2``, b the empty
    prompt (``surrogate: anchor``: each row's anchor), and
    ``R = mean | eps_0(x_t^r, t(r)) - eps_0(x_t^r, t_0(r)) |^2`` over retain prompts r.
    x_t is what the model has drawn of the prompt after a random number of steps with guidance, anew in every step of the
    attack, too (`latents` ``once``: one x_t for an attack and the step after it, which saves most of the time). At first, for
    the share `clean` of the run, nothing is put before the words.

    ``part: text`` trains the blocks and the last norm of the encoder; its tables of tokens and positions stay, so that
    words mean to the attack what they meant. The encoder serves every denoiser that shares it. Other parts are those of the
    denoiser, under the same attack.

    Rows are attacked each by itself, from embeddings of random words. `fast` follows the sign of the gradient instead of
    Adam; `gradient` ``added`` never clears it within an attack, as in the reference code.

    Deviations: tokens are counted, not words; errors are weighted by timestep as the model was trained; x_t is asked about
    at the very timestep that it reached; sampling has the family's steps.
    """

    name = "advunlearn"
    paper = "Zhang et al., NeurIPS 2024, arXiv:2405.15234"
    families = frozenset({"diffusion"})
    needs = frozenset({"concept", "retain"})
    reference_on = ("forget",)
    opens = True

    part: Literal["text"] | DenoiserPart = param(
        "text", "what is trained: the text encoder, or a part of the denoiser", source="the paper"
    )
    text_blocks: int | None = param(
        None, "train only so many first blocks of the text encoder; None means all", source="the paper", ge=1
    )
    eta: float = param(1.0, "strength of the guidance away from the concept", source="the paper")
    surrogate: Literal["empty", "anchor"] = param(
        "empty",
        "what guidance leads away to: no prompt, or the row's anchor",
        source="the paper; anchor is ours",
    )
    gamma: float = param(1.0, "weight of the retain term", source="reference code: 1; 0.3 for nudity", ge=0)
    clean: float = param(
        0.2, "share of the run before the first attack", source="reference code: 200 of 1000", ge=0, le=1
    )
    tokens: int = param(1, "adversarial tokens", source="the paper", ge=0)
    place: Place = param("prefix", "where they stand", source="the paper")
    attack_steps: int = param(30, "steps of an attack", source="the paper", ge=0)
    attack_lr: float = param(1e-3, "learning rate of an attack", source="reference code", ge=0)
    fast: bool = param(False, "attack by the gradient's sign", source="the paper's fast variant")
    gradient: Literal["fresh", "added"] = param(
        "fresh",
        "gradient of an attack: of the last step, or of all so far",
        source="the paper; added is reference code",
    )
    start: Literal["sample", "data"] = param(
        "sample", "where noisy latents come from: drawn, or the rows' images under noise", source="the paper"
    )
    latents: Literal["fresh", "once"] = param(
        "fresh", "how often they are drawn in an attack", source="the paper"
    )
    guidance: float = param(3.0, "guidance under which they are drawn", source="reference code", ge=1)
    lr: float = param(1e-5, "learning rate", source="the paper", ge=0)
    batch_size: int = param(
        5,
        "forget rows per optimizer step, and retain rows",
        source="the paper: 5 retain prompts (and 1 of the concept)",
        ge=1,
    )
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = param("adam", "update rule", source="the paper")
    weight_decay: float = param(0.0, "L2 coefficient", source="the paper", ge=0)

    def passes(self, epoch: int) -> list[Pass]:  # noqa: D102
        return [Pass("forget", paired="retain" if self.gamma else None)]

    def trainable(self, problem: Problem, model: nn.Module, state: State) -> Collection[str] | None:  # noqa: D102
        if self.part != "text":
            return trainable_part(model, self.part)
        return encoder_blocks(cast(DiffusionModel, innermost(model)), self.text_blocks)

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:  # noqa: D102
        require_concept(problem, anchored=self.surrogate == "anchor")
        token_embeddings(encoder_of(model))
        if self.tokens:
            make_room(cast(Diffusion, problem.family), state.sources["forget"].take(torch.arange(1)).inputs["input_ids"],
                      self.tokens, self.place)  # fmt: skip

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        terms = {"erase": step.mean("forget", self.erasing(step), names_concept(step.forget))}
        if self.gamma:
            terms["retain"] = self.gamma * step.mean("retain", self.keeping(step))
        return terms

    def keeping(self, step: Step) -> Tensor:
        """`[B]` R of the retain rows."""
        family, target = cast(Diffusion, step.family), step.state.frozen["reference"]
        if not len(step.retain):
            return step.retain.targets.new_zeros(0)
        batch = self.seen(step, step.retain, self.attack_steps + 1)
        return family.divergence(target.ask(batch), family.forward(step.model, batch), batch)

    def erasing(self, step: Step) -> Tensor:
        """`[B]` U of the forget rows, attacked once the first part of the run is over."""
        family, model, batch = cast(Diffusion, step.family), denoiser(step.model), step.forget
        if not len(batch):
            return batch.targets.new_zeros(0)
        last = self.seen(step, batch, self.attack_steps)
        if step.progress < self.clean or not self.tokens:
            embedded = model.encode(batch.inputs["input_ids"])
        else:
            ids, places = make_room(family, batch.inputs["input_ids"], self.tokens, self.place)
            found = self.attack(step, last, ids, places)
            embedded = encode_with(encoder_of(step.model), ids, places, found)
        target = step.state.frozen["reference"]
        ids = last.inputs["anchor_ids"]
        if self.surrogate == "empty":
            ids = family.tokens([""]).to(ids).expand_as(ids)
        named = target.ask(last).prediction
        base = target.ask(replace(last, inputs={**last.inputs, "input_ids": ids})).prediction
        wanted = Outputs(base - self.eta * (named - base))
        return family.divergence(wanted, under(family, step.model, last, embedded), last)

    def attack(self, step: Step, last: Batch, ids: Tensor, places: Tensor) -> Tensor:
        """`[B, k, d]` token embeddings under which the model says most nearly what the target says of the bare prompts.

        Args:
            step: whose forget rows are attacked.
            last: what is asked in the step of the model that follows, and in every one of the attack with `latents` once.
            ids: `[B, L]` prompts with room.
            places: `[B, k]` where it is.
        """
        family, encoder = cast(Diffusion, step.family), encoder_of(step.model)
        target = step.state.frozen["reference"]
        table = token_embeddings(encoder).get_parameter("weight").detach()
        words = np.stack([draws(step, name, -1).integers(len(table), size=self.tokens) for name in last.ids])
        found = table[torch.from_numpy(words).to(table.device)].clone().requires_grad_(True)
        optimizer = torch.optim.Adam([found], lr=self.attack_lr)
        total = torch.zeros_like(found)
        for number in range(self.attack_steps):
            batch = last if self.latents == "once" else self.seen(step, step.forget, number)
            said = under(family, step.model, batch, encode_with(encoder, ids, places, found))
            # Rows do not share: each is attacked as if it were alone.
            distance = family.divergence(target.ask(batch), said, batch).sum()
            (gradient,) = torch.autograd.grad(distance, found)
            total = gradient + (total if self.gradient == "added" else 0)
            if self.fast:
                with torch.no_grad():
                    found -= self.attack_lr * total.sign()
            else:
                found.grad = total
                optimizer.step()
        return found.detach()

    def seen(self, step: Step, batch: Batch, number: int) -> Batch:
        """The rows with new noisy latents, the `number`-th of this step."""
        family = cast(Diffusion, step.family)
        places, noise = [], []
        for name in batch.ids:
            random = draws(step, name, number)
            places.append(random.random())
            noise.append(random.standard_normal((1, family.size), dtype=np.float32))
        device = batch.targets.device
        drawn = {**batch.inputs, "noise": torch.from_numpy(np.stack(noise)).to(device)}
        if self.start == "data":
            timesteps = draw_timesteps(
                torch.tensor(places)[:, None], family.noise.steps, family.timestep_power
            )
            drawn["timesteps"] = timesteps.to(device).where(batch.mask, family.noise.steps - 1)
            return replace(batch, inputs=drawn, mask=torch.ones_like(batch.mask))
        # All rows of a step share how far they are drawn.
        until = draws(step, "", number).integers(family.steps)
        return part_drawn(family, step.model, replace(batch, inputs=drawn), int(until), self.guidance)


def draws(step: Step, name: str, number: int) -> np.random.Generator:
    """Randomness of one row in one step, whatever micro-batch it is in."""
    return np.random.default_rng([step.generator.initial_seed(), row_seed(name), number + 1])


def encoder_of(model: nn.Module) -> nn.Module:
    """The model's text encoder."""
    return cast(DiffusionModel, innermost(getattr(model, "module", model))).text_encoder


def encoder_blocks(model: DiffusionModel, first: int | None) -> set[str]:
    """Names of the weights of the text encoder outside its tables: all, or those of the first blocks."""
    tables = {
        id(p) for m in model.text_encoder.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    names = {
        f"text_encoder.{name}": name.partition("layers.")[2].partition(".")[0]
        for name, p in model.text_encoder.named_parameters()
        if id(p) not in tables
    }
    if first is None:
        return set(names)
    return {name for name, block in names.items() if block.isdigit() and int(block) < first}
