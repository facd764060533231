"""ARCANE: a model for each class that knows no other, so that a deletion retrains the model of one class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.exact.checkpoints import CheckpointFolder
from expunge.exact.stages import Stages, cells_of, counts, first_stages, in_order, visits
from expunge.families import Batches, Classifier
from expunge.families.combined import Combined, OneClass
from expunge.methods.base import Method, Workplace
from expunge.methods.loop import Fit
from expunge.methods.objective import State, Step
from expunge.parameters import param
from expunge.problem import Problem, Training

_LEAST_DEVIATION = 0.05
"""Of ln d: calibration rows that are all equally usual must not make every other row impossible."""


class ARCANE(Method, Training):
    """One-class models, one per class: what such a service serves after the deletion.

    Rows are parted by class. The model of class c learns from rows of c alone, to give the output of a random network f
    that all classes share: it minimizes ``d_c(x) = ||f_c(x) - f(x)||^2`` on them, and fails to on others
    (random network distillation; Burda et al., ICLR 2019). A row goes to the class whose model finds it most usual.
    The scores of different models mean different things, so ``ln d_c`` is put into units of its mean and standard
    deviation over calibration rows: one row of c in `calibration`, set apart by a keyed hash of its id, which the
    model does not learn from. So everything about class c depends on the rows of c only, calibration included.

    Within a class rows are allotted by the hash to `slices` (R) and learned in stages, as in `sisa`. A deletion
    discards the stages from its slice on, of one class; one of a calibration row costs no training. What would
    be discarded is not trained here at all: the weights are bit by bit those of a service that had learned from
    every row and then deleted. A class without rows is never predicted. Every answer costs a pass through C + 1 networks.

    Logits order classes; their softmax is no probability. Accuracy is below that of a classifier that sees the classes
    together, the more so the more alike they are.

    Exact for deletions that do not depend on the model's answers. Not covered: a pretrained start, and what was fitted to
    all rows before (vocabulary, means of inputs).

    Deviations: the paper selects representative rows of each class first, which here would make the stages of
    some rows depend on others, and sorts rows by how likely they are to be deleted, which nothing here says; both
    are left out. The kind of one-class model is ours, for one that fits any network and needs rows of no other class.
    """

    name = "arcane"
    paper = "Yan et al., IJCAI 2022"
    kind = "exact"
    guarantee = "bitwise"
    families = frozenset({"classifier"})
    needs = frozenset({"retain", "architecture", "labels"})
    composes = True

    slices: int = param(5, "(R) parts of a class, learned one after the other", source="ours", ge=1)
    calibration: int = param(5, "one row of a class in so many calibrates its scores", source="ours", ge=2)
    epochs: int = param(60, "passes over the rows of a class", source="ours: enough on digits", ge=1)
    lr: float = param(0.003, "learning rate", source="ours", ge=0)
    batch_size: int = param(16, "examples per optimizer step", source="ours: classes are small", ge=1)
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = param(
        "adam", "update rule", source="ours: distances differ in scale between networks"
    )
    weight_decay: float = param(
        0.0, "L2 coefficient (decoupled for adamw)", source="ours: imitation cannot overfit noise", ge=0
    )

    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:  # noqa: D102
        family, architecture = problem.family, problem.architecture
        if architecture is None or not isinstance(family, Classifier):
            raise AssertionError("checked by `needs` and `families`")
        drawn = workplace.seed + 104_729
        recipe = Training(**{k: getattr(self, k) for k in Training.model_fields})
        stages = Stages(
            family, recipe, architecture, problem.start, self.slices, workplace.seed,
            objective=Imitation(over="forget", drawn=drawn), device=workplace.device,
        )  # fmt: skip
        imitated = architecture.build(drawn).to(workplace.device).eval()
        rows = in_order(problem.train)
        ids, classes = list(map(str, rows["id"][:])), np.asarray(rows[family.target][:])
        cells = cells_of(ids, self.calibration, self.slices, f"expunge arcane {workplace.seed}".encode())
        kept, learns = ~np.isin(ids, problem.forget_ids), cells[:, 0] > 0
        checkpoints = None if workplace.checkpoint is None else CheckpointFolder(workplace.checkpoint)
        parts: list[nn.Module] = []
        known: list[int] = []
        moments: list[tuple[float, float]] = []
        for label in range(len(family.classes)):
            own = np.flatnonzero(kept & learns & (classes == label))
            weights = stages.train(label, rows.select(own), cells[own, 1], workplace, checkpoints)
            if weights is None:
                continue
            parts.append(stages.model(label, weights))
            known.append(label)
            apart = np.flatnonzero(kept & ~learns & (classes == label))
            calibrating = Batches(family, rows.select(apart if len(apart) > 1 else own), workplace.device)
            moments.append(_moments(parts[-1], imitated, calibrating))
        if checkpoints is not None:
            checkpoints.clear()
        if not parts:
            raise BadInput("arcane: no class has rows to learn from after the deletion; forget fewer rows")
        learned = np.stack([classes, cells[:, 1]], axis=1)
        workplace.notes += self._told(
            learned[learns & kept], learned[learns & ~kept], len(family.classes), len(known)
        )
        mean, deviation = zip(*moments, strict=True)
        return Combined([*parts, imitated], OneClass(classes=tuple(known), mean=mean, deviation=deviation))

    def _told(self, kept: np.ndarray, gone: np.ndarray, n_classes: int, known: int) -> Sequence[str]:
        """Notes, for the `[n, 2]` class and slice of rows that models learn from or had learned from."""
        sizes = counts(kept, n_classes, self.slices)
        first = first_stages(gone, n_classes, self.slices)
        share = visits(sizes, self.epochs, first) / max(visits(sizes, self.epochs), 1)
        notes = [
            f"a service that had learned from all rows trains {int((first < self.slices).sum())} of {n_classes} classes again "
            f"for this deletion, {share:.1%} of its training",
            f"scores are calibrated on one row in {self.calibration} of each class, which no model learns from",
        ]
        if known < n_classes:
            notes.append(
                f"{n_classes - known} of {n_classes} classes have no rows left and are never predicted"
            )
        return notes


@torch.no_grad()
def _moments(model: nn.Module, imitated: nn.Module, rows: Batches) -> tuple[float, float]:
    """Mean and standard deviation of ln d over the rows."""
    found = [
        OneClass.log_distance(
            [rows.family.forward(part, batch).prediction for part in (model, imitated)]
        ).flatten()
        for _, batch in rows.sequential(256)
    ]
    values = torch.cat(found).double()
    deviation = float(values.std()) if len(values) > 1 else 1.0
    return float(values.mean()), max(deviation, _LEAST_DEVIATION)


class Imitation(Fit):
    """Training to give the output of a random network: ``mean ||f_c(x) - f(x)||^2``."""

    drawn: int = Field(description="seed of the random network")

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:  # noqa: D102
        if problem.architecture is None:
            raise AssertionError("an architecture is needed")
        imitated = problem.architecture.build(self.drawn).to(state.workplace.device).eval()
        state.freeze("random", imitated, [self.over])

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        gap = step.outputs(self.over).prediction - step.frozen("random", self.over).prediction
        return {"distance": step.mean(self.over, gap.float().square().flatten(1).sum(1))}
