"""Exact worlds, and methods that must approach them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from expunge.api import forget
from expunge.oracles import FrequencyWorld, RidgeWorld


def test_ridge_solution_agrees_with_scikit_learn() -> None:
    world = RidgeWorld()
    batch = world.family.collate(world.dataset.with_format("numpy")[:])
    x = np.column_stack([batch.inputs["features"].double().numpy(), np.ones(world.n)])
    peer = Ridge(alpha=world.decay * world.n, fit_intercept=False, solver="cholesky").fit(
        x, batch.targets[:, 0, 0].double().numpy()
    )
    np.testing.assert_allclose(world.solution(), peer.coef_, atol=1e-10)


def test_forgetting_moves_the_ridge_solution() -> None:
    world = RidgeWorld()
    assert np.linalg.norm(world.solution() - world.retrained) > 0.1


@pytest.mark.parametrize("method", ["retrain", "fine-tune"])
def test_training_to_convergence_on_the_retain_set_gives_the_ridge_solution(method: str) -> None:
    world = RidgeWorld()
    long = {"epochs": 400, "lr": 0.1, "batch_size": world.n, "weight_decay": world.decay}
    forgotten = forget(world.problem, method, **({} if method == "retrain" else long))
    np.testing.assert_allclose(world.weights(forgotten.model), world.retrained, atol=1e-4)


def test_frequencies_worked_by_hand() -> None:
    world = FrequencyWorld()
    # cell 0: (6-4, 2, 1) = (2, 2, 1) of 5; cell 1: (1, 4, 1) of 6; cell 2: (2, 1, 4) of 7
    np.testing.assert_allclose(
        world.retrained, [[2 / 5, 2 / 5, 1 / 5], [1 / 6, 4 / 6, 1 / 6], [2 / 7, 1 / 7, 4 / 7]]
    )
    np.testing.assert_allclose(world.probabilities(world.problem.target)[0], [6 / 9, 2 / 9, 1 / 9], atol=1e-6)


@pytest.mark.parametrize("method", ["retrain", "fine-tune"])
def test_training_to_convergence_on_the_retain_set_gives_the_frequencies(method: str) -> None:
    world = FrequencyWorld()
    long = {"epochs": 1500, "lr": 1.0, "batch_size": 64, "weight_decay": 0.0}
    forgotten = forget(world.problem, method, **({} if method == "retrain" else long))
    np.testing.assert_allclose(world.probabilities(forgotten.model), world.retrained, atol=2e-3)


def test_ascent_on_the_forget_set_first_moves_away_from_its_labels() -> None:
    world = FrequencyWorld()
    forgotten = forget(world.problem, "gradient-ascent", epochs=1, lr=0.1, weight_decay=0.0, batch_size=64)
    before, after = world.probabilities(world.problem.target), world.probabilities(forgotten.model)
    assert after[0, 0] < before[0, 0]  # four of the eight forgotten rows are (cell 0, class 0)
    assert after[1, 2] < before[1, 2]
