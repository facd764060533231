"""The population attack is the ROC curve of one statistic, and weaker than attackers calibrated on each row."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from expunge.attacks import Scene
from expunge.attacks.population import PopulationMia
from expunge.errors import BadInput
from expunge.metrics.membership import first_half
from expunge.problem import Problem
from expunge.record import Score
from expunge.testing import tiny_problem


def auc(scores: list[Score]) -> Score:
    return next(s for s in scores if s.metric == "population-mia-auc")


@pytest.mark.parametrize(("statistic", "sign"), [("loss", -1), ("confidence", 1), ("margin", 1)])
def test_auc_is_that_of_the_statistic(statistic: str, sign: int, target_scene: Scene) -> None:
    forget, holdout = (target_scene.evidence(split, [statistic]) for split in ("forget", "holdout"))
    asked = holdout.select(~first_half(holdout))
    scores = sign * np.concatenate([forget[statistic], asked[statistic]])
    found = auc(PopulationMia(statistic=statistic).attack(target_scene))
    assert found.value == pytest.approx(roc_auc_score(np.repeat([1, 0], [40, len(asked)]), scores))
    assert found.n == 40 and found.attack


def test_members_show_on_the_target_and_not_on_a_retrained_model(
    target_scene: Scene, retrained_scene: Scene
) -> None:
    found = auc(PopulationMia().attack(target_scene))
    assert found.value is not None and found.value > 0.7
    control = auc(PopulationMia().attack(retrained_scene)).interval
    assert control is not None and control.low < 0.5 < control.high


def test_a_statistic_that_the_family_lacks_is_refused() -> None:
    problem = tiny_problem("regressor")
    with pytest.raises(BadInput, match="regressor has no 'margin'; choose statistic: loss"):
        PopulationMia(statistic="margin").attack(Scene(problem, problem.target))


def test_a_holdout_without_the_forgotten_class_leaves_it_undefined(memorized: Problem) -> None:
    from dataclasses import replace

    ones = [row for row, label in enumerate(memorized.train["label"]) if label == 1]
    assert memorized.holdout is not None
    zeros = [row for row, label in enumerate(memorized.holdout["label"]) if label == 0]
    problem = replace(
        memorized, forget_ids=tuple(memorized.train["id"][row] for row in ones), holdout=memorized.holdout.select(zeros),
    )  # fmt: skip
    scores = PopulationMia().attack(Scene(problem, memorized.target))
    assert {s.status for s in scores} == {"undefined"}
    assert "no row of a forgotten group" in scores[0].reason
