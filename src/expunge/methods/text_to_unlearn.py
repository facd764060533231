"""Text-to-Unlearn: turn a GAN's images against the direction that a concept has among the embeddings of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from datasets import Dataset
from pydantic import PrivateAttr
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families import Gan
from expunge.families.models import clone
from expunge.methods.base import Edit, Workplace
from expunge.methods.gan_samples import generator_weights, has_mapping, sample_rows, unguided
from expunge.methods.image_text import ClipEncoder, Encoder, GuideEncoder
from expunge.methods.loop import Loop
from expunge.methods.objective import Objective, State, Step
from expunge.parameters import param
from expunge.problem import Problem

SMALL = 1e-3
"""Shorter changes of an embedding count by their component along the direction, longer ones by their angle to it."""


class TextToUnlearn(Edit):
    """Make latents that would show the concept draw what they would without it.

    G is the target, G' what is trained, E unit embeddings of images, w a latent as the generator reads it.

    1. A mapper ``M(w) = w + D(w)`` is trained against G: ``min mean distance(G(M(w)), concept) + shift mean D(w)^2``.
    2. ``i = norm( mean_w [ E(G(M(w))) - E(G(w)) ] )``, of latents that the mapper was not trained on.
    3. G' is trained on ``direction * mean_u [ 1 - cos(E(G'(u)) - E(G(u)), -i) ]`` over latents u that show the concept: w
       that do in G, and M(w) of all others. It stays near G by ``retain * |G'(v) - G(w)|^2 + identity * (1 - cos(E(G'(v)),
       E(G(w))))``, for v = w and v = M(w), w without the concept: a mapped latent is to draw what it would unmapped.

    Of an image that has moved against i as far as the mapper moves along it, no more is asked: a cosine alone would push
    without end. Mean squared differences of pixels stand for the perceptual distance.

    With `clip` and `prompt`, E is a `CLIPModel` in a local folder, the distance 1 minus the cosine of image and prompt, and w
    shows the concept where its component along i is past halfway from plain to mapped latents. Without, E is the
    problem's guide, a classifier that is none of those which score; the distance is ``-ln p(concept)``, and w shows the
    concept where the guide says so.

    Only the abstract was to be had: losses, signs and weights are a reconstruction, from it and from what is known of
    StyleCLIP's mapper and of StyleGAN-NADA.
    """

    name = "text-to-unlearn"
    paper = "Nagasubramaniam et al., 2025, arXiv:2504.01218 (a reconstruction)"
    families = frozenset({"gan"})

    clip: str | None = param(
        None, "folder of a CLIPModel; None means the problem's guide", source="the paper: CLIP"
    )
    prompt: str | None = param(None, "the concept in words, with clip", source="the paper")
    neutral: str | None = param(
        None,
        "words without the concept: a note then says how far the direction in words agrees",
        source="StyleGAN-NADA",
    )
    space: Literal["auto", "w", "z"] = param(
        "auto", "latents that are mapped: behind the GAN's mapping (w) or before it (z); auto: w where there is one",
        source="ours",
    )  # fmt: skip
    mapper_steps: int = param(100, "training steps of the mapper", source="ours", ge=1)
    mapper_lr: float = param(3e-3, "its learning rate", source="ours", gt=0)
    mapper_width: int = param(64, "its hidden units", source="ours", ge=1)
    shift: float = param(0.1, "weight of its squared steps, mean over latent values", source="ours", ge=0)
    direction: float = param(0.2, "weight of the direction", source="ours", ge=0)
    retain: float = param(5.0, "weight of pixels that must stay", source="ours", ge=0)
    identity: float = param(1.0, "weight of embeddings that must stay", source="ours", ge=0)
    steps: int = param(150, "training steps", source="ours", ge=0)
    lr: float = param(1e-3, "learning rate", source="ours", ge=0)
    batch_size: int = param(64, "latents per step", source="ours", ge=1)

    def edit(self, problem: Problem, model: nn.Module, workplace: Workplace) -> None:  # noqa: D102
        family = problem.family
        assert isinstance(family, Gan)
        if self.space == "w" and not has_mapping(model):
            raise BadInput(
                f"{problem.name}: the GAN has no mapping, so there is no latent behind one; set space to 'z' or 'auto'"
            )
        behind = self.space != "z" and has_mapping(model)
        encoder = self.encoder(problem)
        before = clone(model).eval().requires_grad_(False)
        side = Latents(family, before, behind)
        mapper = self.mapper(problem, side, encoder, workplace)
        way = self.way(problem, side, mapper, encoder, workplace)
        rows = Dataset.from_dict(sample_rows(family, self.batch_size, "latent"))
        latents = Problem(problem.name, family, rows, tuple(rows["id"][:]), model=problem.model)
        turn = _Turn(
            weights=(self.direction, self.retain, self.identity), epochs=self.steps, lr=self.lr, batch_size=self.batch_size,
            optimizer="adam", weight_decay=0.0, schedule="linear",
        )  # fmt: skip
        Loop(turn.about(side, mapper, encoder, way), latents, model, workplace).run()

    def encoder(self, problem: Problem) -> Encoder:
        """What says where images lie and how near the concept they are."""
        family = problem.family
        assert isinstance(family, Gan)
        if self.clip is not None:
            if not (self.prompt or "").strip():
                raise BadInput(
                    "method 'text-to-unlearn': clip needs a prompt that says what is to be forgotten"
                )
            return ClipEncoder(self.clip, self.prompt or "", self.neutral)
        if self.prompt is not None:
            raise BadInput(
                "method 'text-to-unlearn': a prompt needs clip, the folder of a model that reads it"
            )
        why = unguided(family)
        if why:
            raise BadInput(
                f"method 'text-to-unlearn' cannot run on {problem.name}: {'; '.join(why)}; or give clip and prompt"
            )
        assert family.guide is not None and family.concept is not None
        return GuideEncoder(family.guide, family.concept[1])

    def mapper(self, problem: Problem, side: Latents, encoder: Encoder, workplace: Workplace) -> Mapper:
        """Steps of latents towards the concept, trained against the target."""
        generator = workplace.generator(21)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            mapper = Mapper(side.width, self.mapper_width).to(workplace.device)
        optimizer = torch.optim.Adam(mapper.parameters(), lr=self.mapper_lr)
        with torch.enable_grad():
            for _ in range(self.mapper_steps):
                latent, condition = side.draw(self.batch_size, generator, workplace.device)
                moved = mapper(latent)
                loss = encoder.distance(side.images(side.before, moved, condition)).mean()
                loss = loss + self.shift * (moved - latent).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return mapper.requires_grad_(False)

    @torch.no_grad()
    def way(
        self, problem: Problem, side: Latents, mapper: Mapper, encoder: Encoder, workplace: Workplace
    ) -> Way:
        """The concept's direction among embeddings, from latents of its own."""
        latent, condition = side.draw(512, workplace.generator(22), workplace.device)
        plain, mapped = (side.images(side.before, w, condition) for w in (latent, mapper(latent)))
        one, two = encoder.embed(plain), encoder.embed(mapped)
        shift = (two - one).mean(0)
        nearer = float(encoder.distance(plain).mean() - encoder.distance(mapped).mean())
        length = float(shift.norm())
        if not length >= SMALL or not nearer > 0:
            raise BadInput(
                f"{problem.name}: the mapper found no way to the concept (embeddings move by {length:.2g}, the distance falls "
                f"by {nearer:.2g}); raise mapper_steps or lower shift"
            )
        unit = shift / length
        note = f"the mapper moves embeddings by {length:.3g} on average and brings the concept nearer by {nearer:.3g}"
        if isinstance(encoder, ClipEncoder) and encoder.neutral is not None:
            said = F.normalize(encoder.prompt - encoder.neutral, dim=0).to(unit)
            note += f"; the cosine of that direction and the one in words is {float(unit @ said):.2f}"
        workplace.notes.append(note)
        return Way(unit, length, float((one @ unit).mean() + (two @ unit).mean()) / 2)


class Mapper(nn.Module):
    """A step for each latent, of one hidden layer; it begins as no step at all."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, latent: Tensor) -> Tensor:
        """`[B, L]` latents after the step."""
        return latent + self.out(F.leaky_relu(self.into(latent), 0.2))


@dataclass(frozen=True)
class Way:
    """The concept's direction among embeddings."""

    unit: Tensor
    """`[d]`, of length 1."""
    length: float
    """How far the mapper moves embeddings along it on average."""
    halfway: float
    """Component along it halfway from plain to mapped latents."""


class Latents:
    """Latents of one space, and what a model draws of them."""

    def __init__(self, family: Gan, before: nn.Module, behind: bool) -> None:
        self.family, self.before, self.behind = family, before, behind
        self.width = self.draw(1, torch.Generator(), next(before.parameters()).device)[0].shape[1]

    def draw(
        self, n: int, generator: torch.Generator, device: torch.device | str
    ) -> tuple[Tensor, Tensor | None]:
        """`[n, L]` new latents and, of a conditional GAN, one-hot classes, all in turn."""
        batch = self.family.collate(sample_rows(self.family, n, "latent"))
        return self.of(self.family.redraw(batch, generator).to(device).inputs)

    def of(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The latents of a batch, in this space."""
        latent = inputs["latent"]
        with torch.no_grad():
            latent = self.family.mapped(self.before, latent) if self.behind else latent
        return latent, inputs.get("condition")

    def images(self, model: nn.Module, latent: Tensor, condition: Tensor | None) -> Tensor:
        """`[n, C, H, W]` what `model` draws of latents in this space."""
        return self.family.drawn(
            model, latent if self.behind else self.family.mapped(model, latent), condition
        )


class _Turn(Objective):
    """Against the direction where the concept shows; as before where it does not."""

    weights: tuple[float, float, float]
    _side: Latents = PrivateAttr()
    _mapper: Mapper = PrivateAttr()
    _encoder: Encoder = PrivateAttr()
    _way: Way = PrivateAttr()

    def about(self, side: Latents, mapper: Mapper, encoder: Encoder, way: Way) -> _Turn:
        """The objective with what was learned of the target."""
        self._side, self._mapper, self._encoder, self._way = side, mapper, encoder, way
        return self

    def trainable(self, problem: Problem, model: nn.Module, state: State) -> set[str]:
        """What draws; latents behind a mapping must keep their meaning, so it stays."""
        names = set(generator_weights(model))
        return {n for n in names if not n.startswith("mapping.")} if self._side.behind else names

    def loss(self, step: Step) -> dict[str, Tensor]:
        side, encoder, way = self._side, self._encoder, self._way
        latent, condition = side.of(step.forget.inputs)
        with torch.no_grad():
            moved = self._mapper(latent)
            plain, mapped = (side.images(side.before, w, condition) for w in (latent, moved))
            seen = encoder.embed(plain)
            shown = self.shown(plain, seen)
            # What shows the concept by itself needs no mapper.
            origin = torch.where(shown.unsqueeze(1), seen, encoder.embed(mapped))
        now = [side.images(step.model, w, condition) for w in (latent, moved)]
        places = [encoder.embed(images) for images in now]
        turned = against(torch.where(shown.unsqueeze(1), *places), origin, way)
        kept = [(images - plain).square().flatten(1).mean(1) for images in now]
        same = [1 - (place * seen).sum(1) for place in places]
        direction, retain, identity = self.weights
        return {
            "direction": direction * step.mean("forget", turned),
            "retain": retain * step.mean("forget", torch.stack(kept).sum(0), ~shown),
            "identity": identity * step.mean("forget", torch.stack(same).sum(0), ~shown),
        }

    def shown(self, images: Tensor, seen: Tensor) -> Tensor:
        """`[B]` bool: which images of the target show the concept."""
        if isinstance(self._encoder, GuideEncoder):
            return self._encoder.sees(images)
        return seen @ self._way.unit > self._way.halfway


def against(now: Tensor, before: Tensor, way: Way) -> Tensor:
    """`[B]` ``1 - cos(now - before, -unit)``; 0 where an embedding has gone as far against the way as the way is long."""
    change = now - before
    along = -(change @ way.unit)
    cosine = along / change.norm(dim=1).clamp(min=SMALL)
    return torch.where(along.detach() < way.length, 1 - cosine, torch.zeros_like(cosine))
