from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from expunge.stats.critical import CriticalDifference, critical_difference, signed_rank_tests
from expunge.stats.pareto import dominates, front_probability, pareto_front

RANKS = np.array(
    [
        [4, 3, 2, 1], [1, 2, 3, 4], [4, 1, 2, 3], [4, 1, 3, 2], [4, 2, 3, 1], [1, 2.5, 4, 2.5], [3, 2, 4, 1],
        [2.5, 2.5, 4, 1], [4, 3, 2, 1], [2.5, 2.5, 2.5, 2.5], [4, 2.5, 1, 2.5], [3, 2, 4, 1], [4, 1, 2, 3],
        [3, 1, 4, 2],
    ]
).T  # fmt: skip
"""Of four decision trees on fourteen data sets: Demšar, JMLR 2006, table 6."""


def test_a_published_worked_example():
    found = critical_difference(-RANKS)
    assert isinstance(found, CriticalDifference)
    assert found.average_ranks == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    assert (found.blocks, round(found.difference, 2)) == (14, 1.25)
    # Printed there: chi-squared 9.28, F 3.69, without the correction for ties that scipy applies.
    plain = 12 * 14 / (4 * 5) * (float((found.average_ranks**2).sum()) - 4 * 25 / 4)
    assert plain == pytest.approx(9.28, abs=0.005)
    assert 13 * plain / (14 * 3 - plain) == pytest.approx(3.69, abs=0.005)
    assert 3.69 < found.statistic < 4.2 and 0.005 < found.p_value < 0.02
    # The largest difference, 1.18, stays below the critical one: Nemenyi's test tells no two apart.
    assert found.groups == [[3, 1, 2, 0]]


@pytest.mark.parametrize(("k", "q"), [(3, 2.343), (5, 2.728), (10, 3.164)])
def test_the_quantiles_are_those_of_the_published_table(k, q):
    scores = np.random.default_rng(k).normal(size=(k, 20))
    found = critical_difference(scores)
    assert isinstance(found, CriticalDifference)
    assert found.difference == pytest.approx(q * math.sqrt(k * (k + 1) / 120), rel=5e-4)


def test_it_finds_differences_and_keeps_its_level():
    rng = np.random.default_rng(1)
    rejected = 0
    for _ in range(400):
        found = critical_difference(rng.normal(size=(4, 10)))
        assert isinstance(found, CriticalDifference)
        rejected += found.p_value < 0.05
    assert rejected / 400 == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 400))
    apart = critical_difference(np.array([[9.0], [5.0], [0.0], [-0.1]]) + rng.normal(0, 0.5, (4, 30)))
    assert isinstance(apart, CriticalDifference)
    assert apart.groups == [[0], [1], [2, 3]] or apart.groups == [[0], [1], [3, 2]]
    assert apart.p_value < 1e-10


def test_pairs_are_wilcoxon_with_holm():
    scores = np.random.default_rng(2).normal(size=(3, 12)) + np.array([[1.0], [0.0], [0.0]])
    found = signed_rank_tests(np.vstack([scores, scores[:1], np.full((1, 12), np.nan)]))
    assert found[0, 3] is None and found[0, 4] is None  # never differ, and nothing in common
    found = signed_rank_tests(scores)
    raw = sorted(stats.wilcoxon(scores[i] - scores[j]).pvalue for i, j in found)
    assert min(p for p in found.values() if p is not None) == pytest.approx(min(1.0, 3 * raw[0]))


def test_incomplete_blocks_do_not_count_and_too_few_leave_nothing_to_test():
    scores = np.random.default_rng(3).normal(size=(3, 5))
    scores[0, 0] = np.nan
    found = critical_difference(scores)
    assert isinstance(found, CriticalDifference) and found.blocks == 4
    assert critical_difference(scores[:2]) == (
        "critical differences are for 3 methods at least, there are 2; compare two with a paired test"
    )
    scores[1, 1:4] = np.nan
    assert critical_difference(scores) == "1 of 5 columns have a value of every method; 2 are needed"
    assert critical_difference(np.ones((3, 4))) == "all methods are tied everywhere"


def slow_front(points: np.ndarray) -> list[bool]:
    return [
        not any((q >= p).all() and (q > p).any() for q in points if not np.isnan(q).any()) for p in points
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_who_is_beaten_by_nobody(seed):
    points = np.random.default_rng(seed).integers(0, 5, (12, 3)).astype(float)
    assert pareto_front(points).tolist() == slow_front(points)


def test_front_by_hand():
    points = np.array([[1.0, 3.0], [2.0, 2.0], [1.0, 2.0], [2.0, 2.0], [np.nan, 9.0]])
    assert pareto_front(points).tolist() == [True, True, False, True, False]
    assert dominates(points)[:, 2].tolist() == [True, True, False, True, False]
    assert front_probability([points, points[::-1]]).tolist() == [0.5, 1.0, 0.0, 1.0, 0.5]
