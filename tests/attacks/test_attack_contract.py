"""The contract suite over every registered attack: the matrix is generated, nothing is listed by hand."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from expunge.attacks import ATTACKS, Attack, Measure, Scene
from expunge.metrics.base import Estimate
from expunge.record import Score
from expunge.testing import Check, ContractBroken, check_attack

FEW = {"shadows": 4, "steps": 8, "budget": 8}
"""What makes attacks quick."""


def quick(attack: type[BaseModel]) -> dict[str, int]:
    return {name: value for name, value in FEW.items() if name in attack.model_fields}


MATRIX: list[Check] = [
    check for _, attack in ATTACKS.items() for check in check_attack(attack, **quick(attack))
]


@pytest.mark.parametrize("check", MATRIX, ids=str)
def test_contract(check: Check) -> None:
    check()


@pytest.mark.parametrize(
    "attack", [cls for _, cls in ATTACKS.items() if quick(cls)], ids=lambda cls: cls.name
)
def test_what_can_be_spent_is_part_of_the_budget(attack: type[Attack]) -> None:
    for name, value in quick(attack).items():
        assert attack(**{name: value}).spends() != attack().spends(), name


def test_the_promised_attacks_are_registered() -> None:
    assert {"population-mia", "lira", "u-lira"} <= set(ATTACKS)


def test_an_attack_that_changes_the_model_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    import expunge.attacks.base as base
    from expunge.registry import Registry

    monkeypatch.setattr(base, "ATTACKS", Registry("attack"))

    class Vandal(Attack):
        """Leaves the attacked model changed."""

        name = "vandal"
        paper = threat_model = "none"
        access = "text"
        families = frozenset({"classifier"})
        measures = (Measure("vandal-share", "a number for a test", "share", low=0.0, high=1.0),)

        def run(self, scene: Scene) -> list[Score]:
            next(scene.model.parameters()).data.add_(1.0)
            return [self.score("vandal-share", Estimate(2.0, 1))]

    checks = {c.name: c for c in check_attack(Vandal)}
    with pytest.raises(ContractBroken, match="changed the attacked model"):
        checks["changes no model and no global random state on classifier"]()
    with pytest.raises(ContractBroken, match=r"'vandal-share' is 2\.0, outside 0\.0 to 1\.0"):
        checks["answers with what it declares on classifier"]()
