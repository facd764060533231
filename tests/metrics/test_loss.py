from __future__ import annotations

import math

import pytest
from sklearn.metrics import log_loss
from statsmodels.stats.weightstats import DescrStatsW

from expunge.metrics.loss import mean_loss


def test_it_is_the_cross_entropy_of_scikit_learn(from_logits, rng):
    logits, labels = rng.normal(size=(50, 4)), rng.integers(4, size=50)
    probabilities = [[math.exp(z) / sum(map(math.exp, row)) for z in row] for row in logits.tolist()]
    score = mean_loss("test", {("model", "test"): [from_logits(logits, labels)]})
    assert score.value == pytest.approx(log_loss(labels, probabilities, labels=range(4)), rel=1e-9)


def test_interval_and_groups(evidence):
    losses = [0.1, 0.4, 0.2, 0.9]
    rows = evidence(groups=["a", "a", "b", "b"], loss=losses)
    score = mean_loss("forget", {("model", "forget"): [rows]})
    assert score.groups == pytest.approx({"a": 0.25, "b": 0.55})
    assert score.interval is not None
    expected = DescrStatsW(losses).tconfint_mean(0.05)
    assert (score.interval.low, score.interval.high) == pytest.approx(expected)
    assert score.interval.method == "t over examples"


def test_a_model_that_diverged_has_no_mean_loss(evidence):
    score = mean_loss("forget", {("model", "forget"): [evidence(loss=[0.1, math.nan, math.inf])]})
    assert score.status == "undefined"
    assert score.reason == "loss is not finite for 2 of 3 values; the model has diverged"
