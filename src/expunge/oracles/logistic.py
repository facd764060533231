"""Softmax regression with weight decay: a strictly convex loss, so that retraining has one answer.

With rows ``x_i`` (a constant 1 appended) and weight decay ``lam``, training to convergence minimizes ``1/n sum -ln
softmax(W x_i)[y_i] + lam/2 |W|^2``. There is no closed form; Newton's method in float64 finds the minimizer to rounding.
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
class LogisticWorld:
    """Overlapping Gaussian clusters, one per class; the first `n_forget` rows are to be forgotten.

    The labels of the rows to forget are shifted by one class, so that forgetting them moves the solution visibly.
    """

    n: int = 120
    d: int = 3
    classes: int = 3
    n_forget: int = 10
    decay: float = 0.01
    seed: int = 0

    @cached_property
    def dataset(self) -> Dataset:
        """Columns id, x0 .. x(d-1), label."""
        rng = np.random.default_rng(self.seed)
        label = rng.integers(self.classes, size=self.n)
        x = rng.normal(0, 1.2, (self.classes, self.d))[label] + rng.normal(size=(self.n, self.d))
        label[: self.n_forget] = (label[: self.n_forget] + 1) % self.classes
        columns = {f"x{j}": x[:, j] for j in range(self.d)}
        return Dataset.from_dict({"id": [f"row-{i}" for i in range(self.n)], **columns, "label": label})

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """`[n, d + 1]` rows with their constant, as the model sees them (float32), and `[n]` labels."""
        columns = [np.asarray(self.dataset[f"x{j}"], dtype=np.float32) for j in range(self.d)]
        x = np.column_stack([*columns, np.ones(self.n)]).astype(float)
        return x, np.asarray(self.dataset["label"])

    def solution(self, rows: np.ndarray | None = None) -> np.ndarray:
        """`[classes, d + 1]` weights, the constants last, of training to convergence on `rows` (default: all)."""
        x, y = self._arrays
        if rows is not None:
            x, y = x[rows], y[rows]
        one_hot = np.eye(self.classes)[y]
        weights = np.zeros((self.classes, x.shape[1]))
        for _ in range(100):
            p = _softmax(x @ weights.T)
            gradient = (p - one_hot).T @ x / len(x) + self.decay * weights
            spread = np.einsum("nc,ck->nck", p, np.eye(self.classes)) - np.einsum("nc,nk->nck", p, p)
            curvature = np.einsum("nck,ni,nj->cikj", spread, x, x).reshape(weights.size, weights.size) / len(
                x
            )
            move = np.linalg.solve(curvature + self.decay * np.eye(weights.size), gradient.flatten())
            weights = weights - move.reshape(weights.shape)
            if np.abs(move).max() < 1e-13:
                break
        return weights

    def logits(self, weights: np.ndarray) -> np.ndarray:
        """`[n, classes]` of all rows."""
        return self._arrays[0] @ weights.T

    @staticmethod
    def weights(model: nn.Module) -> np.ndarray:
        """`[classes, d + 1]` weights of a linear model, the constants last."""
        head = model.head
        return torch.cat([head.weight, head.bias[:, None]], 1).detach().double().numpy()  # pyright: ignore

    @cached_property
    def problem(self) -> Problem:
        """The problem with its target solved exactly; the recipe is full-batch descent, long enough to converge."""
        problem = Problem(
            "logistic", Classifier(Table([f"x{j}" for j in range(self.d)]), self.classes), self.dataset,
            tuple(self.dataset["id"][: self.n_forget]),
            architecture=Architecture(
                kind="builtin", name="mlp", options={"inputs": self.d, "outputs": self.classes, "hidden": []}
            ),
            recipe=Training(epochs=300, lr=1.0, batch_size=self.n, momentum=0.9, weight_decay=self.decay),
            scope=f"the first {self.n_forget} rows",
        )  # fmt: skip
        model, solved = problem.fresh_model(0), torch.from_numpy(self.solution())
        with torch.no_grad():
            model.head.weight.copy_(solved[:, :-1])  # pyright: ignore
            model.head.bias.copy_(solved[:, -1])  # pyright: ignore
        return problem.with_model(model)

    @cached_property
    def retrained(self) -> np.ndarray:
        """`[classes, d + 1]` the right answer: weights of training to convergence on the retain rows."""
        return self.solution(np.arange(self.n_forget, self.n))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
