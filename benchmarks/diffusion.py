"""Image generators: closed-form edits in seconds, training steps and sampling against plain `diffusers`."""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np
import torch
from timing import line, paired_ratio
from torch import Tensor, nn

from expunge.data.benchmarks.canvas_mini import CanvasMini
from expunge.families import Diffusion
from expunge.families.denoising import sample, starting_noise
from expunge.families.models import clone
from expunge.families.noise import draw_timesteps
from expunge.families.pipelines import DiffusionModel
from expunge.methods import METHODS, Workplace
from expunge.methods.rece import recovering
from expunge.methods.uce import RidgeEdit
from expunge.problem import Problem

WIDTHS = [320] * 5 + [640] * 5 + [1280] * 6
"""Cross-attention of Stable Diffusion 1.x: sixteen modules of these widths, each with keys and values."""
EMBEDDING, ROWS = 768, 77 * 20
"""Width of CLIP's embeddings, and of how many positions an edit of 20 prompts is made."""


def main() -> None:
    torch.set_num_threads(1)
    closed_forms()
    problem = CanvasMini(images=40).problem()
    problem = problem.with_model(problem.fresh_model(0).eval())
    training(problem)
    sampling(problem)


def closed_forms() -> None:
    """UCE and one round of RECE on matrices of Stable Diffusion's shapes, in float64."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    originals = [draw(width, EMBEDDING) / EMBEDDING**0.5 for width in WIDTHS for _ in "kv"]
    concept, anchor, kept = draw(ROWS, EMBEDDING), draw(ROWS, EMBEDDING), draw(ROWS, EMBEDDING)

    def edit(weights: list[Tensor], rows: Tensor) -> list[Tensor]:
        solve = RidgeEdit(rows, kept, 0.5, 1.0, 1.0)
        return [solve(w, anchor @ w.T) for w in weights]

    started = time.perf_counter()
    edited = edit(originals, concept)
    uce = time.perf_counter() - started
    edit(edited, recovering(edited, originals, concept, 1e-3))
    rece = time.perf_counter() - started
    what = f"closed-form edit of {len(originals)} matrices as in Stable Diffusion 1.x, {ROWS} rows"
    print(f"{what}: UCE {uce:.2f} s, RECE {rece:.2f} s")


def training(problem: Problem) -> None:
    """One pass over the retain rows: our loop, and the loop of diffusers' text-to-image example on tensors."""
    family = cast(Diffusion, problem.family)
    rows = problem.splits["retain"].with_format("numpy")[:]
    clean = torch.from_numpy(np.stack([np.asarray(v, np.float32) for v in rows["latents"]])).unflatten(
        1, family.shape
    )
    ids = family.tokens([str(p) for p in rows["prompt"]])
    scheduler: Any = family.noise.sampler(1)
    method = METHODS["fine-tune"](epochs=1, batch_size=64, optimizer="adamw", lr=1e-3, weight_decay=0.0)

    def ours() -> None:
        method.produce(problem, clone(problem.target), Workplace())

    def bare() -> None:
        model = cast(DiffusionModel, clone(problem.target)).train()
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0
        )
        generator = torch.Generator().manual_seed(0)
        for batch in torch.randperm(len(clean), generator=generator).split(64):
            noise = torch.randn(clean[batch].shape, generator=generator)
            timesteps = draw_timesteps(
                torch.rand(len(batch), generator=generator), 1000, family.timestep_power
            )
            noisy = scheduler.add_noise(clean[batch], noise, timesteps)
            embedded = model.text_encoder(ids[batch])[0]
            said = model.unet(noisy, timesteps, encoder_hidden_states=embedded, return_dict=False)[0]
            weights = family.weights(timesteps[:, None])[:, 0]
            error = nn.functional.mse_loss(said, clean[batch], reduction="none").mean((1, 2, 3))
            (error * weights).mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    ratio, least, other = paired_ratio(ours, bare, 15)
    steps = -(-len(clean) // 64)
    line(f"training a denoiser, {other / steps * 1e3:.0f} ms a step", ratio, least, other, "at most 1.05")


def sampling(problem: Problem) -> None:
    """Images of one batch: our sampling pass, and a plain call of the pipeline with the same noise."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    family, model = cast(Diffusion, problem.family), cast(DiffusionModel, problem.target)
    rows = problem.splits["test"][:64]
    prompts, noise = rows["prompt"], starting_noise(family, rows["id"])
    pipe: Any = StableDiffusionPipeline(
        vae=None, text_encoder=model.text_encoder, tokenizer=family.tokenizer, unet=model.unet,  # pyright: ignore
        scheduler=DDIMScheduler.from_config(family.noise.config), safety_checker=None, feature_extractor=None,  # pyright: ignore
        image_encoder=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    side = 8 * family.shape[-1]  # a pipeline without a decoder takes a pixel for an eighth of a latent

    def ours() -> Tensor:
        return sample(family, model, prompts, noise)

    def bare() -> Tensor:
        latents = pipe(
            prompts, num_inference_steps=family.steps, guidance_scale=family.guidance, latents=noise, output_type="latent",
            height=side, width=side,
        ).images  # fmt: skip
        return model.decode(latents)

    difference = float((ours() - bare()).abs().max())
    ratio, least, other = paired_ratio(bare, ours, 9)
    what = f"images a second, ours by the pipeline's (difference {difference:.1g})"
    speeds = f"ours {len(noise) / other:8.1f} /s   other {len(noise) / least:8.1f} /s"
    print(f"{what:<64} ratio {ratio:6.3f}   {speeds}   at least 0.95")


if __name__ == "__main__":
    main()
