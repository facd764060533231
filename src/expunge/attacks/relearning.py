"""Relearning: how soon a few steps of training bring back what was forgotten."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from expunge.attacks.base import Attack, Measure, Scene
from expunge.evidence import collect
from expunge.families import Batches
from expunge.families.models import clone
from expunge.methods.loop import make_optimizer
from expunge.metrics.base import Estimate, Undefined
from expunge.parameters import param
from expunge.problem import Training
from expunge.record import Score

ROUNDING = 1e-9
"""38 of 40 rows are 95 % of 40, whatever the floating-point quotient says."""


class Relearning(Attack):
    """Train the model on forgotten rows, and count the minibatches until it is at the target's level again.

    The level is accuracy for classifiers, reached at ``(1 - margin)`` times the target's, and for regressors the mean
    absolute error, reached at ``(1 + margin)`` times the target's; measured in eval mode after every step. A retrained
    model has to learn the rows as if for the first time: a model that is back much sooner had not forgotten, and the
    ratio of both times is the anamnesis index. A model that takes longer than retraining was made to resist.

    The attacker holds all forgotten rows, or a random share of them; then the level is measured on the others, and
    coming back shows that knowledge was hidden which these rows alone do not give.

    Deviation: the paper trains with the target's own recipe; the rate here is a parameter, because a rate that recovers
    the rows in the first step tells no model from another.
    """

    name = "relearning"
    paper = "Chundawat et al., IEEE TIFS 2023, arXiv:2201.05629 (anamnesis index); Golatkar et al., CVPR 2020"
    threat_model = "weights, and the right to train them; some or all of the forgotten rows with their labels"
    access = "weights"
    families = frozenset({"classifier", "regressor"})
    trains = True
    measures = (
        Measure(
            "relearning-steps",
            "Minibatches of training on forgotten rows until the target's level is back; 0 where it was never left. "
            "Undefined where the budget does not suffice: the time is then known to be longer only, and a mean over "
            "seeds that leaves such runs out is too small.",
            "steps",
            title="Relearning time",
            low=0.0,
        ),
        Measure(
            "relearning-level",
            "Level after one pass over the attacker's rows, as a share of the target's: accuracy divided by the "
            "target's, or the target's mean absolute error divided by the model's.",
            "of the target's level",
            title="Level after one pass of relearning",
            low=0.0,
        ),
    )

    margin: float = param(
        0.05, "how far below the target's level counts as back", source="the paper: 5 to 10 %", ge=0, lt=1
    )
    budget: int = param(300, "largest number of steps", source="ours", ge=1)
    lr: float = param(
        0.005, "learning rate (SGD with momentum 0.9)", source="ours: a tenth of the usual rate", gt=0
    )
    batch_size: int = param(16, "rows per step", source="ours", ge=1)
    share: float = param(
        1.0, "share of the forgotten rows that the attacker holds", source="the paper: all", gt=0, le=1
    )
    unfreeze: bool = param(
        True,
        "open parameters that were frozen to resist; False is an attacker who trains through a service that keeps them so",
        source="ours",
    )

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {"steps": self.budget, "rows per step": self.batch_size, "share of forgotten rows": self.share}

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        problem, device = scene.problem, scene.workplace.device
        if problem.model is None:
            raise Undefined("the target was not given, whose level the attack waits for")
        held, asked = self.divide(scene)
        known = _level(scene, problem.model, asked)
        if known <= 0:
            raise Undefined("the target itself knows nothing of the forgotten rows")
        model = clone(scene.model).to(device)
        if self.unfreeze:
            for parameter in model.parameters():
                parameter.requires_grad_(True)
        trained = [p for p in model.parameters() if p.requires_grad]
        if not trained:
            raise Undefined("every parameter of the model is frozen, and this attacker may not open any")
        levels = [_level(scene, model, asked) / known]
        one_pass = math.ceil(len(held) / self.batch_size)
        recipe = Training(lr=self.lr, weight_decay=0.0)
        optimizer = make_optimizer(recipe, trained)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(scene.workplace.seed)
            while len(levels) <= one_pass or (
                max(levels) < 1 - self.margin - ROUNDING and len(levels) <= self.budget
            ):
                epoch, step = divmod(len(levels) - 1, one_pass)
                rows = torch.randperm(len(held), generator=scene.workplace.generator(43, epoch))
                batch = held.take(rows.split(self.batch_size)[step])
                model.train(len(batch) > 1)  # one row has no variance for batch norm
                optimizer.zero_grad()
                problem.family.nll(problem.family.forward(model, batch), batch).mean().backward()
                optimizer.step()
                levels.append(_level(scene, model, asked) / known)
        return [
            self.time(np.asarray(levels), len(asked)),
            self.score("relearning-level", Estimate(levels[one_pass], len(asked))),
        ]

    def time(self, levels: np.ndarray, n: int) -> Score:
        """Steps until the first of `levels` (`[steps + 1]`, shares of the target's, of n rows) is within the margin."""
        back = np.flatnonzero(levels >= 1 - self.margin - ROUNDING)
        if not len(back) or back[0] > self.budget:
            return self.undefined(
                "relearning-steps", f"censored: not back within the budget of {self.budget} steps"
            )
        return self.score("relearning-steps", Estimate(float(back[0]), n))

    def divide(self, scene: Scene) -> tuple[Batches, Batches]:
        """The rows that the attacker holds, and those that the level is measured on."""
        problem = scene.problem
        n = len(problem.forget)
        count = max(1, round(self.share * n))
        if self.share == 1:
            whole = scene.workplace.batches(problem, "forget")
            return whole, whole
        if count == n:
            raise Undefined(f"a share of {self.share} of {n} forgotten rows leaves none to measure on")
        order = torch.randperm(n, generator=scene.workplace.generator(44)).numpy()
        parts = [problem.forget.select(np.sort(part)) for part in (order[:count], order[count:])]
        held, asked = (Batches(problem.family, part, scene.workplace.device) for part in parts)
        return held, asked


def _level(scene: Scene, model: nn.Module, rows: Batches) -> float:
    """Accuracy, or 1 over the mean absolute error: larger is better. 0 where a model has diverged."""
    family = scene.problem.family
    quantity = "correct" if "correct" in family.quantities else "absolute_error"
    evidence = collect(
        family, model, scene.problem.forget, [quantity], device=scene.workplace.device, batches=rows
    )
    mean = float(evidence[quantity].astype(np.float64).mean())
    if quantity == "correct":
        return mean
    return 1 / max(mean, 1e-12) if math.isfinite(mean) else 0.0
