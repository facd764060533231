"""A world with few distinct inputs: the best classifier is a table of frequencies.

Every row is one of `cells` (a one-hot vector) with one of `classes`. Softmax regression on one-hot inputs can give each
cell any distribution, so training to convergence without decay gives exactly the label frequencies of each cell, and
retraining without some rows gives the frequencies of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from expunge.families import Architecture, Classifier, Table
from expunge.problem import Problem, Training


@dataclass(frozen=True)
class FrequencyWorld:
    """Counts of (cell, class) are fixed by hand, so that every frequency is a short fraction."""

    counts: tuple[tuple[int, ...], ...] = ((6, 2, 1), (1, 5, 3), (2, 2, 4))
    """`[cells][classes]` rows of each kind; all above 0, so that every frequency has a logit."""
    forgotten: tuple[tuple[int, ...], ...] = ((4, 0, 0), (0, 1, 2), (0, 1, 0))
    """Of these, rows to forget; fewer than there are."""

    @cached_property
    def dataset(self) -> Dataset:
        """Columns id, c0 .. (one-hot), label; the rows to forget of a kind come first."""
        ids, cells, labels = [], [], []
        for cell, row in enumerate(self.counts):
            for label, n in enumerate(row):
                ids += [f"{cell}-{label}-{i}" for i in range(n)]
                cells += [cell] * n
                labels += [label] * n
        one_hot = np.eye(len(self.counts))[cells]
        columns = {f"c{j}": one_hot[:, j] for j in range(len(self.counts))}
        return Dataset.from_dict({"id": ids, **columns, "label": labels})

    def frequencies(self, counts: np.ndarray) -> np.ndarray:
        """`[cells, classes]` label frequencies of each cell."""
        return counts / counts.sum(1, keepdims=True)

    @cached_property
    def retrained(self) -> np.ndarray:
        """`[cells, classes]` the right answer: frequencies of the rows that stay."""
        return self.frequencies(np.asarray(self.counts, float) - np.asarray(self.forgotten, float))

    @cached_property
    def problem(self) -> Problem:
        """The problem with its target solved exactly."""
        names = [f"c{j}" for j in range(len(self.counts))]
        forget = tuple(
            f"{cell}-{label}-{i}"
            for cell, row in enumerate(self.forgotten)
            for label, n in enumerate(row)
            for i in range(n)
        )
        problem = Problem(
            "frequencies", Classifier(Table(names), len(self.counts[0])), self.dataset, forget,
            architecture=Architecture(
                kind="builtin", name="mlp", options={"inputs": len(names), "outputs": len(self.counts[0]), "hidden": []}
            ),
            recipe=Training(epochs=1500, lr=1.0, batch_size=len(self.dataset), momentum=0.9, weight_decay=0.0),
            scope=f"{len(forget)} rows",
        )  # fmt: skip
        model = problem.fresh_model(0)
        with torch.no_grad():
            logits = torch.from_numpy(np.log(self.frequencies(np.asarray(self.counts, float)))).float()
            model.head.weight.copy_(logits.T)  # pyright: ignore
            model.head.bias.zero_()  # pyright: ignore
        return problem.with_model(model)

    def probabilities(self, model: nn.Module) -> np.ndarray:
        """`[cells, classes]` what a model predicts for each cell."""
        with torch.no_grad():
            return torch.softmax(model(torch.eye(len(self.counts))), -1).double().numpy()
