from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from expunge.errors import BadInput
from expunge.stats.multiplicity import benjamini_hochberg, holm


def slow_holm(p: list[float]) -> list[float]:
    """By its definition as a procedure: the smallest level at which the step-down test rejects."""

    def rejected(level: float) -> set[int]:
        found: set[int] = set()
        for place, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
            if p[i] > level / (len(p) - place):
                break
            found.add(i)
        return found

    levels = sorted({min(1.0, (len(p) - k) * x) for x in p for k in range(len(p))} | {1.0})
    return [next((level for level in levels if i in rejected(level + 1e-12)), 1.0) for i in range(len(p))]


def slow_bh(p: list[float]) -> list[float]:
    def rejected(level: float) -> set[int]:
        order = sorted(range(len(p)), key=lambda i: p[i])
        last = max((k for k, i in enumerate(order, 1) if p[i] <= level * k / len(p)), default=0)
        return set(order[:last])

    levels = sorted({min(1.0, len(p) * x / k) for x in p for k in range(1, len(p) + 1)} | {1.0})
    return [next((level for level in levels if i in rejected(level + 1e-12)), 1.0) for i in range(len(p))]


@pytest.mark.parametrize("seed", range(20))
def test_adjusted_values_are_the_smallest_levels_at_which_the_procedures_reject(seed):
    rng = np.random.default_rng(seed)
    p = (rng.uniform(size=rng.integers(1, 9)) ** 3).round(3).tolist()  # small ones and ties among them
    named = {f"test {i}": x for i, x in enumerate(p)}
    assert list(holm(named).values()) == pytest.approx(slow_holm(p))
    assert list(benjamini_hochberg(named).values()) == pytest.approx(slow_bh(p))


def test_they_are_those_of_statsmodels():
    p = np.random.default_rng(1).uniform(size=12) ** 2
    named = dict(enumerate(p))
    assert list(holm(named).values()) == pytest.approx(multipletests(p, method="holm")[1])
    assert list(benjamini_hochberg(named).values()) == pytest.approx(multipletests(p, method="fdr_bh")[1])


def test_by_hand():
    # Holm: 4 * .005, 3 * .01, then 2 * .03, and .04 takes over the .06 before it.
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert holm(p) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    # BH: 4 * .005 / 1 and 4 * .01 / 2 are both .02, 4 * .03 / 3 and 4 * .04 / 4 both .04.
    assert benjamini_hochberg(p) == pytest.approx({"a": 0.02, "b": 0.04, "c": 0.04, "d": 0.02})


def test_tests_that_could_not_be_made_are_not_counted():
    assert holm({"a": 0.02, "b": None, ("c", "test"): 0.5}) == {
        "a": pytest.approx(0.04),
        "b": None,
        ("c", "test"): pytest.approx(0.5),
    }
    assert holm({"a": None}) == {"a": None}
    assert benjamini_hochberg({}) == {}


def test_holm_keeps_the_family_wise_error_and_bh_the_false_discovery_rate():
    rng = np.random.default_rng(5)
    any_false, shares = 0, []
    for _ in range(400):
        null, real = rng.uniform(size=6), rng.uniform(size=4) * 0.004
        p = {f"null {i}": x for i, x in enumerate(null)} | {f"real {i}": x for i, x in enumerate(real)}
        any_false += any(v <= 0.05 for n, v in holm(p).items() if v is not None and n.startswith("null"))
        found = [n for n, v in benjamini_hochberg(p).items() if v is not None and v <= 0.05]
        shares.append(sum(n.startswith("null") for n in found) / max(1, len(found)))
    assert any_false / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    # At its bound: 0.05 times the share of true nulls.
    assert np.mean(shares) == pytest.approx(0.03, abs=0.015)


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.2])
def test_refusals(bad):
    with pytest.raises(BadInput, match=f"the p-value of 'auc' is {bad}; it must lie between 0 and 1"):
        holm({"accuracy": 0.1, "auc": bad})
