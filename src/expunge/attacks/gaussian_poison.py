"""Gaussian poisons: is the secret noise on the forgotten rows still in the model?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.stats import norm

from expunge.attacks.base import Attack, Measure, Scene
from expunge.data.canaries import Poison, mark_in, poison_in
from expunge.metrics.base import Estimate, Undefined
from expunge.parameters import param
from expunge.problem import Problem
from expunge.record import Interval, Score
from expunge.stats.gaussian_poison import poison_statistics, z_score
from expunge.stats.intervals import wilson


class GaussianPoison(Attack):
    """Correlation of the loss gradient at the clean forgotten rows with the noise they were trained with.

    For row i with noise xi_i and clean input x_i, ``t_i = - <xi_i, g_i> / (std ||g_i||)`` with the gradient g_i of the
    loss with respect to the input at x_i. A model that does not depend on the noise has standard normal t_i, exactly,
    with no model to compare with; the retrained models confirm it. See `expunge.stats.gaussian_poison`.

    It needs control of the training: the noise must have been added before, by the benchmark `canaries` or by
    `expunge.data.canaries.plant_poison`, which declare it in the problem's source.
    """

    name = "gaussian-poison"
    paper = "Pawelczyk et al., ICLR 2025, arXiv:2406.17216"
    threat_model = "weights (gradients with respect to inputs); the clean forgotten rows and the noise that was added to them"
    access = "weights"
    likelihood = True
    measures = (
        Measure(
            "gaussian-poison-mean",
            "Mean of t over forget rows; 0 where nothing of the noise is left, above it where the loss still falls "
            "along the noise. Interval: normal with the known standard deviation 1.",
            "standard deviations",
            title="Poison left, mean per row",
            margin=0.25,
        ),
        Measure(
            "gaussian-poison-z",
            "The same mean times sqrt(n): standard normal where nothing is left; above 2.33 in 1 % of such models.",
            "standard deviations",
            title="Poison left, z score",
        ),
        Measure(
            "gaussian-poison-tpr",
            "Share of forget rows whose t lies above 2.33, which 1 % of rows do whose noise is not in the model. "
            "Wilson's interval over rows.",
            "share",
            title="Rows whose poison is found at 1 % false positives",
            low=0.0,
            high=1.0,
        ),
    )

    batch_size: int = param(256, "rows per forward pass; changes memory only", source="ours", ge=1)

    @classmethod
    def obstacles(cls, problem: Problem) -> list[str]:  # noqa: D102
        found = super().obstacles(problem)
        if poison_in(problem) is None:
            found.append("it needs poisons that were planted before training (benchmark canaries)")
        return found

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {"gradients per row": 1}

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        poison = poison_in(scene.problem)
        if poison is None:
            raise AssertionError("checked by `obstacles`")
        t = self.statistics(scene, poison)
        t = t[np.isfinite(t)]
        if not len(t):
            raise Undefined("the loss has no gradient at any forget row; the outputs are saturated")
        n, half = len(t), float(norm.ppf(0.975)) / np.sqrt(len(t))
        mean, above = float(t.mean()), int((t > norm.isf(0.01)).sum())
        interval = Interval(low=mean - half, high=mean + half, method="normal, known variance")
        return [
            self.score("gaussian-poison-mean", Estimate(mean, n, interval)),
            self.score("gaussian-poison-z", Estimate(z_score(t), n)),
            self.score("gaussian-poison-tpr", Estimate(above / n, n, wilson(above, n))),
        ]

    def statistics(self, scene: Scene, poison: Poison) -> np.ndarray:
        """`[n]` t of every forget row; NaN where the gradient is zero."""
        family, model = scene.problem.family, scene.model
        mark = mark_in(scene.problem)
        unpoisoned = set(mark.ids) if mark is not None else set()
        found = []
        for _, batch in scene.workplace.batches(scene.problem, "forget").sequential(self.batch_size):
            rows = torch.tensor(
                [i for i, name in enumerate(batch.ids) if name not in unpoisoned], dtype=torch.long
            )
            if not len(rows):
                continue
            batch = batch.select(rows.to(batch.mask.device))
            ((name, value),) = batch.inputs.items()
            noise = poison.noise(batch.ids, tuple(value.shape[1:]))
            clean = (value - torch.from_numpy(noise).to(value)).requires_grad_()
            batch = replace(batch, inputs={name: clean})
            with torch.enable_grad():
                loss = family.nll(family.forward(model, batch), batch).sum()
                (gradient,) = torch.autograd.grad(loss, [clean])
            flat = (noise.reshape(len(rows), -1), gradient.cpu().double().flatten(1).numpy())
            found.append(poison_statistics(*flat, poison.std))
        return np.concatenate(found)
