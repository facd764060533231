"""Prune first, then unlearn: any other method on a sparse version of the target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families import Architecture
from expunge.methods.base import METHODS, Method, Workplace
from expunge.methods.loop import fit
from expunge.methods.salun import largest
from expunge.parameters import Parameters, param
from expunge.problem import Problem, Training

Keep = dict[str, Tensor]
"""Per weight, by parameter name, True where it is kept and False where it is pruned."""


class MethodChoice(Parameters):
    """A registered method and its parameters, as one stage of another method.

    Read from a name, or from a mapping of `name` and parameters: ``npo`` or ``{name: npo, beta: 0.2}``.
    """

    title = "stage"

    name: str = Field(description="name of a registered method")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="hyperparameters that differ from the defaults"
    )

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"name": given}
        if isinstance(given, dict) and not set(given) <= set(cls.model_fields):
            return {"name": given.get("name"), "parameters": {k: v for k, v in given.items() if k != "name"}}
        return given

    @model_validator(mode="after")
    def _exists(self) -> Self:
        self.method()  # refuses unknown names and values where they are given, not in the middle of a run
        return self

    def method(self) -> Method:
        """The method with its parameters."""
        return METHODS[self.name](**self.parameters)

    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace, within: str) -> nn.Module:
        """Run the stage on `model`, the private copy of the problem's target that `within` works on."""
        method = self.method()
        if obstacles := method.obstacles(problem):
            raise BadInput(
                f"method '{within}' cannot hand {problem.name} to '{method.name}': {'; '.join(obstacles)}"
            )
        return method.produce(problem, model, workplace)

    def __str__(self) -> str:
        given = ", ".join(f"{key}={value!r}" for key, value in self.parameters.items())
        return f"{self.name}({given})" if given else self.name


class PruneThenUnlearn(Method, Training):
    """Set the smallest weights of the target to zero, let it recover, and unlearn with the others.

    1. One-shot global magnitude pruning: of all P weights of linear and convolutional layers pooled (no
       biases, no normalization, no embeddings), the ``round(sparsity * P)`` with the smallest \\|theta_i\\|
       become zero, equal ones by position. m is 1 on the weights that stay.
    2. Recover: ``min mean_train -ln p(y | x)`` over m * theta on ALL training rows, forget set included, with
       this method's own recipe: the paper prunes while the model is made, before anyone asks to forget.
    3. Unlearn: the method `then`, on the sparse model as its target.

    The pruned entries are zero, and gradients with respect to them are zero, in stages 2 and 3, so that
    neither momentum nor weight decay moves them. Whatever a method does besides following the gradients of
    these weights (noise, extrapolation, a head replaced for a while) is projected on m at its end. Fresh
    models in stage 3 are pruned by the same mask: with ``then="retrain"`` this is the retrained model of the
    sparse architecture, which is what the others are to be compared with. The dense retrained model is
    another one, and the gap between the two can be larger than that between methods.

    Limits: with ``sparsity = 0`` and no recovery this is `then`. What is pruned is never trained again, so
    that too high a sparsity costs utility that no stage brings back.
    """

    name = "prune-then-unlearn"
    paper = "Jia et al., NeurIPS 2023, arXiv:2304.04934"
    kind = "edit"
    needs = frozenset({"retain", "labels"})

    sparsity: float = param(
        0.95, "share p of the weights that are set to zero", source="the paper: 95 %", ge=0, lt=1
    )
    then: MethodChoice = param(
        # Not validated: a look-up would import every method while this one is being imported.
        MethodChoice.model_construct(name="fine-tune", parameters={}),
        "method that unlearns, by name or as a mapping of name and parameters",
        source="the paper prunes before fine-tuning, among others",
    )
    epochs: int = param(
        10,
        "passes of the recovery over all training rows",
        source="ours; reference code: as the target's",
        ge=0,
    )
    lr: float = param(0.01, "learning rate of the recovery", source="ours", ge=0)

    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:  # noqa: D102
        weights = prunable(model)
        total = sum(weight.numel() for weight in weights.values())
        if not total:
            raise BadInput(
                f"method '{self.name}': {type(model).__name__} has no linear or convolutional layer to prune"
            )
        n_kept = total - round(self.sparsity * total)
        magnitudes = {name: weight.detach().abs() for name, weight in weights.items()}
        keep = largest(magnitudes, (n_kept + 0.5) / total)  # half a weight against rounding: n_kept exactly
        workplace.notes.append(
            f"{total - n_kept} of {total} weights of linear and convolutional layers pruned; then {self.then}"
        )
        with held(keep) as hold:
            hold(model)
            fit(problem, model, "train", self, stage(workplace, "recover"))
            sparse = problem.with_model(model)
            if problem.architecture is not None:
                pruned = SparseArchitecture(**dict(problem.architecture), hold=hold)
                sparse = replace(sparse, architecture=pruned)
            made = self.then.produce(sparse, model, stage(workplace, "unlearn"), self.name)
        project(made, keep)
        return made


class SparseArchitecture(Architecture):
    """An architecture whose fresh models are pruned by a mask, and stay so."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    hold: Callable[[nn.Module], None] = Field(exclude=True, description="what prunes a fresh model")

    def build(self, seed: int) -> nn.Module:  # noqa: D102
        model = super().build(seed)
        self.hold(model)
        return model


def stage(workplace: Workplace, name: str) -> Workplace:
    """The same workplace with a folder of its own for the checkpoints of one stage."""
    folder = workplace.checkpoint
    return replace(workplace, checkpoint=None if folder is None else folder / name)


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of linear and convolutional layers, each once, by parameter name."""
    wanted = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
    }
    return {name: p for name, p in model.named_parameters() if id(p) in wanted}


@torch.no_grad()
def project(model: nn.Module, keep: Keep) -> None:
    """Set the pruned weights of `model` to zero, in place."""
    for name, parameter in model.named_parameters():
        if name in keep:
            parameter.masked_fill_(~keep[name].to(parameter.device), 0.0)


@contextmanager
def held(keep: Keep) -> Iterator[Callable[[nn.Module], None]]:
    """Inside the block, the models that are passed to the yielded function are pruned and stay so.

    A weight that is zero and whose gradient is zero stays zero under every optimizer here, with momentum and
    weight decay: both start from zero and multiply it.
    """
    handles = []

    def hold(model: nn.Module) -> None:
        project(model, keep)
        for name, parameter in model.named_parameters():
            if name in keep and parameter.requires_grad:
                handles.append(parameter.register_hook(_masked(keep[name])))

    try:
        yield hold
    finally:
        for handle in handles:
            handle.remove()


def _masked(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * mask.to(gradient.device)
