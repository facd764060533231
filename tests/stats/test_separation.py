"""Thresholds that tell two models apart, and what they bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import BadInput
from expunge.stats.separation import (
    cuts,
    epsilons,
    forgetting_quality,
    privacy_score,
    worst_cut,
)

VALUES = st.lists(st.floats(-5, 5).map(lambda v: round(v, 1)), min_size=1, max_size=25).map(np.asarray)


def test_worked_example() -> None:
    """FPR .05, FNR .10: logs ln(.95/.10) = 2.251 and ln(.90/.05) = 2.890; the smaller gives 2^-2.251 = .210."""
    assert epsilons(0.05, 0.10) == pytest.approx((2.251, 2.890), abs=1e-3)
    assert forgetting_quality(0.05, 0.10) == pytest.approx(0.210, abs=1e-3)


def test_ends() -> None:
    assert forgetting_quality(0, 0) == 0 and forgetting_quality(1, 0) == 1 and forgetting_quality(0, 1) == 1
    assert epsilons(0, 0.5)[1] == math.inf
    assert epsilons(1, 0.5)[0] == -math.inf
    with pytest.raises(BadInput, match="0 to 1"):
        epsilons(1.2, 0)


@settings(max_examples=60, deadline=None)
@given(VALUES, VALUES)
def test_worst_cut_is_the_kolmogorov_smirnov_distance(a: np.ndarray, b: np.ndarray) -> None:
    cut = worst_cut(a, b)
    at = np.concatenate([a, b])
    distance = max(abs(np.mean(a <= t) - np.mean(b <= t)) for t in at)
    assert cut.advantage == pytest.approx(distance, abs=1e-12)
    called = a > cut.threshold if cut.above else a <= cut.threshold
    wrong = b > cut.threshold if cut.above else b <= cut.threshold
    assert cut.fnr == pytest.approx(1 - called.mean()) and cut.fpr == pytest.approx(wrong.mean())


@settings(max_examples=40, deadline=None)
@given(VALUES, VALUES)
def test_privacy_does_not_depend_on_the_direction(a: np.ndarray, b: np.ndarray) -> None:
    assert privacy_score(a, b) == pytest.approx(privacy_score(-a, -b), abs=1e-12)


def test_equal_and_disjoint_models() -> None:
    values = np.linspace(0, 1, 50)
    assert privacy_score(values, values) == pytest.approx(1.0, abs=1e-3)
    assert privacy_score(values, values + 5) == 0
    assert worst_cut(values, values).advantage == pytest.approx(0, abs=1e-12)
    assert worst_cut(values, values + 5).advantage == 1


def test_cuts_divide_the_values_in_every_way() -> None:
    made = cuts(np.asarray([1.0, 3.0]), np.asarray([2.0]), above=True)
    assert [(c.fpr, c.fnr) for c in made] == [(1, 0), (1, 0.5), (0, 0.5), (0, 1)]


def test_what_is_not_a_number_is_refused() -> None:
    with pytest.raises(BadInput, match="not all finite"):
        worst_cut(np.asarray([1.0, math.nan]), np.asarray([1.0]))
    with pytest.raises(BadInput, match="empty"):
        worst_cut(np.asarray([]), np.asarray([1.0]))
