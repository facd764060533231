"""DMM: predict by attribution what a retrained model would answer, then fine-tune to those answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.errors import BadInput, ExpungeError
from expunge.families import Outputs
from expunge.find.attribution import calibrate, influence, trak
from expunge.find.linearized import Linearized, head_parameters
from expunge.methods.base import Workplace
from expunge.methods.frozen import Frozen
from expunge.methods.loop import fit
from expunge.methods.ntk import trained_decay
from expunge.methods.objective import Objective, Pass, State, Step
from expunge.parameters import param
from expunge.problem import Problem


class DMM(Objective):
    """Datamodel matching: fine-tune to the outputs that the model is predicted to have without the forget set.

    With beta_i(x) the contribution of training row i to the K outputs f(x) (logits, values) of the target
    theta_0, the prediction is ``h(x) = f(x; theta_0) - mu * sum_forget beta_i(x)``, and the objective ``min
    mean_{x in forget + R} mean_k (f_k(x; theta) - h_k(x))^2``, R a fixed random subset of the retain set with
    `retain_ratio` times as many rows as the forget set.

    Contributions come from `influence` (leave-one-out Newton steps) or from `trak` (randomly projected
    gradients), of the head's weights or of all. Influence of the head is taken about the head that is trained to
    convergence on the target's features, where it is valid; the target's own stopped somewhere on the way.

    Their scale is fitted and their worth is tested first: for `deletions` random sets of training rows, as large
    as the forget set, the predicted change of all outputs is held against the change that training without the
    set makes, ``actual ~ mu * predicted`` (`calibrate`). The notes give mu, R^2 and the linear datamodeling
    score. Where R^2 is below `least_r_squared` the method refuses to match predictions that do not hold. What
    training means here is `calibration`: of the head on the target's features, solved to convergence (cheap, and
    blind to what deletion does to the features), or of fresh models by the recipe, with one seed for all sets
    (as dear as `deletions` + 1 trainings; between networks the chance of training can drown the effect of few
    rows, which R^2 then says).

    Limits: for ridge regression with a head that is the whole model, one deleted row is predicted exactly;
    groups add up while they are few among many. A forget set unlike random rows, such as a whole class, is
    predicted worse than R^2 says: its rows stand in for one another, and the sum of their effects falls short.
    A target that has the predicted outputs already stays as it is.

    Deviations from the reference code: contributions are computed from the one target instead of an ensemble
    trained for the purpose, which is what a deletion request offers; mu is fitted instead of 1; the batch is
    smaller and the epochs are more, for small data.
    """

    name = "dmm"
    paper = (
        "Georgiev et al., ICLR 2025, arXiv:2410.23232; attribution: Park et al., ICML 2023, arXiv:2303.14186"
    )
    families = frozenset({"classifier", "regressor"})
    needs = frozenset({"retain", "labels"})

    attribution: Literal["influence", "trak"] = param(
        "influence", "where contributions come from", source="ours: exact for convex heads; the paper: trak"
    )
    weights: Literal["head", "all"] = param(
        "head", "weights whose gradients attribute", source="ours, for cost; the paper: all"
    )
    dim: int = param(512, "random directions of trak", source="ours; reference code of TRAK: 2048", ge=1)
    damping: float = param(
        0.01, "damping of trak, in units of the kernel's mean diagonal", source="ours", ge=0
    )
    decay: float | None = param(
        None, "weight decay of the loss; None means the target's, or 5e-4 where that is 0 or unknown",
        source="ours", gt=0,
    )  # fmt: skip
    calibration: Literal["head", "retrain"] = param(
        "head", "what random deletions are checked against", source="ours"
    )
    deletions: int = param(10, "random deletions to fit mu on", source="ours", ge=2)
    least_r_squared: float = param(0.3, "refuse below this share of explained change", source="ours", le=1)
    retain_ratio: float = param(3.0, "retain rows per forget row", source="reference code: 3", ge=0)
    matching: Literal["squared", "divergence"] = param(
        "squared",
        "distance to the predicted outputs: squared, or the family's divergence D(h, f)",
        source="reference code: squared",
    )
    lr_decay: float = param(
        0.95, "factor of the learning rate after each epoch", source="reference code", gt=0, le=1
    )
    epochs: int = param(20, "passes over forget rows and R", source="ours; reference code: 5", ge=0)
    lr: float = param(2e-3, "learning rate", source="ours; reference code: 5e-4", ge=0)
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = param(
        "adam", "update rule", source="reference code: Adam"
    )
    weight_decay: float = param(
        0.0, "L2 coefficient (decoupled for adamw)", source="reference code: none", ge=0
    )
    batch_size: int = param(64, "examples per optimizer step", source="ours; reference code: 512", ge=1)

    def passes(self, epoch: int) -> Sequence[Pass]:  # noqa: D102
        return [Pass("train", retain_per_forget=self.retain_ratio)]

    def learning_rate(self, epoch: int, progress: float) -> float:  # noqa: D102
        return super().learning_rate(epoch, progress) * self.lr_decay**epoch

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:  # noqa: D102
        workplace = state.workplace
        if self.calibration == "retrain" and (problem.recipe is None or problem.architecture is None):
            raise BadInput(
                f"method '{self.name}' cannot calibrate by retraining on {problem.name}: it needs a recipe and an "
                "architecture; set calibration to 'head'"
            )
        train, decay = workplace.batches(problem, "train"), trained_decay(problem, self.decay)
        head = Linearized.of(problem.family, model, train, head_parameters(problem.family, model))
        # Leave-one-out steps are valid about a minimum only.
        converged = head.moved(head.minimize(decay, tolerance=1e-7))
        if self.attribution == "influence":
            rows = converged if self.weights == "head" else Linearized.of(problem.family, model, train)
            found = influence(rows, decay)
        else:
            names = head.names if self.weights == "head" else None
            seed = int(torch.randint(1 << 31, (), generator=workplace.generator(22)))
            found = trak(
                problem.family, [model], train, names=names, dim=self.dim, damping=self.damping, seed=seed
            )
        sets = self.random_sets(len(train), len(problem.forget_rows), workplace)
        if self.calibration == "retrain":
            actual = self.retrained(problem, sets, workplace)
        else:
            without = [converged.without(chosen.numpy()).minimize(decay, tolerance=1e-7) for chosen in sets]
            actual = torch.stack([converged.jacobian @ change for change in without])
        fitted = calibrate(torch.stack([found.removal(chosen) for chosen in sets]), actual)
        workplace.notes.append(
            f"{len(sets)} random deletions of {len(sets[0])} rows: multiplier {fitted.multiplier:.3g}, R^2 "
            f"{fitted.r_squared:.2f}, rank correlation {fitted.lds:.2f} of predicted and actual changes "
            f"({self.attribution} against {self.calibration})"
        )
        if not fitted.r_squared >= self.least_r_squared:
            raise ExpungeError(
                f"method '{self.name}' refuses to match predictions that do not hold on {problem.name}: they explain R^2 = "
                f"{fitted.r_squared:.2f} of what {len(sets)} real deletions changed, below {self.least_r_squared:g}; use "
                "another attribution, or retrain"
            )
        change = fitted.multiplier * found.removal(torch.from_numpy(problem.forget_rows))
        wanted = head.prediction + change.reshape(head.prediction.shape)
        state.frozen["predicted"] = Predicted(wanted.float().to(workplace.device))

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        own, wanted = step.outputs("train"), step.frozen("predicted", "train")
        if self.matching == "divergence":
            values = step.family.divergence(wanted, own, step.batch("train"))
        else:
            values = (own.prediction - wanted.prediction).square().flatten(1).mean(1)
        return {"matching": step.mean("train", values)}

    def random_sets(self, n: int, size: int, workplace: Workplace) -> list[Tensor]:
        """Sorted row numbers of each deletion; at most half of all rows."""
        generator = workplace.generator(23)
        size = min(size, n // 2)
        return [torch.randperm(n, generator=generator)[:size].sort().values for _ in range(self.deletions)]

    def retrained(self, problem: Problem, sets: list[Tensor], workplace: Workplace) -> Tensor:
        """`[deletions, n, K]` change of all outputs of fresh models, trained by the recipe from one initialization."""
        recipe, ids = problem.recipe, problem.train["id"][:]
        if recipe is None:
            raise AssertionError("checked by `prepare`")
        seed = int(torch.randint(1 << 31, (), generator=workplace.generator(24)))
        own = Workplace(seed, workplace.device)

        def outputs(asked: Problem, over: Literal["train", "retain"]) -> Tensor:
            model = fit(asked, asked.fresh_model(seed).to(own.device), over, recipe, own)
            with torch.no_grad():
                batches = own.batches(problem, "train").sequential(256)
                made = [problem.family.forward(model, batch).prediction for _, batch in batches]
            return torch.cat(made).flatten(1).double().cpu()

        everything = outputs(problem, "train")
        asked = [replace(problem, forget_ids=tuple(str(ids[i]) for i in chosen)) for chosen in sets]
        return torch.stack([outputs(one, "retain") - everything for one in asked])


class Predicted(Frozen):
    """Stored outputs of a model that nobody has: `[n, T, C]` by row of `train`."""

    def __init__(self, prediction: Tensor) -> None:
        self._stored, self._model = {"train": Outputs(prediction)}, None
