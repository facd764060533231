"""A model whose outputs are NaN or infinite has no metric and no attack with a number, and spoils no reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

import expunge
from expunge.attacks.base import ATTACKS, Scene
from expunge.attacks.gradient_norm import GradientNormMia
from expunge.attacks.knowledge import knowledge
from expunge.evidence import Evidence, collect
from expunge.families import Batch, Classifier, Outputs, Table
from expunge.families.models import clone
from expunge.metrics.accuracy import accuracy
from expunge.metrics.base import METRICS
from expunge.metrics.memorization import extraction_strength
from expunge.problem import Problem
from expunge.testing import tiny_problem

SPOILED = ["nan", "inf", "huge"]


def spoiled(problem: Problem, how: str) -> nn.Module:
    """The target with a bias of NaN or infinity, or with weights so large that activations overflow."""
    model = clone(problem.target)
    with torch.no_grad():
        if how == "huge":
            for parameter in model.parameters():
                parameter.mul_(1e30)
        else:
            list(model.parameters())[-1].view(-1)[0] = float(how)
    return model.eval()


def looked(problem: Problem, model: nn.Module, split: str, quantities: set[str]) -> list[Evidence]:
    return [collect(problem.family, model, problem.splits[split], sorted(quantities))]


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("family", ["classifier", "regressor"])
def test_no_metric_of_it_is_a_number(family: str, how: str) -> None:
    problem = tiny_problem(family)
    model, asked = spoiled(problem, how), 0
    for name, metric in METRICS.items():
        # Hidden activations before the spoiled layer are what they are.
        if not metric.fits(problem.family) or metric.by_layer:
            continue
        for split in set(metric.splits) & set(problem.splits):
            needs = metric.needs(split)
            if not {where for _, where in needs} <= set(problem.splits):
                continue
            seen = {
                (role, where): looked(problem, model if role == "model" else problem.target, where, wanted)
                for (role, where), wanted in needs.items()
            }
            score = metric(split, seen)
            assert (score.status, score.value) == ("undefined", None), (name, split)
            assert "not finite" in score.reason or "groups" in score.reason, (name, score.reason)
            asked += 1
    assert asked > 12


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("family", ["classifier", "regressor"])
def test_no_attack_on_it_is_a_number(family: str, how: str) -> None:
    problem = tiny_problem(family)
    scene, n = Scene(problem, spoiled(problem, how)), len(problem.forget)
    asked = [cls() for _, cls in ATTACKS.items() if not cls.obstacles(problem)]
    assert {a.name for a in asked} >= {"activation-perturbation", "detach-guard", "population-mia"}
    for attack in asked:
        for score in attack.attack(scene):
            told = (
                "the model has weights that are not finite; it has diverged"
                if how in ("nan", "inf")
                else f"the model's outputs are not finite for {n} of {n} rows of forget"
            )
            assert (score.status, score.value, score.reason) == ("undefined", None, told), score.metric


@pytest.mark.parametrize("how", ["nan", "inf"])
def test_a_language_model_of_that_kind_says_nothing(how: str) -> None:
    problem = tiny_problem("causal_lm")
    model = spoiled(problem, how)
    names = [
        "exact-memorization", "extraction-strength", "extraction-strength-openunlearning", "rouge-l-recall",
        "abstention-rate-text", "mia-text-loss", "mia-text-min-k", "sampled-abstention-rate", "semantic-volume",
    ]  # fmt: skip
    wanted: dict[str, set[str]] = {"forget": set(), "holdout": set()}
    for name in names:
        for (_, where), quantities in METRICS[name].needs("forget").items():
            wanted[where] |= quantities
    seen = {("model", where): looked(problem, model, where, found) for where, found in wanted.items()}
    assert seen["model", "forget"][0]["text"].tolist() == [None] * len(problem.forget)
    for name in names:
        score = METRICS[name]("forget", seen)
        assert score.status == "undefined" and "not finite" in score.reason, (name, score.value, score.reason)
    scores = [
        s for a in (GradientNormMia(), ATTACKS["detach-guard"]()) for s in a.attack(Scene(problem, model))
    ]
    assert {s.status for s in scores} == {"undefined"}
    assert all(s.reason == "the model has weights that are not finite; it has diverged" for s in scores)


def test_what_is_drawn_by_a_generator_of_that_kind_shows_nothing() -> None:
    problem = tiny_problem("gan")
    model = spoiled(problem, "huge")
    split = "samples"
    names = ["undesired-rate", "class-distance", "concept-probability"]
    needs = {key: q for name in names for key, q in METRICS[name].needs(split).items()}
    wanted: dict[str, set[str]] = {}
    for name in names:
        for (_, where), quantities in METRICS[name].needs(split).items():
            wanted.setdefault(where, set()).update(quantities)
    seen = {key: looked(problem, model, key[1], wanted[key[1]]) for key in needs}
    assert [METRICS[name](split, seen).status for name in names] == ["undefined"] * 3
    assert np.isnan(knowledge(problem, model, "test")).all()


def test_knowledge_of_it_is_not_a_number() -> None:
    for family in ("classifier", "regressor", "causal_lm"):
        problem = tiny_problem(family)
        assert np.isnan(knowledge(problem, spoiled(problem, "inf"), "forget")).all()
        assert np.isfinite(knowledge(problem, problem.target, "forget")).all()


def observed(logits: list[list[float]], *quantities: str) -> dict[str, Tensor]:
    family = Classifier(Table(["x"]), 3)
    targets = torch.zeros(len(logits), 1, dtype=torch.long)
    batch = Batch(
        [str(i) for i in range(len(logits))], {}, targets, torch.ones_like(targets, dtype=torch.bool)
    )
    return family.observe(Outputs(torch.tensor(logits)[:, None]), batch, quantities)


def test_only_rows_that_are_not_finite_have_no_class() -> None:
    made = observed([[2.0, 1, 0], [math.nan, 1, 0], [0, math.inf, 0], [0, 1, 2]], "correct", "predicted")
    assert made["correct"].tolist() == pytest.approx([1, math.nan, math.nan, 0], nan_ok=True)
    assert made["predicted"].tolist() == pytest.approx([0, math.nan, math.nan, 2], nan_ok=True)


def test_a_class_of_probability_0_leaves_all_as_it_is() -> None:
    made = observed([[2.0, -math.inf, 0], [-math.inf, 1, 0]], "correct", "predicted")
    assert (made["correct"].dtype, made["predicted"].dtype) == (torch.int8, torch.int64)
    assert (made["correct"].tolist(), made["predicted"].tolist()) == ([1, 0], [0, 1])


class Cracked(nn.Module):
    """Right of class 0, but for large inputs, where it has no answer."""

    def forward(self, features: Tensor) -> Tensor:
        said = torch.cat([torch.ones_like(features), torch.zeros_like(features)], 1)
        return torch.where(features > 5, math.nan, said)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_evidence_keeps_them_apart_however_it_is_batched(batch_size: int) -> None:
    rows = Dataset.from_dict({"id": list("abcd"), "x": [1.0, 9.0, 2.0, 3.0], "label": [0, 0, 1, 0]})
    seen = collect(Classifier(Table(["x"]), 2), Cracked(), rows, ["correct"], batch_size=batch_size)
    assert seen["correct"].tolist() == pytest.approx([1, math.nan, 0, 1], nan_ok=True)
    score = accuracy("test", {("model", "test"): [seen]})
    assert score.reason == "the model's output is not finite for 1 of 4 values; the model has diverged"


def test_tokens_without_a_likeliest_one_have_no_extraction_strength() -> None:
    assert extraction_strength(np.array([0.0, 1, 1, 1])) == 0.75
    assert math.isnan(extraction_strength(np.array([0.0, math.nan, 1, 1])))


def test_a_reference_of_that_kind_is_not_among_the_references() -> None:
    problem = tiny_problem("classifier")
    fine = [expunge.forget(problem, "retrain", seed=seed).model for seed in (1, 2)]
    judged = {"made": problem.target}
    metrics, attacks = ["accuracy", "mean-loss", "js-to-retrained"], ["detach-guard"]
    found = {}
    for name, references in (("without", fine), ("with", [*fine, spoiled(problem, "nan")])):
        scores = expunge.audit(problem, judged, retrained=references, metrics=metrics, attacks=attacks)
        made = next(j for j in scores.judged if j.label == "made")
        found[name] = {(s.metric, s.split): s for s in made.scores}
    for key in [("accuracy", "forget"), ("mean-loss", "test"), ("detach-guard-knowledge", "forget")]:
        one, other = found["without"][key].reference, found["with"][key].reference
        assert one is not None and other is not None and len(one.values) == 2
        assert (other.values, other.mean) == (one.values, one.mean)
    # A distance is the mean over retrained models; from one without outputs there is none, and that is said.
    away = found["with"]["js-to-retrained", "test"]
    assert away.status == "undefined" and away.reason.startswith("against retrained model 3 of 3: log-prob")
    assert found["without"]["js-to-retrained", "test"].status == "ok"
