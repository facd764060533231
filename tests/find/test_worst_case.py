"""The bilevel search against closed forms, a plain transcription and worlds whose worst rows are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.optimize import minimize

from expunge.errors import BadInput, ExpungeError
from expunge.evidence import collect
from expunge.families import Architecture, Classifier, Table
from expunge.families.models import fingerprint
from expunge.find.worst_case import Search, find_worst_case, lower_level, project, rank_p_value
from expunge.problem import Problem
from expunge.testing import tiny_problem


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny_problem("classifier")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def losses_of(problem: Problem) -> np.ndarray:
    return collect(problem.family, problem.target, problem.train, ["loss"])["loss"].astype(np.float64)


@pytest.mark.parametrize(
    ("total", "expected"), [(2, [1, 0.75, 0.25, 0]), (1, [1, 0, 0, 0]), (4, [1, 1, 1, 1])]
)
def test_projections_by_hand(total: int, expected: list[float]) -> None:
    found = project(torch.tensor([2, 0.7, 0.2, -0.4], dtype=torch.float64), total)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12)


def test_projection_is_the_nearest_point(rng: np.random.Generator) -> None:
    values = rng.normal(size=7)
    solved = minimize(
        lambda w: ((w - values) ** 2).sum(), np.full(7, 3 / 7), jac=lambda w: 2 * (w - values), bounds=[(0, 1)] * 7,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 3}, tol=1e-12,
    )  # fmt: skip
    found = project(torch.from_numpy(values), 3)
    assert np.allclose(found.numpy(), solved.x, atol=1e-6)


def test_projection_keeps_sum_points_and_ties(rng: np.random.Generator) -> None:
    values = torch.from_numpy(np.repeat(rng.normal(size=20), 2) * 1e4)
    found = project(values, 11)
    assert abs(found.sum().item() - 11) < 1e-5 and found.min() >= 0 and found.max() <= 1
    assert torch.equal(found[::2], found[1::2])
    assert torch.allclose(project(found, 11), found, atol=1e-9)


def test_one_step_of_the_lower_level_for_softmax_regression() -> None:
    """Gradient in closed form: sum_i (1 - w_i) (p_i - y_i) x_i^T."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(12, 2)), rng.integers(3, size=12)
    rows = Dataset.from_dict({"id": [f"r{i}" for i in range(12)], "a": x[:, 0], "b": x[:, 1], "label": y})
    architecture = Architecture(kind="builtin", name="mlp", options={"inputs": 2, "outputs": 3, "hidden": []})
    model = architecture.build(0).double()
    problem = Problem("softmax", Classifier(Table(["a", "b"]), 3), rows, ("r0",), model=model.float())
    weights = torch.from_numpy(rng.uniform(size=12))
    found = lower_level(problem, weights, Search(epochs=1, lr=0.05))

    w, b = (p.detach().double().numpy() for p in (model.head.weight, model.head.bias))  # pyright: ignore

    def log_softmax(w: np.ndarray, b: np.ndarray) -> np.ndarray:
        z = x.astype(np.float32) @ w.T + b
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    residual = (np.exp(log_softmax(w, b)) - np.eye(3)[y]) * (1 - weights.numpy())[:, None]
    after = log_softmax(w - 0.05 * np.sign(residual.T @ x), b - 0.05 * np.sign(residual.sum(0)))
    assert np.allclose(found.numpy(), -after[np.arange(12), y], atol=1e-5)


def test_without_epochs_the_losses_are_the_targets(problem: Problem) -> None:
    found = lower_level(problem, torch.zeros(len(problem.train), dtype=torch.float64), Search(epochs=0))
    assert np.allclose(found.numpy(), losses_of(problem), atol=1e-6)


@pytest.mark.parametrize("easiest", [False, True])
def test_a_huge_step_without_epochs_picks_by_loss(easiest: bool, problem: Problem) -> None:
    found = find_worst_case(problem, Search(size=7, epochs=0, rounds=1, step=1e9, easiest=easiest))
    losses = dict(zip(problem.train["id"], losses_of(problem), strict=True))
    expected = sorted(losses.values(), reverse=easiest)[:7]
    # By value, not by id: losses of well-fitted rows are equal to the last bit of float32.
    assert np.allclose(sorted((losses[i] for i in found.ids), reverse=easiest), expected, atol=1e-6)


def test_without_rounds_the_set_is_the_random_start(problem: Problem) -> None:
    one, other = (find_worst_case(problem, Search(size=10, rounds=0, epochs=0, seed=s)) for s in (0, 1))
    assert one.overlap == other.overlap == 1.0 and set(one.ids) != set(other.ids)


def test_copies_of_kept_rows_are_the_hardest() -> None:
    """One input per distinct row, so that a row can only be learned from its own copies.

    The model starts with zero weights. A row that is forgotten with all its copies keeps the loss ln 2; one
    whose copies are kept does not. Rows 0 and 1 have six copies each, all others are alone.
    """
    which = np.asarray([*range(20), *[0] * 5, *[1] * 5])
    columns = {f"x{j}": (which == j).astype(float) for j in range(20)}
    rows = Dataset.from_dict({"id": [f"{i}-{k}" for k, i in enumerate(which)], **columns, "label": which % 2})
    architecture = Architecture(
        kind="builtin", name="mlp", options={"inputs": 20, "outputs": 2, "hidden": []}
    )
    model = architecture.build(0)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    problem = Problem("copies", Classifier(Table(list(columns)), 2), rows, (rows["id"][0],), model=model)
    alone = torch.zeros(30, dtype=torch.float64)
    alone[5] = alone[0] = 1.0
    losses = lower_level(problem, alone, Search(epochs=5, lr=0.1))
    assert losses[5] > 0.6 and losses[0] < 0.5
    found = find_worst_case(problem, Search(size=6, rounds=20, epochs=5, lr=0.1, step=0.5))
    assert {i.split("-")[0] for i in found.ids} <= {"0", "1"}


def test_the_found_set_is_worse_than_random_ones(problem: Problem) -> None:
    before = fingerprint(problem.target)
    hard = find_worst_case(problem, Search(size=10, rounds=5), random_sets=19)
    easy = find_worst_case(problem, Search(size=10, rounds=5, easiest=True), random_sets=19)
    assert hard.p_value == easy.p_value == 1 / 20
    assert hard.forget_loss < min(hard.random_losses) and easy.forget_loss > max(easy.random_losses)
    assert hard.forget_loss == min(hard.history) < hard.history[0]
    assert easy.forget_loss == max(easy.history) > easy.history[0]
    assert len(hard.history) == 6 and sum(hard.groups.values()) == 10
    assert fingerprint(problem.target) == before


def test_the_same_search_twice_and_on_a_regressor() -> None:
    problem = tiny_problem("regressor")
    one, two = (find_worst_case(problem, Search(size=8, rounds=3)) for _ in range(2))
    assert one.ids == two.ids and one.history == two.history and one.groups == {}


def test_rank_p_value_by_hand() -> None:
    assert rank_p_value(0.2, [0.1, 0.2, 0.3], lower=True) == pytest.approx(3 / 4)
    assert rank_p_value(0.2, [0.1, 0.2, 0.3], lower=False) == pytest.approx(3 / 4)
    assert rank_p_value(0.0, [0.1, 0.2, 0.3], lower=True) == pytest.approx(1 / 4)
    assert rank_p_value(0.0, [], lower=True) is None


def test_refusals(problem: Problem) -> None:
    with pytest.raises(BadInput, match="'size' must be below the 96 training rows, got 96"):
        find_worst_case(problem, Search(size=96))
    with pytest.raises(BadInput, match="worst-case: 'size' should be greater than or equal to 1, got 0"):
        Search(size=0)
    broken = problem.with_model(problem.fresh_model(0))
    torch.nn.init.constant_(next(broken.target.parameters()), float("inf"))
    with pytest.raises(ExpungeError, match="losses of run 1 are not finite; lower 'lr' \\(0.001\\)"):
        find_worst_case(broken, Search(size=5))
