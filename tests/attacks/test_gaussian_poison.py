from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import expunge
from expunge.attacks import Scene
from expunge.attacks.gaussian_poison import GaussianPoison
from expunge.data.canaries import Poison, plant_mark, plant_poison
from expunge.families import Architecture
from expunge.problem import Problem
from expunge.record import Score
from tests.attacks.conftest import COLUMNS, noisy_problem


@pytest.fixture(scope="module")
def poisoned() -> Problem:
    """The memorized world with noise of half a standard deviation on its forget rows, and a target trained on it."""
    return expunge.train_target(plant_poison(noisy_problem(), std=0.5, key=7))


def scores(scene: Scene) -> dict[str, Score]:
    return {s.metric: s for s in GaussianPoison().attack(scene)}


def test_the_target_remembers_the_noise_and_retrained_models_do_not(poisoned: Problem) -> None:
    found = scores(Scene(poisoned, poisoned.target))
    mean = found["gaussian-poison-mean"]
    assert mean.interval is not None and mean.interval.low > 0
    assert (found["gaussian-poison-z"].value or 0) > 3
    retrained = [scores(Scene(poisoned, expunge.forget(poisoned, "retrain", seed=s).model)) for s in range(3)]
    for one in retrained:
        assert abs(one["gaussian-poison-z"].value or 9) < 3
    assert mean.value is not None
    assert all(mean.value > (one["gaussian-poison-mean"].value or 0) + 0.2 for one in retrained)


def test_another_key_finds_nothing(poisoned: Problem) -> None:
    """The noise that is looked for must be the noise that was added."""
    other = replace(poisoned, source={"poison": {"std": 0.5, "key": 8}})
    assert abs(scores(Scene(other, poisoned.target))["gaussian-poison-z"].value or 9) < 3


def test_a_linear_model_by_hand(poisoned: Problem) -> None:
    """Two logits a.x and b.x: the gradient of the cross-entropy has the direction of b - a for label 0, a - b for 1."""
    model = nn.Linear(len(COLUMNS), 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.arange(24.0).reshape(2, 12).sin())

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = model

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.linear(features)

    noise = Poison(0.5, 7).noise(list(poisoned.forget_ids), (12,))
    direction = (model.weight[1] - model.weight[0]).detach().double().numpy()
    sign = 1 - 2 * np.asarray(poisoned.forget["label"][:])
    t = -(noise @ direction) * sign / (0.5 * np.linalg.norm(direction))
    found = scores(Scene(poisoned, Table()))
    assert found["gaussian-poison-mean"].value == pytest.approx(t.mean(), abs=1e-5)
    assert found["gaussian-poison-z"].value == pytest.approx(t.mean() * np.sqrt(40), abs=1e-4)
    assert found["gaussian-poison-tpr"].value == (t > 2.3263).mean()


def test_rows_of_a_forgotten_mark_are_not_asked_about() -> None:
    both = plant_mark(plant_poison(noisy_problem()), rows=9, within="forget")
    model = replace(both, architecture=both.architecture).fresh_model(0)
    assert scores(Scene(both, model))["gaussian-poison-mean"].n == 40


def test_saturated_outputs_have_no_gradient(poisoned: Problem) -> None:
    mute = poisoned.fresh_model(0)
    with torch.no_grad():
        for parameter in mute.parameters():
            parameter.zero_()
    reasons = {s.reason for s in scores(Scene(poisoned, mute)).values()}
    assert reasons == {"the loss has no gradient at any forget row; the outputs are saturated"}


def test_it_needs_poisons() -> None:
    problem = noisy_problem()
    assert isinstance(problem.architecture, Architecture)
    assert GaussianPoison.obstacles(problem) == [
        "it needs poisons that were planted before training (benchmark canaries)"
    ]
