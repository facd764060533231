from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from expunge.metrics import METRICS
from expunge.metrics.distance import (
    activation_distance,
    js,
    js_to_retrained,
    kl,
    kl_to_retrained,
    prediction_distance,
    wasserstein_to_retrained,
    zrf,
)


@pytest.fixture
def two(evidence, rng):
    """Class probabilities of a judged and of another model, and the evidence of both by role."""
    p, r = rng.dirichlet(np.ones(4), 30), rng.dirichlet(np.ones(4), 30)
    rows = {("model", "forget"): [evidence(logp=np.log(p))]}
    return p, r, rows | {(role, "forget"): [evidence(logp=np.log(r))] for role in ("retrained", "fresh")}


def test_kl_is_scipys_with_the_retrained_model_first(two):
    p, r, given = two
    assert kl_to_retrained("forget", given).value == pytest.approx(entropy(r, p, axis=1).mean(), rel=1e-9)


def test_js_is_the_square_of_scipys_distance(two):
    p, r, given = two
    expected = np.mean([jensenshannon(x, y) ** 2 for x, y in zip(p, r, strict=True)])
    assert js_to_retrained("forget", given).value == pytest.approx(expected, rel=1e-9)


def test_activation_distance_is_the_mean_euclidean_distance(two):
    p, r, given = two
    slow = [
        math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True))) for x, y in zip(p, r, strict=True)
    ]
    assert activation_distance("forget", given).value == pytest.approx(sum(slow) / len(slow), rel=1e-9)


def test_zrf_worked_by_hand(evidence):
    # m = (.7, .3): JS = (.9 ln(.9/.7) + .1 ln(.1/.3) + .5 ln(.5/.7) + .5 ln(.5/.3)) / 2 = .10175 nats.
    p, fresh = np.array([[0.9, 0.1]]), np.array([[0.5, 0.5]])
    assert js(np.log(p), np.log(fresh)) == pytest.approx([0.10175], abs=5e-6)
    given: dict = {
        ("model", "forget"): [evidence(logp=np.log(p))],
        ("fresh", "forget"): [evidence(logp=np.log(fresh))],
    }
    assert zrf("forget", given).value == pytest.approx(1 - 0.10175 / math.log(2), abs=1e-5)


def test_zrf_is_1_for_the_untrained_model_and_0_for_disjoint_certainties(evidence):
    certain, other = np.array([[0.0, -800.0]]), np.array([[-800.0, 0.0]])
    for fresh, expected in ((certain, 1.0), (other, 0.0)):
        given: dict = {
            ("model", "forget"): [evidence(logp=certain)],
            ("fresh", "forget"): [evidence(logp=fresh)],
        }
        assert zrf("forget", given).value == pytest.approx(expected, abs=1e-12)


def test_kl_is_finite_where_probabilities_round_to_0():
    # D = 1 ln(1 / e^-800) = 800 although e^-800 is 0 in floating point.
    assert kl(np.array([[0.0, -800.0]]), np.array([[-800.0, 0.0]])) == pytest.approx([800.0])


def test_float32_rounding_does_not_make_a_divergence_negative(evidence, rng):
    logits = rng.normal(size=(200, 10)) * 5
    logp = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)
    nudged = np.nextafter(logp, np.float32(-np.inf))
    given: dict = {("model", "test"): [evidence(logp=logp)], ("retrained", "test"): [evidence(logp=nudged)]}
    value = kl_to_retrained("test", given).value
    assert value is not None
    assert 0 <= value < 1e-9


@pytest.mark.parametrize("name", ["kl-to-retrained", "js-to-retrained", "activation-distance"])
def test_a_model_is_at_distance_0_from_itself(evidence, rng, name):
    rows = evidence(logp=np.log(rng.dirichlet(np.ones(5), 20)))
    score = METRICS[name]("test", {("model", "test"): [rows], ("retrained", "test"): [rows]})
    assert score.value == pytest.approx(0, abs=1e-12)


def test_a_uniform_shift_moves_predictions_and_their_distribution_alike(evidence, rng):
    predicted = rng.normal(size=25)
    given: dict = {
        ("model", "test"): [evidence(predicted=predicted + 1.5)],
        ("retrained", "test"): [evidence(predicted=predicted)],
    }
    assert wasserstein_to_retrained("test", given).value == pytest.approx(1.5)
    assert prediction_distance("test", given).value == pytest.approx(1.5)


def test_exchanged_predictions_leave_their_distribution_as_it_is(evidence):
    given: dict = {
        ("model", "test"): [evidence(predicted=[1.0, 4.0])],
        ("retrained", "test"): [evidence(predicted=[4.0, 1.0])],
    }
    assert wasserstein_to_retrained("test", given).value == 0
    assert prediction_distance("test", given).value == 3


def test_several_target_columns_are_averaged(evidence):
    given: dict = {
        ("model", "test"): [evidence(predicted=[[1.0, 0.0], [2.0, 0.0]])],
        ("retrained", "test"): [evidence(predicted=[[2.0, 0.0], [3.0, 0.0]])],
    }
    assert wasserstein_to_retrained("test", given).value == pytest.approx(0.5)
    assert prediction_distance("test", given).value == pytest.approx(0.5)


@pytest.mark.parametrize("model", ["plain", "bn"])
@pytest.mark.parametrize(
    ("split", "which"), [("A", "target"), ("A", "retrained"), ("B", "target"), ("B", "retrained")]
)
def test_reference_values_of_js_to_an_untrained_model(shared, from_logits, model, split, which):
    folder = shared / "golden" / "classifier-tiny"
    logits = np.load(folder / "models" / "logits_all_images.npz")
    data = np.load(folder / "inputs" / "digits_split.npz")
    rows = data[f"forget_{split}"]
    name = f"{model}_{which}" + (f"_{split}" if which == "retrained" else "")
    given: dict = {
        ("model", "forget"): [from_logits(logits[name][rows], data["labels"][rows])],
        ("fresh", "forget"): [from_logits(logits[f"{model}_incompetent"][rows], data["labels"][rows])],
    }
    summary = json.loads((folder / "bad_teacher" / "summary.json").read_text())
    nats = summary[f"{model}_{split}_temperature1"]["textbook_mean_js_nats"][which]
    assert zrf("forget", given).value == pytest.approx(1 - nats / math.log(2), abs=2e-5)
