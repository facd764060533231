from __future__ import annotations

import math

import numpy as np
import pytest

from expunge.errors import BadInput
from expunge.stats.bands import null_band, null_curve_band, null_distance


def test_by_hand():
    # t(1; .975) = 12.7062; s = sqrt(2) / 2 * 2 = 1.414214 for 1 and 3; s sqrt(1 + 1/2) = 1.732051.
    band = null_band([1, 3])
    assert band is not None
    half = 12.7062 * 1.732051
    assert (band.values.low, band.values.high) == pytest.approx((2 - half, 2 + half), abs=1e-3)
    assert (band.gaps.low, band.gaps.high) == pytest.approx((-half, half), abs=1e-3)


def test_a_further_retrained_models_gap_lies_within_as_often_as_promised():
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(2000):
        *references, new = rng.normal(0.9, 0.01, 5)
        band = null_band(references, level=0.8)
        assert band is not None
        inside += band.gaps.low <= new - np.mean(references) <= band.gaps.high
    assert inside / 2000 == pytest.approx(0.8, abs=3 * math.sqrt(0.16 / 2000))


def test_curves_point_by_point():
    curves = [[0.1, 0.5, 1.0], [0.2, 0.5, math.nan], [0.3, 0.5, 0.8]]
    first, flat, last = null_curve_band(curves)
    assert first == null_band([0.1, 0.2, 0.3])
    assert flat is None
    assert last == null_band([1.0, 0.8])
    with pytest.raises(BadInput, match=r"needs an array \[models, points\], got one of shape \(2,\)"):
        null_curve_band([0.1, 0.2])


def test_distances_over_pairs():
    places = np.array([0.0, 1.0, 3.0, 7.0])
    distances = np.abs(np.subtract.outer(places, places))  # 1 3 7 2 6 4
    whole, half = null_distance(distances), null_distance(distances, level=0.5)
    assert whole is not None and half is not None
    assert (whole.low, whole.high, whole.method) == (0.0, 7.0, "quantile over 6 pairs of models")
    assert half.high == 3.0  # three of the six do not exceed it
    assert null_distance([[0.0]]) is None
    with pytest.raises(BadInput, match="the same both ways"):
        null_distance([[0.0, 1.0], [2.0, 0.0]])
    with pytest.raises(BadInput, match=r"an array \[n, n\], got one of shape \(2, 1\)"):
        null_distance([[0.0], [1.0]])


def test_where_no_band_can_be_drawn():
    assert null_band([0.5]) is None
    assert null_band([0.5, 0.5]) is None
