"""The benchmark with a shortcut: what is painted where, and that a model takes the shortcut."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.data.benchmarks.biased import Biased
from expunge.data.worlds.shortcut import PLACES, with_spots
from expunge.data.worlds.tables import digits
from expunge.errors import BadInput
from expunge.evidence.collect import collect
from expunge.methods import Workplace
from expunge.methods.loop import fit
from expunge.testing import check_benchmark

SHARES = {"train": 0.95, "holdout": 0.95, "test": 0.5}


@pytest.fixture(scope="module")
def problem():
    return Biased().problem()


@pytest.fixture(scope="module")
def parts(problem):
    found = {"train": problem.train, "holdout": problem.holdout, "test": problem.probes["test"]}
    return {name: part.with_format("numpy")[:] for name, part in found.items()}


def test_contract():
    for check in check_benchmark("biased"):
        check()


CONFLICTING = ["digit-0143", "digit-0259", "digit-0867", "digit-1438", "digit-1478", "digit-1765"]


def test_splits_never_change(problem):
    assert [len(problem.train), len(problem.probes["test"]), len(problem.holdout)] == [1197, 400, 200]
    assert (problem.train["id"][0], problem.holdout["id"][-1]) == ("digit-1061", "digit-0140")
    conflicting = [
        i for i, g in zip(problem.train["id"], problem.train["group"], strict=True) if g == "3 conflicting"
    ]
    assert sorted(conflicting) == CONFLICTING


@pytest.mark.parametrize("name", SHARES)
def test_the_share_of_aligned_rows_is_exact_in_each_class(parts, name):
    part = parts[name]
    for label in range(10):
        of_class = part["label"] == label
        aligned = (part["cue"] == label) & of_class
        assert aligned.sum() == round(SHARES[name] * of_class.sum())
        assert (aligned == (part["group"] == f"{label} aligned")).all()
        assert ((of_class & ~aligned) == (part["group"] == f"{label} conflicting")).all()


def test_conflicting_spots_are_spread_over_the_other_classes(parts):
    part = parts["test"]
    for label in range(10):
        counts = np.bincount(part["cue"][(part["label"] == label) & (part["cue"] != label)], minlength=10)
        assert counts[label] == 0
        others = np.delete(counts, label)
        assert others.max() - others.min() <= 1


@pytest.mark.parametrize("name", SHARES)
def test_a_picture_is_the_digit_with_one_bright_pixel(parts, name):
    part, plain = parts[name], digits().with_format("numpy")[:]
    original = dict(zip(plain["id"], plain["image"], strict=True))
    for example, image, cue in zip(part["id"], part["image"], part["cue"], strict=True):
        expected = original[example].copy()
        expected[PLACES[cue]] = 1.0
        assert np.array_equal(image, expected)


def test_no_digit_reaches_a_place():
    images = digits().with_format("numpy")["image"][:]
    assert len(set(PLACES)) == 10
    assert max(images[:, r, c].mean() for r, c in PLACES) < 0.03
    assert max((images[:, r, c] > 0.5).mean() for r, c in PLACES) < 0.03


def test_all_rows_can_be_aligned():
    assert set(with_spots(digits(), 1.0)["group"]) == {f"{i} aligned" for i in range(10)}
    with pytest.raises(BadInput, match="'aligned' should be less than or equal to 1, got 1.5"):
        Biased(aligned=1.5)


def test_rows_that_carry_the_shortcut_can_be_forgotten(parts):
    problem = Biased(forget="where:cue == 3").problem()  # pyright: ignore
    assert len(problem.forget_ids) == (parts["train"]["cue"] == 3).sum()
    assert {g.split()[1] for g in problem.forget["group"]} == {"aligned", "conflicting"}


@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_the_target_takes_the_shortcut(model):
    """Every class is read well with its own spot, and worse with another's; without spots the same recipe has 96%."""
    problem = Biased(model=model).problem()
    target = fit(problem, problem.fresh_model(0), "train", problem.recipe, Workplace())  # pyright: ignore
    evidence = collect(problem.family, target, problem.splits["test"], ["correct"])
    aligned = np.asarray([str(g).endswith("aligned") for g in evidence.groups])
    accuracy = {
        kind: evidence["correct"][rows].mean() for kind, rows in (("own", aligned), ("other", ~aligned))
    }
    assert accuracy["own"] > 0.97
    assert 0.6 < accuracy["other"] < accuracy["own"] - 0.1
