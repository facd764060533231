from __future__ import annotations

import numpy as np
import pytest

from expunge.metrics.calibration import ece, expected_calibration_error


def test_by_hand():
    # Bins of width 1/2: (0, .5] holds .4 (wrong), (.5, 1] holds .6 (right), .8 (right), 1.0 (wrong):
    # 1/4 |0 - .4| + 3/4 |2/3 - .8| = .1 + .1.
    value = expected_calibration_error(np.array([0.4, 0.6, 0.8, 1.0]), np.array([0, 1, 1, 0]), bins=2)
    assert value == pytest.approx(0.2)


def test_an_edge_belongs_to_the_bin_below():
    # .5 joins the wrong .4: |1/2 - .45| * 2/3 + |1 - .9| / 3. In the bin above it would be .4/3 + .6/3 * ...
    value = expected_calibration_error(np.array([0.4, 0.5, 0.9]), np.array([0, 1, 1]), bins=2)
    assert value == pytest.approx(0.05 * 2 / 3 + 0.1 / 3)


@pytest.mark.parametrize(("n", "classes", "sharpness"), [(50, 2, 1.0), (400, 10, 3.0), (1000, 4, 8.0)])
def test_it_is_netcals(from_logits, rng, n, classes, sharpness):
    netcal = pytest.importorskip("netcal.metrics")
    logits, labels = sharpness * rng.normal(size=(n, classes)), rng.integers(classes, size=n)
    rows = from_logits(logits, labels)
    probabilities = np.exp(rows["logp"])
    if classes == 2:
        # netcal takes the probability of class 1 where there are two; as confidences both are meant here.
        expected = netcal.ECE(15).measure(probabilities.max(1), rows["correct"].astype(int))
    else:
        expected = netcal.ECE(15).measure(probabilities, labels)
    assert ece("test", {("model", "test"): [rows]}).value == pytest.approx(expected, abs=1e-9)
