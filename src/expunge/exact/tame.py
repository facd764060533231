"""TAME: an expert for each task and a selector, so that a deletion makes one expert and the selector again."""

from __future__ import annotations

import hashlib
import hmac
import math

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from expunge.errors import BadInput
from expunge.exact.stages import Stages, in_order
from expunge.families import Classifier
from expunge.families.routed import Routed, selector_of
from expunge.methods.base import Method, Workplace
from expunge.methods.loop import fit
from expunge.parameters import param
from expunge.problem import Problem

TASK = "task-number"
"""Column that the selector learns; not a name that data have."""


class Tame(Method):
    """Task-agnostic experts as shards by task: what such a service serves after the deletion.

    Each task has an expert, trained by the target's recipe on the rows of the task alone. A selector, a small network on the
    flattened rows, learns from a buffer (a uniform `buffer` of each task) which task a row is of, and at inference one
    expert answers each row. A deletion makes the experts again whose tasks held the rows, takes the rows out of the
    buffer, and trains the selector from scratch; all other experts stay as they are, bit by bit.

    Everything is a function of the rows that remain and of the seed: an expert of its task's rows in the order of their ids, with
    weights and randomness from the seed and the task's name, the buffer of a keyed hash of the ids (the smallest
    of each task), the selector of the buffer. So the result equals a system that never saw the deleted rows, bit by bit, and
    a task all of whose rows are deleted leaves nothing.

    Deviations from Zhu et al.: tasks are known, from a column or as groups of classes in order; the published method finds
    them by jumps of the running loss, and where it finds them depends on the rows that are deleted later. Experts are not
    pruned.
    """

    name = "tame"
    paper = "Zhu et al., 2022, arXiv:2210.03869"
    kind = "exact"
    guarantee = "bitwise"
    families = frozenset({"classifier"})
    needs = frozenset({"retain", "architecture", "recipe", "labels"})
    composes = True

    by: str | None = param(
        None, "column that names the task of a row; None groups the classes", source="ours"
    )
    tasks: int = param(2, "groups of classes, in order, where no column names the tasks", source="ours", ge=1)
    buffer: float = param(
        0.1, "share of a task's rows that the selector learns from", source="paper: few %", gt=0, le=1
    )
    selector_epochs: int = param(
        60, "passes of the selector over the buffer", source="ours: buffers are small", ge=1
    )
    hidden: int = param(32, "width of the selector's layer", source="ours", ge=1)

    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:  # noqa: D102
        family = problem.family
        if not isinstance(family, Classifier):
            raise AssertionError("checked by `families`")
        rows = in_order(problem.retain)
        named = self._tasks(family, rows)
        names = sorted(set(named))
        stages = Stages.of(problem, 1, workplace.seed, workplace.device)
        experts: list[nn.Module] = []
        for name in names:
            own = rows.select(np.flatnonzero(named == name))
            number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % 1_000_003
            weights = stages.train(number, own, np.zeros(len(own), dtype=int), workplace)
            if weights is None:
                raise AssertionError("a task has rows")
            experts.append(stages.model(number, weights))
        touched = set(self._tasks(family, problem.forget))
        workplace.notes.append(
            f"{len(touched & set(names))} of {len(names)} experts, and the selector, are made again for this deletion"
        )
        if touched - set(names):
            workplace.notes.append(
                f"no rows of {', '.join(sorted(touched - set(names)))} are left: no expert either"
            )
        if len(experts) == 1:
            return experts[0]
        return Routed(self._selector(problem, family, rows, named, workplace), experts)

    def _tasks(self, family: Classifier, rows: Dataset) -> np.ndarray:
        """`[n]` name of each row's task."""
        if self.by is None:
            classes = np.asarray(rows[family.target][:], dtype=int)
            return np.asarray([f"group-{c * self.tasks // len(family.classes):04d}" for c in classes])
        if self.by not in rows.column_names:
            raise BadInput(
                f"tame: the data has no column '{self.by}' that names tasks; it has {', '.join(rows.column_names)}"
            )
        return np.asarray([str(v) for v in rows[self.by][:]])

    def _selector(
        self, problem: Problem, family: Classifier, rows: Dataset, named: np.ndarray, workplace: Workplace
    ) -> nn.Module:
        names = sorted(set(named))
        secret = f"expunge tame {workplace.seed}".encode()
        hashes = np.asarray([hmac.digest(secret, str(i).encode(), "sha256").hex() for i in rows["id"][:]])
        kept: list[int] = []
        for name in names:
            own = np.flatnonzero(named == name)
            kept += own[np.argsort(hashes[own])][: math.ceil(self.buffer * len(own))].tolist()
        places = sorted(kept)
        numbers = [names.index(named[place]) for place in places]
        buffer = rows.select(places).add_column(TASK, numbers)  # pyright: ignore[reportCallIssue]
        reader = Classifier(family.inputs, names, TASK)
        inputs = reader.collate(buffer.with_format("numpy")[:1]).inputs
        if len(inputs) != 1 or not next(iter(inputs.values())).is_floating_point():
            raise BadInput("tame: the selector reads numbers, as of tables and pictures, not text")
        width = next(iter(inputs.values())).numel()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(workplace.seed + 104_729)
            options = {"inputs": width, "outputs": len(names), "hidden": [self.hidden]}
            selector = selector_of(options).to(workplace.device)
            recipe = problem.recipe
            if recipe is None:
                raise AssertionError("checked by `needs`")
            ids = tuple(map(str, buffer["id"][:]))
            part = Problem("selector", reader, buffer, ids)
            own = Workplace(workplace.seed + 104_729, workplace.device)
            fit(part, selector, "train", recipe.replace(epochs=self.selector_epochs), own)
        return selector.eval()
