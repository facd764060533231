from __future__ import annotations

import json
import math

import numpy as np
import pytest

from expunge.errors import BadInput
from expunge.stats.forgetting_score import (
    attack_epsilon,
    epsilons,
    final_score,
    forgetting_quality,
    forgetting_score,
)


def slow(one: list[float], two: list[float]) -> float:
    """Largest epsilon over thresholds and intervals on a fine grid, rule by rule."""
    best = 0.0

    def rates(positive, negative, called) -> None:
        nonlocal best
        fpr = sum(called(x) for x in negative) / len(negative)
        fnr = sum(not called(x) for x in positive) / len(positive)
        if fpr == fnr == 0:
            best = max(best, 50.0)
        elif fpr > 0 and fnr > 0:
            for a, b in ((fpr, fnr), (fnr, fpr)):
                if 1 - 1e-5 - a > 0:
                    best = max(best, math.log((1 - 1e-5 - a) / b))

    negative, positive = sorted((one, two), key=lambda s: float(np.median(s)))
    for t in np.arange(min(one + two), max(one + two) + 0.01, 0.01):
        rates(positive, negative, lambda x, t=t: x >= t)
    narrow, wide = sorted((one, two), key=lambda s: max(s) - min(s))
    width = max(narrow) - min(narrow)
    for right in np.arange(max(narrow) - 2, max(narrow) + 2, 0.05):
        for left in np.arange(right - width - 2, right - width + 2, 0.05):
            rates(narrow, wide, lambda x, low=left, high=right: low <= x <= high)
    return best


@pytest.mark.parametrize(
    ("fpr", "fnr", "epsilon", "points"),
    [
        (0.05, 0.10, 2.890, 2**-5),
        (0.1, 0.1, 2.197, 2**-4),
        (0.3, 0.3, 0.847, 1 / 2),
        (1 / 512, 1 / 512, 6.236, 2**-12),
        (0.5, 0.5, 0.0, 1.0),
        (0.9, 0.9, 0.0, 1.0),
        (0.0, 0.0, 50.0, 0.0),
    ],
)
def test_worked_examples(fpr, fnr, epsilon, points):
    found = attack_epsilon(fpr, fnr)
    assert float(found) == pytest.approx(epsilon, abs=1e-3)
    assert float(forgetting_quality(found, 512)) == points


def test_an_attack_without_errors_on_one_side_is_discarded():
    assert np.isnan(attack_epsilon([0.0, 0.3], [0.2, 0.0])).all()


def test_what_few_models_cannot_resolve_gets_no_points():
    # ceil(ln 31) = 4 with 32 models: 3.99 is in the last bucket, 4 is beyond.
    assert forgetting_quality([0.0, 3.99, 4.0], 32).tolist() == [1.0, 2**-7, 0.0]


def test_agrees_with_the_slow_definition():
    rng = np.random.default_rng(5)
    one, two = rng.normal(0.6, 0.7, (16, 4)), rng.normal(0, 2.0, (16, 4))
    found = epsilons(one, two)
    expected = np.array([slow(a, b) for a, b in zip(one.T.tolist(), two.T.tolist(), strict=True)])
    assert (found >= expected - 1e-9).all(), "no attack on the grid may beat the best of all"
    assert found == pytest.approx(expected, abs=0.25)


def test_samples_far_apart_and_spikes_are_separated_completely():
    rng = np.random.default_rng(0)
    sample = rng.normal(size=(32, 1))
    assert epsilons(sample, sample + 100) == [50.0]
    assert epsilons(np.full((32, 1), 0.1), sample) == [50.0], "a deterministic method gives itself away"
    assert epsilons(np.ones((8, 1)), np.ones((8, 1))) == [0.0]


def test_exchanging_the_samples_changes_nothing():
    rng = np.random.default_rng(2)
    one, two = rng.normal(size=(30, 6)), rng.normal(0.5, 1.5, (30, 6))
    assert epsilons(one, two) == pytest.approx(epsilons(two, one))


def test_retraining_itself_does_not_score_one_with_few_models():
    """Why the score stands beside that of retrained against retrained models."""
    rng = np.random.default_rng(4)
    few = forgetting_score(rng.normal(size=(32, 50)), rng.normal(size=(32, 50)))
    many = forgetting_score(rng.normal(size=(512, 10)), rng.normal(size=(512, 10)))
    apart = forgetting_score(rng.normal(2, 1, (32, 50)), rng.normal(size=(32, 50)))
    assert apart < few < 0.5
    assert few < many


def test_reference_values_of_the_public_implementation(shared):
    folder = shared / "golden" / "classifier-tiny" / "ensembles"
    stored = np.load(folder / "confidences_margins_klom.npz")
    values = json.loads((folder / "values.json").read_text())
    by_side = {
        k: stored[f"logit_scaled_confidence_{k}"][:, :12] for k in ("retrained", "target", "unlearned")
    }
    retrained = by_side["retrained"][:32]
    for key, judged in (
        ("unlearned_against_retrained", by_side["unlearned"][:32]),
        ("target_against_retrained", by_side["target"][:32]),
        ("retrained_second_half_against_first", by_side["retrained"][32:]),
    ):
        found, published = epsilons(judged, retrained), np.array(values[key]["epsilons"])
        # The published grid of thresholds may miss the best attack, never find a better one.
        assert (found > published - 1e-4).all() and (found < published + 0.2).all()
        assert forgetting_score(judged, retrained) == pytest.approx(values[key]["forget_score"])


def test_final_score_by_hand():
    # 0.5 of forgetting, 2 % of retained and 5 % of test accuracy lost.
    assert final_score(0.5, 0.98, 0.76, 1.0, 0.80) == pytest.approx(0.5 * 0.98 * 0.95)


def test_refusals():
    with pytest.raises(BadInput, match="as many models on both sides"):
        epsilons(np.zeros((3, 2)), np.zeros((4, 2)))
    with pytest.raises(BadInput, match="2 models resolve no epsilon"):
        forgetting_quality([1.0], 2)
    with pytest.raises(BadInput, match="shares of 0 do not exist"):
        final_score(1.0, 1.0, 1.0, 0.0, 1.0)
