"""Cells, prices and curves of answers and abstentions, against figures worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from expunge.errors import BadInput
from expunge.stats.abstention import Cells, aurc, dynamic_confidence_score, risk_coverage, total_variation

EXAMPLE = Cells(right=50, wrong=5, declined=5, withheld=30, invented=10)


def test_a_hundred_questions_by_hand():
    assert [EXAMPLE.reliability(k) for k in (0, 1, 10)] == pytest.approx([80, 65, -70])
    assert EXAMPLE.answerable_accuracy == pytest.approx(0.8333, abs=1e-4)
    assert EXAMPLE.unanswerable_accuracy == 0.75
    assert EXAMPLE.abstention_rate == 0.35
    assert EXAMPLE.precision == pytest.approx(30 / 35)
    assert EXAMPLE.f1 == pytest.approx(2 * 30 / (35 + 40))


def test_counted_from_rows():
    rng = np.random.default_rng(0)
    abstained, correct, unanswerable = rng.random((3, 500)) < np.asarray([[0.3], [0.6], [0.4]])
    found = Cells.count(abstained, correct, unanswerable)
    slow = {"right": 0, "wrong": 0, "declined": 0, "withheld": 0, "invented": 0}
    for a, c, u in zip(abstained, correct, unanswerable, strict=True):
        slow[
            "withheld" if a and u else "invented" if u else "declined" if a else "right" if c else "wrong"
        ] += 1
    assert found == Cells(**slow)
    with pytest.raises(BadInput, match="three lists of one length"):
        Cells.count([True], [True, False], [True])


@pytest.mark.parametrize("penalty", [0, 1, 10, 100])
def test_declining_everything_and_knowing_everything(penalty: float):
    refuses = Cells.count([True] * 10, [False] * 10, [False] * 6 + [True] * 4)
    assert (refuses.answerable_accuracy, refuses.unanswerable_accuracy, refuses.abstention_rate) == (0, 1, 1)
    assert refuses.reliability(penalty) == pytest.approx(40)
    knows = Cells.count([False] * 10, [True] * 10, [False] * 6 + [True] * 4)
    assert knows.reliability(penalty) == pytest.approx(100 * (0.6 - penalty * 0.4))


def test_of_nothing_there_is_no_share():
    empty = Cells(0, 0, 0, 0, 0)
    shares = (empty.answerable_accuracy, empty.unanswerable_accuracy, empty.abstention_rate, empty.precision,
              empty.f1, empty.reliability(1))  # fmt: skip
    assert np.isnan(shares).all()


@pytest.mark.parametrize(
    ("right", "wrong", "idk", "score"),
    [
        (1, 0, 0, 1),
        (0, 1, 0, -1),
        (0, 0, 1, 0),
        (0.4, 0.2, 0.4, 0.12),
        (0.2, 0.4, 0.4, -0.12),
        (0.25, 0.75, 0, -0.5),
    ],
)
def test_dynamic_confidence_by_hand(right: float, wrong: float, idk: float, score: float):
    with np.errstate(divide="ignore"):
        logp = np.log([[right, wrong / 2, wrong / 2, idk / 2, idk / 2]])
    assert dynamic_confidence_score(logp, [0], [3, 4])[0] == pytest.approx(score)


def test_dynamic_confidence_is_extreme_where_one_is_sure_whether_to_answer():
    """On a grid over all beliefs: the best share of the way out is 0 where right outweighs wrong, else 1."""
    for p_right in (0.2, 0.4, 0.6, 0.8):
        shares = np.linspace(0, 0.999, 200)
        logp = np.log(np.stack([p_right * (1 - shares), (1 - p_right) * (1 - shares), shares + 1e-12], 1))
        scores = dynamic_confidence_score(logp, np.zeros(200, int), [2])
        assert scores.argmax() == (0 if p_right > 0.5 else 199)


def test_dynamic_confidence_scales_log_likelihoods_by_length():
    logp = np.asarray([[-4.0, -4.0, -8.0]])
    equal = dynamic_confidence_score(logp, [0], [], lengths=[1, 1, 2])
    assert equal[0] == pytest.approx(1 / 3 - 2 / 3)
    assert dynamic_confidence_score(logp, [0], [], right=2, wrong=0)[0] == pytest.approx(2 / (2 + np.exp(-4)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"right": 0.5}, "right >= wrong"),
        ({"unknown": [0]}, "cannot be the right one"),
        ({"correct": [0, 1]}, "n right options"),
    ],
)
def test_dynamic_confidence_refuses(settings: dict, words: str):
    with pytest.raises(BadInput, match=words):
        dynamic_confidence_score(**{"option_logp": [[0.0, 1.0]], "correct": [0], "unknown": [1], **settings})


def test_total_variation_by_hand():
    assert total_variation([5, 5, 0], [0, 5, 5]) == pytest.approx(0.5)
    assert total_variation([1, 1], [50, 50]) == 0
    assert total_variation([1, 0], [0, 7]) == 1
    with pytest.raises(BadInput, match="two distributions"):
        total_variation([0, 0], [1, 1])


def test_risk_and_coverage_by_hand():
    coverage, risk = risk_coverage([0.9, 0.5, 0.7], [1, 0, 0])
    np.testing.assert_allclose(coverage, [1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(risk, [0, 1 / 2, 2 / 3])
    assert aurc([0.9, 0.5, 0.7], [1, 0, 0]) == pytest.approx((0 + 1 / 2 + 2 / 3) / 3)


def test_equal_confidences_count_as_in_random_order():
    confidence, correct = np.asarray([0.9, 0.5, 0.5, 0.5]), np.asarray([1, 1, 0, 0])
    orders = [[0, *(1 + i for i in order)] for order in itertools.permutations(range(3))]
    by_order = [np.cumsum(1 - correct[o]) / np.arange(1, 5) for o in orders]
    np.testing.assert_allclose(risk_coverage(confidence, correct)[1], np.mean(by_order, 0))


def test_a_useful_confidence_has_a_smaller_area_than_a_useless_one():
    correct = np.asarray([1] * 6 + [0] * 4)
    best, none, worst = aurc(correct, correct), aurc(np.ones(10), correct), aurc(-correct, correct)
    assert best < none < worst and none == pytest.approx(0.4)
