from __future__ import annotations

from typing import Any

import pytest

from expunge.metrics.composite import anamnesis_index, average_gap, tow, tow_mia
from expunge.record import Judged, Score

MIA = "mia-efficacy-confidence-logistic"


def judged(method: str = "x", **values: float | None) -> Judged:
    """Scores by 'metric on split', '_' for '-'; None is undefined."""
    scores = []
    for key, value in values.items():
        metric, split = key.rsplit("_on_", 1)
        why: dict[str, Any] = {} if value is not None else {"status": "undefined", "reason": "too few rows"}
        scores.append(
            Score(
                metric=metric.replace("_", "-"),
                split=split,
                value=value,
                unit="share",
                direction="match",
                **why,
            )
        )
    return Judged(problem="p", problem_id="0", method=method, label=method, seed=0, scores=scores)


def classifier(forget: float, retain: float, test: float, mia: float | None = 0.5) -> Judged:
    return judged(
        accuracy_on_forget=forget,
        accuracy_on_retain=retain,
        accuracy_on_test=test,
        mia_efficacy_confidence_logistic_on_forget=mia,
    )


def test_tug_of_war_by_hand():
    # (1 - .05)(1 - .02)(1 - .03) = .90307
    score = tow(classifier(0.90, 0.98, 0.91), [classifier(0.95, 1.00, 0.94)])
    assert score.value == pytest.approx(0.90307, abs=1e-9)
    assert (score.split, score.direction) == ("run", "higher")


def test_tug_of_war_with_membership_by_hand():
    # (1 - .2)(1 - .02)(1 - .03); forget accuracy does not count
    ours, theirs = classifier(0.1, 0.98, 0.91, 0.7), classifier(0.95, 1.00, 0.94, 0.5)
    assert tow_mia(ours, [theirs]).value == pytest.approx(0.8 * 0.98 * 0.97)
    assert tow_mia(theirs, [theirs]).value == 1
    unknown = tow_mia(classifier(1, 1, 1, None), [theirs])
    assert unknown.reason == f"{MIA} on 'forget' is undefined: too few rows"


def test_anamnesis_index_by_hand():
    retrained = [judged(relearning_steps_on_forget=n) for n in (30.0, 50.0)]
    score = anamnesis_index(judged(relearning_steps_on_forget=10.0), retrained)
    assert (score.value, score.unit, score.direction) == (0.25, "times retraining", "match")
    censored = anamnesis_index(judged(relearning_steps_on_forget=None), retrained)
    assert censored.reason == "relearning-steps on 'forget' is undefined: too few rows"
    at_once = anamnesis_index(retrained[0], [judged(relearning_steps_on_forget=0.0)])
    assert at_once.reason == "the retrained models are at the target's level without any relearning"


def test_average_gap_by_hand():
    # Gaps 5, 2, 3 and 10 points against the mean of two retrained models.
    score = average_gap(
        classifier(0.90, 0.98, 0.97, 0.6), [classifier(0.94, 1, 0.93, 0.4), classifier(0.96, 1, 0.95, 0.6)]
    )
    assert score.value == pytest.approx((5 + 2 + 3 + 10) / 4)
    assert (score.unit, score.direction) == ("percentage points", "lower")


def test_retraining_itself_is_perfect():
    one = classifier(0.9, 1.0, 0.95)
    assert average_gap(one, [one]).value == 0
    assert tow(one, [one]).value == 1


def test_regressors_are_compared_relative_to_the_retrained_error():
    ours = judged(mae_on_forget=12.0, mae_on_retain=9.0, mae_on_test=11.0)
    theirs = judged(mae_on_forget=10.0, mae_on_retain=10.0, mae_on_test=10.0)
    score = average_gap(ours, [theirs])
    assert score.value == pytest.approx((20 + 10 + 10) / 3)
    assert score.unit == "% of the retrained error"
    perfect = judged(mae_on_forget=0.0, mae_on_retain=1.0, mae_on_test=1.0)
    assert average_gap(ours, [perfect]).reason == (
        "the retrained models' mae on 'forget' is 0, so no gap relative to it exists"
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        (classifier(1, 1, 1), [], "there is no retrained model to compare with"),
        (classifier(1, 1, 1, None), [classifier(1, 1, 1)], f"{MIA} on 'forget' is undefined: too few rows"),
        (
            classifier(1, 1, 1),
            [classifier(1, 1, 1), classifier(1, 1, 1, None)],
            f"the retrained model's {MIA} on 'forget' is undefined: too few rows",
        ),
        (judged(accuracy_on_forget=1.0), [classifier(1, 1, 1)], "accuracy on 'retain' was not computed"),
    ],
)
def test_an_undefined_part_leaves_the_whole_undefined(ours, theirs, reason):
    score = average_gap(ours, theirs)
    assert (score.status, score.value, score.reason) == ("undefined", None, reason)


def test_average_gap_of_language_models_by_hand():
    def text(*values: float | None) -> Judged:
        names = (
            "probability_on_forget",
            "probability_on_retain",
            "rouge_l_recall_on_forget",
            "rouge_l_recall_on_retain",
        )
        return judged(**dict(zip((*names, "mia_text_min_k_on_forget"), values, strict=True)))

    retrained = [text(0.1, 0.9, 0.3, 0.8, 0.5), text(0.3, 0.9, 0.3, 0.8, 0.5)]
    found = average_gap(text(0.6, 0.8, 0.5, 0.8, 0.2), retrained)
    # (40 + 10 + 20 + 0 + 30) / 5 percentage points
    assert found.value == pytest.approx(20.0) and found.unit == "percentage points"
    missing = average_gap(text(0.6, 0.8, None, 0.8, 0.2), retrained)
    assert missing.reason == "rouge-l-recall on 'forget' is undefined: too few rows"


def test_average_gap_of_image_generators_by_hand():
    def drawn(unlearned: float, others: float, context: float) -> Judged:
        return judged(
            unlearning_accuracy_on_concept=unlearned,
            in_domain_retain_accuracy_on_test=others,
            cross_domain_retain_accuracy_on_test=context,
        )

    # |0.9 - 1| + |0.8 - 0.9| + |1 - 0.8| over three.
    found = average_gap(drawn(0.9, 0.8, 1.0), [drawn(1.0, 0.9, 0.8)])
    assert found.value == pytest.approx(100 * 0.4 / 3) and found.unit == "percentage points"


def test_average_gap_of_gans_by_hand():
    def gan(rate: float, covered: float, shifted: float) -> Judged:
        return judged(
            undesired_rate_on_samples=rate, coverage_on_test=covered, class_distance_on_samples=shifted
        )

    score = average_gap(gan(0.09, 0.70, 0.10), [gan(0.01, 0.80, 0.12), gan(0.03, 0.90, 0.14)])
    # |0.09 - 0.02| + |0.70 - 0.85| + |0.10 - 0.13|, over 3
    assert score.value == pytest.approx(100 * 0.25 / 3) and score.unit == "percentage points"
