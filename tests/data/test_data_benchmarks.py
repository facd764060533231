"""Embedded benchmarks: declared facts, fixed splits, and targets that learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

from expunge.data.benchmarks.base import BENCHMARKS, split
from expunge.data.worlds.reviews import _BLAME, _PRAISE, _PRIVATE, AUTHORS, reviews
from expunge.data.worlds.tables import breast_cancer, diabetes, digits
from expunge.errors import BadInput
from expunge.evidence.collect import collect
from expunge.methods.base import Workplace
from expunge.methods.loop import fit
from expunge.problem import Problem

SIZES = {
    "digits": (1197, 400, 200),
    "breast-cancer": (369, 100, 100),
    "diabetes": (282, 80, 80),
    "reviews": (960, 120, 120),
    "biased": (1197, 400, 200),
}


def test_embedded_benchmarks_are_listed() -> None:
    assert set(SIZES) <= set(BENCHMARKS)


@pytest.mark.parametrize("name", sorted(SIZES))
def test_facts_splits_and_defaults(name: str) -> None:
    benchmark = BENCHMARKS[name]
    for fact in ("title", "source", "license", "suite"):
        assert getattr(benchmark, fact)
    problem = benchmark().problem()
    assert benchmark.family == problem.family.name and problem.model is None
    parts = [problem.train, problem.splits["test"], problem.splits["holdout"]]
    assert tuple(map(len, parts)) == SIZES[name]
    ids = [i for part in parts for i in part["id"]]
    assert len(set(ids)) == len(ids)
    assert 0.05 < len(problem.forget_ids) / len(problem.train) < 0.4
    assert problem.fingerprint == benchmark().problem().fingerprint


# Once published, a split must never change: results of different versions could not be compared.
ENDS = {
    "digits": ("digit-1061", "digit-0140"),
    "breast-cancer": ("tumor-0107", "tumor-0185"),
    "diabetes": ("patient-0397", "patient-0114"),
    "reviews": ("review-0281", "review-0645"),
    "biased": ("digit-1061", "digit-0140"),
}


@pytest.mark.parametrize("name", sorted(SIZES))
def test_splits_never_change(name: str) -> None:
    problem = BENCHMARKS[name]().problem()
    assert (problem.train["id"][0], problem.splits["holdout"]["id"][-1]) == ENDS[name]


def trained(problem: Problem) -> torch.nn.Module:
    assert problem.recipe is not None
    return fit(problem, problem.fresh_model(0), "train", problem.recipe, Workplace(seed=0))


@pytest.mark.parametrize(
    ("name", "model", "least"),
    [
        pytest.param("digits", "cnn", 0.92, marks=pytest.mark.slow),
        ("digits", "mlp", 0.92),
        pytest.param("digits", "resnet", 0.92, marks=pytest.mark.slow),
        pytest.param("digits", "vit", 0.90, marks=pytest.mark.slow),
        ("breast-cancer", "mlp", 0.92),
        pytest.param("reviews", "bert", 0.85, marks=pytest.mark.slow),
    ],
)
def test_targets_learn(name: str, model: str, least: float) -> None:
    problem = BENCHMARKS[name](model=model).problem()  # pyright: ignore
    correct = collect(problem.family, trained(problem), problem.splits["test"], ["correct"])["correct"]
    assert correct.mean() > least


def test_regression_beats_the_mean_clearly() -> None:
    problem = BENCHMARKS["diabetes"]().problem()
    test = problem.splits["test"]
    errors = collect(problem.family, trained(problem), test, ["absolute_error"])["absolute_error"]
    constant = np.abs(np.asarray(test["progression"]) - np.mean(problem.train["progression"])).mean()
    assert errors.mean() < 0.8 * constant


def test_ranges_of_diabetes_match_what_is_forgotten() -> None:
    problem = BENCHMARKS["diabetes"]().problem()
    groups, kept = problem.family.groups(problem.forget), problem.family.groups(problem.retain)
    assert groups is not None and set(groups) == {"high"} and "high" not in set(kept)  # pyright: ignore
    assert (np.asarray(problem.splits["holdout"]["progression"]) >= 200).sum() >= 10


def test_worlds_are_what_scikit_learn_has() -> None:
    theirs: Any = load_digits()
    ours = digits().with_format("numpy")
    assert np.allclose(ours["image"][:], theirs.images / 16) and (ours["label"][:] == theirs.target).all()
    table, names = breast_cancer()
    theirs = load_breast_cancer()
    assert np.allclose(np.column_stack([table[n] for n in names]), theirs.data)
    assert [table.features["label"].int2str(v) for v in table["label"][:2]] == ["malignant", "malignant"]
    table, names = diabetes()
    theirs = load_diabetes(scaled=False)
    assert np.allclose(np.column_stack([table[n] for n in names]), theirs.data)
    assert (min(table["progression"]), max(table["progression"])) == (25, 346)


def test_verdicts_of_reviews_follow_from_their_words() -> None:
    """Another reading of each text: an opinion word counts +1 or -1, turned round by 'not' before it."""
    data = reviews()
    praise = {*_PRAISE, *(p for p, _ in _PRIVATE)}
    blame = {*_BLAME, *(b for _, b in _PRIVATE)}
    assert not praise & blame and len(set(data["text"])) > 0.95 * len(data)
    for text, label in zip(data["text"], data["label"], strict=True):
        words = text.split()
        signs = [(w in praise) - (w in blame) for w in words]
        turned = [-s if i and words[i - 1] == "not" else s for i, s in enumerate(signs)]
        opinions = [t for t in turned if t]
        assert len(opinions) == 2 and label == 1 + sum(opinions) // 2
    assert all(0.28 < share < 0.39 for share in np.bincount(data["label"]) / len(data))


def test_private_words_are_the_authors_own() -> None:
    data = reviews()
    for (good, bad), author in zip(_PRIVATE, AUTHORS, strict=True):
        for word in (good, bad):
            users = {a for a, t in zip(data["author"], data["text"], strict=True) if word in t.split()}
            assert users == {author}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "digits",
            {"model": "lenet"},
            "Handwritten digits: 'model' should be 'cnn', 'mlp', 'resnet', 'vit', 'dare', 'gaussian-nb' or 'k-nn', got 'lenet'",
        ),
        ("digits", {"modle": "cnn"}, "unknown key 'modle'; did you mean 'model'"),
        ("digits", {"forget": "some"}, "'some' does not say what to forget"),
    ],
)
def test_refusals_of_options(name: str, options: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        BENCHMARKS[name](**options)


def test_unknown_benchmark_and_impossible_forget_sets() -> None:
    with pytest.raises(BadInput, match="unknown benchmark 'digit5'; did you mean 'digits'"):
        BENCHMARKS["digit5"]
    with pytest.raises(BadInput, match="there is no class 'seven'"):
        BENCHMARKS["digits"](forget="class=seven").problem()  # pyright: ignore
    with pytest.raises(BadInput, match="cannot split 569 rows into parts of 500, 100"):
        split(breast_cancer()[0], (500, 100))
