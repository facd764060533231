from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from expunge.metrics.regression import mae, r2, rmse


def rows_of(evidence, target, predicted, groups=None):
    error = predicted - target
    absolute = np.abs(error).reshape(len(error), -1).mean(1)
    return evidence(groups=groups, predicted=predicted, target=target, error=error, absolute_error=absolute)


@pytest.mark.parametrize("columns", [1, 3])
def test_they_are_scikit_learns(evidence, rng, columns):
    target = rng.normal(50, 10, size=(40, columns)).squeeze()
    predicted = target + rng.normal(1, 5, size=target.shape)
    given: dict = {("model", "test"): [rows_of(evidence, target, predicted)]}
    assert mae("test", given).value == pytest.approx(mean_absolute_error(target, predicted))
    assert r2("test", given).value == pytest.approx(r2_score(target, predicted))
    # scikit-learn averages the roots of several columns, here the squares are averaged first.
    flat = root_mean_squared_error(target.ravel(), predicted.ravel())
    assert rmse("test", given).value == pytest.approx(flat)


def test_by_hand_and_by_group(evidence):
    target, predicted = np.array([1.0, 3.0, 10.0, 10.0]), np.array([2.0, 3.0, 13.0, 6.0])
    given: dict = {("model", "test"): [rows_of(evidence, target, predicted, ["low", "low", "high", "high"])]}
    assert mae("test", given).value == 2.0
    assert mae("test", given).groups == {"low": 0.5, "high": 3.5}
    assert rmse("test", given).value == pytest.approx(np.sqrt(26 / 4))
    assert rmse("test", given).groups == pytest.approx({"low": np.sqrt(0.5), "high": np.sqrt(12.5)})
    # Within "low": 1 - 1/2; within "high" nothing varies.
    assert r2("test", given).groups == pytest.approx({"low": 0.5})


def test_predicting_the_mean_explains_nothing(evidence):
    target = np.array([1.0, 2.0, 6.0])
    assert r2(
        "test", {("model", "test"): [rows_of(evidence, target, np.full(3, 3.0))]}
    ).value == pytest.approx(0)


def test_r2_of_a_constant_target_is_undefined_not_0(evidence):
    score = r2("test", {("model", "test"): [rows_of(evidence, np.full(4, 7.0), np.arange(4.0))]})
    assert (score.status, score.value) == ("undefined", None)
    assert "the target is the same for all 4 examples" in score.reason
