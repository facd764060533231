from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from expunge.errors import BadInput
from expunge.stats import bca, clustered_bootstrap, delong, t_interval, wilson


def ends(interval) -> tuple[float, float]:
    assert interval is not None
    return interval.low, interval.high


def test_t_by_hand():
    # mean 2, s = 1, t(2, .975) = 4.30265: 2 ± 4.30265 / sqrt 3
    assert ends(t_interval([1, 2, 3])) == pytest.approx((-0.48414, 4.48414), abs=1e-5)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_t_is_statsmodels(level):
    values = np.random.default_rng(1).normal(size=9)
    assert ends(t_interval(values, level)) == pytest.approx(DescrStatsW(values).tconfint_mean(1 - level))


def test_one_value_says_nothing_about_uncertainty():
    assert t_interval([0.9]) is None
    assert t_interval([]) is None
    assert bca([0.9]) is None
    assert bca([0.9, 0.9, 0.9]) is None
    assert wilson(0, 0) is None
    assert clustered_bootstrap([1.0, 2.0], ["a", "a"]) is None


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (10, 10), (37, 200)])
def test_wilson_is_statsmodels(k, n):
    low, high = ends(wilson(k, n, 0.9))
    assert (low, high) == pytest.approx(proportion_confint(k, n, 0.1, method="wilson"), abs=1e-12)
    assert 0 <= low <= k / n <= high <= 1
    assert high - low > 0


def test_bca_follows_efrons_formula():
    """Against the formula written out, on the bootstrap distribution of another generator."""
    values = np.random.default_rng(2).exponential(size=25)
    n, mean = len(values), values.mean()
    drawn = values[np.random.default_rng(3).integers(n, size=(40_000, n))].mean(1)
    z0 = norm.ppf(np.mean(drawn < mean))
    left_out = np.array([np.delete(values, i).mean() for i in range(n)])
    deviations = left_out.mean() - left_out
    acceleration = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
    adjusted = [z0 + (z0 + z) / (1 - acceleration * (z0 + z)) for z in norm.ppf([0.025, 0.975])]
    expected = np.quantile(drawn, norm.cdf(adjusted))
    assert ends(bca(values, resamples=20_000)) == pytest.approx(expected, abs=0.02)


def test_bca_takes_any_statistic_and_is_reproducible():
    values = np.random.default_rng(4).normal(size=40)
    interval = bca(values, np.median, resamples=500)
    assert interval == bca(values, np.median, resamples=500)
    assert interval != bca(values, np.median, resamples=500, seed=1)
    low, high = ends(interval)
    assert low <= np.median(values) <= high


def test_clusters_are_resampled_whole():
    """Each value five times over carries no more information than once."""
    once = np.random.default_rng(5).normal(size=30)
    five, clusters = np.repeat(once, 5), np.repeat(np.arange(30), 5)
    clustered = ends(clustered_bootstrap(five, clusters, resamples=4000))
    single = ends(clustered_bootstrap(once, np.arange(30), resamples=4000))
    naive = ends(clustered_bootstrap(five, np.arange(150), resamples=4000))
    assert clustered == pytest.approx(single, abs=1e-12)
    assert np.ptp(clustered) / np.ptp(naive) == pytest.approx(math.sqrt(5), rel=0.08)


def test_clusters_of_unequal_size_weigh_by_their_rows():
    # Two clusters, four equally likely draws: means 0, 0, 1 (all "b") and (0 + 1 + 1 + 1) / 4.
    interval = clustered_bootstrap([0.0, 1.0, 1.0, 1.0], ["a", "b", "b", "b"], level=0.9, resamples=2000)
    assert ends(interval) == (0.0, 1.0)
    middle = clustered_bootstrap([0.0, 1.0, 1.0, 1.0], ["a", "b", "b", "b"], level=0.2, resamples=2000)
    assert ends(middle) == (0.75, 0.75)


def test_delong_by_hand():
    # Pairs: 3>1, 3>2, 2>1, 2=2: (1 + 1 + 1 + 1/2) / 4. Placements (1, 3/4) and (1, 3/4):
    # variances 1/32 each, so the variance is 1/32, and on the logit scale 0.17678 / (0.875 * 0.125) = 1.6162.
    area, interval = delong([3.0, 2.0], [1.0, 2.0])
    assert area == 0.875
    centre, half = math.log(7), 1.959964 * 1.616244
    expected = [1 / (1 + math.exp(-(centre + side * half))) for side in (-1, 1)]
    assert ends(interval) == pytest.approx(expected, abs=1e-5)


def test_delong_is_the_slow_definition_with_ties():
    rng = np.random.default_rng(6)
    x, y = rng.integers(0, 8, 35).astype(float) + 1, rng.integers(0, 8, 50).astype(float)
    psi = np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in y] for a in x])
    variance = psi.mean(1).var(ddof=1) / 35 + psi.mean(0).var(ddof=1) / 50
    area, interval = delong(x, y)
    assert area == pytest.approx(psi.mean())
    assert area == pytest.approx(roc_auc_score(np.r_[np.ones(35), np.zeros(50)], np.r_[x, y]))
    low, high = ends(interval)
    width = math.log(high / (1 - high)) - math.log(low / (1 - low))
    assert width == pytest.approx(2 * norm.ppf(0.975) * math.sqrt(variance) / (area * (1 - area)))


def test_delong_covers_the_truth_as_often_as_it_says():
    # Normal scores one standard deviation apart: AUC = Phi(1 / sqrt 2) = .7602.
    rng, truth = np.random.default_rng(7), norm.cdf(1 / math.sqrt(2))
    found = [ends(delong(rng.normal(1, 1, 40), rng.normal(0, 1, 40))[1]) for _ in range(400)]
    covered = np.mean([low <= truth <= high for low, high in found])
    assert 0.92 <= covered <= 0.98


def test_complete_separation_gives_no_false_certainty():
    assert delong([2.0, 3.0], [0.0, 1.0]) == (1.0, None)
    assert delong([1.0, 1.0], [1.0, 1.0]) == (0.5, None)
    assert delong([2.0], [0.0, 3.0]) == (0.5, None)


def test_refusals():
    with pytest.raises(BadInput, match="an interval over nan has no meaning; leave undefined values out"):
        t_interval([1.0, math.nan])
    with pytest.raises(BadInput, match=r"array of shape \(2, 2\)"):
        bca(np.zeros((2, 2)))
    with pytest.raises(BadInput, match="5 successes of 4 cannot be"):
        wilson(5, 4)
    with pytest.raises(BadInput, match="3 values but 2 cluster ids"):
        clustered_bootstrap([1.0, 2.0, 3.0], ["a", "b"])
    with pytest.raises(BadInput, match="got 0 positives and 1 negatives"):
        delong([], [1.0])
