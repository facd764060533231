"""Certified removal as a method: the head of a tiny classifier against the estimator on the same features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.api import forget
from expunge.errors import BadInput
from expunge.exact.estimators import CertifiedClassifier
from expunge.problem import Problem
from expunge.testing import tiny_problem


def hidden(problem: Problem, split: str) -> np.ndarray:
    """What the head of a tiny problem's perceptron reads."""
    batches = problem.batches(split)
    batch = batches.take(torch.arange(len(batches)))
    outputs = problem.family.forward(problem.target, batch, ["layers.0"])
    return torch.relu(outputs.hidden["layers.0"]).detach().double().flatten(1).numpy()


@pytest.mark.parametrize("radius", [0.5, 2.0])
def test_the_head_answers_as_the_estimator_on_its_features(radius: float) -> None:
    problem = tiny_problem("classifier")
    made = forget(problem, "certified-removal", radius=radius, sigma=0.3, epsilon=2.0, batch_size=7)
    x, labels, ids = hidden(problem, "train"), np.asarray(problem.train["label"]), problem.train["id"][:]
    head = CertifiedClassifier(sigma=0.3, epsilon=2.0, radius=radius, random_state=0)
    head.fit(x, labels, ids).forget(problem.forget_ids)
    asked = problem.batches("train").take(torch.arange(len(x)))
    scores = problem.family.forward(made.model, asked).prediction.detach().numpy().reshape(len(x), -1)
    norms = np.sqrt((x / radius) ** 2 @ np.ones(x.shape[1]) + 1)
    np.testing.assert_allclose(scores / norms[:, None], head.decision_function(x), atol=1e-5)
    assert any("certified (2, 0.0001): one step; a gradient of" in note for note in made.notes)
    assert any("noise drawn by the seed, so without a guarantee" in note for note in made.notes)


def test_a_spent_budget_is_said() -> None:
    made = forget(tiny_problem("classifier"), "certified-removal", epsilon=1e-4)
    assert any("trained again with new noise, as the budget was spent" in note for note in made.notes)


def test_a_class_without_rows_never_wins() -> None:
    problem = tiny_problem("classifier")
    ids, labels = np.asarray(problem.train["id"]), np.asarray(problem.train["label"])
    made = forget(replace(problem, forget_ids=tuple(ids[labels == 1].tolist())), "certified-removal")
    asked = problem.batches("train").take(torch.arange(len(ids)))
    assert 1 not in problem.family.forward(made.model, asked).prediction.argmax(-1)
    assert any("its bias rules it out" in note for note in made.notes)
    with pytest.raises(BadInput, match="rows of one class alone remain"):
        forget(replace(problem, forget_ids=tuple(ids[labels != 1].tolist())), "certified-removal")
