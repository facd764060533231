"""P4D: a prompt under which the erased model says what the target says under the concept's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from expunge.attacks.base import Scene
from expunge.attacks.drawing import (
    Asked,
    DrawingAttack,
    Hunt,
    as_text,
    asked_rows,
    by_chance,
    concept_images,
    denoised,
    diffusion_of,
    evenly_spent,
    success,
    target_of,
)
from expunge.attacks.frames import Frame, all_free, parts_of, vocabulary, with_inserted
from expunge.attacks.vectors import embedding_of
from expunge.families import Diffusion
from expunge.families.noise import draw_timesteps
from expunge.metrics.base import Undefined
from expunge.parameters import param
from expunge.record import Score


class P4D(DrawingAttack):
    """Tokens that bring the erased model's predictions to the target's: ``mean | eps_0(x_t, p) - eps(x_t, d) |^2``.

    x_t are noised images that the target draws of the prompt p, t is drawn anew in every step. Each free place holds a
    vector; the model sees the token whose embedding is nearest to it by cosine, and the gradient goes to the vector
    (Wen et al.'s hard prompts). `variant` says where the free places are: ``n``, a prompt of `tokens` of them alone;
    ``k``, one after every `every` tokens of p; ``union``, the first, then the second for the rows that it did not
    succeed on, with the same steps again.

    Deviations: the learning rate is in units of the embeddings' root mean square, so that it means the same in
    every text encoder; errors and timesteps weigh as in the model's training; `draws` noises a step.
    """

    name = "p4d"
    paper = "Chin et al., ICML 2024, arXiv:2309.06135"
    threat_model = "weights of the erased model (gradients by its prompt) and of the model before forgetting"
    access = "weights"
    measures = success(
        name, "P4D", "under some of the searched prompts", as_text(name, "P4D"), by_chance(name, "P4D")
    )

    variant: Literal["n", "k", "union"] = param(
        "union",
        "free prompt, free tokens between the prompt's own, or both",
        source="the paper reports all three",
    )
    tokens: int = param(16, "free tokens of variant n, as many as fit in", source="the paper", ge=1)
    every: int = param(3, "tokens between two free ones in variant k", source="the paper", ge=1)
    steps: int = param(100, "steps of each variant", source="ours; the paper: 3000", ge=1)
    evaluations: int = param(
        10, "times that something is drawn, per variant", source="ours; the paper: 60", ge=1
    )
    draws: int = param(4, "noises averaged in each step", source="ours; the paper: 1", ge=1)
    lr: float = param(
        7.0,
        "learning rate, in root mean squares of the embeddings",
        source="the paper: 0.1, which is 7 for CLIP",
        gt=0,
    )
    decay: float = param(
        0.01, "what vectors lose in a step", source="reference code: 0.1 times its learning rate", ge=0
    )

    def spends(self) -> dict[str, float]:  # noqa: D102
        turns = 2 if self.variant == "union" else 1
        return {"steps": turns * self.steps, "queries": turns * self.evaluations, "prompts": self.rows}

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        if target_of(scene) is None:
            raise Undefined("the attack needs the target, the model before forgetting, and it was not given")
        family = diffusion_of(scene.problem)
        asked = asked_rows(scene, self.rows)
        images, hunt = concept_images(scene, asked), Hunt(scene, asked)
        frames = {
            "n": all_free(family, len(asked), self.tokens), "k": with_inserted(family, asked.tokens, self.every)
        }  # fmt: skip
        chosen = list(frames.values()) if self.variant == "union" else [frames[self.variant]]
        for turn, frame in enumerate(chosen):
            self.search(scene, asked, images, hunt, frame, turn)
        return hunt.scores(
            self, random=hunt.at_random(chosen, len(evenly_spent(self.steps, self.evaluations)))
        )

    def search(self, scene: Scene, asked: Asked, images: Tensor, hunt: Hunt, frame: Frame, turn: int) -> None:
        """One variant, on the rows that are still open."""
        family, device, target = diffusion_of(scene.problem), scene.workplace.device, target_of(scene)
        assert target is not None
        frame = Frame(frame.tokens.to(device), frame.free.to(device))
        ids = vocabulary(family).to(device)
        with torch.no_grad():
            table = embedding_of(parts_of(scene.model).text_encoder)(ids).float()
            wanted = parts_of(target).encode(asked.tokens.to(device))
        directions, unit = normalize(table, dim=-1), float(table.square().mean().sqrt())
        random = scene.workplace.generator(75, turn)
        start = torch.randint(len(ids), (len(frame.row),), generator=random)
        vectors = table[start.to(device)].clone().requires_grad_(True)
        optimizer = torch.optim.AdamW([vectors], self.lr * unit, weight_decay=self.decay / (self.lr * unit))
        stops = evenly_spent(self.steps, self.evaluations)
        for step in range(1, self.steps + 1):
            if not (rows := hunt.open):
                return
            mine = torch.isin(frame.row, torch.tensor(rows, device=device))
            nearest = (normalize(vectors.detach(), dim=-1) @ directions.T).argmax(-1)
            hard = table[nearest[mine]].requires_grad_(True)
            times, noise = drawn(family, len(rows), self.draws, random)
            loss = distance(
                family, target, scene.model, images[rows], times.to(device), noise.to(device), wanted[rows],
                frame.take(rows), hard,
            )  # fmt: skip
            vectors.grad = torch.zeros_like(vectors)
            vectors.grad[mine] = torch.autograd.grad(loss, [hard])[0]
            optimizer.step()
            if step in stops:
                nearest = (normalize(vectors.detach(), dim=-1) @ directions.T).argmax(-1)
                hunt.attempt(frame.filled(ids[nearest])[rows])
                hunt.spent(turn * self.steps + step)


def drawn(family: Diffusion, n: int, draws: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Timesteps `[n, draws]`, spread over the way as in training, and noise `[n, draws, D]`."""
    places = (torch.arange(draws) + torch.rand(n, draws, generator=random)) / draws
    times = draw_timesteps(places, family.noise.steps, family.timestep_power)
    return times, torch.randn(n, draws, family.size, generator=random)


@torch.enable_grad()
def distance(
    family: Diffusion,
    target: nn.Module,
    model: nn.Module,
    images: Tensor,
    times: Tensor,
    noise: Tensor,
    wanted: Tensor,
    frame: Frame,
    vectors: Tensor,
) -> Tensor:
    """`[]` distance of the model's predictions from the target's, summed over rows, averaged over their noises.

    Args:
        family: weighs the timesteps.
        target: says what is wanted under the embeddings `wanted` (`[n, L, d]`).
        model: answers under `frame` filled with `vectors` (`[m, d]`).
        images: `[n, D]`.
        times: `[n, T]`.
        noise: `[n, T, D]`.
        wanted: embeddings of the target's own encoder.
        frame: prompts with free places.
        vectors: what fills them.
    """
    with torch.no_grad():
        there, _ = denoised(family, target, images, times, noise, wanted)
    here, batch = denoised(family, model, images, times, noise, frame.encoded(model, vectors))
    batch.inputs.setdefault("input_ids", frame.tokens)
    return (family.divergence(there, here, batch) / times.shape[1]).sum()
