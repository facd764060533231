"""Amnesiac unlearning by relabeling: learn one wrong answer per row to forget, and the right ones elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.families import Batch, Batches
from expunge.methods.objective import Objective, Pass, State, Step
from expunge.parameters import param
from expunge.problem import Problem


class Relabeled(Batches):
    """The same batches with other targets in some rows.

    Args:
        batches: where the rows come from; it is left as it is.
        rows: `[m]` numbers of the rows that get other targets.
        targets: `[m, ...]` their targets, in the order of `rows`.
    """

    def __init__(self, batches: Batches, rows: Tensor, targets: Tensor) -> None:
        vars(self).update(vars(batches))  # shares the collated rows
        self._targets = targets
        self._position = torch.full((len(batches),), -1)
        self._position[rows] = torch.arange(len(rows))

    def take(self, rows: Tensor) -> Batch:  # noqa: D102
        batch, position = super().take(rows), self._position[rows]
        targets = batch.targets.clone()
        chosen = position >= 0
        targets[chosen.to(targets.device)] = self._targets[position[chosen]].to(targets)
        return replace(batch, targets=targets)


class Amnesiac(Objective):
    """Fine-tune on the retain set mixed with the forget set under wrong labels, drawn once and kept.

    ``min mean_train -ln p(y' | x)``; y' = y on retain rows and, on forget rows, one draw from the uniform law
    over the classes that are not y, the same in every epoch. This is the relabeling variant, which later
    papers compare with under the name; the paper's own method subtracts the updates of the batches that held
    forget rows, and needs them recorded while the target is trained.

    A fixed wrong label can be learned by heart: a forget row then stands out by a confident wrong answer,
    which a membership attack can see. `random-labeling` draws anew in every epoch.
    """

    name = "amnesiac"
    paper = "Graves et al., AAAI 2021, arXiv:2010.10981"
    families = frozenset({"classifier"})
    needs = frozenset({"retain", "labels"})
    relabeling: ClassVar[str] = "random-other"
    """How the family draws the targets of the forget set."""

    epochs: int = param(3, "passes over the data", source="reference code of bad teacher: 3", ge=0)
    lr: float = param(1e-4, "learning rate", source="reference code of bad teacher: 1e-4", ge=0)
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = param(
        "adam", "update rule", source="reference code of bad teacher: Adam"
    )
    weight_decay: float = param(
        0.0, "L2 coefficient (decoupled for adamw)", source="reference code of bad teacher: none", ge=0
    )
    batch_size: int = param(
        128, "examples per optimizer step", source="reference code of bad teacher: 128", ge=1
    )

    def passes(self, epoch: int) -> Sequence[Pass]:  # noqa: D102
        return [Pass("train")]

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:  # noqa: D102
        generator = state.workplace.generator(8)
        drawn = [
            problem.family.relabel(batch, self.relabeling, generator).targets
            for _, batch in state.workplace.batches(problem, "forget").sequential(256)
        ]
        train, rows = state.workplace.batches(problem, "train"), torch.from_numpy(problem.forget_rows)
        state.sources["train"] = Relabeled(train, rows, torch.cat(drawn))

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        return {"train": step.nll("train")}
