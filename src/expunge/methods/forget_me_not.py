"""Forget-Me-Not: train cross-attention to look away from the words that name the concept."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, cast

import torch
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families import Batch, Diffusion
from expunge.families.models import innermost
from expunge.families.pipelines import DiffusionModel
from expunge.methods.cross_attention import attention_probabilities, phrase_positions
from expunge.methods.denoiser_parts import DenoiserPart, trainable_part
from expunge.methods.objective import Objective, Pass, State, Step
from expunge.parameters import param
from expunge.problem import Problem


class ForgetMeNot(Objective):
    """Attention re-steering: make the attention that pixels pay to the concept's words small.

    ``sum A[l, b, h, i, j]^2`` over all cross-attention modules l, rows b of the batch, heads h, positions i of the image and
    those tokens j of the prompt that name the concept; A are the probabilities, which sum to 1 over all tokens of a prompt.
    x_t is the row's image under noise at a random timestep. A sum, not a mean: it grows with batch and model, which only
    plain gradient steps notice. There is no loss on images, and nothing else is protected.

    Attention that leaves these tokens goes to others: under a causal text encoder every later token has read the concept
    as well, and may still carry it. `tokens` says which ones are meant.

    The concept is found in a row's prompt by the tokens of its name; rows that do not name it teach nothing. Rows without
    images are zero latents under noise, as in the reference code.

    Deviation: the paper may first learn a token for the concept from images (textual inversion); here it has a name.
    """

    name = "forget-me-not"
    paper = "Zhang et al., 2023, arXiv:2303.17591"
    families = frozenset({"diffusion"})
    needs = frozenset({"concept"})

    form: Literal["squares", "norm"] = param(
        "squares",
        "the sum of squares, or its square root (one norm of all entries together)",
        source="the paper's algorithm; reference code takes the norm",
    )
    tokens: Literal["phrase", "end", "rest"] = param(
        "phrase",
        "whose attention is taken down: the tokens of the concept's name, those and the end token, or everything from them on",
        source="the paper: phrase; reference code has the end token as an option; the rest is ours",
    )
    part: DenoiserPart = param(
        "x", "what is trained", source="reference code: cross-attention, or the whole denoiser"
    )
    epochs: int = param(
        35, "passes over the forget set", source="reference code: 35 steps of a few images", ge=0
    )
    lr: float = param(2e-6, "learning rate", source="reference code", ge=0)
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = param(
        "adamw", "update rule", source="reference code"
    )

    def passes(self, epoch: int) -> list[Pass]:  # noqa: D102
        return [Pass("forget")]

    def trainable(self, problem: Problem, model: nn.Module, state: State) -> Collection[str] | None:  # noqa: D102
        return trainable_part(model, self.part)

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:  # noqa: D102
        family = cast(Diffusion, problem.family)
        asked = family.tokens([str(p) for p in problem.forget["prompt"][:]])
        named = self.places(family, _name(problem), asked).any(1)
        if not named.any():
            raise BadInput(
                f"method '{self.name}': no prompt to forget contains '{_name(problem)}', so there is no attention to take "
                "down; call the concept as the prompts do"
            )
        if not named.all():
            state.workplace.notes.append(
                f"{int((~named).sum())} of {len(named)} rows to forget do not name the concept and teach nothing"
            )

    def places(self, family: Diffusion, name: str, input_ids: Tensor) -> Tensor:
        """`[B, L]` bool: the tokens whose attention is taken down."""
        phrase = phrase_positions(family, name, input_ids)
        after = phrase.cumsum(1) > 0
        if self.tokens == "rest":
            return after
        if self.tokens == "end":
            ends = (input_ids == family.tokenizer.eos_token_id) & after & ~phrase
            return phrase | (ends & (ends.cumsum(1) == 1))
        return phrase

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        family = cast(Diffusion, step.family)
        batch = _with_images(family, step.forget, step.generator)
        where = self.places(family, _name(step.state.problem), batch.inputs["input_ids"])
        inner = cast(DiffusionModel, innermost(getattr(step.model, "module", step.model)))
        with attention_probabilities(inner.unet) as caught:
            family.forward(step.model, batch)
        where = where[:, None, None].to(caught[0].device)
        return {"attention": sum(((p * where).square().sum() for p in caught), torch.zeros(()))}

    def combine(  # noqa: D102
        self, gradients: dict[str, list[Tensor]], lr: float, state: State, terms: dict[str, Tensor]
    ) -> list[Tensor]:
        found = gradients["attention"]
        if self.form == "squares":
            return found
        # A norm is no sum over micro-batches; its gradient follows from that of the squares of all.
        norm = terms["attention"].sqrt()
        terms["norm"] = norm
        return [g / (2 * norm) if norm > 0 else g for g in found]


def _name(problem: Problem) -> str:
    assert problem.concept is not None  # declared as needed
    return problem.concept.name


def _with_images(family: Diffusion, batch: Batch, generator: torch.Generator) -> Batch:
    """The batch itself, or, where it has no images, zero latents under noise at random timesteps."""
    if batch.mask.any():
        return batch
    noise = batch.inputs["noise"][:, 0].unflatten(-1, family.shape)
    timesteps = torch.randint(family.noise.steps, (len(batch),), generator=generator).to(noise.device)
    return family.at(batch, family.noise.noise(timesteps)[..., None, None] * noise, timesteps)
