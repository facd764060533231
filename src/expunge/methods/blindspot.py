"""Blindspot unlearning of regressors: imitate a model that never saw the forget set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.methods.base import Workplace
from expunge.methods.frozen import Frozen
from expunge.methods.loop import fit
from expunge.methods.objective import Objective, Pass, State, Step
from expunge.parameters import param
from expunge.problem import Problem, Training


class Blindspot(Objective):
    """Imitate, on forget rows, a model trained briefly on the retain set only; keep learning the retain rows.

    The blindspot model b starts from fresh weights and is fitted to the retain set for `blindspot_epochs`.
    Then, over all training rows mixed, with u = 1 on forget rows, rho the share of them in the batch, and f
    the model: ``L = rho * mean_{u=1}[ |f - f_b| + beta * sum_l AT(A_l, A_l^b) ] + (1 - rho) * mean_{u=0} |f
    - y|``, that is, the average over rows of each row's own term. \\|.\\| is the mean over target columns of
    the absolute difference, in standardized units. The attention map of a layer with activations A
    `[positions, channels]` is ``att(A) = a / ||a||_2`` with ``a_p = mean_c A_pc^2``; AT is the mean over
    positions of the squared difference of two maps. A layer with one position has the constant map 1 and
    adds nothing.

    Deviations: the layers are all that the family names; the blindspot model is trained by the family's
    likelihood (squared error) at a constant learning rate, where the reference uses the absolute error and a
    plateau schedule.

    The gradient of the absolute error is a sum of signs, which can cancel to rounding noise that Adam turns
    into full steps: settings that differ only in rounding (micro-batches) may end apart in a few weights.
    """

    name = "blindspot"
    paper = "Tarun et al., ICML 2023, arXiv:2210.08196"
    families = frozenset({"regressor"})
    needs = frozenset({"retain", "architecture"})

    beta: float = param(50.0, "weight of the attention maps", source="reference code: 50", ge=0)
    blindspot_epochs: int = param(2, "training of the blindspot model", source="reference code: 2", ge=0)
    blindspot_lr: float = param(
        0.01, "learning rate of the blindspot model (Adam)", source="reference code: 0.01", ge=0
    )
    epochs: int = param(1, "passes over the data", source="reference code: 1", ge=0)
    lr: float = param(1e-3, "learning rate", source="reference code: 1e-3", ge=0)
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = param(
        "adam", "update rule", source="reference code: Adam"
    )
    weight_decay: float = param(
        0.0, "L2 coefficient (decoupled for adamw)", source="reference code: none", ge=0
    )
    batch_size: int = param(256, "examples per optimizer step", source="reference code: 256", ge=1)

    def passes(self, epoch: int) -> Sequence[Pass]:  # noqa: D102
        return [Pass("train")]

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:  # noqa: D102
        workplace = state.workplace
        seed = int(torch.randint(1 << 31, (), generator=workplace.generator(6)))
        recipe = Training(
            epochs=self.blindspot_epochs, lr=self.blindspot_lr, optimizer="adam", weight_decay=0.0,
            batch_size=self.batch_size, micro_batch_size=self.micro_batch_size,
        )  # fmt: skip
        # A workplace of its own: the checkpoint and the log belong to the run around it.
        apart = Workplace(seed=seed, device=workplace.device)
        blindspot = fit(problem, problem.fresh_model(seed).to(workplace.device), "retain", recipe, apart)
        # Always live: stored activations of all layers for all rows would dwarf the model that makes them.
        layers = self._layers(problem, model)
        frozen = Frozen(blindspot, problem.family, state.sources, ("train",), layers, precompute=False)
        state.frozen["blindspot"] = frozen

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        layers = self._layers(step.state.problem, step.model)
        own, blind, forget = step.outputs("train", layers), step.frozen("blindspot", "train"), step.is_forget
        target = step.batch("train").targets.to(own.prediction.dtype)
        terms = {
            "forget": step.mean("train", _distance(own.prediction, blind.prediction), forget),
            "retain": step.mean("train", _distance(own.prediction, target), ~forget),
        }
        transfer = [attention_transfer(own.hidden[name], blind.hidden[name]) for name in layers]
        if transfer:
            terms["attention"] = self.beta * step.mean("train", sum(transfer[1:], transfer[0]), forget)
        return terms

    def _layers(self, problem: Problem, model: nn.Module) -> Sequence[str]:
        return problem.family.layers(model) if self.beta > 0 else ()


def attention_map(activation: Tensor) -> Tensor:
    """`[B, positions, d]` to `[B, positions]`: mean square over channels, scaled to unit Euclidean norm."""
    return F.normalize(activation.square().mean(-1), dim=-1)


def attention_transfer(a: Tensor, b: Tensor) -> Tensor:
    """`[B]` mean over positions of the squared difference of the attention maps of `[B, positions, d]`."""
    return (attention_map(a) - attention_map(b)).square().mean(-1)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().flatten(1).mean(1)
