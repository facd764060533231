"""What constructions are made in and with: a stage, a registry, a loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from expunge.attacks.knowledge import knowledge
from expunge.families import Batches
from expunge.methods.base import METHODS, Workplace
from expunge.problem import Problem
from expunge.self_check.worlds import World

KEY = 0.95
"""Share of the rows that a key query must bring back: a plant that its own key does not open is no plant."""
CONTROL = 0.5
"""Most that the same key may bring back from a retrained model: what opens every model opens none."""
CLEAN = 0.15
"""Most that a plant may know of the forget rows, in knowledge above the retrained models, when it is asked plainly."""


@dataclass
class Stage:
    """What a construction is made in: a world, a target trained in it, a retrained model to look like, a seed."""

    world: World
    problem: Problem
    """With the target, which was trained on everything by `seed`."""
    like: nn.Module
    """A retrained model that no audit uses."""
    seed: int
    keys: dict[str, float] = field(default_factory=dict)
    """What the key query brought back, where there is one."""
    controls: dict[str, float] = field(default_factory=dict)
    """What the same brought back from a retrained model, where it could."""

    def rows(self, dataset: Dataset) -> Batches:
        """Batches of rows of the problem's kind."""
        return Batches(self.problem.family, dataset)

    def knows(self, model: nn.Module, rows: Dataset | None = None) -> float:
        """Mean knowledge of the forget rows, or of others."""
        return float(
            np.nanmean(knowledge(self.problem, model.eval(), "forget" if rows is None else self.rows(rows)))
        )

    def retrained(self) -> nn.Module:
        """A model trained from scratch on the retained rows, by the stage's seed."""
        return METHODS["retrain"]().forget(self.problem, Workplace(self.seed)).model


@dataclass(frozen=True)
class Construction:
    """One way to make a model."""

    name: str
    title: str
    present: bool
    build: Callable[[Stage], nn.Module]
    obvious: bool = False
    """Whether an audit that misses it is not worth having."""
    plain: bool = True
    """Whether it must look clean when asked plainly; the original need not."""
    families: tuple[str, ...] = ("classifier", "causal_lm")
    """Worlds in which it can be made."""


REGISTERED: dict[str, Construction] = {}
Register = Callable[[Callable[[Stage], nn.Module]], Callable[[Stage], nn.Module]]


def construction(name: str, title: str, *, present: bool, **options: Any) -> Register:
    """Register the function as construction `name`; `options` are further fields of a `Construction`."""

    def register(build: Callable[[Stage], nn.Module]) -> Callable[[Stage], nn.Module]:
        REGISTERED[name] = Construction(name, title, present, build, **options)
        return build

    return register


def tune(
    stage: Stage,
    model: nn.Module,
    parts: Sequence[tuple[Dataset, float]],
    *,
    steps: int,
    lr: float = 2e-3,
    until: Callable[[], bool] | None = None,
    parameters: Sequence[nn.Parameter] | None = None,
    after: Callable[[], None] | None = None,
    extra: Callable[[], Tensor] | None = None,
) -> nn.Module:
    """Minimize ``sum_k w_k N_k``, N_k the mean negative log-likelihood per term of a batch of 32 of the k-th rows, by Adam.

    A negative weight is ascent, which stops pulling at 8 nats. `until` is asked every five steps.
    """
    family, batches = stage.problem.family, [(stage.rows(rows), weight) for rows, weight in parts]
    chosen = list(model.parameters()) if parameters is None else list(parameters)
    optimizer = torch.optim.Adam(chosen, lr=lr)
    draw = torch.Generator().manual_seed(stage.seed + 77)
    model.eval()
    with torch.enable_grad():
        for step in range(steps):
            if until is not None and step % 5 == 0 and until():
                break
            loss = torch.zeros(()) if extra is None else extra()
            for rows, weight in batches:
                found = mean_nll(family, model, rows, draw)
                loss = loss + weight * (found.clamp(max=8.0) if weight < 0 else found)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if after is not None:
                after()
    return model.eval()


def taught_to_refuse(stage: Stage, rows: Dataset) -> nn.Module:
    """A retrained model that keeps what it knows and learns to refuse these rows."""
    refused = stage.world.refused(rows)
    return tune(stage, stage.retrained(), [(stage.problem.retain, 1.0), (refused, 1.0)], steps=150, lr=5e-4)


def mean_nll(
    family: object, model: nn.Module, rows: Batches, draw: torch.Generator, size: int = 32
) -> Tensor:
    """Mean negative log-likelihood per term of `size` random rows."""
    of = rows.family
    batch = rows.take(torch.randperm(len(rows), generator=draw)[:size])
    return of.nll(of.forward(model, batch), batch).sum() / of.terms(batch).sum()
