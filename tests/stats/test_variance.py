from __future__ import annotations

import numpy as np
import pytest

from expunge.errors import BadInput
from expunge.stats.variance import variance_components


def crossed(
    a: int, b: int, n: int, seed: int, sd: tuple[float, float, float]
) -> tuple[np.ndarray, dict[str, list[int]]]:
    rng = np.random.default_rng(seed)
    data, init = np.repeat(np.arange(a), b * n), np.tile(np.repeat(np.arange(b), n), a)
    values = (
        0.7 + rng.normal(0, sd[0], a)[data] + rng.normal(0, sd[1], b)[init] + rng.normal(0, sd[2], a * b * n)
    )
    return values, {"data": data.tolist(), "init": init.tolist()}


def test_balanced_designs_are_the_analysis_of_variance():
    a, b, n = 5, 4, 3
    values, factors = crossed(a, b, n, 0, (0.03, 0.02, 0.01))
    table = values.reshape(a, b, n)
    rows, columns = table.mean((1, 2)), table.mean((0, 2))
    ss_a, ss_b = b * n * rows.var() * a, a * n * columns.var() * b
    ms_e = (values.var() * a * b * n - ss_a - ss_b) / (a * b * n - a - b + 1)
    found = variance_components(values, factors)
    assert found["residual"].variance == pytest.approx(ms_e, rel=1e-3)
    assert found["data"].variance == pytest.approx((ss_a / (a - 1) - ms_e) / (b * n), rel=1e-2)
    assert found["init"].variance == pytest.approx((ss_b / (b - 1) - ms_e) / (a * n), rel=1e-2)
    assert sum(c.share or 0 for c in found.values()) == pytest.approx(1)


def test_components_are_recovered():
    drawn = [variance_components(*crossed(20, 20, 1, seed, (0.02, 0.03, 0.04))) for seed in range(8)]
    expected = {"data": 0.02**2, "init": 0.03**2, "residual": 0.04**2}
    for name, variance in expected.items():
        assert np.mean([found[name].variance for found in drawn]) == pytest.approx(variance, rel=0.25), name


def test_what_cannot_be_told_apart_is_undefined_with_the_reason():
    values, factors = crossed(4, 3, 2, 2, (0.1, 0.1, 0.1))
    factors |= {"order": factors["init"], "device": [0] * 24, "seed": list(range(24))}
    found = variance_components(values, factors)
    assert found["order"] == (None, None, "it varies only together with 'init'")
    assert found["device"].reason == "it has 1 level; vary it to know"
    assert "every run has a level of its own" in found["seed"].reason
    assert (
        found["init"].variance
        == variance_components(values, {k: factors[k] for k in ("data", "init")})["init"].variance
    )
    assert variance_components([0.5], {"init": [0]})["residual"].reason == "it takes two runs at least"
    with pytest.raises(BadInput, match="factor 'init' has 1 levels for 2 values"):
        variance_components([0.5, 0.6], {"init": [0]})


def test_equal_runs_have_no_variance():
    found = variance_components([0.5] * 4, {"init": [0, 0, 1, 1]})
    assert found["init"].variance == found["residual"].variance == 0.0
    assert found["init"].share is None
