"""Fisher forgetting: the variance by hand and by draws, class reset, and the optimal shift in convex worlds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from expunge.methods import Workplace
from expunge.methods.fisher import Fisher
from expunge.oracles import LogisticWorld, RidgeWorld
from expunge.problem import Problem


def test_variance_worked_by_hand() -> None:
    method = Fisher(alpha=0.1, ceiling=100.0, head_ceiling=10.0, boost=3.0)
    information = torch.tensor([[0.5, 0.001], [0.05, 1.0]], dtype=torch.float64)
    variance, saturated = method.variance(information, in_head=False)
    # 1/F = 2, 1000 -> 100; 20, 1: means over a row 51 and 10.5, times alpha
    assert variance.flatten().tolist() == pytest.approx([5.1, 5.1, 1.05, 1.05], rel=1e-5)
    assert saturated == 1
    variance, saturated = method.variance(information, in_head=True)
    assert variance.flatten().tolist() == pytest.approx([3 * 0.6, 3 * 0.6, 3 * 0.55, 3 * 0.55], rel=1e-5)
    assert saturated == 2
    bias, _ = method.variance(information[:, 0], in_head=False)
    assert bias.tolist() == pytest.approx([3 * 0.2, 3 * 2.0], rel=1e-5)
    quarter, _ = method.replace(power=0.25).variance(information[:, 0], in_head=False)
    assert quarter.tolist() == pytest.approx([0.3 * 2**0.5, 0.3 * 20**0.5], rel=1e-5)


def test_convolutions_share_variance_over_input_channels() -> None:
    information = torch.rand(2, 3, 4, 4, dtype=torch.float64) + 0.1
    variance, _ = Fisher(alpha=1.0).variance(information, in_head=False)
    for channel in range(3):
        torch.testing.assert_close(variance[:, channel], (1 / information).mean(1), rtol=1e-5, atol=0)


def test_without_variance_nothing_changes(classification: Problem) -> None:
    assert Fisher(alpha=0.0, reset_classes=False).forget(classification).cost.changed == 0


def test_noise_of_a_linear_classifier_has_the_stated_variance() -> None:
    """150 draws per weight; the variance of softmax regression is known in closed form: E p (1 - p) x^2."""
    world = LogisticWorld(n=40, n_forget=5)
    problem = world.problem
    kept = problem.batches("retain").take(torch.arange(35)).inputs["features"].double().numpy()
    p = torch.from_numpy(world.logits(world.solution())[5:]).softmax(-1).numpy()
    information = np.einsum("nc,nj->cj", p * (1 - p), np.column_stack([kept, np.ones(35)]) ** 2) / 35
    inverse = np.minimum(1 / (information + 1e-8), 1e2)
    inverse[:, :-1] = inverse[:, :-1].mean(1, keepdims=True)
    expected = 10 * 1e-3 * inverse
    method, draws = Fisher(alpha=1e-3), []
    for seed in range(150):
        made = method.forget(problem, Workplace(seed=seed)).model
        draws.append(world.weights(made) - world.solution())
    observed = np.mean(np.square(draws), 0)
    # chi-square with 150 degrees of freedom: standard deviation of the ratio 0.115, of its mean over 12 about 0.033
    ratio = observed / expected
    assert ((ratio > 0.6) & (ratio < 1.5)).all()
    assert ratio.mean() == pytest.approx(1, abs=0.12)
    assert np.abs(np.mean(draws, 0) / np.sqrt(expected / 150)).max() < 4


def test_a_class_that_nobody_keeps_loses_its_row(classification: Problem) -> None:
    rows: Any = classification.train
    whole = replace(classification, forget_ids=tuple(r["id"] for r in rows if r["label"] == 1))
    made: Any = Fisher(alpha=0.0).forget(whole)
    before: Any = whole.target
    assert made.notes[0] == "no row of class 1 is retained: its row of the head is reset"
    assert torch.equal(made.model.head.weight[[0, 2]], before.head.weight[[0, 2]])
    row = torch.cat([made.model.head.weight[1], made.model.head.bias[1:2]])
    assert 0 < float(row.detach().abs().max()) < 0.05  # standard deviation 0.01
    assert float(before.head.weight[1].detach().abs().max()) > 0.1
    kept = Fisher(alpha=0.0, reset_classes=False).forget(whole)
    assert kept.cost.changed == 0
    some = replace(classification, forget_ids=whole.forget_ids[1:])
    assert not any("is reset" in note for note in Fisher().forget(some).notes)


def test_the_notes_say_how_much_is_saturated(classification: Problem) -> None:
    n = sum(p.numel() for p in classification.target.parameters())
    everything = Fisher(ceiling=1e-9, head_ceiling=1e-9).forget(classification)
    assert everything.notes[-1] == f"the variance is at its ceiling in 100.0% of {n} weights"
    nothing = Fisher(ceiling=1e30, head_ceiling=1e30).forget(classification)
    assert nothing.notes[-1] == f"the variance is at its ceiling in 0.0% of {n} weights"


def test_the_optimal_shift_retrains_ridge_regression() -> None:
    world = RidgeWorld()
    made = Fisher(shift="newton", alpha=0.0).forget(world.problem).model
    np.testing.assert_allclose(world.weights(made), world.retrained, atol=1e-5)


def test_the_optimal_shift_is_one_newton_step_for_softmax_regression() -> None:
    """Its error is of second order: among ten times the rows, the solution moves a tenth, and the error is a hundredth."""
    errors, moved = [], []
    for n in (150, 1500):
        world = LogisticWorld(n=n)
        made = Fisher(shift="newton", alpha=0.0).forget(world.problem).model
        moved.append(np.linalg.norm(world.solution() - world.retrained))
        errors.append(np.linalg.norm(world.weights(made) - world.retrained))
    assert errors[1] < 0.1 * moved[1]
    assert errors[0] / errors[1] > 3 * moved[0] / moved[1]


def test_less_noise_comes_closer_to_the_retrained_solution() -> None:
    world = RidgeWorld()
    errors = []
    for alpha in (1e-4, 1e-6, 1e-8):
        made = Fisher(shift="newton", alpha=alpha).forget(world.problem).model
        errors.append(np.linalg.norm(world.weights(made) - world.retrained))
    # the same draw, ten times smaller each time
    assert errors[0] == pytest.approx(10 * errors[1], rel=1e-2)
    assert errors[1] == pytest.approx(10 * errors[2], rel=1e-1)
