from __future__ import annotations

import pytest
from statsmodels.stats.proportion import proportion_confint

from expunge.metrics.accuracy import accuracy


def test_three_of_four_are_right(evidence):
    score = accuracy("test", {("model", "test"): [evidence(correct=[1, 0, 1, 1])]})
    assert (score.value, score.n, score.unit) == (0.75, 4, "share")


def test_the_interval_is_wilsons_as_statsmodels_has_it(evidence):
    score = accuracy("test", {("model", "test"): [evidence(correct=[1] * 17 + [0] * 3)]})
    assert score.interval is not None
    expected = proportion_confint(17, 20, method="wilson")
    assert (score.interval.low, score.interval.high) == pytest.approx(expected, abs=1e-12)


def test_groups_are_the_accuracies_within_them(evidence):
    rows = evidence(groups=["cat", "dog", "cat", "dog", "dog"], correct=[1, 1, 0, 0, 0])
    score = accuracy("retain", {("model", "retain"): [rows]})
    assert score.groups == pytest.approx({"cat": 1 / 2, "dog": 1 / 3})


def test_on_forget_the_retrained_value_is_best_elsewhere_the_highest():
    assert [accuracy.better(s) for s in ("forget", "retain", "test", "holdout")] == ["match", *["higher"] * 3]
