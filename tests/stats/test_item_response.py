from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import norm

from expunge.errors import BadInput
from expunge.stats.item_response import item_response


def simulated(
    n: int, items: int, seed: int, slopes: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    theta, b = rng.normal(size=n), rng.normal(size=items)
    a = np.exp(rng.normal(0, 0.4, items)) if slopes else np.ones(items)
    y = (rng.uniform(size=(n, items)) < expit(a * (theta[:, None] - b))).astype(float)
    return y, theta, b, a


def test_difficulties_and_abilities_are_recovered():
    y, theta, b, _ = simulated(50, 200, 0)
    found = item_response(y)
    assert np.corrcoef(found.difficulty, b)[0, 1] > 0.92
    assert np.corrcoef(found.ability, theta)[0, 1] > 0.95
    # The errors stated are those made.
    z = (found.difficulty - found.difficulty.mean() - b + b.mean()) / found.error
    assert 0.8 < z.std() < 1.25
    assert len(set(found.slope)) == 1 and found.slope[0] == pytest.approx(1.0, abs=0.25)


def test_two_parameters_are_recovered():
    y, _, b, a = simulated(600, 30, 1, slopes=True)
    found = item_response(y, "2pl")
    assert np.corrcoef(found.difficulty, b)[0, 1] > 0.97
    assert np.corrcoef(np.log(found.slope), np.log(a))[0, 1] > 0.85


def test_in_the_rasch_model_the_number_right_says_all():
    y, *_ = simulated(40, 30, 2)
    found = item_response(y)
    solved = y.sum(0)
    means = [found.difficulty[solved == s].mean() for s in np.unique(solved)]
    assert all(np.ptp(found.difficulty[solved == s]) < 1e-3 for s in np.unique(solved))
    assert (np.diff(means) < 0).all()
    totals = y.sum(1)
    for total in np.unique(totals):
        assert np.ptp(found.ability[totals == total]) < 1e-9


def test_one_item_has_the_share_right_that_the_model_says():
    """A closed form but for one integral: E sigmoid(slope (theta - b)) over abilities is the share, the prior being flat."""
    y = np.array([[1.0]] * 140 + [[0.0]] * 60)
    found = item_response(y, difficulty_sd=1e4)

    def share(b: float) -> float:
        return quad(lambda t: expit(found.slope[0] * (t - b)) * norm.pdf(t), -8, 8)[0]

    assert found.difficulty[0] == pytest.approx(brentq(lambda b: share(b) - 0.7, -5, 5), abs=1e-3)


def test_unanimous_items_and_unasked_ones():
    y, *_ = simulated(30, 12, 3)
    y[:, 0], y[:, 1], y[:, 2] = 1, 0, np.nan
    found = item_response(y, difficulty_sd=2.0)
    assert np.isfinite(found.difficulty).all()
    assert found.difficulty[0] == found.difficulty.min() and found.difficulty[1] == found.difficulty.max()
    assert (found.difficulty[2], found.error[2]) == (pytest.approx(0, abs=1e-3), pytest.approx(2.0, rel=1e-3))


def test_refusals():
    with pytest.raises(BadInput, match="the 2pl model needs 30 respondents, got 10"):
        item_response(np.zeros((10, 4)), "2pl")
    with pytest.raises(BadInput, match=r"of 0, 1 and NaN, got shape \(6, 1\)"):
        item_response(np.full((6, 1), 0.5))
    with pytest.raises(BadInput, match="above 0, got 0"):
        item_response(np.zeros((6, 1)), difficulty_sd=0)
