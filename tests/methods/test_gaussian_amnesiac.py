from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.errors import BadInput
from expunge.families import Regressor, Table
from expunge.methods import Workplace
from expunge.methods.gaussian_amnesiac import GaussianAmnesiac
from expunge.methods.objective import State


def targets(problem, seed=0):
    """Standardized targets of all training rows, as the method sees them."""
    state = State(problem, {}, Workplace(seed=seed))
    GaussianAmnesiac().prepare(problem, problem.target, state)
    return state.sources["train"].take(torch.arange(36)).targets[:, 0]


def test_the_gradient_is_that_of_half_the_squared_error_to_drawn_targets(
    regression, tensors, gradient, step_gradient
):
    (xf, yf), (xr, yr) = tensors(regression, "forget"), tensors(regression, "retain")
    drawn = targets(regression)
    torch.testing.assert_close(drawn[regression.retain_rows], yr, rtol=1e-5, atol=1e-6)
    forget = drawn[regression.forget_rows]
    assert (
        forget != yf
    ).sum() >= 9  # a draw above the largest possible value is clipped to it, which one row has
    model = regression.target
    error = model(torch.cat([xf, xr])) - torch.cat([forget, yr])
    found = step_gradient(regression, "gaussian-amnesiac")
    for name, value in gradient(model, error.square().mean() / 2).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-6)


def test_drawn_targets_have_the_mean_and_deviation_of_the_training_targets(regression):
    """In the target's own unit, within three standard errors of 600 draws."""
    train = np.asarray(regression.train["y"])
    family = Regressor(Table(["a", "b", "c"]), "y", center=train.mean(), scale=train.std())
    problem = replace(regression, family=family)
    draws = torch.cat([targets(problem, seed)[problem.forget_rows] for seed in range(60)]).flatten()
    values = draws.double().numpy() * train.std() + train.mean()
    assert len(set(values.round(6))) > 590
    assert abs(values.mean() - train.mean()) < 3 * train.std() / np.sqrt(600)
    assert abs(values.std() - train.std()) < 3 * train.std() / np.sqrt(2 * 600)


def test_targets_are_drawn_once(regression):
    settings = {"epochs": 4, "lr": 0.0, "batch_size": 36, "shuffle": False}
    made = GaussianAmnesiac(**settings).forget(regression)
    assert len(made.log) == 4
    assert len({entry["train"] for entry in made.log}) == 1
    assert torch.equal(targets(regression), targets(regression))
    assert not torch.equal(targets(regression), targets(regression, seed=1))


def test_classifiers_are_refused(classification):
    with pytest.raises(BadInput, match="'gaussian-amnesiac' .* it fits regressor, not classifier"):
        GaussianAmnesiac().forget(classification)
