"""What holds of every attack that changes weights, re-fits parts or reads hidden states."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from expunge.attacks import ATTACKS, Attack, Scene
from expunge.attacks.tampering import some_rows
from expunge.families.combined import Combined, Mean
from expunge.methods.base import Workplace
from expunge.metrics.base import with_reference
from expunge.testing.problems import tiny_problem

NAMES = (
    "quantization",
    "pruning",
    "relearning",
    "linear-probe",
    "head-refit",
    "logit-lens",
    "direction-ablation",
)
CASES = [
    (n, f)
    for n in NAMES
    for f in ("classifier", "regressor", "causal_lm")
    if f in (ATTACKS[n].families or {f})
]


def made(name: str) -> Attack:
    few = {"relearning": {"budget": 4}, "linear-probe": {"permutations": 2}, "head-refit": {"iterations": 5}}
    return ATTACKS[name](**few.get(name, {}))


@pytest.mark.parametrize(("name", "family"), CASES)
def test_a_model_gains_nothing_over_itself(name: str, family: str) -> None:
    """Zero to the last bit, for the rows that are asked about do not depend on the seed."""
    problem = tiny_problem(family)
    attack = made(name)
    # Only the order of training rows and of shuffled answers are drawn.
    other = 0 if name in ("relearning", "linear-probe") else 5
    one, two = (
        attack.attack(Scene(problem, copy.deepcopy(problem.target), Workplace(seed=s))) for s in (0, other)
    )
    for ours, theirs in zip(one, two, strict=True):
        score = with_reference(ours, [theirs])
        assert score.reference is not None and score.reference.gap == 0, ours.metric


@pytest.mark.parametrize(("name", "family"), CASES)
def test_a_model_that_has_diverged_has_no_number(name: str, family: str) -> None:
    problem = tiny_problem(family)
    model = copy.deepcopy(problem.target)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    for score in made(name).attack(Scene(problem, model)):
        assert (
            score.value is None
            and score.reason == "the model has weights that are not finite; it has diverged"
        )


@pytest.mark.parametrize("name", NAMES)
def test_models_that_are_composed_of_several_are_attacked_too(name: str) -> None:
    problem = tiny_problem("causal_lm")
    model = Combined([copy.deepcopy(problem.target) for _ in range(2)], Mean())
    scores = made(name).attack(Scene(problem, model))
    assert {s.status for s in scores} == {"ok"}
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_a_training_that_diverges_is_said() -> None:
    problem = tiny_problem("regressor")
    found = ATTACKS["relearning"](lr=1e6, budget=200).attack(Scene(problem, problem.target))  # type: ignore[call-arg]
    assert all(s.value is None and "diverged at step" in s.reason for s in found)


def test_few_retained_rows_are_the_same_for_every_seed() -> None:
    problem = tiny_problem("classifier")
    chosen = [some_rows(Scene(problem, problem.target, Workplace(seed=s)), "retain", 10).ids for s in (0, 1)]
    assert chosen[0] == chosen[1] and len(chosen[0]) == 10 and set(chosen[0]) <= set(problem.retain["id"][:])


def test_without_retained_rows_there_is_no_control() -> None:
    problem = tiny_problem("classifier")
    bare = replace(problem, train=problem.forget)
    found = {s.metric: s for s in made("relearning").attack(Scene(bare, problem.target))}
    assert found["relearning-retain"].status == "undefined" and found["relearning-knowledge"].status == "ok"
    related = ATTACKS["relearning"](data="related").attack(Scene(bare, problem.target))  # type: ignore[call-arg]
    assert {s.reason for s in related} == {
        "the problem has no 'retain' data, of which the related rows are taken"
    }
