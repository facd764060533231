"""Adapt-then-Unlearn: learn where a GAN draws what is not wanted, then move its weights away from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import PrivateAttr
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families import Gan
from expunge.families.base import count_examples
from expunge.families.models import clone
from expunge.methods.base import Edit, Workplace
from expunge.methods.gan_samples import generator_weights, pictured, sample_rows, shows, unguided
from expunge.methods.loop import Loop
from expunge.methods.objective import Objective, Step
from expunge.methods.prune_then_unlearn import stage
from expunge.parameters import param
from expunge.problem import Problem

Repulsion = Literal["exp", "reci", "l2"]

_OPTIMIZER = {"optimizer": "rmsprop", "weight_decay": 0.0}


class AdaptThenUnlearn(Edit):
    """Adapt copies of the GAN to undesired samples, then train it on the other samples while its weights are repelled.

    No data: a classifier (the family's guide, in place of a user) splits the GAN's own samples into undesired and others.

    1. Each of K copies is trained by the usual game with its own undesired samples as the real images; its generator also has
       ``(ewc / 2) sum_j F_j (theta_j - theta_0j)^2``, F_j the mean over samples of the squared derivative of the
       discriminator's score of one.
    2. The GAN is trained with the others as the real images; its generator also has ``R(d / d_0)``, d the mean over copies
       of the mean squared difference of the generator's weights from the copy's, d_0 the same before this stage:
       ``exp``: ``alpha exp(-gamma d)``, ``reci``: ``gamma / d``, ``l2``: ``-gamma d``.

    ``gamma = 0`` is plain fine-tuning on the samples that are not undesired. ``l2`` has no lower bound: the run ends where d
    is `reach` times d_0.

    Deviations: d counts every weight alike, where public code takes the mean over tensors of their means and multiplies by
    half the number of copies; it is in units of d_0, so that gamma means the same for every GAN. F is of all weights of the
    generator; public code leaves out those outside the convolutions. In place of an average of weights the learning rate
    falls to 0, and generator and discriminator move at once. The penalty on path lengths is left out.
    """

    name = "adapt-then-unlearn"
    paper = "Tiwary et al., TMLR 2025, arXiv:2309.14054"
    families = frozenset({"gan"})

    copies: int = param(3, "adapted copies K", source="ours; reference code: 5", ge=1)
    screened: int = param(
        400,
        "samples drawn for each copy, of which it learns the undesired",
        source="ours; reference code: 200",
        ge=1,
    )
    adapting_steps: int = param(
        40, "training steps of each copy", source="ours: small GANs; reference code: 2000", ge=0
    )
    ewc: float = param(
        5e2,
        "weight lambda of the Fisher penalty",
        source="ours; reference code: 5e8, which depends on the scale of D",
        ge=0,
    )
    fisher_samples: int = param(32, "samples for F", source="reference code", ge=1)
    samples: int = param(
        1000, "samples drawn for the second stage", source="ours; reference code: 5000", ge=1
    )
    steps: int = param(
        100, "training steps of the second stage", source="ours; reference code: 1000 to 5000", ge=0
    )
    repulsion: Repulsion = param(
        "exp", "how weights are repelled from the copies", source="the paper has all three; exp is bounded"
    )
    gamma: float = param(
        1.0, "strength of the repulsion, per d_0", source="reference code: 1 on digits", ge=0
    )
    alpha: float = param(100.0, "height of the exponential repulsion", source="reference code", ge=0)
    reach: float = param(25.0, "times d_0 at which l2 ends", source="ours", gt=1)
    lr: float = param(1e-3, "learning rate of both stages", source="ours; reference code: 2e-3", ge=0)
    batch_size: int = param(32, "images per step", source="ours; reference code: 16", ge=1)

    @classmethod
    def obstacles(cls, problem: Problem) -> list[str]:  # noqa: D102
        found = super().obstacles(problem)
        return found if found or not isinstance(problem.family, Gan) else unguided(problem.family)

    def edit(self, problem: Problem, model: nn.Module, workplace: Workplace) -> None:  # noqa: D102
        family = problem.family
        assert isinstance(family, Gan)
        start = {n: p.detach().clone() for n, p in generator_weights(model).items()}
        copies = []
        if self.gamma:
            fisher = diagonal_fisher(family, model, self.fisher_samples, workplace.generator(11))
            for k in range(self.copies):
                place = stage(workplace, f"adapt-{k}")
                undesired = self.screen(problem, model, workplace, 100 + k, self.screened, undesired=True)
                adapt = _Adapt(ewc=self.ewc, **self._settings(len(undesired.train), self.adapting_steps))
                # Every copy draws in an order of its own.
                place.seed = workplace.seed * 1009 + k
                adapted = Loop(adapt.about(start, fisher), undesired, clone(model), place).run()
                copies.append({n: p.detach() for n, p in generator_weights(adapted).items()})
        others = self.screen(problem, model, workplace, 99, self.samples, undesired=False)
        unit = float(distance(start, copies)) if copies else 0.0
        if copies and unit == 0:
            workplace.notes.append(
                "the adapted copies are the GAN itself, so nothing says where to move to; lower ewc or raise adapting_steps"
            )
            copies = []
        repel = _Repel(
            repulsion=self.repulsion, gamma=self.gamma, alpha=self.alpha, reach=self.reach,
            **self._settings(len(others.train), self.steps),
        )  # fmt: skip
        Loop(repel.about(copies, unit), others, model, stage(workplace, "unlearn")).run()

    def _settings(self, rows: int, steps: int) -> dict[str, Any]:
        epochs = -(-steps // -(-rows // self.batch_size))
        return {
            **_OPTIMIZER,
            "lr": self.lr,
            "batch_size": self.batch_size,
            "epochs": epochs,
            "schedule": "linear",
        }

    def screen(
        self,
        problem: Problem,
        model: nn.Module,
        workplace: Workplace,
        purpose: int,
        n: int,
        *,
        undesired: bool,
    ) -> Problem:
        """A problem whose training images are those of `n` new samples that the guide finds undesired, or not."""
        family = problem.family
        assert isinstance(family, Gan)
        rows = sample_rows(family, n, f"{workplace.seed}-{purpose}")
        images = family.sampled(model, family.collate(rows).to(workplace.device))
        count_examples(n)
        guided = shows(family, images, guide=True)
        chosen = np.flatnonzero(guided == undesired)
        if not len(chosen):
            what, option = ("undesired", "screened") if undesired else ("anything else", "samples")
            raise BadInput(
                f"of {n} samples of the GAN the guide finds none {what}; raise '{option}', or there is nothing to forget"
            )
        if not undesired:
            leaked = shows(family, images[chosen], guide=False).mean()
            workplace.notes.append(
                f"of {n} samples the guide took {len(chosen)} for wanted; in {leaked:.1%} of these the judge sees what is "
                "to be forgotten"
            )
        return pictured(problem, {k: np.asarray(v)[chosen] for k, v in rows.items()}, images[chosen])


class _Adapt(Objective):
    """The game on undesired samples, and elastic weight consolidation of the generator."""

    ewc: float
    _start: Mapping[str, Tensor] = PrivateAttr()
    _fisher: Mapping[str, Tensor] = PrivateAttr()

    def about(self, start: Mapping[str, Tensor], fisher: Mapping[str, Tensor]) -> _Adapt:
        """The objective with what it is held to."""
        self._start, self._fisher = start, fisher
        return self

    def loss(self, step: Step) -> dict[str, Tensor]:
        held = consolidation(generator_weights(step.model), self._start, self._fisher)
        return {**played(step), "ewc": self.ewc * step.once(held)}


class _Repel(Objective):
    """The game on the other samples, and the repulsion of the generator from the adapted copies."""

    repulsion: Repulsion
    gamma: float
    alpha: float
    reach: float
    _copies: Sequence[Mapping[str, Tensor]] = PrivateAttr()
    _unit: float = PrivateAttr()

    def about(self, copies: Sequence[Mapping[str, Tensor]], unit: float) -> _Repel:
        """The objective with what it is repelled from."""
        self._copies, self._unit = copies, unit
        return self

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = played(step)
        if not self._copies:
            return terms
        d = distance(generator_weights(step.model), self._copies) / self._unit
        if self.repulsion == "l2" and float(d) > self.reach:
            step.state.stop(
                f"the weights are {self.reach:g} times as far from the adapted copies as they were"
            )
        return {**terms, "repulsion": step.once(repulsion(d, self.repulsion, self.gamma, self.alpha))}


def played(step: Step) -> dict[str, Tensor]:
    """The losses of both players on this step's rows, all of which are forget rows."""
    losses = step.family.losses(step.model, step.forget)
    return {name: step.mean("forget", loss) for name, loss in losses.items()}


def repulsion(d: Tensor, how: Repulsion, gamma: float, alpha: float) -> Tensor:
    """What is to be lowered to raise the distance `d`."""
    if how == "exp":
        return alpha * torch.exp(-gamma * d)
    return gamma / d if how == "reci" else -gamma * d


def distance(weights: Mapping[str, Tensor], copies: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Mean over copies of the mean squared difference of all weights."""
    n = sum(w.numel() for w in weights.values())
    squares = [(weights[name] - copy[name]).square().sum() for copy in copies for name in weights]
    return torch.stack(squares).sum() / (n * len(copies))


def consolidation(
    weights: Mapping[str, Tensor], start: Mapping[str, Tensor], fisher: Mapping[str, Tensor]
) -> Tensor:
    """``(1/2) sum_j F_j (theta_j - theta_0j)^2``."""
    return torch.stack([(fisher[n] * (w - start[n]).square()).sum() for n, w in weights.items()]).sum() / 2


def diagonal_fisher(family: Gan, model: nn.Module, n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Mean over `n` samples of the squared derivative of D(G(z)) by each weight of the generator."""
    weights = generator_weights(model)
    found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    batch = family.collate(sample_rows(family, n, str(int(torch.randint(2**62, (), generator=generator)))))
    batch = batch.to(next(model.parameters()).device)
    for row in torch.arange(n).split(1):
        one = batch.select(row)
        drawn = family.forward(model, one).prediction.squeeze(1).unflatten(1, family.shape)
        score = family.realness(model.get_submodule("discriminator"), drawn, one.inputs.get("condition"))
        slopes = torch.autograd.grad(score.sum(), list(weights.values()), allow_unused=True)
        for name, slope in zip(weights, slopes, strict=True):
            if slope is not None:
                found[name] += slope.square() / n
    return found
