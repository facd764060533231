"""Generative adversarial networks: a latent in, an image out, and a discriminator that taught how images look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.base import Batch, Family, Outputs, Rows, block_names, count_examples, wide
from expunge.families.coverage import near_real
from expunge.families.images import Images
from expunge.families.inputs import restore_inputs
from expunge.families.judges import Judge, Judgment
from expunge.families.models import innermost
from expunge.families.noise import row_seed

if TYPE_CHECKING:
    from datasets import Dataset

_LATENT = 3
"""Stream of random numbers that latents are drawn from."""


class Gan(Family):
    """A row's id fixes a latent, so that every model is asked for the same samples; its image is one that training shows.

    Of an unconditional GAN a sample has nothing to do with the row's image: rows are occasions to draw one, and what is
    measured is the distribution. Rows to draw from alone need nothing but an id. A conditional GAN is asked for the row's
    class. In training a new latent is drawn at every visit of a row.

    There is no likelihood, so methods and attacks that need one are refused. Training is a game (`losses`): the
    discriminator's ``softplus(-D(x)) + softplus(D(G(z))) + penalty / 2 |dD/dx(x)|^2`` at real x, the generator's
    ``softplus(-D(G(z)))`` (Goodfellow et al. 2014, non-saturating; R1 of Mescheder et al. 2018). Both move at once, each as
    if the other stood still.

    A model has a `generator` called with latents (and one-hot classes) that gives images in -1 to 1, a `discriminator` called
    with images (and classes) that gives a score each, and perhaps a `mapping` from z to the latent that the generator
    reads. It must not depend on the other rows of a batch.

    Args:
        images: how the column of images is read, as values in -1 to 1.
        shape: (channels, height, width) of an image.
        latent: width of z, which is standard normal.
        classes: how many, or their names.
        target: column with the class number, 0 to C-1.
        conditional: whether the generator is told the class.
        penalty: weight of R1.
        judges: classifiers of generated images; the one of column `target` names classes.
        guide: a classifier that methods may ask what an image shows, in place of a user; none of the judges.
        concept: (column, value) that is to be forgotten, such as ("label", "3"), where a judge knows it.
        draws: samples by which coverage and density of rows are measured; the same for all models.
        neighbors: which nearest other real row a ball of theirs reaches to.
    """

    name = "gan"
    likelihood = "none"
    redraws = True
    quantities = {
        "image": "the image drawn from the row's latent, 8-bit RGB, [n, 3 * H * W]",
        "undesired": "1 where the judge sees what is to be forgotten in it, else 0; NaN where it has no name, [n]",
        "concept_probability": "probability that the judge gives to that; NaN where it has no name, [n]",
        "judged": "number of the class that the judge of classes sees in it, [n]",
        "image_judged": "the same of the row's own image, [n]",
        "judge_features": "what the judges' last layers read of the drawn image, [n, d]",
        "image_features": "what they read of the row's own image, [n, d]",
        "covered": "1 where one of `draws` samples lies nearer to the row's image, in features, than its k-th nearest row, else "
        "0; NaN with too few rows, [n]",
        "density": "how many do, divided by how many would if samples were spread as the rows are, [n]",
    }
    generated = frozenset(quantities)
    relabelings: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        images: Images,
        shape: Sequence[int],
        latent: int,
        classes: int | Sequence[str] = (),
        target: str = "label",
        conditional: bool = False,
        penalty: float = 1.0,
        judges: Sequence[Judge] = (),
        guide: Judge | None = None,
        concept: Sequence[str] | None = None,
        draws: int = 400,
        neighbors: int = 5,
    ) -> None:
        self.images, self.shape = images, (int(shape[0]), int(shape[1]), int(shape[2]))
        self.latent, self.target = int(latent), target
        self.classes = [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)
        if conditional and not self.classes:
            raise BadInput("a conditional GAN is asked for classes; say which there are")
        self.conditional, self.penalty, self.draws, self.neighbors = conditional, penalty, draws, neighbors
        self.judges, self.guide = {judge.column: judge for judge in judges}, guide
        self.concept = None if concept is None else (str(concept[0]), str(concept[1]))
        if self.concept is not None:
            if self.concept[0] not in self.judges:
                raise BadInput(f"no judge knows '{self.concept[0]}', the column of what is to be forgotten")
            self.judges[self.concept[0]].number(self.concept[1])

    @property
    def size(self) -> int:
        """Values of one image."""
        return int(np.prod(self.shape))

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {
            "family": self.name,
            "images": self.images.describe(),
            "shape": list(self.shape),
            "latent": self.latent,
            "classes": self.classes,
            "target": self.target,
            "conditional": self.conditional,
            "penalty": self.penalty,
            "judges": [judge.describe() for judge in self.judges.values()],
            "guide": None if self.guide is None else self.guide.describe(),
            "concept": None if self.concept is None else list(self.concept),
            "draws": self.draws,
            "neighbors": self.neighbors,
        }

    @classmethod
    def restore(cls, description: dict[str, Any]) -> Gan:
        """The inverse of `describe`."""
        values = {k: v for k, v in description.items() if k not in ("family", "images", "judges", "guide")}
        guide = description["guide"]
        return cls(
            cast(Images, restore_inputs(description["images"])),
            judges=[Judge(**judge) for judge in description["judges"]],
            guide=None if guide is None else Judge(**guide),
            **values,
        )

    def collate(self, rows: Rows) -> Batch:  # noqa: D102
        ids = [str(i) for i in rows["id"]]
        known = self.images.column in rows
        inputs = {"latent": self.latents(ids)}
        (shown,) = self.images.encode(rows).values() if known else (torch.zeros(len(ids), self.size),)
        inputs["image"] = shown.flatten(1)
        if self.conditional:
            labels = torch.as_tensor(np.asarray(rows[self.target], dtype=np.int64))
            inputs["condition"] = F.one_hot(labels, len(self.classes)).float()
        return Batch(ids, inputs, inputs["image"].unsqueeze(1), torch.full((len(ids), 1), known))

    def latents(self, ids: Sequence[str]) -> Tensor:
        """`[n, L]` standard normal, fixed by each id."""
        drawn = [
            np.random.default_rng([_LATENT, row_seed(name)]).standard_normal(self.latent, dtype=np.float32)
            for name in ids
        ]
        return torch.from_numpy(np.stack(drawn))

    def redraw(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The same rows with new latents."""
        latent = torch.randn(len(batch), self.latent, generator=generator).to(batch.targets.device)
        return Batch(batch.ids, {**batch.inputs, "latent": latent}, batch.targets, batch.mask)

    def mapped(self, model: nn.Module, latent: Tensor) -> Tensor:
        """`[B, W]` what the generator reads: z itself where the model has no mapping."""
        mapping = getattr(_inner(model), "mapping", None)
        return latent if mapping is None else mapping(latent)

    def drawn(self, model: nn.Module, mapped: Tensor, condition: Tensor | None = None) -> Tensor:
        """`[B, C, H, W]` images in -1 to 1 of mapped latents; differentiable."""
        generator = _inner(model).get_submodule("generator")
        return generator(mapped) if condition is None else generator(mapped, condition)

    def realness(
        self, discriminator: Callable[..., Tensor], images: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """`[B]` the discriminator's scores of images `[B, C, H, W]`; differentiable."""
        scores = discriminator(images) if condition is None else discriminator(images, condition)
        return scores.reshape(len(images), -1).squeeze(1)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:  # noqa: D102
        mapped = self.mapped(model, batch.inputs["latent"])
        return self.drawn(model, mapped, batch.inputs.get("condition")).flatten(1).unsqueeze(1)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The two players' losses, `[B]` each. The gradient of their sum is each player's own."""
        discriminator, asked = _inner(model).get_submodule("discriminator"), batch.inputs.get("condition")
        drawn = self.forward(model, batch).prediction.squeeze(1).unflatten(1, self.shape)
        real = batch.inputs["image"].unflatten(1, self.shape).detach().requires_grad_()
        with torch.enable_grad():
            score = self.realness(discriminator, real, asked)
            loss = F.softplus(-score) + F.softplus(self.realness(discriminator, drawn.detach(), asked))
            if self.penalty:
                (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
                loss = loss + self.penalty / 2 * slope.square().flatten(1).sum(1)
        return {
            "discriminator": loss,
            "generator": F.softplus(-self.realness(_still(discriminator), drawn, asked)),
        }

    def nll(self, outputs: Outputs, batch: Batch) -> Tensor:
        """There is none."""
        raise BadInput("a GAN draws images and gives none a probability: family gan has no likelihood")

    def divergence(self, p: Outputs, q: Outputs, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Half the squared distance of the images that both draw from the same latent, divided by the temperature.

        The divergence of unit Gaussians around them. Rows without an image of their own count, too.
        """
        distance = (wide(p.prediction) - wide(q.prediction)).square().flatten(1).sum(1)
        return distance / (2 * temperature)

    def relabel(self, batch: Batch, how: str, generator: torch.Generator) -> Batch:
        """An image has no label that could be another."""
        raise BadInput(f"gan cannot relabel by '{how}'; it has no labels to change")

    def observe(self, outputs: Outputs, batch: Batch, quantities: Sequence[str]) -> dict[str, Tensor]:
        """Everything that can be asked of a GAN is asked of whole samples; `generate` answers."""
        raise BadInput(f"gan has no quantity '{quantities[0]}'; known: {', '.join(self.quantities)}")

    def generate(  # noqa: D102
        self, model: nn.Module, dataset: Dataset, quantities: Sequence[str], batch_size: int
    ) -> dict[str, Any]:
        rows = dataset.with_format("numpy")[:]
        batch, wanted, made = self.collate(rows), set(quantities), dict[str, Any]()
        of_rows = {"image_judged", "image_features", "covered", "density"} & wanted
        if of_rows and self.images.column not in rows:
            raise BadInput(
                f"rows without a column '{self.images.column}' have no '{min(of_rows)}'; only samples are drawn from their ids"
            )
        images = self.sampled(model, batch, batch_size)
        count_examples(len(batch))
        shown = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        made["image"] = (
            shown.expand(-1, 3, -1, -1).flatten(1).numpy() if self.shape[0] == 1 else shown.flatten(1).numpy()
        )
        if wanted & {"undesired", "concept_probability", "judged", "judge_features"}:
            made |= self._verdicts(self._judged(images))
        if of_rows:
            own = self._judged(batch.inputs["image"].unflatten(1, self.shape))
            made["image_features"] = features = _features(own)
            made["image_judged"] = self._classes(own)
            if of_rows & {"covered", "density"}:
                made |= self._near(model, features, batch_size)
        return {name: made[name] for name in quantities}

    def sampled(self, model: nn.Module, batch: Batch, batch_size: int = 256) -> Tensor:
        """`[n, C, H, W]` images of the batch's latents, on the CPU, without gradient."""
        device = next(model.parameters()).device
        with torch.no_grad():
            parts = [
                self.predict(model, batch.select(rows).to(device)).cpu()
                for rows in torch.arange(len(batch)).split(batch_size)
            ]
        return torch.cat(parts).squeeze(1).unflatten(1, self.shape)

    def _near(self, model: nn.Module, features: np.ndarray, batch_size: int) -> dict[str, np.ndarray]:
        # The same samples for every model and every set of rows, so they are not counted as examples of it.
        rows: dict[str, Any] = {"id": [f"draw-{i}" for i in range(self.draws)]}
        if self.conditional:
            rows[self.target] = [i % len(self.classes) for i in range(self.draws)]
        counts = near_real(
            features,
            _features(self._judged(self.sampled(model, self.collate(rows), batch_size))),
            self.neighbors,
        )
        covered = np.where(np.isnan(counts), np.nan, counts > 0)
        return {"covered": covered, "density": counts * len(counts) / (self.neighbors * self.draws)}

    def _judged(self, images: Tensor) -> dict[str, Judgment]:
        if not self.judges:
            raise BadInput(
                "no judge of generated images is known; name some, or leave out what they would say"
            )
        return {name: judge.judge(images) for name, judge in self.judges.items()}

    def _classes(self, seen: dict[str, Judgment]) -> np.ndarray:
        of_classes = seen.get(self.target, next(iter(seen.values())))
        found = of_classes.logp.argmax(1).astype(np.int32)
        return np.where(lost, np.nan, found) if (lost := np.isnan(of_classes.logp).any(1)).any() else found

    def _verdicts(self, seen: dict[str, Judgment]) -> dict[str, np.ndarray]:
        made = {"judge_features": _features(seen), "judged": self._classes(seen)}
        unknown = np.full(len(made["judged"]), np.nan)
        made["undesired"] = made["concept_probability"] = unknown
        if self.concept is not None:
            column, value = self.concept
            number, logp = self.judges[column].number(value), seen[column].logp
            made["undesired"] = np.where(np.isnan(logp).any(1), np.nan, logp.argmax(1) == number)
            made["concept_probability"] = np.exp(logp[:, number])
        return made

    def groups(self, dataset: Dataset) -> np.ndarray | None:
        """Classes, of a conditional GAN; samples of an unconditional one have no group before a judge has looked."""
        if not self.conditional:
            return None
        return np.asarray([self.classes[int(i)] for i in dataset[self.target][:]])

    def layers(self, model: nn.Module) -> list[str]:
        """Layers of the generator."""
        return [f"generator.{name}" for name in block_names(innermost(model).get_submodule("generator"))]

    def compared_layers(self, model: nn.Module) -> list[str]:
        """None: independently trained generators do not place the same images at the same latents."""
        return []

    def head(self, model: nn.Module) -> str:
        """The last layer of the generator."""
        return self.layers(model)[-1]

    def check(self, dataset: Dataset, name: str) -> None:  # noqa: D102
        if self.images.column in dataset.column_names:
            self.images.check(dataset, name)
            (first,) = self.images.encode(dataset.with_format("numpy")[:1]).values()
            if first[0].numel() != self.size:
                raise BadInput(
                    f"{name}: images have {first[0].numel()} values; the GAN draws {self.size} ({'x'.join(map(str, self.shape))})"
                )
        if not self.conditional:
            return
        if self.target not in dataset.column_names:
            raise BadInput(
                f"{name} has no column '{self.target}', the class that a conditional GAN is asked for"
            )
        labels = np.asarray(dataset[self.target][:])
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(self.classes)):
            raise BadInput(
                f"{name}: '{self.target}' must be 0 to {len(self.classes) - 1}, got {labels.min()} to {labels.max()}"
            )


def _inner(model: nn.Module) -> nn.Module:
    return innermost(getattr(model, "module", model))


def _still(module: nn.Module) -> Callable[..., Tensor]:
    """What computes the same and hands on gradients to its inputs, but takes none itself."""
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return lambda *inputs: torch.func.functional_call(module, weights, inputs)


def _features(seen: dict[str, Judgment]) -> np.ndarray:
    return np.concatenate([s.features for s in seen.values()], axis=1)
