"""Shadow models: who is a member of which, and that nothing else decides what they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.attacks import Shadow
from expunge.attacks.lira import Lira
from expunge.attacks.shadows import (
    ShadowModels,
    membership,
    pool_of,
    shadow_problem,
    train_shadow,
    unlearn_shadow,
)
from expunge.errors import BadInput, Missing
from expunge.families.models import fingerprint
from expunge.methods.base import METHODS, Workplace
from expunge.problem import Problem


def test_each_row_is_in_exactly_one_shadow_of_every_pair(memorized: Problem) -> None:
    for pair in range(3):
        first, second = (membership(memorized, 2 * pair + side) for side in (0, 1))
        assert len(first) == 80  # 40 forget rows and as many of the 60 holdout rows
        assert all(first[i] != second[i] for i in first)
    assert membership(memorized, 0) != membership(memorized, 2)


def test_a_shadow_has_the_sizes_of_the_real_training_and_forget_set(memorized: Problem) -> None:
    made = shadow_problem(memorized, 3)
    member = membership(memorized, 3)
    assert len(made.train) == len(memorized.train)
    assert set(made.forget_ids) == {i for i, taken in member.items() if taken}
    assert len(made.forget_ids) == len(memorized.forget_ids)
    assert set(made.retain["id"]) == set(memorized.retain["id"])
    assert made.holdout is not None and not set(made.holdout["id"]) & set(made.train["id"])


def test_rows_carry_their_own_features_into_a_shadow(memorized: Problem) -> None:
    made = shadow_problem(memorized, 0)
    assert memorized.holdout is not None
    known = {r["id"]: r for dataset in (memorized.train, memorized.holdout) for r in dataset}
    assert all(row == known[row["id"]] for row in made.train)


def test_in_class_forgetting_the_pool_holds_that_class_only(memorized: Problem) -> None:
    ones = [i for i, label in zip(memorized.train["id"], memorized.train["label"], strict=True) if label == 1]
    problem = replace(memorized, forget_ids=tuple(ones))
    assert problem.holdout is not None
    labels = np.asarray(problem.holdout["label"][:])[pool_of(problem).holdout]
    assert len(labels) and set(labels) == {1}


def test_membership_does_not_depend_on_the_order_of_the_rows_of_the_holdout(memorized: Problem) -> None:
    assert memorized.holdout is not None
    turned = replace(memorized, holdout=memorized.holdout.select(range(59, -1, -1)))
    chosen = [
        {p.holdout["id"][row] for row in pool_of(p).holdout} for p in (memorized, turned) if p.holdout is not None
    ]  # fmt: skip
    assert chosen[0] == chosen[1]


def test_a_shadow_is_fixed_by_problem_and_number(memorized: Problem) -> None:
    quick = replace(memorized, recipe=memorized.recipe and memorized.recipe.replace(epochs=1))
    first = fingerprint(train_shadow(quick, 0, Workplace(seed=0)))
    assert fingerprint(train_shadow(quick, 0, Workplace(seed=5))) == first
    assert fingerprint(train_shadow(quick, 1, Workplace(seed=0))) != first


def test_unlearning_a_shadow_forgets_its_members_only(memorized: Problem) -> None:
    quick = replace(memorized, recipe=memorized.recipe and memorized.recipe.replace(epochs=1))
    shadow = train_shadow(quick, 0, Workplace())
    before = fingerprint(shadow)
    retrained = unlearn_shadow(quick, 0, shadow, METHODS["retrain"](), Workplace())
    assert fingerprint(shadow) == before
    # Both shadows of a pair keep the same rows, and a retrained model does not depend on what it forgets.
    other = unlearn_shadow(quick, 1, train_shadow(quick, 1, Workplace()), METHODS["retrain"](), Workplace())
    assert shadow_problem(quick, 0).retain["id"] == shadow_problem(quick, 1).retain["id"]
    assert fingerprint(retrained) != fingerprint(other)  # but for the seed


def test_shadows_of_an_audit_are_trained_once(memorized: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    import expunge.attacks.shadows as module

    quick = replace(memorized, recipe=memorized.recipe and memorized.recipe.replace(epochs=0))
    trained: list[int] = []

    def counted(problem: Problem, index: int, workplace: Workplace) -> torch.nn.Module:
        trained.append(index)
        return problem.fresh_model(index)

    monkeypatch.setattr(module, "train_shadow", counted)
    models = ShadowModels(quick, Workplace())
    models.trained(Lira(shadows=4))
    models.trained(Lira(shadows=6))
    assert trained == [0, 1, 2, 3, 4, 5]


def test_what_is_missing_is_named(memorized: Problem) -> None:
    with pytest.raises(Missing, match="shadow models need the recipe"):
        train_shadow(replace(memorized, recipe=None), 0, Workplace())
    with pytest.raises(Missing, match="needs a holdout set"):
        membership(replace(memorized, holdout=None), 0)
    with pytest.raises(BadInput, match="members and non-members"):
        Shadow({"a": True}, {})
