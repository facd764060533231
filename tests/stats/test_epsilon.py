from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from expunge.errors import BadInput
from expunge.stats.epsilon import epsilon_bound, epsilon_of_scores, largest_epsilon


@pytest.mark.parametrize(("found", "alarms"), [(90, 5), (60, 40), (100, 0), (0, 0), (99, 97), (30, 60)])
def test_the_limits_are_those_of_clopper_and_pearson(found, alarms):
    tpr = proportion_confint(found, 100, alpha=0.05, method="beta")[0]
    fpr = proportion_confint(alarms, 80 + alarms, alpha=0.05, method="beta")[1]
    ways = [(tpr - 1e-5, fpr), (1 - fpr - 1e-5, 1 - tpr)]
    expected = max(0.0, *(math.log(a / b) for a, b in ways if a > 0))
    assert epsilon_bound(found, 100, alarms, 80 + alarms) == pytest.approx(expected)


def test_a_perfect_attack_by_hand():
    # The limits for n of n and 0 of n are q = 0.025^(1/n) and 1 - q: 0.9637835 for n = 100.
    q = 0.025 ** (1 / 100)
    assert largest_epsilon(100, 100, delta=0.0) == pytest.approx(math.log(q / (1 - q)))
    assert largest_epsilon(100, 100) == pytest.approx(3.2813, abs=1e-3)
    assert largest_epsilon(1000, 1000) == pytest.approx(math.log(1000 / 3.7), abs=0.01)


def test_an_attack_that_guesses_shows_nothing_in_all_but_5_percent():
    """Against randomized response, whose epsilon is known, the bound is exceeded in at most 5 % of cases."""
    rng = np.random.default_rng(0)
    for epsilon in (0.0, 1.0):
        rate = math.exp(epsilon) / (1 + math.exp(epsilon))
        over = sum(
            epsilon_bound(int(rng.binomial(200, rate)), 200, int(rng.binomial(200, 1 - rate)), 200, delta=0.0)
            > epsilon
            for _ in range(2000)
        )
        assert over / 2000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
    # And it comes near: with many rows, the bound is most of the truth.
    bounds = [
        epsilon_bound(int(rng.binomial(20_000, rate)), 20_000, int(rng.binomial(20_000, 1 - rate)), 20_000)
        for _ in range(50)
    ]
    assert 0.93 < np.mean(bounds) < 1.0


def test_scores_both_ways_and_without_paying_for_the_search():
    rng = np.random.default_rng(1)
    low, high = rng.normal(0, 1, 400), rng.normal(4, 1, 400)
    assert epsilon_of_scores(high, low) > 2
    assert epsilon_of_scores(low, high) > 2  # over-forgotten rows give themselves away as well
    shown = [epsilon_of_scores(rng.normal(size=60), rng.normal(size=60), seed=s) > 0 for s in range(200)]
    assert np.mean(shown) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_refusals():
    with pytest.raises(BadInput, match="5 of 4 members cannot be"):
        epsilon_bound(5, 4, 0, 4)
    with pytest.raises(BadInput, match="two rows on each side, got 1 members and 3 non-members"):
        epsilon_of_scores([1.0], [1.0, 2.0, 3.0])
