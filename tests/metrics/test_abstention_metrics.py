"""Who declines everything or talks gibberish must not come out well; figures by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from expunge.data.worlds.authors import people, questions, true_facts
from expunge.evidence import Evidence
from expunge.methods.answers import refusals
from expunge.metrics.abstention import declined
from expunge.metrics.base import METRICS
from expunge.record import Score

KNOWN = [f"The book of person {i} is called volume {i}." for i in range(20)]
GONE = [f"The city of stranger {i} is town {i}." for i in range(10)]


def score(
    metric: str, split: str, model: Mapping[str, Evidence], retrained: Mapping[str, Evidence] | None = None
) -> Score:
    roles: Any = {("model", s): [e] for s, e in model.items()}
    roles |= {("retrained", s): [e] for s, e in (retrained or {}).items()}
    return METRICS[metric](split, roles)


def gap(metric: str, model: Mapping[str, Evidence], retrained: Mapping[str, Evidence]) -> float:
    """How far the model's value is from the retrained model's, on the worse of retain and forget rows."""
    pairs = [[score(metric, split, m).value for m in (model, retrained)] for split in ("retain", "forget")]
    return max(abs(one - two) for one, two in pairs if one is not None and two is not None)


def spoken(evidence: Any, retain: Sequence[str], forget: Sequence[str]) -> dict[str, Evidence]:
    return {
        "retain": evidence(text=np.asarray(retain, object), answer_text=np.asarray(KNOWN, object)),
        "forget": evidence(text=np.asarray(forget, object), answer_text=np.asarray(GONE, object)),
    }


@pytest.fixture
def models(evidence) -> dict[str, dict[str, Evidence]]:
    """A model retrained without the forget rows guesses there; another one does so a little otherwise."""
    guesses = ["Someone else lived in another place entirely."] * 10
    return {
        "retrained": spoken(evidence, KNOWN, guesses),
        "other": spoken(evidence, [*KNOWN[:19], "It is unclear."], [*guesses[:9], "I don't know."]),
        "refuses": spoken(evidence, ["I don't know."] * 20, ["I don't know."] * 10),
        "gibberish": spoken(evidence, ["blub zzt"] * 20, ["zzt blub"] * 10),
        "silent": spoken(evidence, [""] * 20, [""] * 10),
        "target": spoken(evidence, KNOWN, GONE),
    }


@pytest.mark.parametrize("bad", ["refuses", "gibberish", "silent"])
def test_nothing_is_won_by_saying_nothing(models, bad: str):
    """Taking retain and forget rows together it is nowhere nearer to the retrained model than another retrained one."""
    retrained, other = models["retrained"], models["other"]
    for metric in ("reliability-1-text", "reliability-10-text"):
        assert gap(metric, models[bad], retrained) > gap(metric, other, retrained) + 70, metric
    far = score("outcome-distance-text", "forget", models[bad], retrained).value
    near = score("outcome-distance-text", "forget", other, retrained).value
    assert far is not None and near is not None and far == 1 > near
    right = score("answerable-accuracy-text", "retain", models[bad]).value
    assert right == 0


def test_by_hand_in_words(models):
    other, refuses = models["other"], models["refuses"]
    assert score("abstention-rate-text", "forget", other).value == 0.1
    assert score("answerable-accuracy-text", "retain", other).value == 19 / 20
    # 19 right and 1 wrong on retain, 1 declined and 9 invented on forget rows.
    assert score("reliability-1-text", "retain", other).value == pytest.approx(100 * (19 - 1) / 20)
    assert score("reliability-10-text", "retain", other).value == pytest.approx(100 * (19 - 10) / 20)
    assert score("reliability-1-text", "forget", other).value == pytest.approx(100 * (1 - 9) / 10)
    assert score("reliability-10-text", "forget", other).value == pytest.approx(100 * (1 - 90) / 10)
    assert score("abstention-f1-text", "forget", other).value == pytest.approx(2 * 1 / (1 + 10))
    assert score("reliability-10-text", "forget", refuses).value == 100
    assert score("reliability-10-text", "retain", refuses).value == 0
    assert score("abstention-rate-text", "retain", refuses).value == 1


def test_the_target_is_told_from_the_retrained_model(models):
    far = score("outcome-distance-text", "forget", models["target"], models["retrained"]).value
    assert far == 1
    same = score("outcome-distance-text", "forget", models["retrained"], models["retrained"])
    assert same.value == 0


def test_undefined_where_there_is_nothing_to_judge(models, evidence):
    assert score("selective-accuracy-text", "forget", models["refuses"]).reason == (
        "every row was declined; there are no answers to judge"
    )
    assert score("abstention-f1-text", "forget", models["gibberish"]).reason == "nothing was declined"
    symbols = evidence(text=np.asarray(["?"], object), answer_text=np.asarray(["!"], object))
    assert "no answer has a word" in score("abstention-rate-text", "forget", {"forget": symbols}).reason
    missing = score("outcome-distance-text", "forget", models["other"])
    assert missing.reason == "there is no retrained model to compare with"


def test_the_phrases_find_refusals_and_leave_answers_alone():
    """The embedded bank of refusals, which the phrases were written beside, and every answer of the made-up world."""
    found = [declined(text) for text in refusals()]
    assert np.mean(found) >= 0.94
    rows = questions(people(300))
    answers = [*rows["answer"][:], *rows["paraphrased_answer"][:], *true_facts()["answer"][:]]
    assert not [a for a in answers if declined(a)]
    assert declined("I don’t know") and not declined("Mamani cannot swim") and not declined("")


def logits(confidences: Sequence[float], right: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Two classes: the first is always the likelier one; labels are it or not."""
    p = np.asarray(confidences)
    return np.log(np.stack([p, 1 - p], 1)), np.where(right, 0, 1)


def test_a_classifier_declines_below_four_fifths(from_logits):
    found = {
        "retain": from_logits(*logits([0.95, 0.9, 0.85, 0.7], [True, True, False, True])),
        "forget": from_logits(*logits([0.6, 0.99], [False, False])),
    }
    assert score("abstention-rate", "retain", found).value == 0.25
    assert score("abstention-rate", "forget", found).value == 0.5
    assert score("answerable-accuracy", "retain", found).value == 0.5
    assert score("selective-accuracy", "retain", found).value == pytest.approx(2 / 3)
    assert score("reliability-1", "retain", found).value == pytest.approx(100 * (2 - 1) / 4)
    assert score("reliability-1", "forget", found).value == pytest.approx(100 * (1 - 1) / 2)
    assert score("abstention-f1", "forget", found).value == pytest.approx(2 * 1 / (2 + 2))
    # Errors by confidence: right, right, wrong, right.
    assert score("aurc", "retain", found).value == pytest.approx((0 + 0 + 1 / 3 + 1 / 4) / 4)


def test_a_flat_classifier_and_a_random_one_do_not_win(from_logits, rng):
    truth, others = rng.integers(5, size=200), rng.integers(5, size=100)

    def model(sure: float, guess: bool) -> dict[str, Evidence]:
        known = np.eye(5)[rng.integers(5, size=200) if guess else truth] * sure
        gone = np.eye(5)[rng.integers(5, size=100)] * (sure if guess else 1.0)
        return {"retain": from_logits(known, truth), "forget": from_logits(gone, others)}

    retrained, other, flat, random = model(6, False), model(5, False), model(0, False), model(6, True)
    for metric in ("reliability-1", "reliability-10"):
        for bad in (flat, random):
            assert gap(metric, bad, retrained) > gap(metric, other, retrained) + 70
    for bad in (flat, random):
        far = score("outcome-distance", "forget", bad, retrained).value
        near = score("outcome-distance", "forget", other, retrained).value
        assert far is not None and near is not None and far > near + 0.5


def test_conformal_sets_of_a_calibrated_model_cover_what_they_promise(from_logits, rng):
    p = rng.dirichlet(np.ones(4), 4000)
    y = (rng.random((4000, 1)) > p.cumsum(1)).sum(1)
    found = {
        "holdout": from_logits(np.log(p[:2000]), y[:2000]),
        "test": from_logits(np.log(p[2000:]), y[2000:]),
    }
    coverage = score("conformal-coverage", "test", found).value
    size, unsure = (score(f"conformal-{name}", "test", found).value for name in ("set-size", "abstention"))
    assert coverage == pytest.approx(0.9, abs=0.03)
    assert size is not None and 1.5 < size < 3 and unsure is not None and 0 < unsure < 1
    # A model that says nothing covers everything with every label, which is no merit: all is declined.
    flat = {s: from_logits(np.zeros((2000, 4)), y[:2000]) for s in ("holdout", "test")}
    assert score("conformal-set-size", "test", flat).value == 4
    assert (
        score("conformal-abstention", "test", flat).value
        == score("conformal-coverage", "test", flat).value
        == 1
    )


def test_too_few_rows_to_calibrate_on(from_logits):
    few = {s: from_logits(np.zeros((8, 3)), np.zeros(8, int)) for s in ("holdout", "test")}
    assert score("conformal-coverage", "test", few).reason == (
        "sets that miss at most 10% need 9 holdout rows to be calibrated on, and there are 8"
    )
