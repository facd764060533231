"""Tiny problems with trained targets, one or more per family: what the contract suites run on."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from datasets import Dataset

from expunge.errors import BadInput, did_you_mean
from expunge.families import Architecture, Classifier, Regressor, Table
from expunge.methods.base import Workplace
from expunge.methods.loop import fit
from expunge.problem import Problem, Training

COLUMNS = ["a", "b", "c", "d"]


def _rows(n: int, seed: int, *, classes: int | None) -> Dataset:
    """Gaussian blobs (classes) or a noisy linear function (values) of four columns."""
    rng = np.random.default_rng(seed)
    world = np.random.default_rng(12345)  # the same world for every split
    if classes is not None:
        centers = world.normal(0, 2.0, (classes, len(COLUMNS)))
        label = rng.integers(classes, size=n)
        x = centers[label] + rng.normal(size=(n, len(COLUMNS)))
        outcome: dict[str, object] = {"label": label.astype(np.int64)}
    else:
        x = rng.normal(size=(n, len(COLUMNS)))
        outcome = {
            "target": 3.0
            + x @ world.normal(size=len(COLUMNS))
            + 0.5 * np.sin(2 * x[:, 0])
            + 0.3 * rng.normal(size=n)
        }
    columns = {name: x[:, j] for j, name in enumerate(COLUMNS)}
    return Dataset.from_dict({"id": [f"r{seed}-{i}" for i in range(n)], **columns, **outcome})


def _classifier() -> Problem:
    train = _rows(96, 0, classes=3)
    family = Classifier(Table(COLUMNS), 3)
    return Problem(
        "tiny-classifier", family, train, tuple(train["id"][:16]), _rows(64, 1, classes=3), {"test": _rows(64, 2, classes=3)},
        architecture=Architecture(kind="builtin", name="mlp", options={"inputs": 4, "outputs": 3, "hidden": [16]}),
        recipe=Training(epochs=12, batch_size=16), scope="16 random rows",
    )  # fmt: skip


def _regressor() -> Problem:
    train = _rows(96, 0, classes=None)
    family = Regressor.fit(Table.fit(train, COLUMNS), train, "target")
    return Problem(
        "tiny-regressor", family, train, tuple(train["id"][:16]), _rows(64, 1, classes=None),
        {"test": _rows(64, 2, classes=None)},
        architecture=Architecture(kind="builtin", name="mlp", options={"inputs": 4, "outputs": 1, "hidden": [16]}),
        recipe=Training(epochs=12, batch_size=16, lr=0.02), scope="16 random rows",
    )  # fmt: skip


_MAKERS = {"classifier": _classifier, "regressor": _regressor}


@cache
def tiny_problem(family: str) -> Problem:
    """A problem of `family` with a trained target; made once per process, in under a second."""
    if family not in _MAKERS:
        raise BadInput(f"there is no tiny problem for family '{family}'{did_you_mean(family, _MAKERS)}")
    problem = _MAKERS[family]()
    recipe = problem.recipe
    if recipe is None:
        raise BadInput(f"the tiny problem for '{family}' has no recipe")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return problem.with_model(fit(problem, problem.fresh_model(0), "train", recipe, Workplace(seed=0)))


def tiny_problems() -> list[Problem]:
    """One trained tiny problem per family."""
    return [tiny_problem(name) for name in _MAKERS]
