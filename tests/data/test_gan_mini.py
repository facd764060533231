"""The benchmark of digits from a GAN: splits, what it names, its judges."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.data.benchmarks.base import BENCHMARKS
from expunge.data.specification import ProblemSpec
from expunge.data.worlds.digit_judges import HEAVY, all_digits
from expunge.families import Gan
from expunge.families.judges import Judge
from expunge.problem import Problem


@pytest.fixture(scope="module")
def problem() -> Problem:
    return ProblemSpec.model_validate({"benchmark": "gan-mini"}).build()


def gan(problem: Problem) -> Gan:
    assert isinstance(problem.family, Gan)
    return problem.family


def test_a_class_is_forgotten_and_named(problem: Problem) -> None:
    family = gan(problem)
    assert family.concept == ("label", "3") and problem.scope == "all rows of class '3'"
    assert set(problem.forget["label"]) == {3} and 3 not in set(problem.retain["label"])
    assert set(problem.splits["concept"]["label"]) == {3} and 3 not in set(problem.splits["test"]["label"])
    sizes = {name: len(problem.splits[name]) for name in ("test", "concept", "samples", "holdout")}
    assert sizes["test"] + sizes["concept"] == 400 and sizes["samples"] == 1000 and sizes["holdout"] == 200
    assert problem.splits["samples"].column_names == ["id"]


def test_a_feature_is_forgotten_and_named() -> None:
    problem = ProblemSpec.model_validate({"benchmark": "gan-mini", "forget": "where:stroke == heavy"}).build()
    assert gan(problem).concept == ("stroke", "heavy") and len(problem.splits["concept"]) > 40
    ink = np.asarray(problem.forget.with_format("numpy")["image"][:]).mean((1, 2))
    assert ink.min() >= HEAVY and set(problem.splits["test"]["stroke"]) == {"light"}
    shares = np.bincount(
        [y for y, s in zip(*(all_digits()[c] for c in ("label", "stroke")), strict=True) if s == "heavy"]
    )
    assert len(shares) == 10 and shares.min() > 10  # of every digit some


def test_rows_with_nothing_in_common_have_no_name_and_no_guide() -> None:
    problem = BENCHMARKS["gan-mini"](forget="fraction=0.1").problem()  # pyright: ignore
    assert gan(problem).concept is None and gan(problem).guide is None and "concept" not in problem.splits


def test_a_conditional_gan_is_asked_for_all_classes_alike() -> None:
    problem = BENCHMARKS["gan-mini"](conditional=True, samples=50).problem()  # pyright: ignore
    assert np.bincount(problem.splits["samples"]["label"]).tolist() == [5] * 10
    batch = problem.family.collate(problem.splits["samples"].with_format("numpy")[:3])
    assert problem.family.forward(problem.fresh_model(0), batch).prediction.shape == (3, 1, 64)


def test_judges_are_right_about_digits_that_they_were_not_trained_on(problem: Problem) -> None:
    family = gan(problem)
    unseen = [problem.splits[name] for name in ("test", "concept", "holdout")]

    def right(judge: Judge) -> float:
        found = []
        for rows in unseen:
            images = family.collate(rows.with_format("numpy")[:]).inputs["image"].unflatten(1, family.shape)
            truth = np.array([judge.number(str(v)) for v in rows[judge.column]])
            found.append(judge.judge(images).logp.argmax(1) == truth)
        return float(np.concatenate(found).mean())

    assert family.guide is not None and family.guide.folder not in {j.folder for j in family.judges.values()}
    accuracy = {
        "label": right(family.judges["label"]),
        "stroke": right(family.judges["stroke"]),
        "guide": right(family.guide),
    }
    assert accuracy["label"] > 0.97 and accuracy["stroke"] > 0.92 and accuracy["guide"] > 0.96, accuracy
