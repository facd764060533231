"""Sampling: from a prompt and its own noise to an image, batched, the same whatever the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from expunge.families.base import Batch, Outputs, count_examples
from expunge.families.membranes import Permeable
from expunge.families.models import innermost
from expunge.families.noise import row_seed
from expunge.families.pipelines import DiffusionModel
from expunge.families.sparse_features import Ablated

if TYPE_CHECKING:
    from expunge.families.diffusion import Diffusion


def denoiser(model: nn.Module) -> DiffusionModel | Ablated | Permeable:
    """What encodes prompts, denoises and decodes: the model itself, ablated features and gated adapters included."""
    return model if isinstance(model, Ablated | Permeable) else cast(DiffusionModel, innermost(model))


def starting_noise(family: Diffusion, ids: Sequence[str]) -> Tensor:
    """`[n, C, h, w]` noise that sampling starts from, fixed by each row's id: models are compared on the same noise."""
    drawn = [
        np.random.default_rng([1, row_seed(name)]).standard_normal(family.size, dtype=np.float32)
        for name in ids
    ]
    return torch.from_numpy(np.stack(drawn)).unflatten(1, family.shape)


def sample(
    family: Diffusion, model: nn.Module, prompts: Sequence[str], noise: Tensor, batch_size: int = 64
) -> Tensor:
    """Images `[n, 3, H, W]` in -1 to 1, one for each prompt, from `noise` (`[n, C, h, w]`).

    Deterministic DDIM with the family's steps and guidance; with guidance each row of a batch goes through twice.
    """
    inner = denoiser(model)
    ids = family.tokens(prompts).to(next(inner.parameters()).device)
    count_examples(len(prompts))
    made = []
    for rows in torch.arange(len(prompts)).split(batch_size):
        latents, _ = sample_latents(family, inner, ids[rows], noise[rows])
        with torch.inference_mode():
            made.append(inner.decode(latents))
    return torch.cat(made).clone()


@torch.no_grad()
def sample_latents(
    family: Diffusion,
    model: nn.Module,
    input_ids: Tensor,
    noise: Tensor,
    *,
    guidance: float | None = None,
    until: int | None = None,
    conditions: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Latents `[B, C, h, w]` after `until` steps (all where None), and the timestep `[]` at which they are then.

    Args:
        family: says schedule, steps and guidance.
        model: a `DiffusionModel`, with or without gated adapters.
        input_ids: `[B, L]` prompts.
        noise: `[B, C, h, w]` to begin with.
        guidance: instead of the family's; 1 is none.
        until: stop after so many steps; 0 returns the noise and the first timestep.
        conditions: `[B, L, d]` instead of what the text encoder makes of the prompts.
    """
    inner = denoiser(model)
    device = next(inner.parameters()).device
    scale = family.guidance if guidance is None else guidance
    latents = noise.to(device)
    conditions = inner.encode(input_ids) if conditions is None else conditions
    admitted = inner.admitted(input_ids, conditions)
    if scale != 1:
        empty = inner.encode(family.tokens([""]).to(device)).expand_as(conditions)
        conditions = torch.cat([empty, conditions])
        # Adapters that a prompt lets in take part in both halves, as they do when a pipeline loads them.
        admitted = None if admitted is None else torch.cat([admitted, admitted])
    scheduler = family.noise.sampler(family.steps)
    timesteps = scheduler.timesteps.to(device)
    for t in timesteps[:until]:
        if scale == 1:
            said = inner.denoise(latents, t.expand(len(latents)), conditions, admitted)
        else:
            doubled = torch.cat([latents, latents])
            without, named = inner.denoise(doubled, t.expand(len(doubled)), conditions, admitted).chunk(2)
            said = without + scale * (named - without)
        latents = scheduler.step(said, t, latents, return_dict=False)[0]
    done = len(timesteps) if until is None else until
    return latents, timesteps[min(done, len(timesteps) - 1)]


def part_drawn(family: Diffusion, model: nn.Module, batch: Batch, until: int, guidance: float) -> Batch:
    """The rows' prompts, asked about what `model` has drawn of them after `until` steps from the rows' own first noise."""
    noise = batch.inputs["noise"][:, 0].unflatten(1, family.shape)
    noisy, timestep = sample_latents(
        family, model, batch.inputs["input_ids"], noise, guidance=guidance, until=until
    )
    return family.at(batch, noisy, timestep.expand(len(batch)))


def under(family: Diffusion, model: nn.Module, batch: Batch, embedded: Tensor) -> Outputs:
    """What the model says of the first noisy latents of each row under embeddings `[B, L, d]` instead of its prompt."""
    count_examples(len(batch))
    noisy = family.noisy(batch)[:, 0].unflatten(1, family.shape)
    said = denoiser(model).denoise(noisy, batch.inputs["timesteps"][:, 0], embedded)
    return Outputs(said.flatten(1).unsqueeze(1))


def decoded(model: nn.Module, latents: Tensor, batch_size: int = 64) -> Tensor:
    """Images `[n, 3, H, W]` in -1 to 1 of latents `[n, C, h, w]`."""
    inner = denoiser(model)
    device = next(inner.parameters()).device
    with torch.inference_mode():
        return torch.cat([inner.decode(part.to(device)) for part in latents.split(batch_size)]).clone()
