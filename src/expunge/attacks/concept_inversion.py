"""Concept inversion (CCE): one learned word that makes the erased model draw the concept."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from expunge.attacks.base import Scene
from expunge.attacks.drawing import (
    DrawingAttack,
    Hunt,
    asked_rows,
    concept_images,
    denoised,
    diffusion_of,
    evenly_spent,
    success,
)
from expunge.attacks.frames import Frame, parts_of, vocabulary
from expunge.attacks.p4d import drawn
from expunge.attacks.vectors import embedding_of
from expunge.families import Diffusion
from expunge.metrics.base import Undefined
from expunge.parameters import param
from expunge.record import Score


class ConceptInversion(DrawingAttack):
    """Textual inversion on the erased model: the embedding of one new word is trained, nothing else.

    ``mean | eps - eps(x_t, tau(prompt with the new word)) |^2`` by Adam on images of the concept that the target draws,
    or the rows' own; those that are measured are not among them. In every prompt the new word stands where the concept's value
    (or each value of a pair) stood, before the prompt where none occurs. It begins as the mean of all words.

    A success says that the concept can still be represented, not that words reach it; a capable model learns some
    concepts that it never saw from a few images, which is what the retrained model's figure is for.

    Deviations: the learning rate is in units of the embeddings' root mean square; errors and timesteps weigh as in the
    model's training; the templates are the rows' prompts.
    """

    name = "concept-inversion"
    paper = "Pham et al., ICLR 2024, arXiv:2308.01508 (Circumventing Concept Erasure)"
    threat_model = "weights (a word is added and trained); some images of the concept"
    access = "weights"
    trains = True  # a word
    measures = success(name, "concept inversion", "with the learned word at some step")

    images: int = param(25, "images to learn from", source="the paper", ge=1)
    steps: int = param(200, "steps of Adam", source="ours; the paper: 5000", ge=1)
    evaluations: int = param(8, "times that something is drawn", source="ours", ge=1)
    batch_size: int = param(16, "images per step", source="the paper: 4, accumulated over 4 steps", ge=1)
    lr: float = param(
        0.3,
        "learning rate, in root mean squares of the embeddings",
        source="the paper: 0.005, which is 0.35 for CLIP",
        gt=0,
    )

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {"steps": self.steps, "images": self.images, "queries": self.evaluations, "prompts": self.rows}

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        family, device = diffusion_of(scene.problem), scene.workplace.device
        both = asked_rows(scene, self.rows + self.images)
        if len(both) < 2:
            raise Undefined("a word is learned on some rows and measured on others, and there is one")
        n = min(self.rows, len(both) // 2)
        asked, shown = both.take(range(n)), both.take(range(n, len(both)))
        hunt, latents = Hunt(scene, asked), concept_images(scene, shown)
        measured, taught = (with_new_word(family, part.tokens.to(device)) for part in (asked, shown))
        embedding = embedding_of(parts_of(scene.model).text_encoder)
        ids = vocabulary(family).to(device)
        with torch.no_grad():
            table = embedding(ids).float()
        word = table.mean(0, keepdim=True).clone().requires_grad_(True)
        optimizer = torch.optim.Adam([word], self.lr * float(table.square().mean().sqrt()))
        stops, random = evenly_spent(self.steps, self.evaluations), scene.workplace.generator(77)
        for step in range(1, self.steps + 1):
            if not hunt.open:
                break
            some = torch.randint(len(shown), (self.batch_size,), generator=random).tolist()
            times, noise = drawn(family, self.batch_size, 1, random)
            with torch.enable_grad():
                conditions = spoken(scene, taught.take(some), word)
                said, batch = denoised(
                    family, scene.model, latents[some], times.to(device), noise.to(device), conditions
                )
                (word.grad,) = torch.autograd.grad(family.errors(said, batch).mean(), [word])
            optimizer.step()
            if step in stops:
                rows = hunt.open
                with torch.no_grad():
                    conditions = spoken(scene, measured.take(rows), word)
                hunt.attempt(measured.tokens[rows], conditions)
                hunt.spent(step)
        near = (
            (normalize(word.detach(), dim=-1) @ normalize(table, dim=-1).T).topk(min(3, len(ids))).indices[0]
        )
        nearest = [family.tokenizer.decode([int(i)]) for i in ids[near]]
        scores = hunt.scores(self)
        for said in scene.transcripts[-len(asked) :]:
            # The prompt that was drawn holds a word that no text says.
            said["prompt"], said["nearest_words"] = None, nearest
        return scores


def spoken(scene: Scene, frame: Frame, word: Tensor) -> Tensor:
    """`[n, L, d]` embeddings of prompts with the new word (`[1, d]`) in all their free places."""
    return frame.encoded(scene.model, word.expand(len(frame.row), -1))


def with_new_word(family: Diffusion, tokens: Tensor) -> Frame:
    """Prompts (`[n, L]`) with a free place where each of the concept's values stood, or one before them."""
    values = [
        family.tokenizer(value.replace("_", " "), add_special_tokens=False)["input_ids"]
        for value in family.concept.values()
    ]

    def replaced(words: list[int]) -> list[int | None]:
        made: list[int | None] = list(words)
        for value in values:
            for start in range(len(made) - len(value) + 1):
                if made[start : start + len(value)] == value:
                    made[start : start + len(value)] = [None]
                    break
        return made if None in made else [None, *made]

    return Frame.of(family, tokens, replaced)
