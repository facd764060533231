"""The base class: attacks answer for what they declare, and look once."""

from __future__ import annotations

from typing import ClassVar

import pytest

import expunge.attacks.base as base
from expunge.attacks import Attack, Measure, Scene, fitting_attacks
from expunge.errors import BadInput, ExpungeError
from expunge.metrics.base import Estimate, Undefined
from expunge.problem import Problem
from expunge.record import Score
from expunge.registry import Registry


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Registry[type[Attack]]:
    """Attacks of a test stay in the test."""
    registry: Registry[type[Attack]] = Registry("attack")
    monkeypatch.setattr(base, "ATTACKS", registry)
    return registry


def made(answer: list[str], value: float = 0.5, *, undefined: str = "") -> Attack:
    class Made(Attack):
        """Answers what it is told."""

        name = "made"
        paper = threat_model = "none"
        access = "text"
        measures: ClassVar[tuple[Measure, ...]] = (
            Measure("made-one", "a number for a test", "share"),
            Measure("made-two", "a number for a test", "share", split="retain"),
        )

        def run(self, scene: Scene) -> list[Score]:
            if undefined:
                raise Undefined(undefined)
            return [self.score(name, Estimate(value, 3)) for name in answer]

    return Made()


@pytest.mark.usefixtures("own_registry")
def test_scores_carry_what_was_declared(target_scene: Scene) -> None:
    one, two = made(["made-one", "made-two"]).attack(target_scene)
    assert (one.value, one.split, one.unit, one.attack) == (0.5, "forget", "share", True)
    assert two.split == "retain"


@pytest.mark.usefixtures("own_registry")
def test_an_attack_answers_exactly_what_it_declares(target_scene: Scene) -> None:
    with pytest.raises(ExpungeError, match="declares made-one, made-two but answered made-one"):
        made(["made-one"]).attack(target_scene)
    with pytest.raises(ExpungeError, match="declares no measure 'made-three'"):
        made(["made-three"]).attack(target_scene)


@pytest.mark.usefixtures("own_registry")
def test_undefined_is_a_status_with_a_reason(target_scene: Scene) -> None:
    scores = made([], undefined="no such luck").attack(target_scene)
    assert [(s.metric, s.status, s.reason) for s in scores] == [
        (name, "undefined", "no such luck") for name in ("made-one", "made-two")
    ]
    one, _ = made(["made-one", "made-two"], value=float("nan")).attack(target_scene)
    assert (one.status, one.reason) == ("undefined", "the value is nan")


def test_evidence_is_collected_once(target_scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(target_scene.problem, target_scene.model)
    passes: list[object] = []
    collect = base.collect

    def counted(*given: object, **more: object) -> object:
        passes.append(given)
        return collect(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(base, "collect", counted)
    first = scene.evidence("forget", ["loss"])
    assert scene.evidence("forget", ["loss"]) is first
    more = scene.evidence("forget", ["margin"])
    assert {"loss", "margin"} <= set(more.table.column_names)
    assert len(passes) == 2
    with pytest.raises(Undefined, match="the problem has no 'test' data"):
        scene.evidence("test", ["loss"])


def test_what_is_missing_is_named(memorized: Problem) -> None:
    from dataclasses import replace

    problem = replace(memorized, holdout=None)
    attack = base.ATTACKS["population-mia"]()
    with pytest.raises(BadInput, match="'population-mia' cannot run on memorized: it needs a holdout set"):
        attack.attack(Scene(problem, memorized.target))


def test_standard_attacks_train_nothing(memorized: Problem) -> None:
    standard, every = ({a.name for a in fitting_attacks(memorized, w)} for w in ("standard", "all"))  # type: ignore[arg-type]
    assert "population-mia" in standard
    assert {"lira", "u-lira"} <= every - standard
