"""EDiff: the multiplier against a solver, and what the constraint does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from expunge.evidence import collect
from expunge.families.models import clone, fingerprint
from expunge.methods.base import Workplace
from expunge.methods.denoiser_parts import trainable_part
from expunge.methods.ediff import EDiff
from expunge.methods.objective import State
from expunge.problem import Problem
from expunge.testing.problems import tiny_problem


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny_problem("diffusion")


def combined(
    method: EDiff, f: list[float], q: list[float], h: float = 1.0, reached: float = 0.0
) -> tuple[list[float], float]:
    state = cast(State, type("Kept", (), {"kept": {"reached": torch.tensor(reached)}})())
    terms = {"substitute": torch.tensor(h)}
    found = method.combine({"retain": [torch.tensor(f)], "substitute": [torch.tensor(q)]}, 0.1, state, terms)
    return found[0].tolist(), float(terms["lambda"])


def test_the_multiplier_worked_by_hand() -> None:
    # <f, q> = -1, |q|^2 = 2, phi = 0.5 * 2 = 1, lambda = (1 + 1) / 2.
    assert combined(EDiff(), [1.0, 0.0], [-1.0, 1.0]) == ([0.0, 1.0], 1.0)
    # f alone takes q down by more than is asked.
    assert combined(EDiff(), [1.0, 1.0], [1.0, 1.0]) == ([1.0, 1.0], 0.0)
    # phi = 0.5 * (0.8 - 0.2) = 0.3, lambda = (0.3 + 1) / 2.
    value = combined(EDiff(margin="value"), [1.0, 0.0], [-1.0, 1.0], h=0.8, reached=0.2)
    assert value[1] == pytest.approx(0.65) and value[0] == pytest.approx([0.35, 0.65])
    # Below h* nothing is asked but that h gets no worse.
    assert combined(EDiff(margin="value"), [0.0, 1.0], [0.0, -1.0], h=0.1, reached=0.2) == ([0.0, 0.0], 1.0)
    assert combined(EDiff(form="fixed", alpha=0.1), [1.0, 0.0], [-1.0, 1.0])[0] == pytest.approx([0.9, 0.1])
    assert combined(EDiff(), [1.0, 2.0], [0.0, 0.0]) == ([1.0, 2.0], 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_the_step_is_the_nearest_that_meets_the_constraint(seed: int) -> None:
    random = np.random.default_rng(seed)
    f, q = random.normal(size=3), random.normal(size=3)
    phi = 0.5 * q @ q
    solved = minimize(
        lambda d: ((d - f) ** 2).sum(),
        f,
        constraints={"type": "ineq", "fun": lambda d: q @ d - phi},
        tol=1e-10,
    )
    found = combined(EDiff(), f.tolist(), q.tolist())[0]
    assert found == pytest.approx(solved.x, abs=1e-4) and q @ np.asarray(found) >= phi - 1e-5


def moved(problem: Problem, **settings: Any) -> torch.Tensor:
    plain = {"epochs": 1, "lr": 1e-2, "optimizer": "sgd", "batch_size": 100}
    made = EDiff(**{**plain, **settings}).forget(problem, Workplace(seed=1))
    pairs = zip(made.model.parameters(), problem.target.parameters(), strict=True)
    return torch.cat([(a - b).detach().double().flatten() for a, b in pairs])


def test_without_another_prompt_it_is_training_on_retain_rows(problem: Problem) -> None:
    same = problem.train.map(lambda row: {"anchor_prompt": row["prompt"]})
    bare = replace(problem, train=same).with_model(problem.target)
    assert torch.equal(moved(bare), moved(bare, form="fixed", alpha=0.0))
    assert float(moved(bare).norm()) > 0


def test_a_small_step_takes_the_constraint_down_at_the_rate(problem: Problem) -> None:
    """h before less h after is lr <grad q, d> to first order, and <grad q, d> is phi at least."""
    family, model = problem.family, clone(problem.target)
    forget, retain = (problem.batches(s).take(torch.arange(16)) for s in ("forget", "retain"))
    with torch.no_grad():
        anchored = {**forget.inputs, "input_ids": forget.inputs["anchor_ids"]}
        wanted = family.forward(problem.target, replace(forget, inputs=anchored))
    trained = [p for n, p in model.named_parameters() if n in trainable_part(model, "x")]

    def h() -> torch.Tensor:
        return family.divergence(wanted, family.forward(model, forget), forget).mean()

    f = family.nll(family.forward(model, retain), retain).mean()
    before = h()
    slopes = {
        "substitute": list(torch.autograd.grad(before, trained)),
        "retain": list(torch.autograd.grad(f, trained)),
    }
    state, terms = cast(State, None), {"substitute": before.detach()}
    step = EDiff(eta=0.5).combine(slopes, 0.1, state, terms)
    phi = 0.5 * sum(float(q.square().sum()) for q in slopes["substitute"])
    lr = 1e-3
    with torch.no_grad():
        for parameter, along in zip(trained, step, strict=True):
            parameter -= lr * along
        gained = float(before - h()) / lr
    assert gained == pytest.approx(phi, rel=0.05) and float(terms["lambda"]) > 0


def test_the_value_is_found_on_a_copy(problem: Problem) -> None:
    method = EDiff(epochs=1, lr=1e-2, margin="value", batch_size=100, inner_epochs=4)
    state = State(problem, {}, Workplace(seed=1))
    before = fingerprint(problem.target)
    reached = method.reached(problem.target, state, 0)
    assert fingerprint(problem.target) == before and not state.workplace.log
    start = method.forget(problem, Workplace(seed=1)).log[0]["substitute"]
    assert 0 < float(reached) < start


@pytest.mark.parametrize("margin", ["gradient", "value"])
def test_ediff_erases_and_changes_only_its_part(problem: Problem, margin: str) -> None:
    made = EDiff(lr=3e-3, epochs=30, teacher="target", eta=2.0, margin=margin).forget(
        problem, Workplace(seed=3)
    )

    def seen(split: str) -> float:
        evidence = collect(problem.family, made.model, problem.splits[split], ["concept_correct"])
        return float(evidence["concept_correct"].mean())

    assert made.log[-1]["substitute"] < 0.3 * made.log[0]["substitute"]
    assert seen("concept") < 0.5 and seen("test") > 0.8
    before, after = dict(problem.target.named_parameters()), dict(made.model.named_parameters())
    assert {n for n in before if not torch.equal(before[n], after[n])} == trainable_part(problem.target, "x")
