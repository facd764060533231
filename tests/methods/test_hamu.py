"""HAMU: worked steps, random feasible rivals, the loop's combination of gradients, and a convex world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.models import clone
from expunge.methods import METHODS, Workplace, checkpoint
from expunge.methods.gradient_difference import GradientDifference
from expunge.methods.hamu import HAMU, Products, Solution, solve
from expunge.methods.objective import Objective, Pass, State, Step
from expunge.oracles import RidgeWorld
from expunge.problem import Problem


def step(a: list[float], b: list[float], gain: float, radius: float = 1.0) -> tuple[Tensor, Solution]:
    a_, b_ = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    numbers = torch.tensor([[gain], [radius]], dtype=torch.float64)
    found = solve(Products.of([a_], [b_]), *numbers)
    return found.along_a * a_ + found.along_b * b_, found


ROOT = 2**-0.5


@pytest.mark.parametrize(("forget", "gain", "expected", "branch"), [
    ([1, 1], 0.0, [-ROOT, ROOT], "rectified"),
    ([1, 1], 0.5, [-0.41144, 0.91144], "rectified"),  # (1 -+ sqrt(7)) / 4
    ([1, 1], 1.0, [0, 1], "rectified"),  # kappa: the retain loss just does not rise
    ([1, 1], 1.5, [0.75, 0.75], "infeasible"),  # 1 - 1.5^2 / 2 = -0.125
    ([-1, 1], 1.0, [-1, 0], "direct"),
    ([-1, 1], 0.0, [-1, 0], "direct"),
    ([2, 0], 1.0, [0.5, 0], "parallel"),
    ([0, 0], 1.0, [0, 0], "infeasible"),
    ([0, 0], 0.0, [-1, 0], "direct"),
])  # fmt: skip
def test_steps_worked_by_hand(forget: list[float], gain: float, expected: list[float], branch: str) -> None:
    """Retain gradient (1, 0), radius 1."""
    made, found = step([1, 0], forget, gain)
    torch.testing.assert_close(made, torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0)
    assert bool(found.direct) == (branch == "direct")
    assert bool(found.infeasible) == (branch == "infeasible")


@pytest.mark.parametrize(
    ("forget", "kappa"), [([1, 1], 1.0), ([0, 3], 3.0), ([-1, 1], 2**0.5), ([2, 0], 0.0)]
)
def test_kappa_is_the_largest_gain_that_costs_nothing(forget: list[float], kappa: float) -> None:
    assert step([1, 0], forget, 0.1)[1].kappa.item() == pytest.approx(kappa)
    for gain in np.linspace(0.01, 0.99, 9) * np.hypot(*forget):
        made, _ = step([1, 0], forget, float(gain))
        assert (made[0].item() > 1e-9) == (gain > kappa + 1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_no_feasible_step_does_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=3), rng.normal(size=3)
    radius = float(rng.uniform(0.5, 2))
    gain = float(rng.uniform(0, 0.95)) * radius * float(np.linalg.norm(b))
    made, found = step(a.tolist(), b.tolist(), gain, radius)
    assert not found.infeasible
    assert b @ made.numpy() >= gain - 1e-9
    assert made.norm() <= radius + 1e-9
    rivals = rng.normal(size=(10_000, 3))
    rivals *= (radius * rng.uniform(size=(10_000, 1)) ** (1 / 3)) / np.linalg.norm(
        rivals, axis=1, keepdims=True
    )
    rivals = np.concatenate([rivals, radius * rivals / np.linalg.norm(rivals, axis=1, keepdims=True)])
    feasible = rivals[rivals @ b >= gain]
    assert len(feasible) > 20
    assert (a @ made.numpy()) <= (feasible @ a).min() + 1e-9


def test_the_branches_meet_where_descent_alone_just_gains_enough() -> None:
    for angle in (1.9, 2.4, 3.0):
        b = [2 * np.cos(angle), 2 * np.sin(angle)]
        boundary = -b[0]  # a = (1, 0) with radius 1 gains -a.b
        below, under = step([1, 0], b, boundary - 1e-10)
        above, over = step([1, 0], b, boundary + 1e-10)
        assert under.direct
        assert not over.direct
        torch.testing.assert_close(below, above, atol=1e-4, rtol=0)


def test_nearly_parallel_gradients_keep_the_radius() -> None:
    """What is left of a beside b is 1e-4 of it, its square 1e-8: lost in single precision, not in double."""
    made, _ = step([1.0, 1e-4], [1.0, 0.0], 0.1, 1.0)
    assert made.norm().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(made, torch.tensor([0.1, -(0.99**0.5)]).double(), atol=1e-6, rtol=0)


def test_shares_of_the_gain() -> None:
    products = Products(*torch.tensor([[1.0, 4.0], [0.0, 1.0], [9.0, 1.0]]).double())
    assert products.shares("equal").tolist() == [0.5, 0.5]
    assert products.shares("gradients").tolist() == [0.6, 0.4]  # 1*3 and 2*1
    expected = [1 / (1 + np.exp(-1)), np.exp(-1) / (1 + np.exp(-1))]
    assert products.shares("alignment").tolist() == pytest.approx(expected)
    nothing = Products(torch.zeros(4), torch.zeros(4), torch.ones(4))
    assert nothing.shares("gradients").tolist() == [0.25] * 4


@pytest.fixture
def both(classification: Problem, tensors: Any, gradient: Any) -> dict[str, dict[str, Tensor]]:
    """Gradients of mean retain and forget loss at the target, by plain autograd."""
    found = {}
    for split in ("retain", "forget"):
        x, y = tensors(classification, split)
        found[split] = gradient(
            classification.target, nn.functional.cross_entropy(classification.target(x), y)
        )
    return found


def flat(values: dict[str, Tensor]) -> np.ndarray:
    return torch.cat([v.flatten() for v in values.values()]).double().numpy()


def test_one_step_for_the_whole_model(
    classification: Problem, both: dict[str, dict[str, Tensor]], step_gradient: Any
) -> None:
    """D = -gradient at lr 1: gains exactly B, is as long as g_r, and beats every other such step."""
    retain, forget = flat(both["retain"]), flat(both["forget"])
    gain = 0.3 * np.linalg.norm(retain) * np.linalg.norm(forget)
    moved = -flat(step_gradient(classification, "hamu", ratio=gain, blocks="model", max_norm=None))
    assert forget @ moved == pytest.approx(gain, rel=1e-3)
    assert np.linalg.norm(moved) == pytest.approx(np.linalg.norm(retain), rel=1e-3)
    perpendicular = retain - (retain @ forget) / (forget @ forget) * forget
    left = retain @ retain - gain**2 / (forget @ forget)
    value = gain * (retain @ forget) / (forget @ forget) - np.sqrt(left) * np.linalg.norm(perpendicular)
    assert retain @ moved == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("form", ["Q", "U"])
def test_one_step_tensor_by_tensor(
    form: str, classification: Problem, both: dict[str, dict[str, Tensor]], step_gradient: Any
) -> None:
    """Each tensor solves its own problem with its share of B; form U is form Q of (-g_f, -g_r)."""
    a = both["retain"] if form == "Q" else {k: -v for k, v in both["forget"].items()}
    b = both["forget"] if form == "Q" else {k: -v for k, v in both["retain"].items()}
    weight = {k: float(a[k].norm() * b[k].norm()) for k in a}
    gain = 0.5 * sum(weight.values())
    found = step_gradient(classification, "hamu", form=form, ratio=gain, max_norm=None)
    for name, made in found.items():
        share = gain * weight[name] / sum(weight.values())
        expected, _ = step(
            a[name].flatten().tolist(), b[name].flatten().tolist(), share, float(a[name].norm())
        )
        torch.testing.assert_close(-made.flatten().double(), expected, atol=2e-6, rtol=1e-4)


def test_gradients_are_clipped_one_by_one(
    classification: Problem, both: dict[str, dict[str, Tensor]], step_gradient: Any
) -> None:
    small = 0.1 * min(np.linalg.norm(flat(both["retain"])), np.linalg.norm(flat(both["forget"])))
    moved = -flat(step_gradient(classification, "hamu", ratio=0.0, blocks="model", max_norm=small))
    assert np.linalg.norm(moved) == pytest.approx(small, rel=1e-3)  # R = ||clipped g_r||


def test_log_and_stop(classification: Problem, both: dict[str, dict[str, Tensor]]) -> None:
    retain, forget = flat(both["retain"]), flat(both["forget"])
    lengths = np.linalg.norm(retain) * np.linalg.norm(forget)
    angle = float(np.degrees(np.arccos(retain @ forget / lengths)))
    settings: dict[str, Any] = {
        "epochs": 3, "lr": 0.1, "batch_size": 1000, "blocks": "model", "max_norm": None
    }  # fmt: skip
    kappa = lengths * (np.sin(np.radians(angle)) if angle < 90 else 1.0)
    made = HAMU(**settings, ratio=2 * kappa, stop="conflict").forget(classification)
    assert len(made.log) == 1
    assert made.log[0]["angle"] == pytest.approx(angle, abs=1e-2)
    assert made.log[0]["kappa"] == pytest.approx(0.1 * kappa, rel=1e-4)
    assert made.log[0]["gain"] == pytest.approx(0.2 * kappa, rel=1e-4)
    assert made.cost.changed == 0
    assert made.notes[0].startswith("stopped at step 1 of 3: the required gain of ")
    assert made.notes[0].endswith("so that both losses cannot improve together")
    assert f"enclose {angle:.1f} degrees (mean of 1 steps" in made.notes[1]
    going = HAMU(**settings, ratio=2 * kappa).forget(classification)
    assert len(going.log) == 3
    assert going.cost.changed > 0
    infeasible = HAMU(**settings, ratio=2 * lengths, stop="infeasible").forget(classification)
    assert "1 of 1 blocks cannot gain" in infeasible.notes[0]
    assert not any("not guaranteed" in note for note in infeasible.notes)
    adam = HAMU(epochs=1, optimizer="adam").forget(classification)
    assert "not guaranteed" in adam.notes[-1]


class Interrupted(Exception):
    pass


def test_an_interrupted_run_ends_with_the_same_weights_and_counts(
    classification: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    method = HAMU(epochs=2, batch_size=8)
    whole = method.forget(classification)

    def interrupt(entry: Any) -> None:
        if entry["step"] == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        method.forget(classification, Workplace(checkpoint=tmp_path / "run", on_step=interrupt))
    resumed = method.forget(classification, Workplace(checkpoint=tmp_path / "run"))
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert "(mean of 8 steps" in whole.notes[0]
    assert resumed.notes == whole.notes


def test_learning_rate_zero_changes_nothing(classification: Problem) -> None:
    assert HAMU(lr=0.0, radius=0.1, epochs=1).forget(classification).cost.changed == 0


def test_ridge_approaches_the_retrained_solution_where_nothing_conflicts() -> None:
    """At the joint optimum the gradients are opposite; with B = 0 every step is descent on the retain loss."""
    world = RidgeWorld(decay=0.0)
    made = HAMU(ratio=0.0, epochs=400, lr=0.1, batch_size=world.n, max_norm=None, blocks="model").forget(
        world.problem
    )
    assert all(entry["direct"] == 1.0 for entry in made.log[:-50])
    assert made.log[0]["angle"] == pytest.approx(180, abs=0.1)
    assert np.linalg.norm(world.solution() - world.retrained) > 0.1
    np.testing.assert_allclose(world.weights(made.model), world.retrained, atol=1e-4)


class Weighted(Objective):
    """Gradient difference by combination of gradients."""

    def passes(self, epoch: int) -> list[Pass]:
        return [Pass("retain", paired="forget")]

    def loss(self, step: Step) -> dict[str, Tensor]:
        return {
            s: step.mean(s, step.family.nll(step.outputs(s), step.batch(s))) for s in ("retain", "forget")
        }

    def combine(
        self, gradients: dict[str, list[Tensor]], lr: float, state: State, terms: dict[str, Tensor]
    ) -> list[Tensor]:
        terms["lr_seen"] = torch.tensor(lr)
        pairs = zip(gradients["retain"], gradients["forget"], strict=True)
        return [0.95 * r - 0.05 * f for r, f in pairs]


@pytest.mark.parametrize("more", [{}, {"micro_batch_size": 3}, {"clip": 0.01}])
def test_a_combination_that_is_a_sum_is_the_sum_of_the_losses(classification: Problem, more: Any) -> None:
    settings = {"epochs": 2, "lr": 0.05, "batch_size": 8, **more}
    combined = run(Weighted(**settings), classification)
    summed = GradientDifference(alpha=0.95, **settings).forget(classification).model
    for a, b in zip(combined[0].parameters(), summed.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert combined[1].log[0]["lr_seen"] == pytest.approx(0.05)


def run(objective: Objective, problem: Problem) -> tuple[nn.Module, Workplace]:
    workplace = Workplace(seed=0)
    return objective.produce(problem, clone(problem.target), workplace), workplace


def test_the_default_combination_is_the_sum(classification: Problem) -> None:
    state = State(classification, {}, Workplace())
    made = GradientDifference().combine(
        {"x": [torch.tensor([1.0, 2.0])], "y": [torch.tensor([0.5, -5.0])]}, 0.1, state, {}
    )
    assert [m.tolist() for m in made] == [[1.5, -3.0]]


class Patient(Objective):
    """Fine-tuning that stops after its third step."""

    def loss(self, step: Step) -> dict[str, Tensor]:
        return {"nll": step.mean("forget", step.family.nll(step.outputs("forget"), step.forget))}

    def after_step(self, model: nn.Module, state: State, progress: float) -> None:
        state.kept["n"] = state.kept.get("n", torch.zeros(())) + 1
        if state.kept["n"] == 3:
            state.stop("three are enough")


def test_an_objective_ends_its_run(classification: Problem) -> None:
    _, stopped = run(Patient(epochs=9, batch_size=5), classification)
    assert len(stopped.log) == 3
    assert stopped.notes == ["stopped at step 3 of 18: three are enough"]
    assert all(isinstance(entry["nll"], float) for entry in stopped.log)


def test_half_precision_with_scaled_losses_is_refused(
    classification: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scaling:
        def __init__(self, **_: Any) -> None:
            self.scaler = object()

    monkeypatch.setattr("expunge.methods.loop.Accelerator", Scaling)
    with pytest.raises(
        BadInput, match=r"'hamu' combines gradients .* precision 'fp16' would scale; use 'bf16'"
    ):
        METHODS["hamu"](precision="fp16", epochs=1).forget(classification)
