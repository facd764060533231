"""Linearized models and attribution against exact leave-one-out solutions and slow definitions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families import Batches
from expunge.find.attribution import Attribution, calibrate, influence, project, trak
from expunge.find.linearized import Linearized, fisher_diagonal, head_parameters, jacobian
from expunge.oracles import LogisticWorld, RidgeWorld
from expunge.problem import Problem
from expunge.testing import tiny_problem


def linearized(problem: Problem, names: list[str] | None = None, split: str = "train") -> Linearized:
    return Linearized.of(problem.family, problem.target, problem.batches(split), names)


def head_change(change: Tensor, outputs: int) -> np.ndarray:
    """`[P]` in the order weight, bias to `[outputs, d + 1]`, the constant last."""
    weight, bias = change.split([len(change) - outputs, outputs])
    return torch.cat([weight.reshape(outputs, -1), bias[:, None]], 1).numpy()


@pytest.mark.parametrize("family", ["classifier", "regressor"])
def test_jacobian_equals_autograd_row_by_row(family: str) -> None:
    problem = tiny_problem(family)
    rows = linearized(problem)
    batch = problem.batches("train").take(torch.tensor([7]))
    prediction = problem.family.forward(problem.target, batch).prediction.flatten()
    for k, value in enumerate(prediction):
        parts = torch.autograd.grad(value, list(problem.target.parameters()), retain_graph=True)
        expected = torch.cat([p.flatten() for p in parts]).double()
        torch.testing.assert_close(rows.jacobian[7, k], expected, rtol=1e-5, atol=1e-6)


def test_jacobian_of_a_network_with_branches_and_batch_norm() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 3)

        def forward(self, features: Tensor) -> Tensor:
            return self.head(self.norm(features)) * (2.0 if bool((features > 0).any()) else 3.0)

    torch.manual_seed(0)
    problem, model = tiny_problem("classifier"), Branching().train()
    batch = problem.batches("train").take(torch.arange(3))
    made = jacobian(problem.family, model, batch, ["head.weight"])
    assert model.training
    normed = model.norm.eval()(batch.inputs["features"]).detach()
    assert bool((batch.inputs["features"] > 0).any(1).all())
    for k in range(3):
        expected = torch.zeros(3, 3, 4)
        expected[:, k] = 2 * normed
        torch.testing.assert_close(made[:, k], expected.flatten(1))


def test_derivatives_of_the_loss_in_the_outputs() -> None:
    rows = linearized(tiny_problem("classifier"), ["head.bias"])
    slope, curvature = rows.derivatives()
    p = rows.prediction[:, 0].softmax(-1)
    torch.testing.assert_close(slope, p - torch.nn.functional.one_hot(rows.batch.targets[:, 0], 3))
    torch.testing.assert_close(curvature, torch.diag_embed(p) - p[:, :, None] * p[:, None, :])
    rows = linearized(tiny_problem("regressor"), ["head.bias"])
    slope, curvature = rows.derivatives()
    torch.testing.assert_close(slope, rows.prediction[:, 0] - rows.batch.targets[:, 0])
    torch.testing.assert_close(curvature, torch.ones(len(rows), 1, 1).double())


def test_fisher_diagonal_of_softmax_regression_in_closed_form() -> None:
    """E p_c (1 - p_c) x_j^2 for the weight of class c and column j, whatever the labels."""
    world = LogisticWorld()
    problem = world.problem
    batch = problem.batches("train").take(torch.arange(world.n))
    x = batch.inputs["features"].double()
    p = torch.from_numpy(world.logits(world.solution())).softmax(-1)
    found = fisher_diagonal(problem.family, problem.target, problem.batches("train"))
    spread = p * (1 - p)
    torch.testing.assert_close(found["head.weight"], spread.T @ x**2 / world.n, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found["head.bias"], spread.mean(0), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", ["classifier", "regressor"])
def test_fisher_diagonal_by_answers_of_the_model(family: str) -> None:
    """Every possible answer in turn, weighted by its probability; for a Gaussian the two one standard deviation away."""
    problem = tiny_problem(family)
    batch = problem.batches("forget").take(torch.arange(5))
    expected = torch.zeros(sum(p.numel() for p in problem.target.parameters()), dtype=torch.float64)
    for i in range(5):
        one = batch.select(torch.tensor([i]))
        prediction = problem.family.forward(problem.target, one).prediction.detach()
        answers = (
            [(p, torch.tensor([[c]])) for c, p in enumerate(prediction[0, 0].softmax(-1))]
            if family == "classifier"
            else [(torch.tensor(0.5), prediction + sign) for sign in (-1, 1)]
        )
        for probability, answer in answers:
            answered = replace(one, targets=answer)
            value = problem.family.nll(problem.family.forward(problem.target, answered), answered).sum()
            found = torch.autograd.grad(value, list(problem.target.parameters()))
            expected += probability * torch.cat([g.flatten() for g in found]).double() ** 2 / 5
    five = Batches(problem.family, problem.forget.select(range(5)))
    made = fisher_diagonal(problem.family, problem.target, five)
    made = torch.cat([value.flatten() for value in made.values()])
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("n", [5, 40])
def test_solve_in_either_space_equals_the_dense_inverse(n: int) -> None:
    """16 weights: with 5 rows of one output the outputs are fewer, with 40 the weights."""
    rows = linearized(tiny_problem("regressor"), ["layers.0.bias"]).select(torch.arange(n))
    rng = torch.Generator().manual_seed(0)
    right = torch.randn(16, 2, generator=rng, dtype=torch.float64)
    scale = torch.rand(n, 1, 1, generator=rng, dtype=torch.float64)
    dense = sum(j.T @ m @ j for j, m in zip(rows.jacobian, scale, strict=True)) + 0.3 * torch.eye(16)
    expected = torch.linalg.inv(dense) @ right
    torch.testing.assert_close(rows.solve(scale, right, 0.3), expected)
    torch.testing.assert_close(rows.solve(scale, right[:, 1], 0.3), expected[:, 1])


def test_minimizing_on_the_retain_rows_retrains_a_linear_model() -> None:
    world = RidgeWorld()
    kept = linearized(world.problem).select(torch.from_numpy(world.problem.retain_rows))
    moved = head_change(kept.minimize(world.decay, steps=1), 1)[0]
    np.testing.assert_allclose(world.solution() + moved, world.retrained, atol=1e-6)
    logistic = LogisticWorld()
    kept = linearized(logistic.problem).select(torch.from_numpy(logistic.problem.retain_rows))
    moved = head_change(kept.minimize(logistic.decay), 3)
    np.testing.assert_allclose(logistic.solution() + moved, logistic.retrained, atol=1e-6)


def test_newton_gets_there_from_far_away() -> None:
    """Weights ten times too large saturate the softmax, where whole Newton steps diverge."""
    world = LogisticWorld()
    problem = world.problem.with_model(world.problem.fresh_model(3))
    with torch.no_grad():
        problem.target.head.weight.mul_(30)  # pyright: ignore
    far = linearized(problem)
    assert (far.prediction.softmax(-1).max(-1).values > 0.99).float().mean() > 0.8
    reached = world.weights(problem.target) + head_change(far.minimize(world.decay), 3)
    np.testing.assert_allclose(reached, world.solution(), atol=1e-6)


def test_ridge_influence_is_exact_leave_one_out() -> None:
    world = RidgeWorld()
    effects = influence(linearized(world.problem), world.decay).effects
    for row in (0, 5, 30):
        alone = world.solution(np.delete(np.arange(world.n), row))
        made = head_change(effects[row], 1)[0]
        np.testing.assert_allclose(world.solution() + made, alone, atol=1e-6)


def test_logistic_influence_approaches_leave_one_out() -> None:
    world = LogisticWorld()
    effects = influence(linearized(world.problem), world.decay).effects
    for row in (0, 3, 50):
        truth = world.solution(np.delete(np.arange(world.n), row)) - world.solution()
        made = head_change(effects[row], 3)
        assert np.linalg.norm(made - truth) < 0.1 * np.linalg.norm(truth)


def test_leverage_is_what_classical_influence_leaves_out() -> None:
    """For a row far out, H^-1 g underestimates; the leave-one-out step does not."""
    world = RidgeWorld(n=12, d=4, n_forget=1)
    rows = linearized(world.problem)
    slope, curvature = rows.derivatives()
    right = rows.pull(slope) + world.decay * rows.weights
    classical = rows.solve(curvature, right.T, 12 * world.decay).T
    truth = world.retrained - world.solution()
    errors = [
        np.linalg.norm(head_change(e[0], 1)[0] - truth)
        for e in (influence(rows, world.decay).effects, classical)
    ]
    assert errors[0] < 1e-6 < 0.1 * np.linalg.norm(truth) < errors[1]


def test_group_effects_are_nearly_additive() -> None:
    """Predicted outputs after ten of 300 rows: no update, classical influence, sum of leave-one-out effects."""
    world = RidgeWorld(n=300, d=10, n_forget=10, decay=1e-6, noise=0.5)
    rows, forget = linearized(world.problem), torch.arange(10)
    retrained = rows.select(torch.arange(10, 300)).minimize(world.decay, steps=1)
    truth = (rows.predict(retrained) - rows.prediction)[:, 0]

    def rmse(predicted: Tensor) -> float:
        return float((predicted - truth).square().mean().sqrt())

    slope, curvature = rows.derivatives()
    classical = rows.jacobian @ rows.solve(curvature, rows.pull(slope).T, 300 * world.decay)[:, :10].sum(1)
    found = [
        rmse(v) for v in (torch.zeros_like(truth), classical, influence(rows, world.decay).removal(forget))
    ]
    assert found[2] < 0.7 * found[1] < 0.1 * found[0]


def test_contributions_have_the_sign_of_inclusion() -> None:
    """A row pulls its own prediction towards its target, so that including it raises it where it lies below."""
    world = RidgeWorld()
    rows = linearized(world.problem)
    found = influence(rows, world.decay)
    everything = found.contribution(torch.arange(world.n))
    assert everything.shape == (60, 60, 1)
    own = everything[range(60), range(60), 0]
    residual = (rows.batch.targets - rows.prediction)[:, 0, 0]
    # decay moves small ones the other way
    assert (own.sign() == residual.sign())[residual.abs() > 0.05].all()
    chosen = torch.tensor([3, 8])
    torch.testing.assert_close(found.removal(chosen), -everything[chosen].sum(0))


def test_trak_of_a_linear_model_is_the_influence_function() -> None:
    """Unprojected and undamped: x' (X'X)^-1 x_i (y_i - f_i)."""
    world = RidgeWorld(decay=0.0)
    rows = linearized(world.problem)
    made = trak(world.family, [world.problem.target], world.problem.batches("train"), dim=None)
    x = rows.jacobian[:, 0]
    residual = (rows.batch.targets - rows.prediction)[:, 0, 0]
    expected = x @ torch.linalg.inv(x.T @ x) @ x.T * residual
    torch.testing.assert_close(made.contribution(torch.arange(60))[:, :, 0].T, expected, atol=1e-7, rtol=1e-5)


def test_trak_of_a_classifier_by_its_definition() -> None:
    """Margin gradients by autograd of ln p - ln(1 - p), two models: features and Q averaged apart."""
    problem = tiny_problem("classifier")
    models = [problem.target, problem.fresh_model(5).eval()]
    batches = problem.batches("train")
    everything = batches.take(torch.arange(len(batches)))
    labels = everything.targets[:, 0]
    kernels, pulls = [], []
    for model in models:
        head = [model.head.weight, model.head.bias]  # pyright: ignore
        logits = model(everything.inputs["features"])
        # In double precision: 1 - p of a well-fitted row is nothing in single.
        p = logits.double().softmax(-1).gather(1, labels[:, None])[:, 0]
        margin = p.log() - (1 - p).log()

        def gradients(values: Tensor, head: list[Any] = head) -> Tensor:
            rows = [torch.autograd.grad(v, head, retain_graph=True) for v in values]
            return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double()

        phi = gradients(margin)
        kernel = phi.T @ phi
        inverse = torch.linalg.inv(kernel + 0.5 * kernel.trace() / len(kernel) * torch.eye(len(kernel)))
        kernels.append(gradients(logits[:, 2]) @ inverse @ phi.T)
        pulls.append(1 - p.detach().double())
    expected = torch.stack(kernels).mean(0) * torch.stack(pulls).mean(0)
    names = ["head.weight", "head.bias"]
    made = trak(problem.family, models, batches, names=names, dim=None, damping=0.5)
    found = made.contribution(torch.arange(len(batches)))[:, :, 2].T
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_projection_keeps_inner_products() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(6, 700, generator=rng, dtype=torch.float64)
    wide = project(x, 20_000, 1)
    torch.testing.assert_close(wide @ wide.T / 700, x @ x.T / 700, atol=0.05, rtol=0)
    assert torch.equal(project(x, 8, 1), project(x, 8, 1))
    assert not torch.equal(project(x, 8, 1), project(x, 8, 2))
    assert project(x, None, 1) is x


def test_calibration_worked_by_hand() -> None:
    predicted = torch.tensor([[[1.0]], [[2.0]], [[-1.0]]])
    actual = torch.tensor([[[2.0]], [[3.0]], [[-1.0]]])
    found = calibrate(predicted, actual)
    assert found.multiplier == pytest.approx(9 / 6)  # (2 + 6 + 1) / (1 + 4 + 1)
    assert found.r_squared == pytest.approx(1 - (0.25 + 0 + 0.25) / 14)
    assert found.lds == pytest.approx(1.0)
    nothing = calibrate(torch.zeros_like(predicted), actual)
    assert (nothing.multiplier, nothing.r_squared) == (0.0, 0.0)


def test_datamodeling_score_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 4, 2)), rng.normal(size=(9, 4, 2))
    y[:, 1, 1] = 0.5  # an output that no deletion changes has no rank
    found = calibrate(torch.from_numpy(x), torch.from_numpy(y)).lds
    flat = [(x[:, i, k], y[:, i, k]) for i in range(4) for k in range(2) if (i, k) != (1, 1)]
    assert found == pytest.approx(np.mean([spearmanr(a, b).statistic for a, b in flat]))


def test_attribution_predicts_retraining_of_the_logistic_world() -> None:
    """Ten of 400 rows at a time, where single effects nearly add up."""
    world = LogisticWorld(n=400)
    rows = linearized(world.problem)
    rng = np.random.default_rng(1)
    deletions = [np.sort(rng.permutation(world.n)[:10]) for _ in range(12)]
    before = world.logits(world.solution())
    actual = torch.from_numpy(
        np.stack([world.logits(world.solution(np.delete(np.arange(world.n), s))) - before for s in deletions])
    )
    kinds: dict[str, Attribution] = {
        "influence": influence(rows, world.decay),
        "trak": trak(world.problem.family, [world.problem.target], world.problem.batches("train"), dim=8, damping=0.1),
    }  # fmt: skip
    found = {}
    for name, kind in kinds.items():
        predicted = torch.stack([kind.removal(torch.from_numpy(s)) for s in deletions])
        found[name] = calibrate(predicted, actual)
    assert found["influence"].multiplier == pytest.approx(1, abs=0.1)
    assert found["influence"].r_squared > 0.97
    assert found["influence"].lds > 0.95
    assert found["influence"].lds > found["trak"].lds > 0.3


def test_refusals() -> None:
    problem = tiny_problem("classifier")
    with pytest.raises(BadInput, match="trak was asked for without a model"):
        trak(problem.family, [], problem.batches("train"))
    with pytest.raises(
        BadInput, match="96 gradients do not span 500 directions; lower dim or give a damping"
    ):
        trak(problem.family, [problem.target], problem.batches("train"), dim=500)
    with pytest.raises(BadInput, match="leave the curvature singular; give a weight decay above 0"):
        rows = linearized(problem).select(torch.arange(3))
        rows.solve(rows.derivatives()[1], rows.weights, 0.0)
    with pytest.raises(BadInput, match="more than 4 GiB; vary fewer weights, such as the head"):
        Linearized.of(problem.family, Wide(), problem.batches("train"))
    assert head_parameters(problem.family, problem.target) == ["head.weight", "head.bias"]


class Wide(nn.Module):
    """96 rows x 3 outputs x 3 million weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 400_000), nn.Linear(400_000, 3)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.first(features))
