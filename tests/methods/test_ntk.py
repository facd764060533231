"""NTK scrubbing: exact for linear models under squared error, convergent for linear classifiers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from expunge.errors import BadInput
from expunge.find import linearized
from expunge.methods.ntk import NTK, trained_decay
from expunge.oracles import LogisticWorld, RidgeWorld
from expunge.problem import Problem


@pytest.mark.parametrize("n_forget", [1, 12, 40])
def test_ridge_is_retrained_whatever_the_forget_set(n_forget: int) -> None:
    world = RidgeWorld(n_forget=n_forget)
    made = NTK().forget(world.problem)
    np.testing.assert_allclose(world.weights(made.model), world.retrained, atol=2e-6)


def test_kernel_form_agrees_with_weight_form() -> None:
    """Six rows and nine weights: the system is solved in the space of outputs."""
    world = RidgeWorld(n=6, d=8, n_forget=2)
    np.testing.assert_allclose(world.weights(NTK().forget(world.problem).model), world.retrained, atol=2e-6)


def test_steps_lead_to_the_retrained_classifier() -> None:
    world = LogisticWorld()
    errors = [
        np.linalg.norm(world.weights(NTK(steps=steps).forget(world.problem).model) - world.retrained)
        for steps in (1, 2, 20)
    ]
    assert errors[2] < 1e-5 < errors[1] < errors[0] < 0.5 * np.linalg.norm(world.solution() - world.retrained)


def test_scale() -> None:
    world = RidgeWorld()
    assert NTK(scale=0.0).forget(world.problem).cost.changed == 0
    half = world.weights(NTK(scale=0.5).forget(world.problem).model)
    np.testing.assert_allclose(half, (world.solution() + world.retrained) / 2, atol=2e-6)


def test_the_difference_from_training_on_everything_counts_for_any_target() -> None:
    """A linear target that was never trained to the end moves by what the forget set makes, and keeps its distance."""
    world = RidgeWorld()
    problem = world.problem.with_model(world.problem.fresh_model(4))
    made = world.weights(NTK().forget(problem).model) - world.weights(problem.target)
    np.testing.assert_allclose(made, world.retrained - world.solution(), atol=1e-5)


def test_only_the_head_moves_when_asked(classification: Problem) -> None:
    made = NTK(weights="head").forget(classification)
    before = dict(classification.target.named_parameters())
    moved = {n for n, p in made.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"head.weight", "head.bias"}


def test_head_of_a_network_is_ridge_regression_on_its_features(regression: Problem) -> None:
    """Worked with numpy on the hidden activations; differences of two solutions, added to the target's head."""
    target: Any = regression.target
    decay = 0.02
    x = regression.batches("train").take(torch.arange(36))
    with torch.no_grad():
        hidden = target.layers[0](x.inputs["features"]).relu().double().numpy()
    features = np.column_stack([hidden, np.ones(36)])
    y = x.targets[:, 0, 0].double().numpy()

    def ridge(rows: np.ndarray) -> np.ndarray:
        a, b = features[rows], y[rows]
        return np.linalg.solve(a.T @ a / len(a) + decay * np.eye(a.shape[1]), a.T @ b / len(a))

    moved = ridge(regression.retain_rows) - ridge(np.arange(36))
    made: Any = NTK(weights="head", decay=decay).forget(regression).model
    found = torch.cat([made.head.weight[0] - target.head.weight[0], made.head.bias - target.head.bias])
    np.testing.assert_allclose(found.detach().numpy(), moved, atol=1e-5)


def test_decay_follows_the_recipe() -> None:
    world = RidgeWorld(decay=0.03)
    assert trained_decay(world.problem, 0.5) == 0.5
    assert trained_decay(world.problem, None) == 0.03
    assert trained_decay(replace(world.problem, recipe=None), None) == 5e-4
    assert trained_decay(RidgeWorld(decay=0.0).problem, None) == 5e-4


def test_too_large_a_model_is_refused(classification: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linearized, "LARGEST_BYTES", 1000)
    with pytest.raises(
        BadInput, match=r"Jacobians of 36 examples x 3 outputs x 59 weights take .* such as the head"
    ):
        NTK().forget(classification)
