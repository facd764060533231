"""EDiff (EraseDiff): keep what is to be kept, under the constraint that the concept's prompt says what another's says."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.families.models import clone
from expunge.methods.denoiser_parts import DenoiserPart, trainable_part
from expunge.methods.loop import Loop
from expunge.methods.objective import Objective, Pass, State, Step
from expunge.methods.prune_then_unlearn import stage
from expunge.parameters import param
from expunge.problem import Problem, Training


class Substituted(Objective):
    """Say under the concept's prompt what is said under its substitute: the constraint h of EDiff by itself."""

    part: DenoiserPart = param("x", "what is trained", source="UnlearnCanvas' port: cross-attention")
    teacher: Literal["self", "target"] = param(
        "self",
        "who says what the substitute's prompt says: the model as it is, or as it was",
        source="reference code: self; target is ours",
    )

    def trainable(self, problem: Problem, model: nn.Module, state: State) -> Collection[str] | None:  # noqa: D102
        return trainable_part(model, self.part)

    def references(self) -> tuple[str, ...]:  # noqa: D102
        return ("forget",) if self.teacher == "target" else ()

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        batch = step.forget
        asked = replace(batch, inputs={**batch.inputs, "input_ids": batch.inputs["anchor_ids"]})
        if self.teacher == "target":
            wanted = step.state.frozen["reference"].ask(asked)
        else:
            with torch.no_grad():
                wanted = step.family.forward(step.model, asked)
        distance = step.family.divergence(wanted, step.outputs("forget"), batch)
        return {"substitute": step.mean("forget", distance)}


class EDiff(Substituted):
    """Descend the retain loss, and in every step take the constraint down by its share.

    ``min f(theta)  subject to  q(theta) = h(theta) - h* <= 0``: f is the loss of retain rows,
    ``h = mean | eps_theta(x_t, c) - sg eps_theta(x_t, c') |^2`` on noised images to forget, with their prompts c and the
    substitute prompts c' (the anchors); h* is what steps on h alone would reach from theta. It counts as a constant, so
    that grad q = grad h. Every step goes along

    ``grad f + lambda grad q,  lambda = max(0, (phi - <grad f, grad q>) / |grad q|^2)``,

    which of all directions d with ``<grad q, d> >= phi`` is the nearest to grad f. phi is ``eta |grad q|^2``
    (``margin: gradient``, which never needs h*) or ``eta max(q, 0)`` (``margin: value``, where before every epoch h* is
    the mean of h over the last of `inner_epochs` passes on h alone, made on a copy by the same update rule).

    ``form: fixed`` is the published port's ``f + alpha (h - h*)``; the constant has no gradient, so it is a weighted sum.

    Limits: with eta = 0 a step of f may only not make h worse; where c' = c, h is 0 and this is training on retain rows.
    The rate holds to first order for plain gradient steps: an adaptive optimizer rescales d after it was chosen. The
    multiplier is that of first-order descent by value function (Liu et al., 2022, arXiv:2209.08709), which the paper uses.
    Deviation: errors are weighted by timestep as the model was trained (not at all for usual checkpoints).
    """

    name = "ediff"
    paper = "Wu et al., CVPR 2025, arXiv:2401.05779"
    families = frozenset({"diffusion"})
    needs = frozenset({"retain", "images"})

    form: Literal["multiplier", "fixed"] = param(
        "multiplier",
        "weight of the constraint: chosen in every step, or alpha throughout",
        source="the paper: multiplier; UnlearnCanvas' port: fixed",
    )
    margin: Literal["gradient", "value"] = param(
        "gradient",
        "phi: eta times the squared gradient of q, or eta times q",
        source="descent by value function has both, and this as its default",
    )
    eta: float = param(0.5, "share in phi", source="descent by value function", ge=0)
    alpha: float = param(
        0.1, "weight of the constraint where it is fixed", source="UnlearnCanvas' port", ge=0
    )
    inner_epochs: int = param(
        1, "passes over the forget set that find h*", source="UnlearnCanvas' port", ge=1
    )
    lr: float = param(1e-5, "learning rate", source="UnlearnCanvas' port", ge=0)
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = param(
        "adam", "update rule", source="reference code"
    )
    weight_decay: float = param(0.0, "L2 coefficient", source="reference code", ge=0)

    def passes(self, epoch: int) -> list[Pass]:  # noqa: D102
        return [Pass("forget", paired="retain")]

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:  # noqa: D102
        if self.epochs:
            self.after_epoch(model, state, -1)

    def after_epoch(self, model: nn.Module, state: State, epoch: int) -> None:  # noqa: D102
        if self.form == "multiplier" and self.margin == "value" and epoch + 1 < self.epochs:
            state.kept["reached"] = self.reached(model, state, epoch + 1)

    def reached(self, model: nn.Module, state: State, epoch: int) -> Tensor:
        """`[]` h*: the mean of h over the last pass of descent on h alone, from the weights of `model`, which stay."""
        settings = {k: getattr(self, k) for k in (*Training.model_fields, *Substituted.model_fields)}
        inner = Substituted(**{**settings, "epochs": self.inner_epochs, "lora": None})
        # Other noise in every epoch, and a fresh optimizer; what it logs is its own.
        place = replace(
            stage(state.workplace, "inner"), seed=state.workplace.seed + 1 + epoch, log=[], notes=[]
        )
        with torch.enable_grad():
            Loop(inner, state.problem, clone(model), replace(place, checkpoint=None, on_step=None)).run()
        last = [entry["substitute"] for entry in place.log if entry["epoch"] == self.inner_epochs - 1]
        return torch.tensor(sum(last) / len(last))

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        return {**super().loss(step), "retain": step.nll("retain")}

    def combine(  # noqa: D102
        self, gradients: dict[str, list[Tensor]], lr: float, state: State, terms: dict[str, Tensor]
    ) -> list[Tensor]:
        retain, constraint = gradients["retain"], gradients["substitute"]
        if self.form == "fixed":
            weight = torch.tensor(self.alpha)
        else:
            weight = self.multiplier(retain, constraint, terms["substitute"], state)
        terms["lambda"] = weight
        return [f + weight.to(q) * q for f, q in zip(retain, constraint, strict=True)]

    def multiplier(
        self, retain: list[Tensor], constraint: list[Tensor], value: Tensor, state: State
    ) -> Tensor:
        """`[]` lambda for the gradients of f and q and the value h of this step."""
        squared = sum(float(q.double().square().sum()) for q in constraint)
        along = sum(float((f.double() * q.double()).sum()) for f, q in zip(retain, constraint, strict=True))
        if squared == 0:
            return torch.zeros(())
        if self.margin == "gradient":
            phi = self.eta * squared
        else:
            phi = self.eta * max(float(value - state.kept["reached"]), 0.0)
        return torch.tensor(max(0.0, (phi - along) / squared))
