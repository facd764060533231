from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.weightstats import ttost_ind

from expunge.errors import BadInput
from expunge.stats.equivalence import equivalence_p, judge
from expunge.stats.prediction import judge_one, prediction_interval, single_case_p


def test_by_hand():
    # Mean 2, s = 1, n = 3: s sqrt(4/3) = 1.154701; t(2; .975) = 4.302653; half 4.968275.
    found = prediction_interval([1, 2, 3])
    assert found is not None
    assert (found.low, found.high) == pytest.approx((-2.968275, 6.968275), abs=1e-5)
    assert found.method == "prediction from 3 models"
    # t = 4 / 1.154701 = 3.464102; of 2 degrees of freedom P(|T| > t) = 1 - t / sqrt(2 + t^2).
    assert single_case_p(6, [1, 2, 3]) == pytest.approx(1 - 3.464102 / math.sqrt(2 + 12), abs=1e-6)


def test_it_is_the_prediction_of_a_regression_on_a_constant():
    values = np.random.default_rng(1).normal(0.7, 0.05, 7)
    predicted = OLS(values, np.ones(7)).fit().get_prediction([[1.0]]).conf_int(obs=True, alpha=0.1)[0]
    found = prediction_interval(values, level=0.9)
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(predicted))


def test_the_p_value_is_that_of_the_t_test_with_one_value_on_a_side():
    rng = np.random.default_rng(2)
    references, value = rng.normal(size=6), 1.7
    # Student's two-sample test pools variances; one value adds none.
    assert single_case_p(value, references) == pytest.approx(stats.ttest_ind([value], references).pvalue)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_it_holds_the_next_value_as_often_as_promised(n):
    rng = np.random.default_rng(n)
    inside = 0
    for _ in range(2000):
        *references, new = rng.normal(3, 2, n + 1)
        interval = prediction_interval(references)
        assert interval is not None
        inside += interval.low <= new <= interval.high
    assert inside / 2000 == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 2000))


def test_p_and_interval_agree():
    references = [0.9, 0.93, 0.95, 0.91]
    interval = prediction_interval(references)
    assert interval is not None
    assert single_case_p(interval.high, references) == pytest.approx(0.05)
    assert single_case_p(0.9225, references) == pytest.approx(1.0)


def test_one_model_is_judged_with_the_spread_of_the_retrained_ones():
    references = [0.94, 0.95, 0.945, 0.955]
    close = judge_one(0.947, references, 0.05)
    assert close.judgement == "no larger difference"
    assert close.interval is not None and close.interval.level == pytest.approx(0.9)
    assert judge_one(0.2, references, 0.05).judgement == "different"
    unsure = judge_one(0.90, references, 0.05)
    assert unsure.judgement == "undecided"
    assert unsure.more_seeds is not None and unsure.more_seeds >= 1
    # Student's two one-sided tests with one value on a side.
    for value in (0.90, 0.915, 0.94):
        p, _, _ = ttost_ind([value], references, -0.05, 0.05, usevar="pooled")
        assert (judge_one(value, references, 0.05).judgement == "no larger difference") == (p < 0.05)


@pytest.mark.parametrize("n", [3, 8])
def test_a_method_that_is_off_by_the_margin_passes_in_at_most_5_percent(n):
    rng = np.random.default_rng(40 + n)
    passed = sum(
        judge_one(rng.normal(0.2, 0.02), rng.normal(0, 0.02, n), 0.2).judgement == "no larger difference"
        for _ in range(2000)
    )
    assert passed / 2000 == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 2000))


def test_without_a_spread_there_is_no_interval():
    assert prediction_interval([0.5]) is None
    assert prediction_interval([]) is None
    assert prediction_interval([1.0, 1.0, 1.0]) is None
    assert single_case_p(0.9, [1.0, 1.0, 1.0]) is None
    assert judge_one(0.9, [1.0, 1.0], 0.05) == ("undecided", pytest.approx(-0.1), None, None)
    assert judge_one(0.9, [], 0.05) == ("undecided", None, None, None)


def test_refusals():
    with pytest.raises(BadInput, match="an interval over nan has no meaning"):
        prediction_interval([1.0, math.nan])
    with pytest.raises(BadInput, match="a value of nan cannot be compared with retraining"):
        single_case_p(math.nan, [1.0, 2.0])
    with pytest.raises(BadInput, match="the margin must be a number above 0, got 0"):
        judge_one(1.0, [1.0, 2.0], 0)


def test_the_p_value_of_equivalence_says_what_the_judgement_says():
    rng = np.random.default_rng(6)
    for _ in range(30):
        ours, theirs = rng.normal(0.1, 0.3, 4), rng.normal(0, 0.3, 5)
        p = equivalence_p(ours, theirs, 0.6)
        assert p is not None
        assert (p <= 0.05) == (judge(ours, theirs, 0.6).judgement == "no larger difference")
    assert equivalence_p([1.0, 1.0], [1.0, 1.0], 0.1) == 0.0
    assert equivalence_p([2.0, 2.0], [1.0, 1.0], 0.1) == 1.0
    assert equivalence_p([2.0], [1.0, 1.0], 0.1) is None
