from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import skewnorm

from expunge.errors import BadInput
from expunge.stats.intervals import bca, clustered_bootstrap
from expunge.stats.paired import paired_test


def test_all_sign_flips_by_hand():
    one, two = np.array([3.0, 5.0, 2.0, 7.0]), np.array([1.0, 4.0, 2.5, 3.0])
    d = one - two  # 2, 1, -0.5, 4: the sum is 6.5, reached by 7.5 and 6.5 on either side
    sums = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in product((1, -1), repeat=4)]
    found = paired_test(one, two)
    assert found.p_value == pytest.approx(np.mean([s >= 6.5 - 1e-9 for s in sums]))
    assert found.p_value == 4 / 16
    assert found.difference == pytest.approx(1.625)


def test_clusters_are_flipped_as_a_whole():
    # 60 rows of 3 authors: as rows a clear difference, as authors the least p-value is 2 / 8.
    rng = np.random.default_rng(0)
    d, authors = 1 + rng.normal(0, 0.1, 60), np.repeat(["a", "b", "c"], 20)
    assert paired_test(d, np.zeros(60)).p_value < 0.001
    found = paired_test(d, np.zeros(60), clusters=authors)
    assert found.p_value == pytest.approx(0.25)
    assert found.interval is not None and found.interval.method == "bootstrap over clusters"


def test_size():
    rng = np.random.default_rng(1)
    rejected = [paired_test(rng.normal(size=8), rng.normal(size=8)).p_value <= 0.05 for _ in range(200)]
    assert np.mean(rejected) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_equal_models():
    assert paired_test([1.0, 2.0], [1.0, 2.0]) == (0.0, None, 1.0)
    with pytest.raises(BadInput, match="the same examples of both models, got 2 and 1 values"):
        paired_test([1.0, 2.0], [1.0])


def test_the_corrected_bootstrap_over_single_rows_is_bca():
    values = skewnorm.rvs(8, size=60, random_state=3)
    one = bca(values, resamples=9999)
    other = clustered_bootstrap(values, range(60), resamples=9999, corrected=True)
    plain = clustered_bootstrap(values, range(60), resamples=9999)
    assert one is not None and other is not None and plain is not None
    assert other.method == "bca bootstrap over clusters"
    assert (other.low, other.high) == pytest.approx((one.low, one.high), abs=0.01)
    assert other.high > plain.high  # of a skewed sample
    assert clustered_bootstrap([1.0, 1.0, 1.0], [0, 1, 2], corrected=True) is None
