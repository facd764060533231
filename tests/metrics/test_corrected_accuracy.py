"""Corrected accuracy and the manipulation's success, on logits made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.metrics.base import METRICS
from expunge.metrics.corrective import corrected_accuracy, manipulation_success


def test_shares_by_hand(from_logits) -> None:
    predicted = np.asarray([0, 0, 0, 2])
    logits = np.eye(3)[predicted]
    truth = from_logits(logits, np.asarray([0, 1, 2, 2]), groups=["0", "1", "2", "2"])
    theirs = from_logits(logits[1:], np.asarray([0, 0, 0]), groups=["0", "0", "0"])
    right = corrected_accuracy("affected", {("model", "affected"): [truth]})
    fooled = manipulation_success("attacked", {("model", "attacked"): [theirs]})
    assert (right.value, right.n, right.direction) == (0.5, 4, "higher")
    assert right.groups == {"0": 1.0, "1": 0.0, "2": 0.5}
    assert fooled.value == pytest.approx(2 / 3) and (fooled.n, fooled.direction) == (3, "lower")
    assert fooled.interval is not None and fooled.interval.method == "wilson"


def test_no_share_without_such_rows() -> None:
    score = METRICS["manipulation-success"]("attacked", {})
    assert score.status == "undefined" and "attacked" in score.reason
