"""Tiny problems, built once: a target with some training behind it for each kind of input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Array3D, Dataset, Features, Value
from torch import Tensor, nn

from expunge.families import Architecture, Classifier, Images, Regressor, Table
from expunge.methods import METHODS, Workplace
from expunge.methods.loop import fit
from expunge.problem import Problem, Training

COLUMNS = ["a", "b", "c"]


def _table(n: int, seed: int) -> Dataset:
    """Three overlapping clusters with a noisy value each; the same clusters for every seed."""
    rng = np.random.default_rng(seed)
    label = rng.integers(3, size=n)
    x = np.random.default_rng(99).normal(0, 1.5, (3, 3))[label] + rng.normal(size=(n, 3))
    columns = {c: x[:, j] for j, c in enumerate(COLUMNS)}
    value = x.sum(1) + 0.3 * rng.normal(size=n)
    return Dataset.from_dict({"id": [f"{seed}-{i}" for i in range(n)], **columns, "label": label, "y": value})


def _images(n: int, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    label = rng.integers(3, size=n)
    image = rng.normal(size=(n, 1, 8, 8)) + label[:, None, None, None]
    features = Features(
        {
            "id": Value("string"),
            "image": Array3D((1, 8, 8), "float32"),
            "label": Value("int64"),
            "y": Value("float64"),
        }
    )
    columns = {"id": [f"{seed}-{i}" for i in range(n)], "image": image.astype(np.float32), "label": label}
    return Dataset.from_dict({**columns, "y": image.mean((1, 2, 3))}, features=features)


def _trained(problem: Problem) -> Problem:
    recipe = Training(epochs=6, batch_size=8, lr=0.05, weight_decay=0.0)
    model = fit(problem, problem.fresh_model(0), "train", recipe, Workplace(seed=0)).eval()
    return problem.with_model(model)


@pytest.fixture(scope="session")
def classification() -> Problem:
    """36 rows of a table, 10 of them to forget; a perceptron without anything stochastic."""
    train = _table(36, 1)
    architecture = Architecture(
        kind="builtin", name="mlp", options={"inputs": 3, "outputs": 3, "hidden": [8]}
    )
    return _trained(
        Problem(
            "clusters",
            Classifier(Table(COLUMNS), 3),
            train,
            tuple(train["id"][:10]),
            _table(30, 2),
            architecture=architecture,
        )
    )


@pytest.fixture(scope="session")
def regression() -> Problem:
    train = _table(36, 1)
    architecture = Architecture(
        kind="builtin", name="mlp", options={"inputs": 3, "outputs": 1, "hidden": [8]}
    )
    family = Regressor.fit(Table.fit(train, COLUMNS), train, "y")
    return _trained(
        Problem("values", family, train, tuple(train["id"][:10]), _table(30, 2), architecture=architecture)
    )


@pytest.fixture(scope="session")
def normalized() -> Problem:
    """Images and a convolutional network with batch norm."""
    train = _images(30, 3)
    options = {"channels": 1, "size": 8, "outputs": 3, "widths": [4, 4], "hidden": 8, "batchnorm": True}
    architecture = Architecture(kind="builtin", name="cnn", options=options)
    return _trained(
        Problem("images", Classifier(Images(), 3), train, tuple(train["id"][:8]), architecture=architecture)
    )


@pytest.fixture(scope="session")
def pictures() -> Problem:
    """A value to predict from an image."""
    train = _images(30, 3)
    options = {"channels": 1, "size": 8, "outputs": 1, "widths": [4, 4], "hidden": 8}
    architecture = Architecture(kind="builtin", name="cnn", options=options)
    return _trained(
        Problem(
            "pictures", Regressor(Images(), "y"), train, tuple(train["id"][:8]), architecture=architecture
        )
    )


@pytest.fixture(scope="session")
def dropout(classification: Problem) -> Problem:
    """The classification problem with a network that drops units in train mode."""
    factory = f"{Path(__file__).with_name('networks.py')}:dropping"
    problem = replace(classification, architecture=Architecture(kind="module", name=factory))
    return problem.with_model(problem.fresh_model(3).eval())


@pytest.fixture(scope="session")
def tensors() -> Callable[[Problem, str], tuple[Tensor, Tensor]]:
    """Inputs and targets of a split of a table, read without the family; standardized for regressors."""

    def read(problem: Problem, split: str) -> tuple[Tensor, Tensor]:
        rows: Any = problem.splits[split]
        train: Any = problem.train
        x = np.asarray([[row[c] for c in COLUMNS] for row in rows])
        if "regressor" not in problem.family.name:
            return torch.tensor(x, dtype=torch.float32), torch.tensor(rows["label"])
        everything = np.asarray([[row[c] for c in COLUMNS] for row in train])
        x = (x - everything.mean(0)) / everything.std(0)
        y = (np.asarray(rows["y"]) - np.mean(train["y"])) / np.std(train["y"])
        return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)[:, None]

    return read


@pytest.fixture(scope="session")
def gradient() -> Callable[[nn.Module, Tensor], dict[str, Tensor]]:
    """Gradient of a scalar with respect to the parameters of a model, by name."""

    def differentiate(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
        names, parameters = zip(*model.named_parameters(), strict=True)
        return dict(zip(names, torch.autograd.grad(value, parameters), strict=True))

    return differentiate


@pytest.fixture(scope="session")
def step_gradient() -> Callable[..., dict[str, Tensor]]:
    """Gradient that a method descends in its first step over all rows: one plain step at rate 1, undone."""

    def differentiate(problem: Problem, name: str, **settings: Any) -> dict[str, Tensor]:
        plain = {
            "epochs": 1,
            "lr": 1.0,
            "momentum": 0.0,
            "weight_decay": 0.0,
            "batch_size": 1000,
            "optimizer": "sgd",
        }
        made = METHODS[name](**{**plain, **settings}).forget(problem)
        assert len(made.log) == 1
        before = dict(problem.target.named_parameters())
        return {k: (before[k] - v).detach() for k, v in made.model.named_parameters()}

    return differentiate
