"""SAeUron: sparse features that are active for the concept are turned around while images are drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families import Diffusion
from expunge.families.base import altered, count_examples
from expunge.families.denoising import sample_latents
from expunge.families.models import innermost
from expunge.families.sparse_features import Ablated, SparseAutoencoder
from expunge.methods.base import Method, Workplace
from expunge.methods.sparse_training import SparseRecipe, fit_autoencoder
from expunge.parameters import param
from expunge.problem import Problem


class SAeUron(Method):
    """A sparse autoencoder of one block's activations; the features of the concept are ablated at inference.

    The target draws images of the concept's prompts and of those to preserve, with guidance; the activations of `layer`
    in the half with the prompt, one row per image, step and position, train the autoencoder
    (`expunge.methods.sparse_training.fit_autoencoder`). With mu_j(D, t) the mean of feature j over images D at step t, c the
    concept and o the others,

    ``score_j(t) = mu_j(c, t) / sum_i mu_i(c, t) - mu_j(o, t) / sum_i mu_i(o, t)``

    At every step the features are chosen whose score lies above the percentile. While an image is drawn, of any
    prompt, a chosen feature that is more active than on average over all images, ``z_j > mu_j(all, t)``, becomes
    ``multiplier * mu_j(c, t) * z_j`` (`expunge.families.sparse_features.Ablated`).

    No weight of the denoiser changes, and nothing is removed: the model that comes out is the target with the
    autoencoder beside it, which whoever has the files can leave out. A plain pipeline of diffusers cannot hold it: expunge
    saves it, loads it, and draws with it. The edit finds its step by the timestep that the denoiser is asked about, so that
    nothing has to be reset between images; between steps it takes the nearest.

    Limits: multiplier 0 switches chosen features off; a multiplier of ``1 / mu_j`` would change nothing. The factor is in
    units of activations, whose scale `scale` of the autoencoder sets. Percentiles that choose less than one feature choose
    one. The multiplier for objects was chosen per object by the authors, on the prompts it was then judged on.

    Deviations: the autoencoder learns from images of the concept and of what is to be kept alone, few of them and often,
    where the authors draw of all styles and objects; inputs are divided by their root mean square.
    """

    name = "saeuron"
    paper = "Cywinski & Deja, ICML 2025, arXiv:2501.18052"
    claims = "suppression"
    kind = "edit"
    families = frozenset({"diffusion"})
    needs = frozenset({"concept"})
    composes = True

    layer: str | None = param(
        None,
        "block whose activations are read and changed; None means the last attention block of the first resolution, on the "
        "way up, that has attention",
        source="reference code, styles on SD 1.5: up_blocks.1.attentions.2, which is that; objects: up_blocks.1.attentions.1",
    )
    multiplier: float = param(
        -1.0, "sign and strength of chosen features, times their mean",
        source="reference code: styles -1, objects -1 to -30", le=0,
    )  # fmt: skip
    percentile: float = param(
        99.999, "features are chosen whose score lies above it", source="reference code, styles", ge=0, lt=100
    )  # fmt: skip
    chosen: int | None = param(
        None, "how many features are chosen at each step, instead of the percentile", source="ours: small autoencoders", ge=0
    )  # fmt: skip
    expansion: int = param(16, "features per dimension of the activations", source="reference code", ge=1)
    k: int = param(32, "features that are active at a position", source="reference code", ge=1)
    images: int = param(64, "images drawn of the concept, and as many of what is kept", source="ours", ge=1)
    positions: int = param(
        16, "positions of each image and step that are learned from, drawn at random", source="ours: memory", ge=1
    )  # fmt: skip
    epochs: int = param(
        50, "passes over the activations", source="ours; reference code: 5 to 10 over many more", ge=1
    )
    lr: float = param(4e-4, "learning rate, falling linearly to 0", source="reference code", gt=0)
    batch_size: int = param(4096, "activations per optimizer step", source="reference code", ge=1)
    auxiliary: float = param(1 / 32, "weight of the loss of dead features", source="reference code", ge=0)

    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:  # noqa: D102
        assert problem.concept is not None
        family, layer = cast(Diffusion, problem.family), self.layer or last_attention(model)
        concept, others = problem.concept.prompts, problem.concept.preserve
        if not others:
            raise BadInput(
                f"method '{self.name}' compares the concept with prompts to preserve, and there are none; give some"
            )
        seen = [
            self.drawn(family, model, layer, prompts, workplace.generator(21, number))
            for number, prompts in enumerate((concept, others))
        ]
        both = torch.cat(seen)
        recipe = SparseRecipe(
            self.expansion * both.shape[-1], min(self.k, self.expansion * both.shape[-1]), self.epochs, self.lr,
            self.batch_size, self.auxiliary,
        )  # fmt: skip
        with torch.enable_grad():
            autoencoder, log = fit_autoencoder(both.flatten(0, 2), recipe, workplace.generator(22))
        for epoch, entry in enumerate(log):
            workplace.log.append(
                {"step": epoch + 1, "of": len(log), "epoch": epoch, "phase": "autoencoder", **entry}
            )
        with torch.no_grad():
            of_concept, of_others = (feature_means(autoencoder, x) for x in seen)
            n = math.ceil((100 - self.percentile) / 100 * recipe.features - 1e-9)
            chosen = highest(scores(of_concept, of_others), max(1, n) if self.chosen is None else self.chosen)
            factor = torch.where(chosen, self.multiplier * of_concept, 1.0)
            threshold = (len(seen[0]) * of_concept + len(seen[1]) * of_others) / len(both)
        timesteps = family.noise.sampler(family.steps).timesteps.long()
        made = Ablated(model, layer, autoencoder, timesteps.to(both.device), factor, threshold)
        workplace.notes.append(
            f"of {recipe.features} features of '{layer}' {int(chosen.any(0).sum())} are ablated, {int(chosen.sum(1).max())} at a "
            f"step; {log[-1]['unexplained']:.1%} of the variance is not explained, {log[-1]['dead']:.1%} of the features are dead"
        )
        return made

    @torch.no_grad()
    def drawn(
        self,
        family: Diffusion,
        model: nn.Module,
        layer: str,
        prompts: Sequence[str],
        generator: torch.Generator,
    ) -> Tensor:
        """`[images, steps, positions, d]` activations of `layer` while the model draws of each prompt in turn."""
        device = next(model.parameters()).device
        ids = family.tokens([prompts[i % len(prompts)] for i in range(self.images)]).to(device)
        noise = torch.randn(self.images, *family.shape, generator=generator)
        count_examples(self.images)
        made = []
        for rows in torch.arange(self.images).split(64):
            caught: list[Tensor] = []

            def catch(x: Tensor, caught: list[Tensor] = caught, n: int = len(rows)) -> Tensor:
                # With guidance the rows without a prompt come first.
                places = torch.rand(n, x.shape[1], generator=generator).argsort(1)[:, : self.positions]
                caught.append(
                    x[-n:].gather(1, places.to(x.device)[..., None].expand(-1, -1, x.shape[2])).float()
                )
                return x

            with altered(model, {layer: catch}):
                sample_latents(family, model, ids[rows], noise[rows])
            made.append(torch.stack(caught, 1))
        return torch.cat(made)


def last_attention(model: nn.Module) -> str:
    """The last attention block of the first resolution, on the way up, that has attention; else the last of all."""
    blocks = [n for n, _ in innermost(model).named_modules() if re.search(r"(^|\.)attentions\.\d+$", n)]
    if not blocks:
        raise BadInput("the denoiser has no attention blocks; name the layer whose activations to change")
    up = [name for name in blocks if ".up_blocks." in name] or blocks[-1:]
    return [name for name in up if name.rpartition(".")[0] == up[0].rpartition(".")[0]][-1]


def feature_means(autoencoder: SparseAutoencoder, x: Tensor) -> Tensor:
    """`[steps, features]` means of z over images and positions of `x` (`[images, steps, positions, d]`)."""
    return torch.stack([autoencoder.encode(x[:, step]).mean((0, 1)) for step in range(x.shape[1])])


def scores(concept: Tensor, others: Tensor) -> Tensor:
    """`[steps, features]` share of a feature in the concept's activity less that in the others'; sums to 0 at each step."""
    return concept / concept.sum(1, keepdim=True).clamp(min=1e-12) - others / others.sum(
        1, keepdim=True
    ).clamp(min=1e-12)


def highest(values: Tensor, n: int) -> Tensor:
    """`[steps, features]` bool: the n highest positive values of each row."""
    found = torch.zeros_like(values, dtype=torch.bool)
    found.scatter_(1, values.topk(min(n, values.shape[1]), 1).indices, True)
    return found & (values > 0)
