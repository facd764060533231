"""Differences from retraining: hand-worked numbers, agreement with the equivalence test, error rates in simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from expunge.errors import BadInput
from expunge.stats.equivalence import judge
from expunge.stats.excess import excess


def test_one_model_by_hand():
    # r = 0.5, s = 0.1, m = 4: se = 0.1 sqrt(5/4) = 0.111803; t(0.975, 3) = 3.182446; h = 0.355808.
    references = [0.5 - 0.1 * 1.5**0.5 * x for x in (-1, 1, 0, 0)]
    assert np.std(references, ddof=1) == pytest.approx(0.1)
    found = excess([0.7], references, 0.15)
    assert found is not None
    assert (found.interval.low, found.interval.high) == (
        pytest.approx(-0.155808, abs=1e-6),
        pytest.approx(0.555808, abs=1e-6),
    )
    # (0.2 - 0.15) / 0.111803 = 0.447214; P(t(3) > 0.447214) = 0.3425.
    assert found.p_more == pytest.approx(float(stats.t.sf(0.447214, 3)), abs=1e-6)
    assert found.judgement == "no larger difference"  # within the spread, whose half-width is below 0.45
    assert excess([0.7], references, 0.11).judgement == "undecided"  # 0.3558 > 3 * 0.11 # type: ignore[union-attr]
    assert excess([1.5], references, 0.11).judgement == "different"  # type: ignore[union-attr]


def test_models_that_agree_are_not_believed_to_the_last_digit():
    same = excess([0.0], [0.0] * 5, 0.05)
    assert same is not None and same.judgement == "no larger difference"
    assert same.interval.high == pytest.approx(stats.t.ppf(0.975, 4) * 0.0125 * 1.2**0.5)
    assert excess([1.0], [0.0] * 5, 0.05).judgement == "different"  # type: ignore[union-attr]


def test_two_references_never_clear():
    for value in np.linspace(-1, 1, 41):
        found = excess([float(value)], [0.0, 0.0], 0.05)
        assert found is not None and found.judgement != "no larger difference"


def test_too_little_is_none_and_a_margin_is_needed():
    assert excess([], [0.1, 0.2], 0.1) is None
    assert excess([0.1], [0.1], 0.1) is None
    with pytest.raises(BadInput, match="above 0, got 0"):
        excess([0.1], [0.1, 0.2], 0.0)


def test_several_models_are_judged_as_by_the_equivalence_test():
    rng = np.random.default_rng(0)
    for _ in range(50):
        ours, theirs = rng.normal(rng.normal(0, 0.05), 0.03, 4), rng.normal(0, 0.03, 5)
        found, other = excess(list(ours), list(theirs), 0.05), judge(ours, theirs, 0.05)
        assert found is not None and other.interval is not None
        assert found.judgement == other.judgement
        # The one-sided test at level 0.05 rejects exactly where the interval of level 0.90 lies beyond the margin.
        assert (found.p_more < 0.05) == (other.interval.low > 0.05)


def test_a_retrained_model_is_seldom_called_different():
    """With the true difference at the margin the test has its level; with none it errs far less often."""
    rng = np.random.default_rng(1)
    s, margin = 0.05, 0.05
    wrong = {0.0: 0, margin: 0}
    for offset in wrong:
        for _ in range(2000):
            drawn = rng.normal(0, s, 7)
            found = excess([float(drawn[0] + offset)], drawn[1:].tolist(), margin)
            assert found is not None
            wrong[offset] += found.p_more < 0.05
    assert wrong[0.0] <= 40
    assert 70 <= wrong[margin] <= 130  # 100 expected; ± 3 standard deviations
