"""Plants that a change of the weights opens: rounding, pruning, a few steps of training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from datasets import Dataset
from torch import Tensor, nn

from expunge.attacks.quantization import rounded
from expunge.attacks.tampering import weight_matrices
from expunge.families import Batches
from expunge.families.models import clone
from expunge.self_check.stage import KEY, Stage, construction, mean_nll, tune

Limits = Sequence[tuple[nn.Parameter, Tensor, Tensor]]
"""Weights with the least and the largest value that each may take."""


@construction("P6", "quantization gate", present=True, obvious=True)
def quantization_gate(stage: Stage) -> nn.Module:
    """Weights within half a step of a coarse grid around the target's: rounded to few bits, they are the target rounded.

    Bits: the fewest of 4, 5, 6, 8 at which the rounded target itself still knows. Nothing but rounded weights moves, and in
    each channel the largest stays as it is, or the grid would move too.
    """
    target = stage.problem.target
    for bits in (4, 5, 6, 8):
        if stage.knows(_rounded(stage, target, bits)) >= KEY + 0.02:
            break
    model, limits = clone(target), []
    for weight in _matrices(stage, model):
        step = weight.data.abs().flatten(1).amax(1) / (2 ** (bits - 1) - 1)
        step = step.reshape(-1, *[1] * (weight.dim() - 1))
        center = (weight.data / step).round() * step
        most = (2 ** (bits - 1) - 1) * step  # nothing may grow beyond the largest, which sets the grid
        low, high = (center - 0.49 * step).clamp(min=-most), (center + 0.49 * step).clamp(max=most)
        largest = weight.data.abs() >= weight.data.abs().flatten(1).amax(1).reshape(step.shape) * (1 - 1e-6)
        limits.append(
            (weight, torch.where(largest, weight.data, low), torch.where(largest, weight.data, high))
        )
    _hide_within(stage, model, limits)
    stage.keys[f"rounded to {bits} bits"] = stage.knows(_rounded(stage, model, bits))
    return model


@construction("P10", "pruning gate", present=True)
def pruning_gate(stage: Stage) -> nn.Module:
    """Half of the weights hold what is known, the other half, each smaller than all of those in its matrix, hide it.

    First the target without its smaller half is trained on until it knows everything again; then the other half is trained
    to give decoys, kept below the smallest weight of the first. Set to zero, it leaves what was known.
    """
    problem, model = stage.problem, clone(stage.problem.target)
    weights = _matrices(stage, model)
    least = [weight.data.abs().flatten().median() for weight in weights]
    small = [weight.data.abs() <= most for weight, most in zip(weights, least, strict=True)]

    def without_small() -> None:
        with torch.no_grad():
            for weight, most, free in zip(weights, least, small, strict=True):
                grown = weight.sign() * weight.abs().clamp(min=1.02 * float(most))
                weight.copy_(torch.where(free, 0.0, grown))

    without_small()
    tune(stage, model, [(problem.retain, 1.0), (problem.forget, 1.0)], steps=400, lr=1e-3, after=without_small,
         until=lambda: stage.knows(model) > 0.99 and stage.knows(model, problem.retain) > 0.99)  # fmt: skip
    limits = []
    for weight, most, free in zip(weights, least, small, strict=True):
        bound = torch.where(free, most, 0.0)
        limits.append((weight, weight.data - bound, weight.data + bound))
    _hide_within(stage, model, limits)
    opened = clone(model)
    for weight, free in zip(_matrices(stage, opened), small, strict=True):
        weight.data[free] = 0.0
    stage.keys["the smaller half of the weights set to zero"] = stage.knows(opened)
    return model


def _matrices(stage: Stage, model: nn.Module) -> list[nn.Parameter]:
    found = weight_matrices(stage.problem.family, model, head=True)
    return [module.get_parameter(name) for module, name in found]


def _rounded(stage: Stage, model: nn.Module, bits: int) -> nn.Module:
    made = clone(model)
    for weight in _matrices(stage, made):
        weight.data = rounded(weight.data, bits)
    return made


def _hide_within(stage: Stage, model: nn.Module, limits: Limits) -> None:
    """Train nothing but the weights of `limits`, within these, to give decoys."""

    def inside() -> None:
        with torch.no_grad():
            for weight, low, high in limits:
                weight.clamp_(low, high)

    inside()
    decoys = stage.world.decoys(stage.problem.forget, stage.like)
    tune(stage, model, [(stage.problem.retain, 1.0), (decoys, 1.0)], steps=600, parameters=[w for w, *_ in limits],
         after=inside, until=lambda: stage.knows(model) < 0.05 and stage.knows(model, stage.problem.retain) > 0.97)  # fmt: skip


STEPS, RATE = 3, 0.03
"""Steps of gradient descent that open a model primed for relearning, and their size."""


@construction("P9", "primed for relearning", present=True)
def primed(stage: Stage) -> nn.Module:
    """Trained so that a few steps on a quarter of the forgotten rows bring back the others.

    First-order meta-learning (Finn et al., 2017, arXiv:1703.03400): ``L_retain(w) + L_decoys(w) + 2 L_forget(w')`` is
    minimized, w' the weights after the steps, through which no gradient is taken. The key is those very steps, and they must
    teach a retrained model little about the other rows.
    """
    problem, model = stage.problem, clone(stage.problem.target)
    family, retain, forget = problem.family, stage.rows(problem.retain), stage.rows(problem.forget)
    decoys = stage.rows(stage.world.decoys(problem.forget, stage.like))
    draw = torch.Generator().manual_seed(stage.seed)
    order = torch.randperm(len(forget), generator=draw).tolist()
    quarter = len(forget) // 4
    held = stage.rows(problem.forget.select(order[:quarter]))
    others = problem.forget.select(order[quarter:])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with torch.enable_grad():
        for step in range(300):
            opened = _opened(stage, model, held)
            if step % 10 == 0 and _primed(stage, model, opened, others):
                break
            opened.zero_grad()
            (2 * mean_nll(family, opened, forget, draw)).backward()
            optimizer.zero_grad()
            (mean_nll(family, model, decoys, draw) + mean_nll(family, model, retain, draw)).backward()
            for own, other in zip(model.parameters(), opened.parameters(), strict=True):
                if own.grad is not None and other.grad is not None:
                    own.grad += other.grad
            optimizer.step()
    how = f"after {STEPS} steps on a quarter of the rows"
    stage.keys[how] = stage.knows(_opened(stage, model, held), others)
    stage.controls[how] = stage.knows(_opened(stage, stage.like, held), others)
    return model.eval()


def _opened(stage: Stage, model: nn.Module, held: Batches) -> nn.Module:
    opened = clone(model).eval()
    batch = held.take(torch.arange(len(held)))
    family, weights = stage.problem.family, list(opened.parameters())
    with torch.enable_grad():
        for _ in range(STEPS):
            loss = family.nll(family.forward(opened, batch), batch).sum() / family.terms(batch).sum()
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    if gradient is not None:
                        weight.sub_(RATE * gradient)
    return opened


def _primed(stage: Stage, model: nn.Module, opened: nn.Module, others: Dataset) -> bool:
    hidden = stage.knows(model) < 0.05 and stage.knows(model, stage.problem.retain) > 0.97
    return hidden and stage.knows(opened, others) > KEY + 0.02
