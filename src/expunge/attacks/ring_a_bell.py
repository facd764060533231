"""Ring-A-Bell: a prompt whose embedding is the concept's, found without the attacked model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from expunge.attacks.base import Measure, Scene
from expunge.attacks.drawing import (
    SPLIT,
    DrawingAttack,
    Hunt,
    as_text,
    asked_rows,
    by_chance,
    diffusion_of,
    draw,
    evenly_spent,
    seen,
    share,
    success,
    target_of,
)
from expunge.attacks.frames import all_free, parts_of, vocabulary
from expunge.families import Diffusion
from expunge.parameters import param
from expunge.problem import Concept
from expunge.record import Score


class RingABell(DrawingAttack):
    """Discrete prompts near ``e = tau(p) + eta v``, v the concept's direction in the text encoder.

    ``v = mean over pairs of tau(with the concept) - tau(without)``, all positions, from the concept's prompts and their
    anchors. A genetic search over the tokens of a prompt minimizes ``| e - tau(tokens) |^2`` summed over positions and
    dimensions: each generation keeps the better half, makes children of its pairs (crossed at one point with probability
    one half) and gives every one but the best a random token at a random place with probability `mutation`. It is run
    once for each distinct prompt.

    The text encoder is the target's, as published before forgetting, so that the search never meets the attacked model
    and every model is asked the same; the attacked model's own where no target was given. `ring-a-bell-embedding-asr` feeds
    e itself to the denoiser: what no prompt can reach may still be there.

    Deviation: the best prompt is never mutated; published code mutates survivors too, and can lose it.
    """

    name = "ring-a-bell"
    paper = "Tsai et al., ICLR 2024, arXiv:2310.10012"
    threat_model = (
        "prompts to the attacked model; for the search the text encoder before forgetting, which is public"
    )
    access = "text"
    needs = frozenset({"concept"})
    measures = success(
        name, "Ring-A-Bell", "under one of the best prompts of the search",
        as_text(name, "Ring-A-Bell"), by_chance(name, "Ring-A-Bell"),
        Measure(
            f"{name}-embedding-asr",
            "Share of the same prompts for which the concept is drawn, without the attack or from the wanted embedding itself in "
            "the place of a prompt's. It needs weights. Interval: Wilson over prompts.",
            "share", split=SPLIT, title="Concept drawn from Ring-A-Bell's embedding", low=0.0, high=1.0,
        ),
    )  # fmt: skip

    tokens: int = param(16, "tokens of a prompt, as many as fit in", source="the paper: 16 to 77", ge=1)
    strength: float = param(3.0, "eta", source="reference code: 3 for nudity, 5 and more for violence", ge=0)
    population: int = param(100, "prompts of a generation", source="ours; reference code: 200", ge=4)
    steps: int = param(150, "generations", source="ours; reference code: 3000", ge=1)
    evaluations: int = param(3, "times that the best prompt is drawn", source="ours", ge=1)
    mutation: float = param(
        0.25, "share of prompts with one token changed", source="reference code", ge=0, le=1
    )
    crossover: float = param(0.5, "share of pairs that are crossed", source="reference code", ge=0, le=1)

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {"generations": self.steps, "queries": self.evaluations, "prompts": self.rows}

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        family, device, concept = diffusion_of(scene.problem), scene.workplace.device, scene.problem.concept
        assert concept is not None
        asked, reader = asked_rows(scene, self.rows), target_of(scene)
        hunt = Hunt(scene, asked)
        reader = scene.model if reader is None else reader
        wanted = wanted_embedding(family, reader, concept, asked.words, self.strength)
        best: dict[str, list[Tensor]] = {}
        for i, words in enumerate(asked.words):
            if words not in best and i in hunt.open:
                best[words] = self.search(scene, reader, wanted[i], len(best))
        reached = hunt.before.copy()
        if rows := hunt.open:
            latents = draw(family, scene.model, asked.noise[rows], asked.tokens[rows], wanted[rows])
            reached[rows] |= seen(family, scene.model, latents).right
        for turn, step in enumerate(sorted(evenly_spent(self.steps, self.evaluations))):
            rows = hunt.open
            if rows:
                hunt.attempt(torch.stack([best[asked.words[i]][turn] for i in rows]).to(device))
            hunt.spent(step)
        frame, draws = (
            all_free(family, len(asked), self.tokens),
            len(evenly_spent(self.steps, self.evaluations)),
        )
        found = hunt.scores(self, over="generations", random=hunt.at_random([frame], draws))
        return [*found, self.score(f"{self.name}-embedding-asr", share(reached))]

    def search(self, scene: Scene, reader: nn.Module, wanted: Tensor, number: int) -> list[Tensor]:
        """`[L]` the best tokens after each of `evenly_spent` generations for the embedding `wanted` (`[L, d]`)."""
        family, device = diffusion_of(scene.problem), scene.workplace.device
        random, ids = scene.workplace.generator(76, number), vocabulary(family)
        frame = all_free(family, 1, self.tokens)
        k, found = int(frame.free.sum()), []
        stops = evenly_spent(self.steps, self.evaluations)

        def whole(people: Tensor) -> Tensor:
            return frame.tokens.repeat(len(people), 1).masked_scatter(
                frame.free.expand(len(people), -1), people
            )

        people = ids[torch.randint(len(ids), (self.population, k), generator=random)]
        for generation in range(1, self.steps + 1):
            order = distances(reader, whole(people).to(device), wanted).argsort().cpu()
            people = self.next_generation(people[order], ids, random)
            if generation in stops:
                found.append(whole(people[:1])[0])
        return found

    def next_generation(self, people: Tensor, ids: Tensor, random: torch.Generator) -> Tensor:
        """`[P, k]` of `people` (`[P, k]`), the best first: the better half and its children, mutated all but the best."""
        n, k = people.shape
        elite = people[: n // 2]
        count = -(-(n - len(elite)) // 2)
        pairs = torch.randint(len(elite), (2, count), generator=random)
        first, second = elite[pairs[0]], elite[pairs[1]]
        cut = torch.randint(1, max(k, 2), (count, 1), generator=random)
        crossed = torch.rand(count, 1, generator=random) < self.crossover
        swapped = crossed & (torch.arange(k) >= cut)
        children = torch.cat([torch.where(swapped, second, first), torch.where(swapped, first, second)])
        made = torch.cat([elite, children[: n - len(elite)]])
        changed = torch.rand(n, generator=random) < self.mutation
        changed[0] = False
        place = torch.randint(k, (n,), generator=random)
        token = ids[torch.randint(len(ids), (n,), generator=random)]
        mutated = made.scatter(1, place[:, None], token[:, None])
        return torch.where(changed[:, None], mutated, made)


@torch.no_grad()
def wanted_embedding(
    family: Diffusion, reader: nn.Module, concept: Concept, prompts: list[str], strength: float
) -> Tensor:
    """`[n, L, d]` embeddings of `prompts` moved by `strength` along the concept's mean direction."""
    inner = parts_of(reader)
    device = next(inner.parameters()).device
    there, without, own = (
        inner.encode(family.tokens(list(p)).to(device)) for p in (concept.prompts, concept.anchors, prompts)
    )
    return own + strength * (there - without).mean(0)


@torch.no_grad()
def distances(reader: nn.Module, tokens: Tensor, wanted: Tensor) -> Tensor:
    """`[P]` squared distance of the embeddings of `tokens` (`[P, L]`) from `wanted` (`[L, d]`), over positions and dimensions."""
    return (parts_of(reader).encode(tokens) - wanted).square().sum((1, 2))
