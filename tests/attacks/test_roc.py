"""ROC scores against scikit-learn's curve, and counts done by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from expunge.attacks.population import PopulationMia
from expunge.attacks.roc import found_at, roc_scores
from expunge.metrics.base import Undefined
from expunge.record import Score

ATTACK = PopulationMia()


def by_name(scores: list[Score]) -> dict[str, Score]:
    return {s.metric.removeprefix("population-mia-"): s for s in scores}


@pytest.mark.parametrize("n", [100, 1000, 3000])
def test_scores_are_points_of_the_roc_curve(n: int) -> None:
    rng = np.random.default_rng(n)
    # Rounded, so that members and non-members tie.
    members, nonmembers = rng.normal(1.5, 1, 400).round(1), rng.normal(0, 1, n).round(1)
    found = by_name(roc_scores(ATTACK, members, nonmembers))
    truth, scores = np.repeat([1, 0], [400, n]), np.concatenate([members, nonmembers])
    assert found["auc"].value == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    for name, rate in (("1-percent", 0.01), ("0.1-percent", 0.001)):
        score = found[f"tpr-at-{name}-fpr"]
        if n * rate < 1:
            assert score.status == "undefined" and f"{n} holdout rows" in score.reason
        else:
            assert score.value == pytest.approx(true[false <= rate + 1e-12].max())
    assert found["tpr-at-smallest-fpr"].value == pytest.approx(true[false == 0].max())


def test_by_hand() -> None:
    members, nonmembers = np.array([-1.0, 1, 2, 3, 4] * 2), np.array([-3.0, -2, -1, 0.5, 2] * 2)
    found = by_name(roc_scores(ATTACK, members, nonmembers))
    # Of 25 pairs -1 wins 2 and ties 1, 1 wins 4, 2 wins 4 and ties 1, 3 and 4 win 5: 21 of 25.
    assert found["auc"].value == pytest.approx(21 / 25)
    # Above 0: 4 of 5 members and 2 of 5 non-members.
    assert found["accuracy"].value == pytest.approx((4 / 5 + 3 / 5) / 2)
    # Above every non-member: 3 and 4.
    assert found["tpr-at-smallest-fpr"].value == pytest.approx(2 / 5)


def test_the_allowed_false_positives_are_counted_without_rounding_errors() -> None:
    # 0.001 * 3000 is 3 in real numbers: the fourth largest non-member is the threshold.
    nonmembers = np.arange(3000.0)
    assert found_at(np.array([2996.5]), nonmembers, 0.001).value == 1.0
    assert found_at(np.array([2996.0]), nonmembers, 0.001).value == 0.0


def test_an_attack_without_a_threshold_has_no_accuracy() -> None:
    found = by_name(roc_scores(ATTACK, np.arange(10.0), np.arange(10.0), threshold=None))
    assert found["accuracy"].status == "undefined"
    assert found["auc"].value == 0.5


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(Undefined, match="only 9 holdout rows of the forgotten groups to attack"):
        roc_scores(ATTACK, np.arange(20.0), np.arange(9.0))
