from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from expunge.errors import BadInput
from expunge.stats.gaussian_poison import poison_statistics, power, z_score


def test_by_hand():
    # <(1, 2), (3, 4)> = 11, ||(3, 4)|| = 5, std 2: t = -1.1; a zero gradient has no direction.
    found = poison_statistics([[1.0, 2.0], [1.0, 2.0]], [[3.0, 4.0], [0.0, 0.0]], 2.0)
    assert found[0] == pytest.approx(-1.1)
    assert math.isnan(found[1])


def test_standard_normal_where_the_gradients_do_not_depend_on_the_noise():
    rng = np.random.default_rng(0)
    gradients = rng.gamma(0.3, size=(2000, 15)) ** 3  # anything but normal
    found = poison_statistics(0.3 * rng.normal(size=gradients.shape), gradients, 0.3)
    assert stats.kstest(found, "norm").pvalue > 0.01
    assert abs(z_score(found)) < 3


def test_a_shift_is_found_with_the_power_of_the_normal_law():
    rng = np.random.default_rng(1)
    poisons = rng.normal(size=(4000, 6))
    unit = np.zeros_like(poisons)
    unit[:, 0] = -1.0  # the noise moved two standard deviations against the gradient
    found = poison_statistics(poisons - 2 * unit, unit, 1.0)
    assert found.mean() == pytest.approx(2.0, abs=0.06)
    assert (found > stats.norm.isf(0.01)).mean() == pytest.approx(power(2.0), abs=0.03)


@pytest.mark.parametrize(("shift", "share"), [(0, 0.010), (1, 0.092), (2, 0.372), (3, 0.750)])
def test_power(shift, share):
    assert power(shift) == pytest.approx(share, abs=5e-4)


def test_z_is_the_scaled_mean():
    assert z_score([0.5, 1.0, 1.5, 2.0]) == pytest.approx(2 * 1.25)


def test_refusals():
    with pytest.raises(BadInput, match=r"shape \(1, 2\) and gradients \(1, 3\)"):
        poison_statistics([[1.0, 2.0]], [[1.0, 2.0, 3.0]], 1.0)
    with pytest.raises(BadInput, match="deviation of the poisons is 0"):
        poison_statistics([[1.0]], [[1.0]], 0)
