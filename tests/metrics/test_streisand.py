from __future__ import annotations

import numpy as np
import pytest

from expunge.metrics.base import METRICS


def value(evidence, forget, holdout, groups=None, holdout_groups=None):
    read = {
        ("model", "forget"): [evidence(groups=groups, loss=np.asarray(forget))],
        ("model", "holdout"): [evidence(groups=holdout_groups, loss=np.asarray(holdout))],
    }
    return METRICS["streisand"]("forget", read)


def test_by_hand(evidence):
    # 39 never-seen losses 1 .. 39: floor(.05 * 40) = 2, so the threshold is the second largest, 38.
    score = value(evidence, [0.0, 38.0, 38.5, 50.0], np.arange(1.0, 40.0))
    assert (score.value, score.n, score.direction) == (0.5, 4, "match")
    # 19: the largest, 19.
    assert value(evidence, [18.5, 19.5], np.arange(1.0, 20.0)).value == 0.5


@pytest.mark.parametrize("m", [19, 20, 40, 99])
def test_exchangeable_rows_exceed_it_rarely(evidence, rng, m):
    shares = [value(evidence, rng.normal(size=50), rng.normal(size=m)).value for _ in range(300)]
    exact = int(0.05 * (m + 1) + 1e-9) / (m + 1)
    assert np.mean(shares) == pytest.approx(exact, abs=0.01)
    assert exact <= 0.05


def test_only_rows_of_the_forgotten_groups_are_compared(evidence):
    holdout = [*np.arange(19.0), *np.full(30, 1e3)]
    score = value(evidence, [18.5, 0.0], holdout, ["3", "3"], ["3"] * 19 + ["7"] * 30)
    assert score.value == 0.5
    assert score.groups == {"3": 0.5}


def test_undefined_with_a_reason(evidence):
    few = value(evidence, [1.0], np.arange(18.0))
    assert few.reason == "only 18 holdout rows of the groups in the forget set; at least 19 are needed"
    diverged = value(evidence, [np.nan], np.arange(30.0))
    assert "not finite" in diverged.reason
