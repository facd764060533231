"""Bad teacher: imitate an ignorant model on the forget set and the target on the retain set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.families import Outputs
from expunge.methods.objective import Objective, Pass, State, Step
from expunge.parameters import param
from expunge.problem import Problem


class BadTeacher(Objective):
    """Distill from two frozen teachers: a fresh model on forget rows, the target on retain rows.

    ``min mean_train KL( q_u(.|x; T) || p(.|x; T) )`` in nats, q_u the prediction of the incompetent teacher
    where u = 1 (forget row) and of the target where u = 0, both sides softened by the temperature T, without
    a factor T^2. Needs no labels. Each epoch visits all forget rows mixed with a fixed share of the retain
    rows.

    The reference code calls the divergence without its `reduction`, which divides by the number of classes
    too; ``reduction="elementmean"`` reproduces that. Its notebook trains in train mode against teachers in
    eval mode, as here.

    On retain rows the student starts as its own teacher, so that gradients there are rounding noise at
    first. Adam normalizes noise to full steps: runs in float32 and float64 differ visibly although both are
    right.
    """

    name = "bad-teacher"
    paper = "Chundawat et al., AAAI 2023, arXiv:2205.08096"
    needs = frozenset({"retain", "architecture"})
    reference_on = ("train",)

    temperature: float = param(1.0, "divisor T of the logits", source="reference code: 1", gt=0)
    retain_fraction: float = param(
        0.3, "share of the retain rows that is used", source="reference code: 0.3", ge=0, le=1
    )
    reduction: Literal["batchmean", "elementmean"] = param(
        "batchmean",
        "divide the divergence by the number of rows, or by rows times values per row (classes)",
        source="ours: batchmean is the divergence itself; elementmean is the reference code",
    )
    epochs: int = param(1, "passes over the data", source="reference code: 1", ge=0)
    lr: float = param(1e-4, "learning rate", source="reference code: 1e-4", ge=0)
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = param(
        "adam", "update rule", source="reference code: Adam"
    )
    weight_decay: float = param(
        0.0, "L2 coefficient (decoupled for adamw)", source="reference code: none", ge=0
    )
    batch_size: int = param(256, "examples per optimizer step", source="reference code: 256", ge=1)

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:  # noqa: D102
        # A stream of its own: the incompetent teacher must not be the initial model of a retrained reference.
        seed = int(torch.randint(1 << 31, (), generator=state.workplace.generator(5)))
        incompetent = problem.fresh_model(seed).to(state.workplace.device)
        state.freeze("incompetent", incompetent, ("train",))

    def passes(self, epoch: int) -> Sequence[Pass]:  # noqa: D102
        return [Pass("train", retain_fraction=self.retain_fraction)]

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        bad, good = step.frozen("incompetent", "train").prediction, step.reference("train").prediction
        teacher = Outputs(torch.where(step.is_forget[:, None, None], bad, good))
        values = step.family.divergence(teacher, step.outputs("train"), step.batch("train"), self.temperature)
        if self.reduction == "elementmean":
            values = values / good[0].numel()
        return {"divergence": step.per_position("train", values)}
