from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.metrics.cka import cka_to_retrained, cka_to_target, linear_cka


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Biased estimate of the Hilbert-Schmidt independence criterion of two Gram matrices, by definition."""
    n = len(k)
    center = np.eye(n) - np.full((n, n), 1 / n)
    return float(np.trace(k @ center @ m @ center)) / (n - 1) ** 2


def test_it_is_the_normalized_hsic_of_linear_kernels(rng):
    x, y = rng.normal(3, 1, size=(20, 5)), rng.normal(-1, 2, size=(20, 7))
    k, m = x @ x.T, y @ y.T
    assert linear_cka(x, y) == pytest.approx(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(3, 30), d=st.integers(1, 8), scale=st.floats(0.01, 100))
def test_rotation_scale_and_shift_change_nothing(seed, n, d, scale):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(n, d + 1))
    rotation, _ = np.linalg.qr(rng.normal(size=(d, d)))
    moved = scale * x @ rotation + rng.normal(size=d)
    assert linear_cka(x, moved) == pytest.approx(1, abs=1e-9)
    assert linear_cka(moved, y) == pytest.approx(linear_cka(x, y), abs=1e-9)
    assert linear_cka(y, x) == pytest.approx(linear_cka(x, y), abs=1e-12)


def test_uncorrelated_features_score_0():
    x = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    y = np.array([[1.0], [1.0], [-1.0], [-1.0]])
    assert linear_cka(x, y) == pytest.approx(0)


def test_the_value_is_the_mean_over_layers_and_the_groups_are_the_layers(evidence, rng):
    same, x, y = rng.normal(size=(12, 3)), rng.normal(size=(12, 4)), rng.normal(size=(12, 4))
    given: dict = {
        ("model", "test"): [evidence(features__early=same, features__late=x, loss=np.zeros(12))],
        ("target", "test"): [evidence(features__early=same, features__late=y)],
    }
    score = cka_to_target("test", given)
    assert score.groups == pytest.approx({"early": 1.0, "late": linear_cka(x, y)})
    assert list(score.groups) == ["early", "late"]
    assert score.value == pytest.approx((1 + linear_cka(x, y)) / 2)


def test_where_it_has_no_value(evidence, rng):
    fine = rng.normal(size=(6, 2))

    def reason(ours, theirs) -> str:
        score = cka_to_retrained("test", {("model", "test"): [ours], ("retrained", "test"): [theirs]})
        assert score.status == "undefined"
        return score.reason

    dead = evidence(features__late=np.full((6, 2), 0.1))
    assert reason(dead, evidence(features__late=fine)) == (
        "the features of layer 'late' are the same for all 6 examples"
    )
    assert "no layer's features" in reason(evidence(features__a=fine), evidence(features__b=fine))
    assert reason(evidence(features__a=fine[:2]), evidence(features__a=fine[2:4])) == (
        "CKA needs 3 or more examples, there are 2"
    )
