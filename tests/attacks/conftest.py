"""A small world in which membership shows: networks that learn noisy labels of few rows by heart."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

import expunge
from expunge.attacks import Scene
from expunge.attacks.shadows import ShadowModels
from expunge.families import Architecture, Classifier, Table
from expunge.methods.base import Workplace
from expunge.problem import Problem, Training

COLUMNS = [f"x{j}" for j in range(12)]


def noisy_rows(n: int, prefix: str, rng: np.random.Generator) -> Dataset:
    """A linear rule with three labels in ten flipped: what nobody can know without having seen the row."""
    x = rng.normal(size=(n, len(COLUMNS)))
    label = ((x[:, 0] + 0.5 * x[:, 1] > 0) ^ (rng.random(n) < 0.3)).astype(int)
    columns = {name: x[:, j] for j, name in enumerate(COLUMNS)}
    return Dataset.from_dict({"id": [f"{prefix}{i}" for i in range(n)], **columns, "label": label})


def noisy_problem() -> Problem:
    """40 rows to forget, 40 to keep, 60 never trained on; all of one distribution. Without a model."""
    rng = np.random.default_rng(0)
    train = noisy_rows(80, "t", rng)
    return Problem(
        "memorized", Classifier(Table(COLUMNS), 2), train, tuple(train["id"][:40]), noisy_rows(60, "h", rng),
        architecture=Architecture(
            kind="builtin", name="mlp", options={"inputs": len(COLUMNS), "outputs": 2, "hidden": [64]}
        ),
        recipe=Training(epochs=40, batch_size=20, lr=0.1, weight_decay=0), scope="40 random rows",
    )  # fmt: skip


@pytest.fixture(scope="session")
def memorized() -> Problem:
    """The problem with its target, which fits every noisy label."""
    return expunge.train_target(noisy_problem())


@pytest.fixture(scope="session")
def shadows(memorized: Problem) -> ShadowModels:
    return ShadowModels(memorized, Workplace())


@pytest.fixture(scope="session")
def target_scene(memorized: Problem) -> Scene:
    return Scene(memorized, memorized.target)


@pytest.fixture(scope="session")
def retrained_scene(memorized: Problem) -> Scene:
    return Scene(memorized, expunge.forget(memorized, "retrain").model)
