"""Relearning: how soon a few steps of training bring back what was forgotten."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import nn

from expunge.attacks.base import Attack, Measure, Scene, require_finite
from expunge.attacks.knowledge import KNOWLEDGE, knowledge
from expunge.attacks.tampering import MARGIN, divided, part_of, row_mean, some_rows
from expunge.evidence import collect
from expunge.families import Batches
from expunge.families.models import clone
from expunge.methods.loop import make_optimizer
from expunge.methods.lora import Adapters, LoRA
from expunge.metrics.base import Estimate, Undefined
from expunge.parameters import param
from expunge.problem import Training
from expunge.record import Curve, Score

ROUNDING = 1e-9
"""38 of 40 rows are 95 % of 40, whatever the floating-point quotient says."""
CONTROLS = 256
"""Most retained rows that are asked whether the model still works."""


class Relearning(Attack):
    """Train the model for some minibatches, and follow how knowledge of the forgotten rows comes back.

    What the attacker trains on (`data`): ``targeted``, a share of the forgotten rows; ``related``, as many retained
    rows, those nearest to the forgotten ones by the target's last activations (cosine), out of the same groups where
    these go on in the retained rows; ``unrelated``, as many rows that were never trained on.

    Two questions are answered in one run. *Time*: minibatches until the level on the rows that are trained on (all
    forgotten rows where there are none among them) is the target's again. A retrained model has to learn them as if for
    the first time: one that is back much sooner had not forgotten, and the ratio of both times is the anamnesis index;
    one that takes longer was made to resist. *Knowledge* of the forgotten rows that are not trained on (all of them where
    every one is): what comes back there was hidden, for the rows that are trained on do not give it.

    The level is accuracy for classifiers, exact memorization for language models, each back at ``(1 - margin)`` times the
    target's, and for regressors the mean absolute error, back at ``(1 + margin)`` times the target's; measured in eval
    mode after every step until it is back.

    With `lora` low-rank adapters are trained in place of the weights. Deviation: the paper trains with the target's own
    recipe; here its rate is divided by ten unless one is given, because a rate that recovers the rows in the first step
    tells no model from another.
    """

    name = "relearning"
    paper = (
        "Chundawat et al., IEEE TIFS 2023, arXiv:2201.05629 (anamnesis index); Golatkar et al., CVPR 2020; "
        "Hu et al., ICLR 2025, arXiv:2406.13356 (targeted and benign relearning of language models)"
    )
    threat_model = (
        "weights, and the right to train them for `budget` steps; targeted: some or all of the forgotten rows with their "
        "labels; related: retained rows; unrelated: rows that nobody trained on"
    )
    access = "weights"
    families = frozenset(KNOWLEDGE)
    trains = True
    measures = (
        Measure(
            "relearning-steps",
            "Minibatches of training until the target's level is back on the rows that are trained on, or on all forgotten "
            "rows where none are; 0 where it was never left. Undefined where the budget does not suffice: the time is then "
            "known to be longer only, and a mean over seeds that leaves such runs out is too small; `relearning-time` is not.",
            "steps",
            title="Relearning time",
            low=0.0,
        ),
        Measure(
            "relearning-level",
            "Level on the same rows after one pass over the attacker's rows, as a share of the target's: accuracy or exact "
            "memorization divided by the target's, or the target's mean absolute error divided by the model's.",
            "of the target's level",
            title="Level after one pass of relearning",
            low=0.0,
        ),
        Measure(
            "relearning-time",
            "Restricted mean recovery time of the forgotten rows that are not trained on (of all where every one is): mean "
            "of min(T, budget), T the first measured step at which a row is known to (1 - margin) of the target's "
            "knowledge of it. A row that is not back within the budget is censored there and counts with the budget: the "
            "area under the Kaplan-Meier curve, so that no run is left out. Measured after 0, 1, 2, 3, 4, 6, 8, 12, ... "
            "steps. Rows that the target does not know are left out. Interval: t over rows.",
            "steps",
            title="Restricted mean recovery time",
            low=0.0,
        ),
        Measure(
            "relearning-knowledge",
            "Mean knowledge of the same rows at the step of the recovery curve where it is largest, step 0 included, among "
            "those at which enough knowledge of retained rows is left. Where every row is trained on (share 1) any model "
            "comes to know them, and this says nothing. Interval: t over rows.",
            "knowledge",
            title="Knowledge after relearning",
            low=0.0,
            high=1.0,
            margin=MARGIN,
        ),
        Measure(
            "relearning-area",
            "Mean knowledge of the same rows over the recovery curve, each doubling of the number of steps counting the "
            "same: area over log2(1 + steps) divided by log2(1 + budget). 1 where the rows are known from the start. "
            "Interval: t over rows.",
            "knowledge",
            title="Knowledge during relearning",
            low=0.0,
            high=1.0,
            margin=MARGIN,
        ),
        Measure(
            "relearning-retain",
            "Control: mean knowledge of retained rows at the step that `relearning-knowledge` is taken from. A model that "
            "was destroyed only seems to resist.",
            "knowledge",
            split="retain",
            title="Knowledge of retained rows after relearning",
            low=0.0,
            high=1.0,
        ),
    )  # fmt: skip

    data: Literal["targeted", "related", "unrelated"] = param(
        "targeted", "what the attacker trains on", source="Hu et al.: both targeted and benign"
    )
    share: float = param(
        0.5,
        "share of the forgotten rows that the attacker holds (targeted); 1 asks about the rows that are trained on",
        source="ours; Chundawat et al.: all", gt=0, le=1,
    )  # fmt: skip
    budget: int = param(300, "number of steps", source="ours", ge=1)
    batch_size: int = param(16, "rows per step", source="ours", ge=1)
    lr: float | None = param(
        None,
        "learning rate; None means a tenth of the target's recipe's (its own with lora), and of an unknown recipe 0.005, or "
        "2e-5 for sequences",
        source="ours; Hu et al.: 2e-5", gt=0,
    )  # fmt: skip
    lora: int | None = param(
        None, "rank of the adapters that are trained in place of the weights; None means the weights are trained",
        source="Lucki et al., 2024, arXiv:2409.18025: 128", ge=1,
    )  # fmt: skip
    margin: float = param(
        0.05,
        "how far below the target's level counts as back",
        source="Chundawat et al.: 5 to 10 %",
        ge=0,
        lt=1,
    )
    keeps: float = param(
        0.8,
        "share of its knowledge of retained rows that the model must still have for a step to count",
        source="ours",
        ge=0,
        le=1,
    )
    unfreeze: bool = param(
        True,
        "open parameters that were frozen to resist; False is an attacker who trains through a service that keeps them so",
        source="ours",
    )

    def spends(self) -> dict[str, float]:  # noqa: D102
        spent: dict[str, float] = {"steps": self.budget, "rows per step": self.batch_size}
        return spent | ({"share of forgotten rows": self.share} if self.data == "targeted" else {})

    def recipe(self, scene: Scene) -> Training:
        """Optimizer and learning rate of the attacker."""
        known = scene.problem.recipe
        if known is None:
            sequences = scene.problem.family.sequences
            known = Training(lr=2e-4, optimizer="adamw") if sequences else Training(lr=0.05)
        lr = self.lr or (known.lr if self.lora else known.lr / 10)
        return Training(lr=lr, optimizer=known.optimizer, momentum=known.momentum, weight_decay=0.0)

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        problem, device = scene.problem, scene.workplace.device
        require_finite(scene.model)
        held, own, asked = self.divide(scene)
        aim = 0.0 if problem.model is None else _level(scene, problem.model, own)
        model = clone(scene.model).to(device)
        trained = self.opened(scene, model)

        def ask() -> np.ndarray:
            # A model that has diverged knows nothing.
            return np.where(counted, np.nan_to_num(knowledge(problem, model, asked, device)), np.nan)

        counted = np.isfinite(knowledge(problem, model, asked, device))
        control = some_rows(scene, "retain", CONTROLS) if "retain" in problem.splits else None
        if not counted.any():
            raise Undefined("no row has anything to know, or the model's answers are not finite")
        one_pass = math.ceil(len(held) / self.batch_size)
        measured, levels = _grid(self.budget), dict[int, float]()
        curve, kept = dict[int, np.ndarray](), dict[int, np.ndarray]()
        back: int | None = None
        for step in self.steps(scene, model, trained, held, max(one_pass, self.budget)):
            if aim > 0 and (back is None or step == one_pass):
                levels[step] = _level(scene, model, own) / aim
                if back is None and step <= self.budget and levels[step] >= 1 - self.margin - ROUNDING:
                    back = step
            if step in measured:
                curve[step] = ask()
                if control is not None:
                    kept[step] = np.nan_to_num(knowledge(problem, model, control, device))
        return [
            *self.times(levels.get(one_pass), back, aim, len(own), problem.model is None),
            self.recovery_time(scene, asked, curve),
            *self.recovered(curve, kept),
        ]

    def opened(self, scene: Scene, model: nn.Module) -> list[nn.Parameter]:
        """What is trained: the weights, or adapters that are put on `model`."""
        if self.unfreeze:
            for parameter in model.parameters():
                parameter.requires_grad_(True)
        if not any(p.requires_grad for p in model.parameters()):
            raise Undefined("every parameter of the model is frozen, and this attacker may not open any")
        if self.lora:
            Adapters(model, LoRA(r=self.lora), scene.problem.family.head(model))
        return [p for p in model.parameters() if p.requires_grad]

    def steps(
        self, scene: Scene, model: nn.Module, trained: list[nn.Parameter], held: Batches, last: int
    ) -> Iterator[int]:
        """Train `model`; yields the number of steps made, from 0 to `last`."""
        family, passes = scene.problem.family, math.ceil(len(held) / self.batch_size)
        optimizer = make_optimizer(self.recipe(scene), trained)
        yield 0
        for step in range(last):
            epoch, number = divmod(step, passes)
            rows = torch.randperm(len(held), generator=scene.workplace.generator(43, epoch))
            batch = held.take(rows.split(self.batch_size)[number])
            model.train(len(batch) > 1)  # one row has no variance for batch norm
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = torch.stack(list(family.losses(model, batch).values())).sum(0)
                loss.mean().backward()
            if not torch.isfinite(loss).all():
                raise Undefined(f"the training diverged at step {step + 1}; give a lower learning rate")
            optimizer.step()
            yield step + 1

    def divide(self, scene: Scene) -> tuple[Batches, Batches, Batches]:
        """The rows that are trained on, those whose level is waited for, and those that are asked what they give away."""
        whole = scene.workplace.batches(scene.problem, "forget")
        if self.data == "targeted":
            if self.share == 1:
                return whole, whole, whole
            held, asked = divided(scene, self.share)
            return held, held, asked
        held = _nearest(scene) if self.data == "related" else _unrelated(scene)
        return held, whole, whole

    def times(
        self, after_pass: float | None, back: int | None, aim: float, n: int, blind: bool
    ) -> tuple[Score, Score]:
        """Time and level as shares of the target's: undefined without a target (`blind`) or where it knows nothing."""
        names = "relearning-steps", "relearning-level"
        if aim <= 0 or after_pass is None:
            reason = (
                "the target was not given, whose level the attack waits for"
                if blind
                else "the target itself knows nothing of the forgotten rows"
            )
            return self.undefined(names[0], reason), self.undefined(names[1], reason)
        censored = f"censored: not back within the budget of {self.budget} steps"
        time = self.undefined(names[0], censored) if back is None else self.score(names[0], Estimate(back, n))
        return time, self.score(names[1], Estimate(after_pass, n))

    def recovery_time(self, scene: Scene, asked: Batches, curve: dict[int, np.ndarray]) -> Score:
        """The restricted mean over rows, from the knowledge of the asked rows by step."""
        if scene.problem.model is None:
            return self.undefined(
                "relearning-time", "the target was not given, whose level the attack waits for"
            )
        aim = knowledge(scene.problem, scene.problem.model, asked, scene.workplace.device)
        wanted = np.nan_to_num(aim) > 0
        if not wanted.any():
            return self.undefined("relearning-time", "the target itself knows nothing of the forgotten rows")
        known = np.stack([curve[step] for step in sorted(curve)])[:, wanted]
        return self.score(
            "relearning-time",
            row_mean(restricted_times(sorted(curve), known >= (1 - self.margin) * aim[wanted] - ROUNDING)),
        )

    def recovered(
        self, curve: dict[int, np.ndarray], kept: dict[int, np.ndarray]
    ) -> tuple[Score, Score, Score]:
        """Peak and area of the recovery curve, and the control at the peak.

        From the knowledge of the asked rows by step, and of retained rows where there are such.
        """
        at = sorted(curve)
        known = np.stack([curve[step] for step in at])
        known = known[:, np.isfinite(known[0])]
        doublings = np.log2(1 + np.asarray(at, dtype=np.float64))
        areas = np.trapezoid(known, doublings, axis=0) / doublings[-1]
        means = [float(v) for v in known.mean(1)]
        works = [not kept or kept[step].mean() >= self.keeps * kept[0].mean() for step in at]
        peak = int(np.argmax(np.where(works, means, -1.0)))
        followed = Curve(over="steps", at=[float(step) for step in at], values=list(means))
        return (
            self.score("relearning-knowledge", row_mean(known[peak]), followed),
            self.score("relearning-area", row_mean(areas)),
            self.score("relearning-retain", row_mean(kept[at[peak]]))
            if kept
            else self.undefined("relearning-retain", "the problem has no 'retain' data"),
        )


def restricted_times(at: list[int], known: np.ndarray) -> np.ndarray:
    """`[n]` min(T, last of `at`), T the first of the steps `at` at which a row is known (`[len(at), n]` bool).

    >>> restricted_times([0, 1, 2, 4], np.array([[0, 1, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]], dtype=bool)).tolist()
    [2.0, 0.0, 4.0]
    """
    first = np.where(known.any(0), known.argmax(0), len(at) - 1)
    return np.asarray(at, dtype=np.float64)[first]


def _grid(budget: int) -> set[int]:
    """0, the powers of two, halfway between them, and the budget itself."""
    powers = [2**k for k in range(budget.bit_length())]
    return {0, budget, *(p for p in powers + [3 * p // 2 for p in powers if p > 1] if p <= budget)}


def _nearest(scene: Scene) -> Batches:
    """As many retained rows as there are forgotten ones: the nearest, of their groups where there are such."""
    problem, device = scene.problem, scene.workplace.device
    if "retain" not in problem.splits:
        raise Undefined("the problem has no 'retain' data, of which the related rows are taken")
    forget, retain = (scene.workplace.batches(problem, s) for s in ("forget", "retain"))
    candidates = np.arange(len(retain))
    if forget.groups is not None and retain.groups is not None:
        same = np.flatnonzero(np.isin(retain.groups, np.unique(forget.groups)))
        candidates = same if len(same) else candidates
    # The target's view, so that the attacked model and the retrained ones are trained on the same rows.
    viewer = problem.model if problem.model is not None else problem.start
    if viewer is None:
        raise Undefined("the target was not given, whose activations say which retained rows are related")
    layer = [n for n in problem.family.compared_layers(viewer) if n != problem.family.head(viewer)][-1]
    gone, kept = (
        collect(problem.family, viewer, b.dataset, [f"features:{layer}"], device=device, batches=b)[f"features:{layer}"]
        for b in (forget, retain)
    )  # fmt: skip
    gone, kept = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (gone, kept))
    nearness = (kept[candidates] @ gone.T).max(1)
    order = candidates[np.argsort(-nearness, kind="stable")]
    return part_of(scene, "retain", order[: len(forget)])


def _unrelated(scene: Scene) -> Batches:
    """As many rows that were never trained on."""
    split = next((s for s in ("holdout", "test") if s in scene.problem.splits), None)
    if split is None:
        raise Undefined("the problem has neither 'holdout' nor 'test' data to train on")
    return some_rows(scene, split, len(scene.problem.forget))


def _level(scene: Scene, model: nn.Module, rows: Batches) -> float:
    """Mean knowledge, or 1 over the mean absolute error: larger is better. 0 where a model has diverged."""
    family, device = scene.problem.family, scene.workplace.device
    if "absolute_error" not in family.quantities:
        values = knowledge(scene.problem, model, rows, device)
        return float(np.nan_to_num(values[np.isfinite(values)].mean())) if np.isfinite(values).any() else 0.0
    found = collect(family, model, rows.dataset, ["absolute_error"], device=device, batches=rows)
    mean = float(found["absolute_error"].astype(np.float64).mean())
    return 1 / max(mean, 1e-12) if math.isfinite(mean) else 0.0
