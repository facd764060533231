from __future__ import annotations

import math
from fnmatch import fnmatchcase

import numpy as np
import pytest
from statsmodels.stats.weightstats import ttost_ind

from expunge.errors import BadInput
from expunge.metrics import METRICS
from expunge.record import Score
from expunge.stats.equivalence import MARGINS, default_margin, judge, verdict


def scores(
    *values: float | None, metric: str = "accuracy", unit: str = "share", split: str = "test"
) -> list[Score]:
    return [
        Score(metric=metric, split=split, value=v, unit=unit, direction="match")
        if v is not None
        else Score(
            metric=metric, split=split, unit=unit, direction="match", status="undefined", reason="none"
        )
        for v in values
    ]


@pytest.mark.parametrize("seed", range(40))
def test_it_is_the_two_one_sided_test_of_statsmodels(seed):
    rng = np.random.default_rng(seed)
    ours = rng.normal(0.3 * rng.normal(), rng.uniform(0.2, 1), rng.integers(3, 9))
    theirs = rng.normal(0, rng.uniform(0.2, 1), rng.integers(3, 9))
    margin = rng.uniform(0.3, 1.2)
    p, _, _ = ttost_ind(ours, theirs, -margin, margin, usevar="unequal")
    assert (judge(ours, theirs, margin).judgement == "no larger difference") == (p < 0.05)


def test_both_answers_occur_among_those_cases():
    found = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        ours = rng.normal(0.3 * rng.normal(), rng.uniform(0.2, 1), rng.integers(3, 9))
        theirs = rng.normal(0, rng.uniform(0.2, 1), rng.integers(3, 9))
        found.add(judge(ours, theirs, rng.uniform(0.3, 1.2)).judgement)
    assert {"no larger difference", "undecided"} <= found


def test_by_hand():
    # Means 2 and 0, variances 1 and 1, n = 3 each: se = sqrt(2/3), df = 4, t = 2.13185; 2 ± 1.74065.
    outcome = judge([1, 2, 3], [-1, 0, 1], margin=0.2)
    assert outcome.difference == 2
    assert outcome.interval is not None
    assert (outcome.interval.low, outcome.interval.high) == pytest.approx((0.25935, 3.74065), abs=1e-5)
    assert outcome.interval.level == pytest.approx(0.90)
    assert outcome.judgement == "different"
    assert judge([1, 2, 3], [-1, 0, 1], margin=0.3).judgement == "undecided"
    assert judge([1, 2, 3], [-1, 0, 1], margin=3.8).judgement == "no larger difference"
    assert judge([-1, 0, 1], [1, 2, 3], margin=0.2).judgement == "different"


@pytest.mark.parametrize(("n", "m"), [(3, 3), (5, 3), (10, 10)])
def test_a_difference_of_just_the_margin_passes_in_at_most_5_percent(n, m):
    """Size: the worst case that must not pass is a true difference equal to the margin."""
    rng = np.random.default_rng(n * m)
    passed = sum(
        judge(rng.normal(0.05, 0.02, n), rng.normal(0, 0.01, m), 0.05).judgement == "no larger difference"
        for _ in range(1000)
    )
    # Welch's approximation is a little liberal at three against three; 3 standard errors are 0.021.
    assert passed / 1000 <= 0.05 + 0.021


def test_many_seeds_of_an_equal_method_pass():
    rng = np.random.default_rng(9)
    passed = [judge(rng.normal(0, 0.02, 10), rng.normal(0, 0.02, 10), 0.05).judgement for _ in range(200)]
    assert passed.count("no larger difference") >= 195


def test_the_number_of_further_seeds_decides_with_the_power_promised():
    """Were the observed numbers the truth, that many more decide in 80 % of cases, half as many do not."""
    ours, theirs = [-0.06, 0.0, 0.06], [-0.03, 0.02, 0.04]
    outcome = judge(ours, theirs, 0.05)
    assert outcome.judgement == "undecided"
    assert outcome.more_seeds is not None
    rng = np.random.default_rng(10)

    def power(more: int) -> float:
        n = 3 + more
        decided = [
            judge(
                rng.normal(np.mean(ours), np.std(ours, ddof=1), n),
                rng.normal(np.mean(theirs), np.std(theirs, ddof=1), n),
                0.05,
            ).judgement
            != "undecided"
            for _ in range(400)
        ]
        return float(np.mean(decided))

    assert power(outcome.more_seeds) == pytest.approx(0.80, abs=0.08)
    assert power(outcome.more_seeds // 2) < 0.65


def test_more_seeds_also_for_a_difference_beyond_the_margin():
    outcome = judge([0.2, 0.4, 0.3], [0.0, 0.25, 0.1], 0.05)
    assert outcome.judgement == "undecided"
    assert outcome.more_seeds is not None
    # A difference at the margin itself would never be decided.
    on_the_edge = judge([0.95, 1.05], [-0.05, 0.05], 1.0)
    assert (on_the_edge.judgement, on_the_edge.more_seeds) == ("undecided", None)


def test_where_nothing_varies_the_point_decides():
    for value, expected in (
        (1.0, "no larger difference"),
        (0.96, "no larger difference"),
        (0.9, "different"),
    ):
        outcome = judge([value] * 3, [1.0] * 3, 0.05)
        assert outcome.judgement == expected
        assert outcome.interval is not None
        assert outcome.interval.low == outcome.interval.high == pytest.approx(value - 1.0)


def test_one_deterministic_side_leaves_the_degrees_of_freedom_of_the_other():
    # se = 1 / sqrt 3, df = 2, t = 2.91999.
    outcome = judge([0.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 1.0], 5.0)
    assert outcome.interval is not None
    assert outcome.interval.high == pytest.approx(2.91999 / math.sqrt(3), abs=1e-5)


def test_one_model_decides_nothing():
    assert judge([0.9], [0.9, 0.9, 0.9], 0.05) == ("undecided", 0.0, None, None)
    assert judge([], [0.9], 0.05) == ("undecided", None, None, None)


def test_refusals():
    for margin in (0.0, -0.1, math.nan, math.inf):
        with pytest.raises(BadInput, match="the margin must be a number above 0"):
            judge([1.0, 2.0], [1.0, 2.0], margin)
    with pytest.raises(BadInput, match="cannot compare NaN or infinity"):
        judge([1.0, math.nan], [1.0, 2.0], 0.1)
    with pytest.raises(
        BadInput, match=r"one split in one unit, got accuracy on forget in share, accuracy on test"
    ):
        verdict("p", "m", scores(0.9, split="forget"), scores(0.9))
    with pytest.raises(BadInput, match="got no scores"):
        verdict("p", "m", [], [])
    with pytest.raises(BadInput, match="metric 'mean-loss' has no default margin; pass one"):
        verdict("p", "m", scores(0.9, metric="mean-loss"), scores(0.9, metric="mean-loss"))


def test_sentences():
    passed = verdict("digits", "ssd", scores(0.945, 0.95, 0.955), scores(0.94, 0.95, 0.945))
    # Difference 0.5 points, s = 0.5 points on both sides: se = 0.408, df = 4, ± 0.870.
    assert passed.sentence == (
        "no difference larger than 5 percentage points from retraining was found "
        "(90 % interval -0.37 to 1.37, 3 against 3 models)"
    )
    assert (passed.judgement, passed.margin, passed.n, passed.n_reference) == (
        "no larger difference",
        0.05,
        3,
        3,
    )
    differs = verdict("digits", "ga", scores(0.1, 0.11, 0.12), scores(0.94, 0.95, 0.945))
    assert differs.sentence.startswith(
        "different from retraining by more than 5 percentage points (90 % interval -8"
    )
    unsure = verdict("digits", "ft", scores(0.90, 0.99, 0.95), scores(0.94, 0.95, 0.945))
    assert unsure.more_seeds is not None
    assert unsure.sentence.endswith(f"; {unsure.more_seeds} more seeds would probably decide")
    alone = verdict("digits", "ft", scores(0.90, None), scores(0.94, 0.95, 0.945))
    # t(0.975, 2) 0.005 sqrt(4/3) would be 2.5 points; three models that agree are not believed below a quarter of the margin.
    assert alone.sentence == (
        "as a further retrained model might be, or within 5 percentage points "
        "(95 % prediction interval of the difference -10.7 to 1.71, 1 against 3 models)"
    )
    lonely = verdict("digits", "ft", scores(0.90), scores(0.94))
    assert lonely.sentence == "undecided: at least 2 retrained models are needed for a spread, there is 1"
    nobody = verdict("digits", "ft", scores(None), scores(0.94, 0.95))
    assert nobody.sentence == "undecided: at least 1 model is needed to judge, there are 0"
    assert (alone.n, alone.difference) == (1, pytest.approx(-0.045))
    auc = verdict(
        "digits",
        "ft",
        scores(0.5, 0.51, metric="mia-loss-svm", unit="AUC"),
        scores(0.5, 0.5, metric="mia-loss-svm", unit="AUC"),
    )
    assert auc.sentence.startswith("no difference larger than 0.05 AUC from retraining was found")


def test_a_relative_margin_is_a_share_of_the_retrained_error():
    unit = "target's unit"
    ours, theirs = scores(41.0, 42.0, metric="mae", unit=unit), scores(39.0, 41.0, metric="mae", unit=unit)
    assert verdict("p", "m", ours, theirs).margin == pytest.approx(4.0)
    assert verdict("p", "m", ours, theirs, margin=1.0).margin == 1.0
    perfect = scores(0.0, 0.0, metric="mae", unit=unit)
    outcome = verdict("p", "m", ours, perfect)
    assert (outcome.judgement, outcome.margin) == ("undecided", 0.0)
    assert "the retrained models' mean is 0" in outcome.sentence


def test_the_word_deleted_is_never_used():
    cases = [((0.9, 0.9), (0.9, 0.9)), ((0.1, 0.1), (0.9, 0.9)), ((0.8, 0.95), (0.9, 0.9)), ((0.9,), (0.9,))]
    judged = [verdict("p", "m", scores(*ours), scores(*theirs)) for ours, theirs in cases]
    assert {v.judgement for v in judged} == {"no larger difference", "different", "undecided"}
    assert not any("delete" in v.sentence for v in judged)


def test_every_declared_margin_is_of_a_registered_metric():
    for pattern in MARGINS:
        covered = [name for name in METRICS if fnmatchcase(name, pattern)]
        assert any(default_margin(name) is MARGINS[pattern] for name in covered), pattern
    assert default_margin("mia-efficacy-loss-svm").value == 0.05
    assert default_margin("tpr-at-1-percent-fpr").relative is False
