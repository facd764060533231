"""Model inversion: search for inputs that the model takes for a forgotten class, and see whether they look like it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from expunge.attacks.base import Attack, Measure, Scene
from expunge.families import Batch
from expunge.methods.boundary_shrink import discrete_inputs
from expunge.metrics.base import Estimate, Undefined
from expunge.parameters import param
from expunge.problem import Problem
from expunge.record import Score
from expunge.stats.intervals import t_interval, wilson


class Inversion(Attack):
    """Class-conditional inversion by gradient descent on inputs, judged by an evaluator that never saw the model.

    For each class c, `reconstructions` codes g are drawn from the standard normal law and improved by Adam,

        min over g of  -ln p(c | G(g)) + prior * ||g||^2 / 2,    G(g) = mean + V g,

    where the columns of V are the leading principal directions of the rows that the attacker has, those of classes that
    have no forget rows, each as long as the rows' standard deviation along it; values outside the range that occurs in
    these rows are cut off. At ``prior = 1`` this is the most probable input given the class under a Gaussian model of
    inputs; smaller weights let the classifier say more.

    The evaluator is the nearest class mean of the real training rows, forgotten ones included, in the inputs as the model
    reads them: independent of the attacked model, and without a training of its own that could fail. Inputs that only
    fool the model are not near the class.

    Classes of the forget set are attacked, and as a control those that have no forget rows: where these cannot be
    reconstructed either, nothing follows for the forgotten ones. The measure speaks of classes; where single rows of a
    class are forgotten, a retrained model reveals the class as well.

    Deviation: the literature draws on a GAN trained on public pictures where this has a linear generator (GMI, KED-MI),
    and evaluates with a second network.
    """

    name = "inversion"
    paper = "Fredrikson et al., CCS 2015; evaluation as in Wang et al., AAAI 2021, arXiv:2009.05241"
    threat_model = (
        "weights (gradients with respect to inputs); rows of the other classes; none of the forgotten one"
    )
    access = "weights"
    families = frozenset({"classifier"})
    needs = frozenset({"retain", "labels"})
    measures = (
        Measure(
            "inversion-accuracy",
            "Share of reconstructions of the forget set's classes that are nearest to the true mean of their class; "
            "1/classes is guessing. Wilson's interval over reconstructions.",
            "share",
            title="Recognizable reconstructions",
            low=0.0,
            high=1.0,
            margin=0.1,
        ),
        Measure(
            "inversion-accuracy-retained",
            "The same for classes without forget rows: whether the attack works on this model at all.",
            "share",
            split="retain",
            title="Recognizable reconstructions of other classes",
            low=0.0,
            high=1.0,
        ),
        Measure(
            "inversion-distance",
            "Mean distance of reconstructions from the true mean of their class, divided by the mean distance of the "
            "class's real rows; 1 is as near as a real row. Interval: t over reconstructions.",
            "times a real row's distance",
            title="Distance of reconstructions",
            low=0.0,
        ),
    )

    reconstructions: int = param(
        20, "reconstructions of each class", source="ours; Wang et al. 2021: 5", ge=1
    )
    steps: int = param(200, "Adam steps", source="ours: the loss has settled", ge=1)
    lr: float = param(0.1, "learning rate of the codes", source="ours", gt=0)
    prior: float = param(
        0.01, "weight of the codes' squared length, nats", source="ours: digits become readable", ge=0
    )
    components: int = param(32, "largest number of principal directions", source="ours", ge=1)
    batch_size: int = param(256, "reconstructions searched for at a time", source="ours", ge=1)

    @classmethod
    def obstacles(cls, problem: Problem) -> list[str]:  # noqa: D102
        return super().obstacles(problem) + discrete_inputs(problem)

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {"steps": self.steps, "reconstructions of each class": self.reconstructions}

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        truth = Evaluator.of(scene.problem)
        forgotten, kept = (_classes(scene.problem, split) for split in ("forget", "retain"))
        control = np.setdiff1d(kept, forgotten)
        generator = LinearGenerator.of(scene, control if len(control) else kept, self.components)
        made, classes = self.reconstruct(scene, forgotten, generator)
        right = truth.nearest(made) == classes
        distance = truth.relative_distance(made, classes)
        scores = [
            self.score(
                "inversion-accuracy",
                Estimate(
                    float(right.mean()), len(right), wilson(int(right.sum()), len(right)),
                    {scene.problem.family.classes[c]: float(right[classes == c].mean()) for c in forgotten},  # pyright: ignore
                ),
            ),
            self.score(
                "inversion-distance",
                Estimate(float(distance.mean()), len(distance), t_interval(distance, over="reconstructions")),
            ),
        ]  # fmt: skip
        if not len(control):
            reason = "every class has forget rows; there is no other to compare with"
            return [*scores, self.undefined("inversion-accuracy-retained", reason)]
        made, classes = self.reconstruct(scene, control, generator)
        right = truth.nearest(made) == classes
        estimate = Estimate(float(right.mean()), len(right), wilson(int(right.sum()), len(right)))
        return [*scores, self.score("inversion-accuracy-retained", estimate)]

    def reconstruct(
        self, scene: Scene, classes: np.ndarray, generator: LinearGenerator
    ) -> tuple[np.ndarray, np.ndarray]:
        """`[n, d]` reconstructed inputs, flattened, and `[n]` the class of each."""
        targets = torch.from_numpy(np.repeat(classes, self.reconstructions))
        start = torch.randn(
            len(targets),
            generator.directions.shape[1],
            generator=scene.workplace.generator(41),
            dtype=torch.float32,
        )
        rows = zip(targets.split(self.batch_size), start.split(self.batch_size), strict=True)
        return np.concatenate([self.descend(scene, t, g, generator) for t, g in rows]), targets.numpy()

    def descend(self, scene: Scene, targets: Tensor, codes: Tensor, generator: LinearGenerator) -> np.ndarray:
        """`[b, d]` inputs at the end of the descent from `codes`."""
        family = scene.problem.family
        template = scene.workplace.batches(scene.problem, "retain").take(
            torch.zeros(len(targets), dtype=torch.long)
        )
        template = replace(template, targets=targets[:, None].to(template.targets))
        codes = codes.to(generator.mean).requires_grad_()
        optimizer = torch.optim.Adam([codes], lr=self.lr)
        for _ in range(self.steps):
            batch = unflattened(generator(codes), template)
            loss = (
                family.nll(family.forward(scene.model, batch), batch) + self.prior * codes.square().sum(1) / 2
            )
            # Of the codes alone: the model's gradients stay empty.
            (codes.grad,) = torch.autograd.grad(loss.sum(), [codes])
            optimizer.step()
        return generator(codes).detach().cpu().double().numpy()


@dataclass(frozen=True)
class LinearGenerator:
    """Inputs from codes: ``mean + directions g``, cut off at the range of what was seen.

    Attributes:
        mean: `[d]`.
        directions: `[d, k]` principal directions, each as long as the standard deviation along it.
        low: `[d]` smallest value of each feature.
        high: `[d]` largest.
    """

    mean: Tensor
    directions: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, scene: Scene, classes: np.ndarray, components: int) -> LinearGenerator:
        """Fitted to at most 2,000 retained rows of `classes`, evenly spaced."""
        batches = scene.workplace.batches(scene.problem, "retain")
        rows = np.concatenate(
            [flattened(b)[np.isin(_labels(b), classes)] for _, b in batches.sequential(1024)]
        )
        rows = rows[:: max(1, len(rows) // 2000)]
        mean = rows.mean(0)
        _, lengths, directions = np.linalg.svd(rows - mean, full_matrices=False)
        k = min(components, len(lengths))
        scaled = directions[:k].T * (lengths[:k] / np.sqrt(len(rows)))
        parts = (mean, scaled, rows.min(0), rows.max(0))
        made = [torch.from_numpy(part).float().to(scene.workplace.device) for part in parts]
        return cls(*made)

    def __call__(self, codes: Tensor) -> Tensor:
        """`[b, d]` inputs of the codes `[b, k]`."""
        return (self.mean + codes @ self.directions.T).clamp(self.low, self.high)


@dataclass(frozen=True)
class Evaluator:
    """Nearest class mean of real rows.

    Attributes:
        means: `[C, d]` mean of each class's rows; NaN for classes without rows.
        spread: `[C]` mean distance of each class's rows from their mean.
    """

    means: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, problem: Problem) -> Evaluator:
        """The evaluator of all training rows, forgotten ones included."""
        batches = [batch for _, batch in problem.batches("train").sequential(1024)]
        x = np.concatenate([flattened(batch) for batch in batches])
        y = np.concatenate([_labels(batch) for batch in batches])
        n_classes = int(y.max()) + 1
        means = np.full((n_classes, x.shape[1]), np.nan)
        spread = np.full(n_classes, np.nan)
        for label in np.unique(y):
            means[label] = x[y == label].mean(0)
            spread[label] = _lengths(x[y == label] - means[label]).mean()
        return cls(means, spread)

    def nearest(self, x: np.ndarray) -> np.ndarray:
        """`[n]` class whose mean is nearest to each of `x`, `[n, d]`."""
        known = np.flatnonzero(np.isfinite(self.spread))
        distances = np.stack([_lengths(x - self.means[c]) for c in known], axis=1)
        return known[distances.argmin(1)]

    def relative_distance(self, x: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """`[n]` distance of each of `x` from the mean of its class, in units of a real row's."""
        if (self.spread[classes] == 0).any():
            raise Undefined("a class has one distinct row only; there is no spread to measure distances by")
        return _lengths(x - self.means[classes]) / self.spread[classes]


def flattened(batch: Batch) -> np.ndarray:
    """`[b, d]` all inputs of each row, in float64."""
    parts = [value.detach().cpu().double().flatten(1) for _, value in sorted(batch.inputs.items())]
    return torch.cat(parts, dim=1).numpy()


def unflattened(rows: Tensor, template: Batch) -> Batch:
    """The batch of the inputs `[b, d]`; the inverse of `flattened`, differentiable."""
    inputs, start = {}, 0
    for name, value in sorted(template.inputs.items()):
        size = value[0].numel()
        inputs[name] = rows[:, start : start + size].reshape(value.shape).to(value.dtype)
        start += size
    return replace(template, inputs=inputs)


def _labels(batch: Batch) -> np.ndarray:
    return batch.targets[:, 0].cpu().numpy()


def _lengths(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(x).sum(-1))


def _classes(problem: Problem, split: str) -> np.ndarray:
    """Class numbers that occur in `split`, sorted."""
    batches = problem.batches(split)
    return np.unique(np.concatenate([_labels(batch) for _, batch in batches.sequential(1024)]))
