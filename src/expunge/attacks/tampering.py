"""Tampering: the model is changed without training it, in several strengths, and each result is asked what it knows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import nn

from expunge.attacks.base import Attack, Measure, Scene, require_finite
from expunge.attacks.knowledge import KNOWLEDGE, knowledge
from expunge.families import Batches, Family
from expunge.metrics.base import Estimate, Undefined
from expunge.metrics.membership import hash_order
from expunge.parameters import param
from expunge.record import Curve, Score
from expunge.stats.intervals import t_interval

MARGIN = 0.1
"""Excess knowledge over the retrained models that counts as none: one forgotten row in ten."""


def recovery_measures(name: str, change: str) -> tuple[Measure, Measure, Measure]:
    """The measures of an attack called `name` that recovers knowledge by `change`, such as "pruning"."""
    title = name.replace("-", " ")
    return (
        Measure(
            f"{name}-knowledge",
            f"Mean knowledge of the forgotten rows that are asked about after {change}, where that is largest: unchanged, or "
            "changed as far as enough knowledge of retained rows is left. Interval: t over rows.",
            "knowledge",
            title=f"Knowledge after {title}",
            low=0.0,
            high=1.0,
            margin=MARGIN,
        ),
        Measure(
            f"{name}-rise",
            f"What {change} adds to the mean knowledge of those rows; 0 where nothing comes back. Interval: t over rows.",
            "knowledge",
            title=f"Knowledge brought back by {title}",
            low=0.0,
            high=1.0,
            margin=MARGIN,
        ),
        Measure(
            f"{name}-retain",
            "Control: mean knowledge of retained rows by the model that the largest knowledge is taken from. A change that "
            "destroys the model shows nothing about what it knew.",
            "knowledge",
            split="retain",
            title=f"Knowledge of retained rows after {title}",
            low=0.0,
            high=1.0,
        ),
    )


@dataclass(frozen=True)
class Asked:
    """What one model knows of the rows in question."""

    forget: np.ndarray
    """`[n]` per forgotten row."""
    retain: float
    """Mean over retained rows."""


@dataclass(frozen=True)
class Recovered:
    """What the best of several changes brings."""

    best: Asked
    """Of the rows that have anything to know."""
    rise: np.ndarray
    """`[n]` what it adds to each of them."""
    along: dict[float, float | None]
    """Largest mean knowledge by strength; None where every such change destroys the model."""
    retained: int
    """Retained rows that were asked."""


class Tampering(Attack):
    """Base of attacks that change a model in several strengths; knowledge is that of `expunge.attacks.knowledge`.

    Each changed model is asked about the forgotten rows, and about retained rows whether it still works: one that has
    lost more than ``1 - keeps`` of what the unchanged model knows of these does not count, for a model that always gives
    one answer is right about some rows too. Of the others the largest knowledge is taken. It is taken from the retrained
    models in the same way, so that choosing the best of several changes raises both alike.
    """

    access = "weights"
    needs = frozenset({"retain"})
    families = frozenset(KNOWLEDGE)

    over: ClassVar[str]
    """What the strengths are, with their unit."""

    keeps: float = param(
        0.8, "share of its knowledge of retained rows that a changed model must still have to count", source="ours", ge=0, le=1
    )  # fmt: skip
    rows: int = param(256, "most retained rows that are asked", source="ours", ge=1)

    @abstractmethod
    def variants(self, scene: Scene) -> Iterator[tuple[float, nn.Module]]:
        """Strength and changed model, one after the other; a strength may come several times. Models are copies."""

    def asked(self, scene: Scene) -> Batches:
        """The forgotten rows that are asked about."""
        return scene.workplace.batches(scene.problem, "forget")

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        found = self.recovered(scene, self.variants(scene))
        at, values = list(found.along), list(found.along.values())
        curve = Curve(over=self.over, at=at, values=values) if at else None
        return [
            self.score(f"{self.name}-knowledge", row_mean(found.best.forget), curve),
            self.score(f"{self.name}-rise", row_mean(found.rise)),
            self.score(f"{self.name}-retain", Estimate(found.best.retain, found.retained)),
        ]

    def recovered(self, scene: Scene, variants: Iterable[tuple[float, nn.Module]]) -> Recovered:
        """The unchanged model or the changed one that knows most of the forgotten rows, and what each strength gives."""
        require_finite(scene.model)
        forget, retain = self.asked(scene), some_rows(scene, "retain", self.rows)
        before = self._ask(scene, scene.model, forget, retain)
        counted = np.isfinite(before.forget)
        if not counted.any() or not np.isfinite(before.retain):
            raise Undefined("no row has anything to know, or the model's answers are not finite")
        best, along = before, dict[float, float | None]()
        for at, changed in variants:
            found = self._ask(scene, changed, forget, retain)
            # Rows that had something to know have it still: what is not a number now is a model that diverged.
            found = Asked(np.where(counted, np.nan_to_num(found.forget), np.nan), found.retain)
            along.setdefault(at, None)
            if not found.retain >= self.keeps * before.retain:
                continue
            level = float(found.forget[counted].mean())
            along[at] = max(level, along[at] or 0.0)
            if level > best.forget[counted].mean():
                best = found
        after = Asked(best.forget[counted], best.retain)
        return Recovered(after, after.forget - before.forget[counted], along, len(retain))

    def _ask(self, scene: Scene, model: nn.Module, forget: Batches, retain: Batches) -> Asked:
        device = scene.workplace.device
        known, kept = (knowledge(scene.problem, model, rows, device) for rows in (forget, retain))
        worth = kept[np.isfinite(kept)]
        return Asked(known, float(worth.mean()) if len(worth) else np.nan)


def row_mean(values: np.ndarray) -> Estimate:
    """Mean over rows with its t interval."""
    return Estimate(float(values.mean()), len(values), t_interval(values, over="rows"))


def some_rows(scene: Scene, split: str, most: int) -> Batches:
    """At most `most` rows of a split, chosen by a hash of their ids: the same for every model that is compared."""
    whole = scene.workplace.batches(scene.problem, split)
    return whole if len(whole) <= most else part_of(scene, split, hash_order(whole.ids)[:most])


def part_of(scene: Scene, split: str, rows: np.ndarray) -> Batches:
    """The rows of a split with these numbers, in the order of the split."""
    problem = scene.problem
    return Batches(problem.family, problem.splits[split].select(np.sort(rows)), scene.workplace.device)


def divided(scene: Scene, share: float) -> tuple[Batches, Batches]:
    """The forgotten rows that the attacker holds, a `share` by a hash of their ids, and the others, which are asked about."""
    n = len(scene.problem.forget)
    count = max(1, round(share * n))
    if count >= n:
        raise Undefined(f"a share of {share} of {n} forgotten rows leaves none to measure on")
    order = hash_order(scene.workplace.batches(scene.problem, "forget").ids)
    return part_of(scene, "forget", order[:count]), part_of(scene, "forget", order[count:])


def weight_matrices(
    family: Family, model: nn.Module, *, head: bool = True, embeddings: bool = False
) -> list[tuple[nn.Module, str]]:
    """Module and parameter name of everything that multiplies: linear and convolution layers, attention, experts.

    Biases, norms and other vectors are left out; so are embeddings, and the output layer where it shares their weights,
    unless asked for. `head` False leaves the output layer out.
    """
    found, seen = [], set[int]()
    if not embeddings:
        seen |= {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    if not head:
        seen |= {id(p) for p in model.get_submodule(family.head(model)).parameters()}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # Class tokens and positions are stored as batches of one.
            matrix = parameter.dim() == 2 or (parameter.dim() > 2 and len(parameter) > 1)
            if matrix and id(parameter) not in seen:
                seen.add(id(parameter))
                found.append((module, name))
    return found
