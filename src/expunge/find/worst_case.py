"""Worst-case forget sets: the rows that stay best remembered, or are most easily lost, after forgetting.

Fan, Liu, Hero & Liu, "Challenging Forgets", ECCV 2024 (arXiv:2403.07362). Weights w in [0, 1]^n with sum m
say which of the n training rows are forgotten; L_i is row i's negative log-likelihood in nats:

    upper:  min_w  sum_i w_i L_i(theta*(w))
    lower:  theta*(w) = K epochs from the target on  sum_i (1 - w_i) L_i(theta)   (fine-tuning on what is kept)

The lower level steps by the SIGN of the gradient, whose derivative is 0 almost everywhere. So theta* does not
depend on w to first order, the upper gradient is L_i itself, and each round is ``w <- P(w - step L)``,
with P the projection onto {0 <= w <= 1, sum w = m}. The forget set of a round is the m largest weights; the best
of all rounds is returned.

What "worst" means: a low loss after forgetting, which is the worst case for claims about forget accuracy. Such
rows are typical ones, that a retrained model predicts as well; read the gap to retraining, not the accuracy.
For membership inference the worst case is the opposite: atypical, memorized rows, nearer to `easiest`.

Deviations, and why: the lower level leaves out the m largest weights entirely (the reference does so for other
methods than fine-tuning; under the sign, a row with any weight below 1 is learned as much as one with weight 0);
losses are read in eval mode without augmentation (the reference scores in train mode, which makes the selection
noisy); L is divided by its median absolute deviation, so that `step` means the same for every model (with the
reference's 0.01 on the raw losses of a fitted model, most of them below 0.01, the random start hardly moves);
the ridge term on w, off by default in the reference, is left out; batch statistics and dropout stay off in the
lower level too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from expunge.errors import BadInput, ExpungeError
from expunge.families.models import clone
from expunge.parameters import Parameters, param
from expunge.problem import Problem

OnStep = Callable[[Mapping[str, Any]], None]


class Search(Parameters):
    """How a worst-case forget set is searched for."""

    title = "worst-case"

    size: int = param(50, "rows to forget (m)", source="ours; the paper forgets 10 % of CIFAR-10", ge=1)
    easiest: bool = param(
        False, "search for the rows easiest to forget instead", source="paper's reversed mode"
    )
    rounds: int = param(10, "updates of the weights (U)", source="reference code's default", ge=0)
    epochs: int = param(
        2,
        "passes of the lower level over the data (K)",
        source="reference code's example; its default is 10",
        ge=0,
    )
    lr: float = param(1e-3, "step of the lower level, per weight", source="reference code's example", ge=0)
    step: float = param(
        10.0,
        "step of the weights, per median absolute deviation of the losses",
        source="ours: on digits, 10 rounds of it come down to losses that float32 cannot tell from 0",
        gt=0,
    )
    batch_size: int = param(256, "rows per step of the lower level", source="reference code's default", ge=1)
    seed: int = param(0, "of the random start and the order of rows", source="ours")


@dataclass(frozen=True)
class WorstCase:
    """What a search found."""

    ids: tuple[str, ...]
    """`size` ids, in training order."""
    history: tuple[float, ...]
    """Mean loss of the forget set after the lower level, nats: of the random start, then after each round."""
    forget_loss: float
    """Mean loss of the found rows after the lower level without them, nats: the best of `history`."""
    random_losses: tuple[float, ...]
    """The same for random sets of the same size."""
    p_value: float | None
    """(1 + random sets that are at least as extreme) / (1 + random sets); None without random sets."""
    overlap: float
    """Share of the rows that were in the random start already; high values mean that the search hardly moved."""
    groups: dict[str, int]
    """How many of the rows are of each class or group; balance is not asked for."""


def find_worst_case(
    problem: Problem,
    search: Search,
    *,
    random_sets: int = 0,
    device: str = "cpu",
    on_step: OnStep | None = None,
) -> WorstCase:
    """Search for the forget set of `search.size` training rows that is hardest (or easiest) to forget.

    Args:
        problem: data and target model; its own forget set plays no part.
        search: how to search.
        random_sets: random sets of the same size to compare with; 19 give a p-value down to 0.05.
        device: where models run.
        on_step: called after every run of the lower level with ``step`` and ``of``.

    Cost: (rounds + 1 + random_sets) times (epochs + 1) passes over the training data.
    """
    n = len(problem.train)
    if search.size >= n:
        raise BadInput(f"worst-case: 'size' must be below the {n} training rows, got {search.size}")
    total = search.rounds + 1 + random_sets
    done = 0

    def losses_after(rows: Tensor) -> Tensor:
        nonlocal done
        losses = lower_level(problem, _indicator(rows, n), search, device)
        if not losses.isfinite().all():
            raise ExpungeError(
                f"worst-case: losses of run {done + 1} are not finite; lower 'lr' ({search.lr:g})"
            )
        done += 1
        if on_step is not None:
            on_step({"step": done, "of": total})
        return losses

    generator = torch.Generator().manual_seed(search.seed)
    start = rows = chosen = torch.randperm(n, generator=generator)[: search.size]
    weights, sign = _indicator(start, n), -1.0 if search.easiest else 1.0
    history: list[float] = []
    for _ in range(search.rounds + 1):
        losses = losses_after(rows)
        history.append(losses[rows].mean().item())
        if sign * history[-1] <= min(sign * h for h in history):
            chosen = rows
        weights = project(weights - sign * search.step * losses / _spread(losses), search.size)
        # Equal weights are common at the ends of [0, 1]; among them the losses decide.
        by_loss = torch.argsort(sign * losses, stable=True)
        rows = by_loss[torch.argsort(-weights[by_loss], stable=True)][: search.size]
    found, chosen = min(sign * h for h in history) * sign, chosen.sort().values
    others = tuple(
        losses_after(drawn)[drawn].mean().item()
        for drawn in (torch.randperm(n, generator=generator)[: search.size] for _ in range(random_sets))
    )
    ids = [str(i) for i in problem.train["id"][:]]
    groups = problem.family.groups(problem.train.select(chosen.tolist()))
    return WorstCase(
        ids=tuple(ids[i] for i in chosen.tolist()),
        history=tuple(history),
        forget_loss=found,
        random_losses=others,
        p_value=rank_p_value(found, others, lower=not search.easiest),
        overlap=len(set(chosen.tolist()) & set(start.tolist())) / search.size,
        groups={} if groups is None else dict(sorted(Counter(map(str, groups)).items())),
    )


def lower_level(problem: Problem, weights: Tensor, search: Search, device: str = "cpu") -> Tensor:
    """`[n]` losses of all training rows, float64, after sign descent from the target on ``sum_i (1 - w_i) L_i``.

    Every call visits the rows in the same order, so that two results differ by their weights alone.
    """
    family, batches = problem.family, problem.batches("train", device)
    model = clone(problem.target).to(device).eval()
    trainable = [p for p in model.parameters() if p.requires_grad]
    kept = (1.0 - weights).float().to(device)
    generator = torch.Generator().manual_seed(search.seed + 1)
    for _ in range(search.epochs):
        for rows in torch.randperm(len(batches), generator=generator).split(search.batch_size):
            batch = batches.take(rows)
            loss = (kept[rows.to(device)] * family.nll(family.forward(model, batch), batch)).sum()
            gradients = torch.autograd.grad(loss, trainable, allow_unused=True)
            with torch.no_grad():
                for parameter, gradient in zip(trainable, gradients, strict=True):
                    if gradient is not None:
                        parameter.sub_(search.lr * gradient.sign())
    with torch.inference_mode():
        losses = [family.nll(family.forward(model, batch), batch) for _, batch in batches.sequential(256)]
    return torch.cat(losses).double().cpu()


def project(values: Tensor, total: float) -> Tensor:
    """The point nearest to `values` (`[n]`) with entries in [0, 1] and sum `total`.

    It is ``clip(values - mu, 0, 1)``; the sum falls with mu from n to 0, so mu is found by bisection.
    """
    low, high = values.min() - 1, values.max()
    for _ in range(100):
        mu = (low + high) / 2
        if (values - mu).clamp(0, 1).sum() > total:
            low = mu
        else:
            high = mu
    return (values - high).clamp(0, 1)


def rank_p_value(found: float, others: Sequence[float], *, lower: bool) -> float | None:
    """``(1 + #{others at least as extreme}) / (1 + #others)``: how often chance does as well; None without others."""
    extreme = sum(o <= found if lower else o >= found for o in others)
    return (1 + extreme) / (1 + len(others)) if others else None


def _spread(losses: Tensor) -> Tensor:
    """Median absolute deviation: a few rows that the model gets wrong would drown all others in a variance."""
    spread = (losses - losses.median()).abs().median()
    # Where most losses are equal, any scale will do that keeps the step finite.
    return spread if spread > 0 else losses.abs().max().clamp(min=1e-12)


def _indicator(rows: Tensor, n: int) -> Tensor:
    weights = torch.zeros(n, dtype=torch.float64)
    weights[rows] = 1.0
    return weights
