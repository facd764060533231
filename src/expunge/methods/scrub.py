"""SCRUB: disobey the target on the forget set, obey it on the retain set; with rewinding, SCRUB+R."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.methods.base import Workplace
from expunge.methods.objective import Objective, Pass, State, Step
from expunge.parameters import param
from expunge.problem import Problem


class Scrub(Objective):
    """Push the model away from the target on forget rows, pull it back on retain rows, in turn.

    With the divergence ``d(x) = T^2 KL( p_target(.|x; T) || p(.|x; T) )`` in nats, the target in eval mode:
    in the first `msteps` epochs a pass "maximize" over the forget set, ``min -mean_forget d``; in every
    epoch a pass "minimize" over the retain set, ``min gamma * mean_retain( -ln p(y|x) ) + alpha *
    mean_retain d``. One optimizer serves both. The learning rate is multiplied by `lr_decay` after each
    epoch number in `lr_decay_epochs`.

    At the very first step d and its gradient are zero. Where nothing is stochastic (no dropout, no batch
    norm) only weight decay moves the weights in the first maximize pass, and without it the pass is idle.
    With `warm_start` the run begins with one extra minimize pass, whose likelihood term takes the model off
    that point; the reference has none.

    SCRUB+R (``rewind=True``) keeps the weights after every epoch, and the target as candidate 0, and returns
    those whose error on the forget set is nearest to the final model's error on holdout rows, weighted so
    that their groups occur as in the forget set: what the error of a model would be that never saw such
    rows. Error is 1 - accuracy where the family knows what is correct, else the mean loss. For the removal
    of a whole class rewinding is not meant.
    """

    name = "scrub"
    paper = "Kurmanji et al., NeurIPS 2023, arXiv:2302.09880"
    needs = frozenset({"retain"})
    reference_on = ("forget", "retain")

    msteps: int = param(
        3, "epochs that begin with a maximize pass", source="reference code, small setting: 3", ge=0
    )
    alpha: float = param(
        0.5, "weight of the divergence on retain", source="reference code, small setting: 0.5", ge=0
    )
    gamma: float = param(1.0, "weight of the likelihood on retain", source="reference code: 1", ge=0)
    temperature: float = param(
        2.0, "divisor T of the logits", source="reference code, small setting: 2 (large: 4)", gt=0
    )
    forget_batch_size: int = param(
        64,
        "examples per step of a maximize pass; fewer mean more such steps",
        source="reference code: 64",
        ge=1,
    )
    warm_start: bool = param(False, "begin with one extra minimize pass", source="reference code: none")
    rewind: bool = param(
        False, "return the epoch that forgets the right amount (SCRUB+R)", source="the paper's variant"
    )
    lr_decay: float = param(0.1, "factor of the learning rate", source="reference code: 0.1", gt=0, le=1)
    lr_decay_epochs: tuple[int, ...] = param(
        (3, 5, 9), "epoch numbers (from 1) after which the learning rate decays", source="reference code"
    )
    epochs: int = param(10, "passes over the data", source="reference code, small setting: 10", ge=0)
    lr: float = param(5e-4, "learning rate", source="reference code: 5e-4", ge=0)
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = param(
        "adam", "update rule", source="reference code, small setting"
    )
    weight_decay: float = param(
        0.1, "L2 coefficient (decoupled for adamw)", source="reference code, small setting: 0.1", ge=0
    )
    batch_size: int = param(
        32, "retain examples per optimizer step", source="reference code, small setting: 32", ge=1
    )

    def passes(self, epoch: int) -> Sequence[Pass]:  # noqa: D102
        minimize = Pass("retain", name="minimize")
        made = [minimize] if self.warm_start and epoch == 0 else []
        if epoch < self.msteps:
            made.append(Pass("forget", name="maximize", batch_size=self.forget_batch_size))
        return [*made, minimize]

    def learning_rate(self, epoch: int, progress: float) -> float:  # noqa: D102
        decays = sum(after <= epoch for after in self.lr_decay_epochs)
        return super().learning_rate(epoch, progress) * self.lr_decay**decays

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        if step.phase == "maximize":
            return {"disobey": -self._mean_divergence(step, "forget")}
        nll = step.nll("retain")
        return {"retain": self.gamma * nll, "obey": self.alpha * self._mean_divergence(step, "retain")}

    def _mean_divergence(self, step: Step, split: Literal["forget", "retain"]) -> Tensor:
        reference, own = step.reference(split), step.outputs(split)
        values = step.family.divergence(reference, own, step.batch(split), self.temperature)
        return self.temperature**2 * step.per_position(split, values)

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:  # noqa: D102
        if self.rewind:
            _holdout_weights(problem)  # refuses what cannot be compared before anything is trained
            if self.lora is not None:
                raise BadInput("method 'scrub' cannot rewind low-rank adapters; leave out lora or rewind")

    def after_epoch(self, model: nn.Module, state: State, epoch: int) -> None:  # noqa: D102
        if self.rewind:
            for name, value in model.state_dict().items():
                state.kept[f"{epoch + 1}/{name}"] = value.detach().clone()

    def finish(self, problem: Problem, model: nn.Module, state: State) -> None:  # noqa: D102
        if not self.rewind:
            return
        workplace = state.workplace
        weights = _holdout_weights(problem)
        wanted = float((_errors(problem, model, workplace, "holdout") * weights).sum())
        candidates = [problem.target.state_dict()]
        for epoch in range(1, self.epochs + 1):
            candidates.append({name: state.kept[f"{epoch}/{name}"] for name in candidates[0]})
        found = []
        for weights_of_epoch in candidates:
            model.load_state_dict(weights_of_epoch)
            found.append(float(_errors(problem, model, workplace, "forget").mean()))
        chosen = nearest(found, wanted)
        model.load_state_dict(candidates[chosen])
        workplace.notes.append(
            f"rewound to epoch {chosen} of {self.epochs} (0 is the target): {_quantity(problem)} "
            f"{found[chosen]:.4g} on the forget set, {wanted:.4g} of the final model on holdout rows of the "
            "same groups"
        )


def nearest(values: Sequence[float], wanted: float) -> int:
    """Position of the value nearest to `wanted`, the first of equals."""
    return min(range(len(values)), key=lambda position: abs(values[position] - wanted))


def _quantity(problem: Problem) -> str:
    return "error" if "correct" in problem.family.quantities else "loss"


def _errors(problem: Problem, model: nn.Module, workplace: Workplace, split: str) -> Tensor:
    """`[n]` float64 on the CPU: 1 where wrong, else 0; the loss in nats where nothing is correct or wrong."""
    family = problem.family
    quantity = "correct" if _quantity(problem) == "error" else "loss"
    parts = []
    with torch.no_grad():
        for _, batch in workplace.batches(problem, split).sequential(256):
            parts.append(
                family.observe(family.forward(model, batch), batch, [quantity])[quantity].double().cpu()
            )
    values = torch.cat(parts)
    # A model whose outputs are not finite is right of nothing.
    return 1 - values.nan_to_num(0.0) if quantity == "correct" else values


def _holdout_weights(problem: Problem) -> Tensor:
    """`[n_holdout]` weights, sum 1, under which groups occur as often as in the forget set."""
    if problem.holdout is None:
        raise BadInput(
            f"method 'scrub' cannot rewind on {problem.name}: it needs a holdout set (rows of the "
            "same kind that were never trained on); pass one or set rewind to false"
        )
    theirs, ours = problem.family.groups(problem.holdout), problem.family.groups(problem.forget)
    if theirs is None or ours is None:
        return torch.full((len(problem.holdout),), 1 / len(problem.holdout), dtype=torch.float64)
    # Groups that the holdout lacks drop out, the others share their weight.
    weights = np.asarray([np.mean(ours == group) / np.sum(theirs == group) for group in theirs])
    if weights.sum() == 0:
        raise BadInput(
            f"method 'scrub' cannot rewind on {problem.name}: no holdout row belongs to a group of the "
            f"forget set ({', '.join(sorted(set(ours.tolist()))[:5])}); add such rows or set rewind to false"
        )
    return torch.from_numpy(weights / weights.sum())
