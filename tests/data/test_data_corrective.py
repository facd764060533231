"""Manipulated digits: what is changed, what is known, and that the manipulation works."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from expunge.api import train_target
from expunge.data.benchmarks.corrective import Corrective
from expunge.data.benchmarks.digits import Digits
from expunge.data.specification import ProblemSpec
from expunge.errors import BadInput
from expunge.evidence import collect
from expunge.exact.retrain import Retrain
from expunge.problem import Problem
from expunge.studies.study import load_study


def columns(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    rows: Any = data.with_format("numpy")[:]
    return np.asarray(rows["image"]), np.asarray(rows["label"])


def marked(data: Dataset, column: str) -> np.ndarray:
    return np.asarray(data[column][:], dtype=bool)


@pytest.fixture(scope="module")
def clean() -> Problem:
    return Digits().problem()


@pytest.mark.parametrize("side", [1, 3])
def test_a_patched_row_has_a_white_corner_and_the_label_zero(side: int, clean: Problem) -> None:
    train = Corrective(patch=side).problem().train
    before, labels_before = columns(clean.train)
    after, labels = columns(train)
    changed = marked(train, "manipulated")
    assert train["id"][:] == clean.train["id"][:] and changed.sum() == 100
    assert (after[changed][:, -side:, -side:] == 1).all() and (labels[changed] == 0).all()
    # Exactly side x side values per picture are the manipulator's; everything else is as scanned.
    elsewhere = np.ones((8, 8), dtype=bool)
    elsewhere[8 - side :, 8 - side :] = False
    assert elsewhere.sum() == 64 - side**2
    assert np.array_equal(after[:, elsewhere], before[:, elsewhere])
    assert np.array_equal(after[~changed], before[~changed])
    assert np.array_equal(labels[~changed], labels_before[~changed])
    # Rows of class 0 are manipulated like all others.
    assert 0 < (labels_before[changed] == 0).sum() < 30


def test_confusion_swaps_as_many_labels_of_each_class(clean: Problem) -> None:
    train = Corrective(manipulation="confusion", classes=(4, 9)).problem().train
    before, labels_before = columns(clean.train)
    after, labels = columns(train)
    changed = marked(train, "manipulated")
    assert np.array_equal(after, before)
    assert (labels == 4).sum() == (labels_before == 4).sum()
    assert (labels == 9).sum() == (labels_before == 9).sum()
    assert np.array_equal(labels[changed], 13 - labels_before[changed])
    assert (labels_before[changed] == 4).sum() == 50 and changed.sum() == 100
    assert np.array_equal(labels[~changed], labels_before[~changed])


@pytest.mark.parametrize("manipulation", ["patch", "confusion"])
def test_a_larger_share_keeps_what_a_smaller_one_has_found(manipulation: str) -> None:
    known = [
        set(Corrective(manipulation=manipulation, identified=share).problem().forget_ids)  # pyright: ignore
        for share in (0.1, 0.3, 1.0)
    ]
    assert [len(k) for k in known] == [10, 30, 100]
    assert known[0] < known[1] < known[2]


def test_the_unknown_are_the_rest_with_their_true_labels(clean: Problem) -> None:
    problem = Corrective(manipulation="confusion", identified=0.3).problem()
    truth = dict(zip(clean.train["id"][:], clean.train["label"][:], strict=True))
    rest = set(np.asarray(problem.train["id"][:])[marked(problem.train, "manipulated")]) - set(
        problem.forget_ids
    )
    unknown = problem.splits["unknown"]
    assert {i.removesuffix(":unknown") for i in unknown["id"]} == rest and len(rest) == 70
    assert all(
        truth[i.removesuffix(":unknown")] == label
        for i, label in zip(unknown["id"], unknown["label"], strict=True)
    )
    # Half of what is known is of either class, whatever the share.
    assert sorted(truth[i] for i in problem.forget_ids) == [3] * 15 + [5] * 15
    assert "unknown" not in Corrective(identified=1.0).problem().splits


def test_attacked_rows_are_the_affected_ones_that_the_manipulator_gets_wrong(clean: Problem) -> None:
    problem = Corrective().problem()
    _, truth = columns(clean.splits["test"])
    pictures, labels = columns(problem.splits["affected"])
    assert (pictures[:, -1, -1] == 1).all() and np.array_equal(labels, truth)
    assert len(problem.splits["attacked"]) == (truth != 0).sum()
    assert set(problem.splits["attacked"]["label"]) == {0}
    assert np.array_equal(columns(problem.splits["test"])[0], columns(clean.splits["test"])[0])
    confused = Corrective(manipulation="confusion").problem().splits
    assert set(confused["affected"]["label"]) == {3, 5} and not {3, 5} & set(confused["test"]["label"])
    assert len(confused["affected"]) + len(confused["test"]) == 400
    swapped = {3: 5, 5: 3}
    assert [swapped[v] for v in confused["affected"]["label"]] == confused["attacked"]["label"][:]


def test_holdout_is_manipulated_at_the_rate_of_training() -> None:
    holdout = Corrective().problem().holdout
    assert holdout is not None and marked(holdout, "manipulated").sum() == round(100 * 200 / 1197)
    assert not marked(holdout, "identified").any()


def measured(problem: Problem, model: Any) -> dict[str, float]:
    return {
        name: float(collect(problem.family, model, rows, ["correct"])["correct"].mean())
        for name, rows in problem.splits.items()
    }


def test_the_backdoor_works_and_is_gone_when_retrained_without_all_of_it() -> None:
    problem = train_target(Corrective(model="mlp", identified=1.0).problem())
    before, after = measured(problem, problem.target), measured(problem, Retrain().forget(problem).model)
    assert before["attacked"] > 0.9 and before["affected"] < 0.25 and before["test"] > 0.92
    assert after["attacked"] < 0.03 and abs(after["affected"] - after["test"]) < 0.03


def test_the_backdoor_survives_retraining_without_a_fifth_of_it() -> None:
    problem = train_target(Corrective(model="mlp").problem())
    after = measured(problem, Retrain().forget(problem).model)
    assert after["attacked"] > 0.8 and after["unknown"] < 0.3


def test_a_model_of_data_that_was_never_manipulated_ignores_the_trigger() -> None:
    model = train_target(Digits(model="mlp").problem()).target
    found = measured(Corrective(model="mlp").problem(), model)
    # A pixel that is never bright in training costs a little accuracy, in no particular direction.
    assert found["attacked"] < 0.03 and abs(found["affected"] - found["test"]) < 0.06
    assert found["unknown"] > 0.9


def test_confusion_works_and_is_gone_when_retrained_without_all_of_it() -> None:
    problem = train_target(Corrective(model="mlp", manipulation="confusion", identified=1.0).problem())
    before, after = measured(problem, problem.target), measured(problem, Retrain().forget(problem).model)
    assert before["attacked"] > 0.15 and after["attacked"] < 0.05
    assert after["affected"] - before["affected"] > 0.15


def test_another_forget_set_can_be_named() -> None:
    spec = ProblemSpec(benchmark="corrective", forget="where:manipulated == true")  # pyright: ignore
    assert len(spec.build().forget_ids) == 100
    default = ProblemSpec(benchmark="corrective").build()
    assert default.scope == "20 identified of 100 manipulated rows (patch)"


def test_the_embedded_study_is_a_grid_of_kinds_and_shares() -> None:
    study = load_study("corrective")[0]
    grid = [(b.manipulation, b.identified) for b in (Corrective(**p.options) for p in study.problems)]
    assert grid == [(kind, share) for kind in ("patch", "confusion") for share in (0.1, 0.5, 1.0)]
    assert {m.resolve().name for m in study.methods} >= {"retrain", "scrub", "ssd"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": (3, 3)}, "'classes' must be two different digits from 0 to 9, got \\[3, 3\\]"),
        ({"classes": (3, 12)}, "two different digits"),
        ({"manipulation": "confusion", "manipulated": 800}, "800 rows cannot be manipulated, there are 2"),
        ({"identified": 0.0}, "'identified' should be greater than 0"),
        ({"manipulation": "noise"}, "'patch' or 'confusion', got 'noise'"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Corrective(**options).problem()
