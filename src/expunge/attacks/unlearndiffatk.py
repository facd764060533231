"""UnlearnDiffAtk: tokens before the prompt under which the erased model explains an image of the concept."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.attacks.base import Scene
from expunge.attacks.drawing import (
    DrawingAttack,
    Hunt,
    as_text,
    asked_rows,
    by_chance,
    concept_images,
    denoised,
    diffusion_of,
    success,
)
from expunge.attacks.frames import parts_of, vocabulary, with_prefix
from expunge.attacks.vectors import embedding_of
from expunge.families.noise import draw_timesteps
from expunge.parameters import param
from expunge.record import Score


class UnlearnDiffAtk(DrawingAttack):
    """k tokens before the prompt, found by the denoising loss of the erased model itself on one image of the concept.

    A model that still represents the concept is a zero-shot classifier: ``mean | eps(x_t, [d; p]) - eps |^2`` is small
    where the prompt explains the image. The image is what the target draws of the row. Each free place holds a
    distribution over the vocabulary; a step draws a token from each, takes the gradient of the loss by the token's
    embedding, ``g E^T`` clipped to -1 to 1 (straight through), makes a step of AdamW and projects back onto the simplex.
    After each of `timesteps` timesteps the most likely tokens are drawn from and judged; a row stops at its first success. A row
    that succeeds as it is is never attacked.

    Deviations: the projection is exact, by sorting, not by bisection; the timesteps lie as densely as in the model's own
    training and errors weigh as there (both uniform for usual checkpoints); `draws` noises are averaged in each step, where
    published code takes one. A prompt that leaves no room for k tokens is cut at its end.
    """

    name = "unlearndiffatk"
    paper = "Zhang et al., ECCV 2024, arXiv:2310.11868"
    threat_model = "weights of the erased model (gradients by its prompt); an image of the concept"
    access = "weights"
    measures = success(
        name,
        "UnlearnDiffAtk",
        "with some of the searched tokens before the prompt",
        as_text(name, "UnlearnDiffAtk"),
        by_chance(name, "UnlearnDiffAtk"),
    )

    tokens: int = param(
        3, "tokens before the prompt", source="the paper: 5 for nudity, 3 for styles and objects", ge=1
    )
    timesteps: int = param(
        10, "timesteps of the loss; something is drawn after each", source="ours; the paper: 50", ge=1
    )
    steps: int = param(200, "steps in all", source="ours; the paper: 40 for each of 50 timesteps", ge=1)
    draws: int = param(4, "noises averaged in each step", source="ours; the paper: 1", ge=1)
    lr: float = param(0.01, "learning rate", source="reference code", gt=0)
    weight_decay: float = param(0.1, "decay of the distributions", source="reference code", ge=0)

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {"steps": self.steps, "queries": self.timesteps, "prompts": self.rows}

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        family, device = diffusion_of(scene.problem), scene.workplace.device
        asked = asked_rows(scene, self.rows)
        images, hunt = concept_images(scene, asked), Hunt(scene, asked)
        frame = with_prefix(family, asked.tokens.to(device), self.tokens)
        ids = vocabulary(family).to(device)
        with torch.no_grad():
            table = embedding_of(parts_of(scene.model).text_encoder)(ids).float()
        weights = torch.full((len(frame.row), len(ids)), 1 / len(ids), device=device, requires_grad=True)
        optimizer = torch.optim.AdamW([weights], self.lr, weight_decay=self.weight_decay)
        random = scene.workplace.generator(74)
        parts = min(self.timesteps, self.steps)
        places = (torch.arange(parts) + 0.5) / parts
        for part, t in enumerate(draw_timesteps(places, family.noise.steps, family.timestep_power).tolist()):
            if not (rows := hunt.open):
                break
            some, mine = frame.take(rows), torch.isin(frame.row, torch.tensor(rows, device=device))
            count = self.steps * (part + 1) // parts - self.steps * part // parts
            for _ in range(count):
                drawn = torch.multinomial(weights.detach().cpu(), 1, generator=random)[:, 0].to(device)
                vectors = table[drawn[mine]].requires_grad_(True)
                noise = torch.randn(len(rows), self.draws, family.size, generator=random).to(device)
                times = torch.full((len(rows), self.draws), t, device=device)
                with torch.enable_grad():
                    said, batch = denoised(
                        family, scene.model, images[rows], times, noise, some.encoded(scene.model, vectors)
                    )
                    loss = family.errors(said, batch).mean(1).sum()
                    (slope,) = torch.autograd.grad(loss, [vectors])
                weights.grad = torch.zeros_like(weights)
                weights.grad[mine] = (slope @ table.T).clamp(-1, 1)
                optimizer.step()
                with torch.no_grad():
                    weights.copy_(onto_simplex(weights))
            likely = ids[weights.detach().argmax(-1)]
            hunt.attempt(frame.filled(likely)[rows])
            hunt.spent(self.steps * (part + 1) // parts)
        return hunt.scores(self, random=hunt.at_random([frame], parts))


def onto_simplex(values: Tensor) -> Tensor:
    """The nearest point of the probability simplex to each row of `[n, V]`: ``max(v - s, 0)`` with s so that it sums to 1."""
    ordered = values.sort(-1, descending=True).values
    excess = (ordered.cumsum(-1) - 1) / torch.arange(1, values.shape[-1] + 1, device=values.device)
    last = (ordered > excess).sum(-1, keepdim=True) - 1
    return (values - excess.gather(-1, last)).clamp(min=0)
