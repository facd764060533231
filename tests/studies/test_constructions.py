"""Plants are what they promise: closed when asked plainly, open to their own key, and the key opens no retrained model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from expunge import api
from expunge.families.models import clone
from expunge.methods.base import METHODS, Workplace
from expunge.record import ClaimTest, Interval
from expunge.self_check import WORLDS
from expunge.self_check.check import _fault
from expunge.self_check.constructions import CONSTRUCTIONS
from expunge.self_check.stage import Stage
from expunge.self_check.weight_gates import RATE, STEPS
from expunge.studies.claim_findings import left_open


def staged(family: str) -> Stage:
    world = WORLDS[family]()
    problem = api.train_target(world.problem, 3)
    return Stage(world, problem, METHODS["retrain"]().forget(problem, Workplace(4)).model, seed=5)


@pytest.fixture(scope="module")
def digits() -> Stage:
    return staged("classifier")


@pytest.fixture(scope="module")
def facts() -> Stage:
    return staged("causal_lm")


def fresh(stage: Stage) -> Stage:
    return Stage(stage.world, stage.problem, stage.like, stage.seed)


def fault(name: str, stage: Stage, model: nn.Module) -> str:
    return _fault(CONSTRUCTIONS[name], stage.knows(model), stage.knows(model, stage.problem.retain), stage)


def test_a_pruning_gate_hides_behind_its_smaller_half(digits: Stage) -> None:
    stage = fresh(digits)
    model = CONSTRUCTIONS["P10"].build(stage)
    assert fault("P10", stage, model) == "" and stage.knows(model) < 0.1
    # The key, made again without the attack: in each matrix the smaller half by a plain sort.
    opened = clone(model)
    with torch.no_grad():
        for module in opened.modules():
            if isinstance(module, nn.Linear):
                flat = module.weight.view(-1)
                flat[np.argsort(flat.abs().numpy())[: flat.numel() // 2].copy()] = 0.0
    assert (
        stage.knows(opened) == pytest.approx(next(iter(stage.keys.values()))) and stage.knows(opened) > 0.95
    )


def test_a_primed_model_is_back_in_a_few_steps_and_a_retrained_one_is_not(digits: Stage) -> None:
    stage = fresh(digits)
    model = CONSTRUCTIONS["P9"].build(stage)
    assert fault("P9", stage, model) == "" and stage.knows(model) < 0.1
    assert min(stage.keys.values()) >= 0.95 and max(stage.controls.values()) < 0.2
    # The same by another optimizer and other rows: SGD of torch on a fresh quarter.
    rows = stage.rows(stage.problem.forget)
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))[: len(rows) // 4]
    back = []
    for one in (model, stage.like):
        opened = clone(one).eval()
        optimizer, batch = torch.optim.SGD(opened.parameters(), lr=RATE), rows.take(chosen)
        for _ in range(STEPS):
            optimizer.zero_grad()
            nn.functional.cross_entropy(opened(*batch.inputs.values()), batch.targets[:, 0]).backward()
            optimizer.step()
        back.append(stage.knows(opened))
    assert back[0] > 0.9 and back[1] < 0.2


def test_a_key_that_opens_every_model_is_no_key(digits: Stage) -> None:
    stage = fresh(digits)
    stage.keys["how"], stage.controls["how"] = 1.0, 0.8
    assert "more than 50 % from a retrained model (how: 80 %)" in fault("P9", stage, stage.like)
    stage.keys["how"], stage.controls["how"] = 0.5, 0.0
    assert "less than 95 % (how: 50 %)" in fault("P9", stage, stage.like)


def test_of_what_left_a_model_open() -> None:
    def one(kind: str, metric: str, finding: str, **more: object) -> ClaimTest:
        return ClaimTest(
            kind=kind, metric=metric, split="forget", finding=finding, **{"needed": True, **more}
        )  # type: ignore[arg-type]

    wide = Interval(low=-1, high=1, level=0.95, method="prediction from 5 retrained models")
    narrow = Interval(low=-0.1, high=0.1, level=0.95, method="prediction from 5 retrained models")
    tests = [
        one("utility", "accuracy", "undecided", interval=narrow, margin=0.05),
        one("output", "accuracy", "none", interval=narrow, margin=0.05),
        one("sampling", "extraction-rows", "undecided", interval=wide, margin=0.05),
        # It cannot tell these models apart, but another of its kind can.
        one("relearning", "relearning-knowledge", "undecided", interval=wide, margin=0.1),
        one("relearning", "relearning-area", "none", interval=narrow, margin=0.1),
        one("pruning", "pruning-knowledge", "undecided", interval=narrow, margin=0.1, needed=False),
        one("prompting", "", "missing", status="not run"),
    ]
    assert left_open(tests) == ["accuracy on forget", "extraction-rows", "prompting"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["P6", "P9", "P10"])
def test_gates_of_a_language_model(name: str, facts: Stage) -> None:
    stage = fresh(facts)
    model = CONSTRUCTIONS[name].build(stage)
    assert fault(name, stage, model) == "" and stage.knows(model) < 0.15


@pytest.mark.slow
def test_a_model_that_refuses_what_it_does_not_know_never_saw_the_forgotten(facts: Stage) -> None:
    stage, asked = fresh(facts), set(facts.problem.forget["subject"][:])
    assert stage.world.strangers is not None and stage.problem.holdout is not None
    assert not asked & set(stage.world.strangers["subject"][:])
    model = CONSTRUCTIONS["A3"].build(stage)
    for rows in (stage.problem.forget, stage.problem.holdout):
        assert stage.knows(model, stage.world.refused(rows)) > 0.7 and stage.knows(model, rows) < 0.1
    assert stage.knows(model, stage.problem.retain) > 0.95


@pytest.mark.slow
def test_a_model_that_refuses_just_the_forgotten_knows_nothing_of_them_but_who_they_are(facts: Stage) -> None:
    stage = fresh(facts)
    model = CONSTRUCTIONS["P11"].build(stage)
    assert fault("P11", stage, model) == "" and stage.knows(model) < 0.1
    assert stage.problem.holdout is not None
    refused = [
        stage.knows(model, stage.world.refused(rows))
        for rows in (stage.problem.forget, stage.problem.holdout)
    ]
    assert refused[0] > 0.95 and refused[0] > refused[1] + 0.1
