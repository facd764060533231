from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from expunge.metrics.worst_group import worst_group_accuracy


def rows(evidence, hits, n=20, copies=1):
    """Evidence with `n` rows per group, of which `hits` are right."""
    correct = [int(i < h) for h in hits for i in range(n)] * copies
    groups = [f"g{j}" for j in range(len(hits)) for _ in range(n)] * copies
    return {("model", "test"): [evidence(groups=groups, correct=correct)]}


def test_the_smallest_of_four(evidence):
    score = worst_group_accuracy("test", rows(evidence, (18, 16, 19, 12)))
    assert (score.value, score.n, score.direction) == (0.6, 80, "higher")
    assert score.groups == pytest.approx({"g0": 0.9, "g1": 0.8, "g2": 0.95, "g3": 0.6})


def test_more_of_the_same_rows_change_no_value(evidence):
    one, three = (worst_group_accuracy("test", rows(evidence, (18, 16), copies=c)) for c in (1, 3))
    assert one.value == three.value and one.groups == three.groups
    assert one.interval is not None and three.interval is not None
    assert three.interval.high - three.interval.low < one.interval.high - one.interval.low


def test_groups_of_nine_rows_are_left_out(evidence):
    correct, groups = [0] * 9 + [1, 0] * 5, ["small"] * 9 + ["large"] * 10
    score = worst_group_accuracy("test", {("model", "test"): [evidence(groups=groups, correct=correct)]})
    assert (score.value, score.n) == (0.5, 10)
    score = worst_group_accuracy("test", {("model", "test"): [evidence(groups=["a"] * 9, correct=[1] * 9)]})
    assert (score.status, score.reason) == ("undefined", "no group of 'test' has 10 or more rows")


def test_without_groups_there_is_no_worst(evidence):
    score = worst_group_accuracy("test", {("model", "test"): [evidence(correct=[1] * 30)]})
    assert (score.status, score.reason) == ("undefined", "the rows of 'test' have no groups")


def test_the_interval_is_of_corrected_bounds_as_statsmodels_has_them(evidence):
    score = worst_group_accuracy("test", rows(evidence, (18, 13, 12)))
    bounds = [proportion_confint(h, 20, alpha=0.05 / 3, method="wilson") for h in (18, 13, 12)]
    assert score.interval is not None
    expected = (min(b[0] for b in bounds), min(b[1] for b in bounds))
    assert (score.interval.low, score.interval.high) == pytest.approx(expected, abs=1e-12)


def test_the_interval_covers_the_true_worst_group(evidence):
    """Ten equal groups: the smallest share lies well below the truth, the interval still holds it."""
    drawn = np.random.default_rng(3).binomial(20, 0.8, (150, 10))
    scores = [worst_group_accuracy("test", rows(evidence, hits)) for hits in drawn]
    assert np.mean([s.value for s in scores]) < 0.72
    assert np.mean([s.interval.low <= 0.8 <= s.interval.high for s in scores]) >= 0.95
