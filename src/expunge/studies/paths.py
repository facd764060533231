"""Path dependence: does the unlearned model depend on the order in which the target learned its data?

Yu, He, Goyal & Arora, "On the Impossibility of Retrain Equivalence in Machine Unlearning", 2025
(arXiv:2510.16629). A model that was trained in stages can be trained on the same data in another order. A
method that sees only the final weights and the forget set cannot know the order; where its result depends on
it and retraining's does not, it cannot equal retraining on every path.

The forget set is one stage, the retain rows are split at random into `parts` further ones. For every order and
seed the target is trained stage by stage (the recipe's epochs in each, a new optimizer each time), the retrained
model in the same order without the forget stage, and each method forgets from the target with the same
hyperparameters. What is read off a model is the mean of a quantity over the rows of a stage or of the test set.

For each of these evaluations, with y[path, seed]:

- delta: the largest difference between two paths of the mean over seeds;
- seed_sd: standard deviation over seeds within a path, pooled over paths; undefined for a single seed;
- path_share: sum of squares between paths over the total after removing each seed's mean (initial weights are
  shared by the paths of a seed), in [0, 1]: 0 no path effect, 1 nothing else;
- p_value: share of permutations of the paths within each seed with as large a sum of squares between paths,
  the observed one counted; undefined for a single seed.

Paths start from different forget losses, which alone makes results differ ("recency"). So each method is
also read where it is *matched*: after the fewest whole epochs whose forget loss reaches that of the path's
retrained model, which coarse steps may overshoot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge.data.order import shuffled
from expunge.errors import BadInput
from expunge.evidence import collect
from expunge.families.models import clone
from expunge.files import finite
from expunge.methods.base import Method, Workplace
from expunge.methods.loop import fit
from expunge.parameters import Parameters, param
from expunge.problem import Problem

Order = tuple[str, ...]
"""Names of stages, first learned first."""
Values = dict[tuple[str, str], float]
"""What is read off one model: by quantity and by stage, or ``test``."""

FORGET = "forget"
RESHUFFLES = 999


class PathSpec(Parameters):
    """Which orders and how many models."""

    title = "path-dependence"

    parts: int = param(
        2, "stages that the retain rows are split into; with the forget stage (parts + 1)! orders",
        source="three stages are the fewest of the paper", ge=1, le=3,
    )  # fmt: skip
    seeds: list[int] = param(
        [0, 1, 2], "one set of initial weights each", source="the paper's advice: 3 or more", min_length=1
    )


@dataclass(frozen=True)
class PathEffect:
    """How far one evaluation of one kind of model differs between paths; definitions above."""

    model: str
    """target, retrained, a method's label, or that with ' (matched)'."""
    quantity: str
    split: str
    by_path: dict[str, list[float | None]]
    """Per order, the values by seed; None where a model has diverged, and then all below is undefined."""
    lowest: float | None = None
    highest: float | None = None
    """Means over seeds of the two paths that differ most."""
    delta: float | None = None
    seed_sd: float | None = None
    path_share: float | None = None
    """Undefined where nothing varies."""
    p_value: float | None = None
    to_retrained: float | None = None
    """delta divided by the retrained models'; undefined where that is 0."""
    unmatched: int = 0
    """Models that never reached the retrained forget loss; their last epoch counts."""


def path_dependence(
    problem: Problem,
    methods: Mapping[str, Method],
    spec: PathSpec | None = None,
    *,
    device: str = "cpu",
    on_step: Callable[[Mapping[str, Any]], None] | None = None,
) -> list[PathEffect]:
    """Train in all orders, forget with each method, and say how much of the result the order decides.

    Args:
        problem: data, forget set, architecture and recipe; its own model plays no part.
        methods: by label.
        spec: how many stages and seeds.
        device: where models run.
        on_step: called after each path of each seed with ``step`` and ``of``.
    """
    spec = spec or PathSpec()
    obstacles = [f"{label}: {reason}" for label, m in methods.items() for reason in m.obstacles(problem)]
    if obstacles:
        raise BadInput(f"path-dependence: {'; '.join(obstacles)}")
    stages = split_into_stages(problem, spec.parts)
    orders = list(permutations(stages))
    trainer = _StageTrainer(problem, stages, device)
    seen: dict[str, dict[Order, list[Values]]] = {}
    unmatched: dict[str, int] = {}

    def note(model: str, order: Order, values: Values) -> None:
        seen.setdefault(model, {}).setdefault(order, []).append(values)

    for number, seed in enumerate(spec.seeds):
        for place, order in enumerate(orders):
            kept = tuple(s for s in order if s != FORGET)
            # Another stream than the target's: a retrained model with its initial weights is not independent.
            retrained = _read(problem, trainer.train(kept, seed + 7_919), stages, device)
            # Orders that differ in the place of the forget stage alone share one retrained model.
            if order[0] == FORGET:
                note("retrained", kept, retrained)
            staged = problem.with_model(trainer.train(order, seed))
            note("target", order, _read(problem, staged.target, stages, device))
            for label, method in methods.items():
                trace = [
                    _read(problem, one.forget(staged, Workplace(seed, device)).model, stages, device)
                    for one in _by_epochs(method)
                ]
                goal = retrained["loss", FORGET]
                reached = next((v for v in trace if v["loss", FORGET] >= goal), None)
                unmatched[label] = unmatched.get(label, 0) + (reached is None)
                note(label, order, trace[-1])
                note(f"{label} (matched)", order, reached or trace[-1])
            if on_step is not None:
                on_step({"step": number * len(orders) + place + 1, "of": len(spec.seeds) * len(orders)})
        trainer.forget_models()
    return _effects(seen, {f"{label} (matched)": n for label, n in unmatched.items()})


def split_into_stages(problem: Problem, parts: int) -> dict[str, np.ndarray]:
    """Row numbers of `train` by stage: the forget set, and the retain rows in `parts` random parts of equal size."""
    retain = problem.retain_rows
    if len(retain) < parts:
        raise BadInput(
            f"path-dependence: {len(retain)} rows to keep cannot make {parts} stages; lower 'parts'"
        )
    ids = [str(i) for i in problem.retain["id"][:]]
    drawn = retain[np.asarray(shuffled(ids, seed=2))]
    stages = {FORGET: problem.forget_rows}
    stages |= {f"part-{k + 1}": np.sort(rows) for k, rows in enumerate(np.array_split(drawn, parts))}
    return stages


class _StageTrainer:
    """Trains stage by stage; orders that begin alike share their first stages."""

    def __init__(self, problem: Problem, stages: Mapping[str, np.ndarray], device: str) -> None:
        if problem.recipe is None or problem.architecture is None:
            raise BadInput(
                f"path-dependence: {problem.name} does not say its architecture and recipe, so it cannot be "
                "trained in another order; give 'model' as an architecture and a 'recipe'"
            )
        self._problem, self._recipe, self._device = problem, problem.recipe, device
        # A problem of its own per stage, so that the ordinary loop trains on these rows alone. A problem needs a
        # forget set; which row it is plays no part in training on all of them.
        self._parts = {
            name: replace(
                problem, train=part, forget_ids=(str(part["id"][0]),), holdout=None, probes={}, model=None
            )
            for name, rows in stages.items()
            for part in [problem.train.select(rows)]
        }
        self._trained: dict[tuple[Order, int], nn.Module] = {}

    def train(self, order: Order, seed: int) -> nn.Module:
        """The model that learned the stages in this order, from the initial weights of `seed`."""
        if not order:
            return self._problem.fresh_model(seed).to(self._device)
        if (order, seed) not in self._trained:
            model = clone(self.train(order[:-1], seed))
            workplace = Workplace(seed + 104_729 * len(order), self._device)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(workplace.seed)
                trained = fit(self._parts[order[-1]], model, "train", self._recipe, workplace)
            self._trained[order, seed] = trained.eval()
        return self._trained[order, seed]

    def forget_models(self) -> None:
        """Free the models of a seed."""
        self._trained.clear()


def _by_epochs(method: Method) -> list[Method]:
    """The method stopped after 1, 2, ... epochs; just the method where it has none."""
    epochs = getattr(method, "epochs", None)
    return [method.replace(epochs=k) for k in range(1, epochs + 1)] if epochs else [method]


def _read(problem: Problem, model: nn.Module, stages: Mapping[str, np.ndarray], device: str) -> Values:
    """Mean loss, and accuracy or absolute error, on each stage and on the test set."""
    known = {"correct": "accuracy", "absolute_error": "mae"}
    quantities = ["loss", *(q for q in known if q in problem.family.quantities)]
    seen = collect(
        problem.family,
        model,
        problem.train,
        quantities,
        device=device,
        batches=problem.batches("train", device),
    )
    values: Values = {}
    for quantity in quantities:
        name = known.get(quantity, quantity)
        values |= {(name, stage): float(seen[quantity][rows].mean()) for stage, rows in stages.items()}
    if "test" in problem.splits:
        tested = collect(problem.family, model, problem.splits["test"], quantities, device=device)
        values |= {(known.get(q, q), "test"): float(tested[q].mean()) for q in quantities}
    return values


def _effects(
    seen: Mapping[str, Mapping[Order, Sequence[Values]]], unmatched: Mapping[str, int]
) -> list[PathEffect]:
    evaluations = list(next(iter(seen["target"].values()))[0])
    names = ["target", "retrained", *(m for m in seen if m not in ("target", "retrained"))]
    made = []
    for quantity, split in evaluations:
        found = []
        for model in names:
            by_path = {
                " > ".join(order): [v[quantity, split] for v in values]
                for order, values in seen[model].items()
            }
            effect = path_effect(model, quantity, split, by_path)
            found.append(replace(effect, unmatched=unmatched.get(model, 0)))
        spread = next(e.delta for e in found if e.model == "retrained")
        made += [
            replace(e, to_retrained=e.delta / spread if e.delta is not None and spread else None)
            for e in found
        ]
    return made


def path_effect(model: str, quantity: str, split: str, by_path: Mapping[str, Sequence[float]]) -> PathEffect:
    """The statistics of one evaluation; `by_path` holds a value per seed for each order."""
    y = np.asarray(list(by_path.values()), dtype=np.float64)
    shown = {order: [finite(v) for v in values] for order, values in by_path.items()}
    if not np.isfinite(y).all():
        return PathEffect(model, quantity, split, shown)
    means, centered = y.mean(1), y - y.mean(0)
    between, total = _between(centered), float((centered**2).sum())
    p_value = None
    if min(y.shape) > 1:
        generator = np.random.default_rng(0)
        # Paths are exchangeable within a seed where the order makes no difference.
        drawn = [_between(generator.permuted(centered, axis=0)) for _ in range(RESHUFFLES)]
        p_value = (1 + sum(d >= between - 1e-12 * total for d in drawn)) / (1 + RESHUFFLES)
    return PathEffect(
        model=model,
        quantity=quantity,
        split=split,
        by_path=shown,
        lowest=float(means.min()),
        highest=float(means.max()),
        delta=float(means.max() - means.min()),
        seed_sd=float(np.sqrt(y.var(axis=1, ddof=1).mean())) if y.shape[1] > 1 else None,
        path_share=between / total if total else None,
        p_value=p_value,
    )


def _between(centered: np.ndarray) -> float:
    """Sum of squares between paths of `[paths, seeds]` values without their seeds' means."""
    return float(centered.shape[1] * (centered.mean(1) ** 2).sum())
