from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from expunge.errors import BadInput
from expunge.families import FAMILIES, CausalLM, Classifier, Diffusion, Regressor
from expunge.metrics import METRICS, Estimate, Readings, Undefined, metric, standard_metrics
from expunge.metrics.accuracy import accuracy
from expunge.metrics.base import by_group, with_reference
from expunge.metrics.cka import cka_to_retrained
from expunge.metrics.distance import activation_distance, kl_to_retrained, zrf
from expunge.record import Score


def logp(evidence, *rows: list[float]):
    return evidence(logp=np.log(np.array(rows)))


def test_reasons_for_missing_evidence(evidence):
    rows = logp(evidence, [0.5, 0.5])
    assert accuracy("holdout", {}).reason == "the problem has no 'holdout' data"
    assert zrf("forget", {("model", "forget"): [rows]}).reason == "no fresh model could be built"
    alone: dict = {("model", "test"): [rows], ("retrained", "test"): []}
    assert kl_to_retrained("test", alone).reason == "there is no retrained model to compare with"
    # Without the split there is nothing of any model: the split is missing, not the retrained model.
    assert kl_to_retrained("test", {}).reason == "the problem has no 'test' data"
    target = METRICS["cka-to-target"]("test", {("model", "test"): [rows]})
    assert target.reason == "the target model was not given"
    # A metric that reads other splits than its own names the one that lacks.
    only_forget: dict = {
        ("model", "forget"): [evidence(loss=[1.0])],
        ("model", "retain"): [evidence(loss=[1.0])],
    }
    assert METRICS["mia-loss-svm"]("forget", only_forget).reason == "the problem has no 'holdout' data"


def test_an_empty_split_is_undefined(evidence):
    score = accuracy("test", {("model", "test"): [evidence(correct=np.zeros(0, dtype=np.int8))]})
    assert (score.status, score.reason) == ("undefined", "the 'test' data has no rows")


def test_several_retrained_models_are_averaged_without_an_interval(evidence):
    given: dict = {
        ("model", "test"): [logp(evidence, [0.5, 0.5], [0.5, 0.5])],
        ("retrained", "test"): [
            logp(evidence, [0.5, 0.5], [0.5, 0.5]),
            logp(evidence, [0.8, 0.2], [0.9, 0.1]),
        ],
    }
    score = activation_distance("test", given)
    # 0 from the first; from the second (0.3 sqrt 2 + 0.4 sqrt 2) / 2.
    assert score.value == pytest.approx(0.35 * math.sqrt(2) / 2)
    assert score.interval is None
    one = activation_distance("test", {**given, ("retrained", "test"): given["retrained", "test"][1:]})
    assert one.interval is not None


def test_evidence_of_other_rows_is_refused(evidence):
    given: dict = {
        ("model", "test"): [evidence(ids=["a", "b"], logp=np.zeros((2, 2)))],
        ("retrained", "test"): [evidence(ids=["b", "a"], logp=np.zeros((2, 2)))],
    }
    with pytest.raises(BadInput, match=r"retrained model on 'test' \(2 rows\) is not of the same examples"):
        kl_to_retrained("test", given)


def test_layers_fill_in_what_is_needed():
    assert cka_to_retrained.by_layer
    assert cka_to_retrained.needs("test", ["a", "b.c"]) == {
        ("model", "test"): {"features:a", "features:b.c"},
        ("retrained", "test"): {"features:a", "features:b.c"},
    }
    assert METRICS["mia-loss-svm"].needs("retain") == {
        ("model", "retain"): {"loss"},
        ("model", "holdout"): {"loss"},
    }


def test_a_metric_fits_the_families_that_have_what_it_reads():
    of_classifiers = {m.name for m in standard_metrics(Classifier)}
    of_regressors = {m.name for m in standard_metrics(Regressor)}
    assert {"accuracy", "zrf", "ece", "mia-entropy-svm", "mean-loss"} <= of_classifiers
    assert {"mae", "rmse", "r2", "wasserstein-to-retrained", "mia-loss-svm", "mean-loss"} <= of_regressors
    # A classifier has `predicted` too, but as a class number, whose differences mean nothing.
    assert not of_classifiers & {"r2", "mae", "prediction-distance"}
    assert not of_regressors & {"accuracy", "mia-confidence-svm", "kl-to-retrained"}
    of_language_models = {m.name for m in standard_metrics(CausalLM)}
    assert {"mean-loss", "probability", "truth-ratio", "mia-text-min-k"} <= of_language_models
    assert not of_language_models & {"accuracy", "mae", "mia-confidence-svm"}
    of_denoisers = {m.name for m in standard_metrics(Diffusion)}
    assert {"mean-loss", "unlearning-accuracy", "mia-loss-svm"} <= of_denoisers
    assert not of_denoisers & {"accuracy", "mae", "probability"}
    of_some = {m.name for _, family in FAMILIES.items() for m in standard_metrics(family)}
    # These two read what a family sees only with a network that somebody names.
    named = {"clip-score", "inception-frechet-distance"}
    assert of_some == {name for name, found in METRICS.items() if found.standard} - named
    # The others are computed when they are named, and fit something too.
    assert {name for name, m in METRICS.items() if not any(m.fits(f) for _, f in FAMILIES.items())} == named


def test_every_metric_says_what_it_is():
    for name, found in METRICS.items():
        assert found.name == name
        assert found.source, name
        assert found.low < found.high, name
        assert len(found.definition) > 60, name
        # The attack flag is what reports sort by.
        assert bool(found.attack) == name.startswith(("mia-", "tpr-", "privleak")), name


def test_values_stay_in_the_declared_range_and_inside_their_interval(evidence, from_logits, rng):
    n, classes = 240, 5
    ids = {
        s: [f"{s}-{i}" for i in range(n)]
        for s in ("forget", "retain", "holdout", "test", "ood", "affected", "unknown", "attacked")
    }
    given: dict = {}
    for split in ids:
        labels = rng.integers(classes, size=n)
        for role in ("model", "target", "retrained", "fresh"):
            rows = from_logits(
                3 * rng.normal(size=(n, classes)), labels, ids[split], [str(y % 2) for y in labels]
            )
            for layer in "ab":
                column = evidence(x=rng.normal(size=(n, 4))).table["x"]
                rows = type(rows)(rows.table.append_column(f"features:{layer}", column))
            given[role, split] = [rows]
    for found in standard_metrics(Classifier):
        for split in found.splits:
            score = found(split, given)
            assert score.value is not None, (found.name, split, score.reason)
            assert found.low <= score.value <= found.high, found.name
            assert score.attack == bool(found.attack)
            if score.interval is not None:
                assert score.interval.low <= score.value <= score.interval.high, found.name


def test_a_name_belongs_to_one_module():
    def accuracy_of_mine(readings: Readings) -> Estimate:
        """Something else of the same name."""
        return Estimate(0.0, 0)

    same_name_elsewhere = dataclasses.replace(accuracy, function=accuracy_of_mine)
    with pytest.raises(
        BadInput, match="a metric named 'accuracy' is registered already; choose another name"
    ):
        METRICS.add("accuracy", same_name_elsewhere)
    assert METRICS["accuracy"] is accuracy
    # The module that wrote it may be imported again.
    assert METRICS.add("accuracy", dataclasses.replace(accuracy)) == accuracy
    METRICS.add("accuracy", accuracy)


def test_a_metric_without_a_definition_is_refused():
    def silent(readings: Readings) -> Estimate:
        raise Undefined("never called")

    declare = metric("silent", title="s", reads={}, splits=["test"], direction="lower", unit="share")
    with pytest.raises(BadInput, match="metric 'silent' has no docstring"):
        declare(silent)
    assert "silent" not in METRICS


def test_group_means_are_scipys(rng):
    values, codes = rng.normal(size=50), rng.integers(3, size=50)
    expected = dict(zip("xyz", ndimage.mean(values, codes, [0, 1, 2]), strict=True))
    assert by_group(values, np.array(list("xyz"))[codes]) == pytest.approx(expected)
    assert by_group(values, None) == {}


def test_the_reference_is_the_mean_of_the_defined_retrained_scores():
    def score(value):
        why: dict[str, Any] = {} if value is not None else {"status": "undefined", "reason": "none"}
        return Score(metric="m", split="test", value=value, unit="share", direction="match", **why)

    with_it = with_reference(score(0.9), [score(0.4), score(None), score(0.6)])
    assert with_it.reference is not None
    assert (with_it.reference.mean, with_it.reference.values) == (0.5, [0.4, 0.6])
    assert with_it.reference.gap == pytest.approx(0.4)
    assert with_reference(score(None), [score(0.4)]).reference is None
    assert with_reference(score(0.9), []).reference is None
