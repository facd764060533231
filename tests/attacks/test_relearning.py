from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import expunge
from expunge.attacks import Scene
from expunge.attacks.relearning import Relearning
from expunge.methods.base import Workplace
from expunge.problem import Problem
from expunge.record import Score
from expunge.testing.problems import tiny_problem


def hidden(model: nn.Module, push: float = 8.0) -> nn.Module:
    """The model with one output pushed so far up that it names one class only; everything else is still there."""
    made = copy.deepcopy(model)
    last = [m for m in made.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.bias[0] += push
    return made


def scores(attack: Relearning, scene: Scene) -> dict[str, Score]:
    return {s.metric: s for s in attack.attack(scene)}


def steps(attack: Relearning, scene: Scene) -> float:
    value = scores(attack, scene)["relearning-steps"].value
    assert value is not None
    return value


def test_target_needs_no_step_and_what_was_hidden_comes_back_sooner_than_retraining(
    memorized: Problem, target_scene: Scene, retrained_scene: Scene
) -> None:
    attack = Relearning(lr=0.02)
    assert steps(attack, target_scene) == 0
    first_time = steps(attack, retrained_scene)
    back = steps(attack, Scene(memorized, hidden(memorized.target)))
    assert 0 < back < first_time / 3


def test_agrees_with_training_by_hand(memorized: Problem, retrained_scene: Scene) -> None:
    """All forgotten rows in one batch: nothing random is left, and plain PyTorch must come to the same count."""
    rows = memorized.forget.with_format("numpy")[:]
    x = torch.tensor(np.column_stack([rows[f"x{j}"] for j in range(12)]), dtype=torch.float32)
    y = torch.tensor(rows["label"])
    model = copy.deepcopy(retrained_scene.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    accuracy = []
    for _ in range(301):
        with torch.no_grad():
            accuracy.append(int((model(x).argmax(-1) == y).sum()))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    aim = int((memorized.target(x).argmax(-1) == y).sum())
    by_hand = next(i for i, value in enumerate(accuracy) if 10 * value >= 9 * aim)

    found = scores(Relearning(lr=0.02, margin=0.1, batch_size=40), retrained_scene)
    assert found["relearning-steps"].value == by_hand
    assert found["relearning-steps"].n == 40
    assert found["relearning-level"].value == pytest.approx(accuracy[1] / aim)


def test_a_budget_that_does_not_suffice_is_said(retrained_scene: Scene) -> None:
    found = scores(Relearning(lr=1e-6, budget=7), retrained_scene)
    assert found["relearning-steps"].reason == "censored: not back within the budget of 7 steps"
    assert found["relearning-level"].status == "ok"


def test_time_is_the_first_return() -> None:
    attack = Relearning(margin=0.1, budget=3)
    assert attack.time(np.array([0.2, 0.95, 0.5, 0.99]), 4).value == 1
    assert attack.time(np.array([0.2, 0.3, 0.3, 0.3, 0.99]), 4).status == "undefined"


def test_the_attacked_model_is_left_alone_and_the_seed_fixes_the_run(
    memorized: Problem, retrained_scene: Scene
) -> None:
    before = copy.deepcopy(retrained_scene.model.state_dict())
    attack = Relearning(budget=20)
    one = attack.attack(retrained_scene)
    assert all(torch.equal(v, before[k]) for k, v in retrained_scene.model.state_dict().items())
    assert not retrained_scene.model.training
    assert one == attack.attack(Scene(memorized, retrained_scene.model, Workplace(seed=0)))


def test_a_share_is_measured_on_the_other_rows(memorized: Problem, retrained_scene: Scene) -> None:
    attack = Relearning(share=0.25)
    held, asked = attack.divide(retrained_scene)
    assert (len(held), len(asked)) == (10, 30)
    assert not set(held.ids) & set(asked.ids)
    assert set(held.ids) | set(asked.ids) == set(memorized.forget_ids)
    # Noise in the labels cannot be learned from other rows: only a model that knew them gets them back.
    hard = Relearning(share=0.25, lr=0.02, budget=60, margin=0.15)
    assert scores(hard, retrained_scene)["relearning-steps"].status == "undefined"
    assert steps(hard, Scene(memorized, hidden(memorized.target, push=5.5))) > 0


def test_regressors_are_measured_by_their_error() -> None:
    problem = tiny_problem("regressor")
    assert steps(Relearning(), Scene(problem, problem.target)) == 0
    retrained = Scene(problem, expunge.forget(problem, "retrain", seed=3).model)
    own = retrained.evidence("forget", ["absolute_error"])["absolute_error"].mean()
    target = Scene(problem, problem.target).evidence("forget", ["absolute_error"])["absolute_error"].mean()
    # Hardly any rate, all rows in one step: the level stays the ratio of the errors.
    found = scores(Relearning(lr=1e-9, batch_size=64, budget=1), retrained)
    assert found["relearning-level"].value == pytest.approx(target / own, rel=1e-4)


def test_without_a_target_there_is_no_level(memorized: Problem, retrained_scene: Scene) -> None:
    found = scores(Relearning(), Scene(replace(memorized, model=None), retrained_scene.model))
    assert {s.reason for s in found.values()} == {
        "the target was not given, whose level the attack waits for"
    }


def test_frozen_parameters_stay_where_the_attacker_may_not_open_them(memorized: Problem) -> None:
    """With all of the model frozen there is nothing to train; opened, it is trained as any other."""
    model = copy.deepcopy(memorized.target)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    closed = Relearning(budget=2, unfreeze=False).attack(Scene(memorized, model))
    assert {s.status for s in closed} == {"undefined"} and "frozen" in (closed[0].reason or "")
    assert Relearning(budget=2).attack(Scene(memorized, model))[1].status == "ok"
    assert not any(p.requires_grad for p in model.parameters())
