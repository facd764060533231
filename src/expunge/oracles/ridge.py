"""Ridge regression: retraining without some rows in closed form.

With rows ``x_i`` (a constant 1 appended), targets ``y_i`` in standardized units and weight decay ``lam``, training to
convergence minimizes ``1/(2n) sum (x_i·w - y_i)^2 + lam/2 |w|^2``; the minimizer solves

    (X'X / n + lam I) w = X'y / n.

The constant is decayed like every other weight, because optimizers decay biases too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from expunge.families import Architecture, Regressor, Table
from expunge.problem import Problem, Training


@dataclass(frozen=True)
class RidgeWorld:
    """A noisy linear function of `d` columns, `n` rows, of which the first `n_forget` are to be forgotten.

    The rows to forget follow another slope, so that forgetting them moves the solution visibly.
    """

    n: int = 60
    d: int = 4
    n_forget: int = 12
    decay: float = 0.01
    noise: float = 0.1
    seed: int = 0

    @cached_property
    def dataset(self) -> Dataset:
        """Columns id, x0 .. x(d-1), target."""
        rng = np.random.default_rng(self.seed)
        x = rng.normal(size=(self.n, self.d))
        slope = rng.normal(size=self.d)
        y = x @ slope + self.noise * rng.normal(size=self.n)
        y[: self.n_forget] += 2.0 * x[: self.n_forget, 0]
        columns = {f"x{j}": x[:, j] for j in range(self.d)}
        return Dataset.from_dict({"id": [f"row-{i}" for i in range(self.n)], **columns, "target": y})

    @cached_property
    def family(self) -> Regressor:
        """Standardized by the training rows, like any regression problem."""
        columns = [f"x{j}" for j in range(self.d)]
        return Regressor.fit(Table.fit(self.dataset, columns), self.dataset, "target")

    def solution(self, rows: np.ndarray | None = None) -> np.ndarray:
        """`[d + 1]` weights, the constant last, of training to convergence on `rows` (default: all)."""
        batch = self.family.collate(self.dataset.with_format("numpy")[:])
        x = batch.inputs["features"].double().numpy()
        y = batch.targets[:, 0, 0].double().numpy()
        if rows is not None:
            x, y = x[rows], y[rows]
        x = np.column_stack([x, np.ones(len(x))])
        return np.linalg.solve(x.T @ x / len(x) + self.decay * np.eye(x.shape[1]), x.T @ y / len(x))

    def model(self, weights: np.ndarray) -> nn.Module:
        """The linear model with these weights."""
        model = self.problem_without_target.fresh_model(0)
        with torch.no_grad():
            model.head.weight.copy_(torch.from_numpy(weights[:-1])[None])  # pyright: ignore
            model.head.bias.copy_(torch.from_numpy(weights[-1:]))  # pyright: ignore
        return model

    @staticmethod
    def weights(model: nn.Module) -> np.ndarray:
        """`[d + 1]` weights of a linear model, the constant last."""
        head = model.head
        return torch.cat([head.weight.flatten(), head.bias]).detach().double().numpy()  # pyright: ignore

    @cached_property
    def problem_without_target(self) -> Problem:
        """Full-batch gradient descent, long enough to converge."""
        return Problem(
            "ridge", self.family, self.dataset, tuple(self.dataset["id"][: self.n_forget]),
            architecture=Architecture(kind="builtin", name="mlp", options={"inputs": self.d, "outputs": 1, "hidden": []}),
            recipe=Training(epochs=400, lr=0.1, batch_size=self.n, momentum=0.9, weight_decay=self.decay),
            scope=f"the first {self.n_forget} rows",
        )  # fmt: skip

    @cached_property
    def problem(self) -> Problem:
        """The problem with its target solved exactly."""
        return self.problem_without_target.with_model(self.model(self.solution()))

    @cached_property
    def retrained(self) -> np.ndarray:
        """`[d + 1]` the right answer: weights of training to convergence on the retain rows."""
        return self.solution(np.arange(self.n_forget, self.n))
