from __future__ import annotations

import json
import math

import numpy as np
import pytest

from expunge.errors import BadInput
from expunge.stats.klom import klom


def slow(judged: np.ndarray, reference: np.ndarray, *, last_closed: bool) -> list[float]:
    """Margin by margin and bin by bin, without numpy's histogram."""
    found = []
    for j in range(judged.shape[1]):
        low = min(*judged[:, j], *reference[:, j])
        high = max(*judged[:, j], *reference[:, j])
        edges = [low + (high - low) * k / 20 for k in range(20)] + [high]
        shares = []
        for sample in (judged[:, j], reference[:, j]):
            counts = [0.0] * 20
            for value in sample:
                for k in range(20):
                    if edges[k] <= value < edges[k + 1] or (last_closed and k == 19 and value == high):
                        counts[k] += 1
            shares.append([c / sum(counts) for c in counts])
        p, q = shares
        q = [max(b, 1e-5) if a > 0 else b for a, b in zip(p, q, strict=True)]
        q = [b / sum(q) for b in q]
        found.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))
    return found


def test_equal_samples_have_no_divergence_and_disjoint_ones_the_logarithm_of_the_floor():
    sample = np.random.default_rng(0).normal(size=(50, 3))
    assert klom(sample, sample) == pytest.approx(np.zeros(3), abs=1e-12)
    apart = klom(np.zeros((30, 1)), np.ones((30, 1)))
    # The reference's bins are 1 and 1e-5, normalized: ln(1 / (1e-5 / 1.00001)).
    assert apart == pytest.approx([math.log(1.00001e5)], rel=1e-12)
    assert klom(np.full((5, 1), 2.0), np.full((9, 1), 2.0)) == [0.0]


def test_by_hand():
    # Bins of width 1 from 0 to 20: p is half in the first and half in the last, closed one; q is 3/4 and 1/4 there.
    value = klom([[0.0], [20.0]], [[0.0], [0.5], [0.9], [19.5]])
    assert value == pytest.approx([0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)])
    assert klom([[0.0], [1e6]], [[0.0], [250.0]]) == pytest.approx([0.0]), "margins beyond 100 count as 100"


def test_agrees_with_the_slow_definition():
    rng = np.random.default_rng(3)
    judged, reference = rng.normal(0.4, 1.3, (40, 5)), rng.normal(size=(60, 5))
    assert klom(judged, reference) == pytest.approx(slow(judged, reference, last_closed=True), rel=1e-12)


def test_bias_for_few_models_is_the_one_documented():
    rng = np.random.default_rng(1)
    for n, mean in ((20, 3.0), (100, 0.36)):
        null = klom(rng.normal(size=(n, 400)), rng.normal(size=(n, 400))).mean()
        assert null == pytest.approx(mean, rel=0.15)


def test_reference_values_of_the_public_benchmark(shared):
    folder = shared / "golden" / "classifier-tiny" / "ensembles"
    stored, values = (
        np.load(folder / "confidences_margins_klom.npz"),
        json.loads((folder / "values.json").read_text()),
    )
    unlearned, retrained = stored["margin_unlearned"], stored["margin_retrained"]
    # The public code leaves out the largest value of the two samples, for its last bin is open.
    opened = slow(unlearned, retrained, last_closed=False)
    assert opened == pytest.approx(stored["klom_unlearned_from_retrained"], abs=1e-9)
    assert np.mean(opened[:24]) == pytest.approx(values["klom_unlearned_from_retrained"]["forget"]["mean"])
    closed = klom(unlearned, retrained)
    assert closed == pytest.approx(slow(unlearned, retrained, last_closed=True), rel=1e-9)
    assert abs(closed - opened).max() < 0.35
    # Half of the retrained models against the other half: the floor is as high as the value.
    floor = klom(retrained[32:], retrained[:32])
    assert floor[:24].mean() > 1.0


@pytest.mark.parametrize(
    ("judged", "reference", "message"),
    [
        ([1.0, 2.0], [[1.0]], "judged margins have shape (2,)"),
        ([[1.0]], [[math.nan]], "reference margins hold NaN"),
        ([[1.0, 2.0]], [[1.0]], "margins of 2 examples and the reference models of 1"),
    ],
)
def test_refuses(judged, reference, message):
    with pytest.raises(BadInput) as caught:
        klom(judged, reference)
    assert message in str(caught.value)
