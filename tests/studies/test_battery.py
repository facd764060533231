"""A battery of attacks: one pass of evidence, each attack once, a failure that stays alone, and audits of the obvious."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from torch import nn

import expunge
from expunge.attacks import Attack, Measure, Scene, fitting_attacks
from expunge.attacks import base as attacks_base
from expunge.attacks.base import ATTACKS
from expunge.errors import BadInput
from expunge.evidence import Evidence
from expunge.families import Architecture, Family
from expunge.families.models import clone
from expunge.metrics.base import Estimate
from expunge.problem import Problem
from expunge.record import Score
from expunge.studies.battery import Battery
from expunge.testing.problems import tiny_problem


class ReadsLoss(Attack):
    """Mean loss of the forget rows: an attack that only looks."""

    name = "reads-loss"
    paper = "none"
    threat_model = "logits"
    access = "logits"
    measures = (Measure("reads-loss-mean", "mean", "nats", margin=0.5),)

    def run(self, scene: Scene) -> list[Score]:
        scene.keep("r1", asked="?")
        losses = scene.evidence("forget", ["loss"])["loss"]
        return [self.score(self.measures[0].name, Estimate(float(losses.mean()), len(losses)))]


class ReadsAgain(ReadsLoss):
    """Another one that looks at the same."""

    name = "reads-again"
    measures = (Measure("reads-again-mean", "mean", "nats", margin=0.5),)


class Breaks(ReadsLoss):
    """An attack with a bug."""

    name = "breaks"
    measures = (Measure("breaks-mean", "mean", "nats", margin=0.5),)

    def run(self, scene: Scene) -> list[Score]:
        raise ZeroDivisionError("no such thing")


for made in (ReadsLoss, ReadsAgain, Breaks):
    ATTACKS._items.pop(made.name, None)  # tests of other modules list what is registered


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny_problem("classifier")


@pytest.fixture(scope="module")
def retrained(problem: Problem) -> list:
    return [expunge.forget(problem, "retrain", seed=seed).model for seed in (1, 2, 3)]


def test_evidence_is_collected_once_for_metrics_and_attacks(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[list[str]] = []
    collect = attacks_base.collect

    def counted(family: Family, model: nn.Module, data: Dataset, wanted: list[str], **more: Any) -> Evidence:
        passes.append(wanted)
        return collect(family, model, data, wanted, **more)

    monkeypatch.setattr(attacks_base, "collect", counted)
    expunge.audit(problem, clone(problem.target), metrics=["accuracy"], attacks=[ReadsLoss(), ReadsAgain()])
    # Target, audited and untrained model, each on the splits that accuracy reads; the attack adds nothing.
    assert len(passes) == 3 * 4


def test_the_same_again_computes_nothing(
    problem: Problem, retrained: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"mine": clone(retrained[0])}
    first = expunge.audit(
        problem, made, retrained=retrained, metrics=["accuracy"], attacks=[ReadsLoss()], folder=tmp_path
    )
    assert (
        len(list((tmp_path / "attacks").iterdir())) == 4
    )  # the audited model is the first reference, bit by bit
    assert len(list((tmp_path / "attacks").glob("*/transcripts.jsonl"))) == 4

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was computed again")

    monkeypatch.setattr(attacks_base, "collect", refuse)
    monkeypatch.setattr(ReadsLoss, "run", refuse)
    again = expunge.audit(
        problem, made, retrained=retrained, metrics=["accuracy"], attacks=[ReadsLoss()], folder=tmp_path
    )
    assert again.judged == first.judged and again.claims == first.claims


def test_another_parameter_seed_or_model_is_another_result(problem: Problem, tmp_path: Path) -> None:
    battery = Battery(problem, [ReadsLoss()], folder=tmp_path)
    scenes = [battery.scene(problem.target, seed) for seed in (0, 1)]
    rooms = {
        battery._room(ReadsLoss(), scene, model, untouched, None)
        for model in ("a", "b") for scene in scenes for untouched in (False, True)
    }  # fmt: skip
    assert len(rooms) == 4  # `untouched` matters to attacks with shadow models alone
    relearning = ATTACKS["relearning"]
    one, other = (
        battery._room(attack, scenes[0], "a", False, None) for attack in (relearning(), relearning(lr=0.3))
    )
    assert one != other


def test_one_failure_leaves_the_others(problem: Problem, retrained: list, tmp_path: Path) -> None:
    said: list[str] = []
    found = expunge.audit(
        problem, {"mine": clone(retrained[0])}, retrained=retrained, metrics=["accuracy"], attacks=[Breaks(), ReadsLoss()],
        folder=tmp_path, progress=said.append,
    )  # fmt: skip
    mine = next(j for j in found.judged if j.label == "mine")
    broken, fine = mine.score("breaks-mean", "forget"), mine.score("reads-loss-mean", "forget")
    assert (
        broken is not None
        and broken.status == "failed"
        and broken.reason == "ZeroDivisionError: no such thing"
    )
    assert fine is not None and fine.status == "ok"
    assert "mine: breaks (1 of 2) failed: ZeroDivisionError: no such thing" in said
    assert not any(
        "breaks" in p.read_text() for p in (tmp_path / "attacks").glob("*/scores.json")
    )  # tried again next time


def test_a_model_audited_against_itself_has_no_excess(problem: Problem, retrained: list) -> None:
    found = expunge.audit(
        problem,
        {"mine": clone(retrained[0])},
        retrained=retrained[:1],
        attacks=["population-mia", "relearning"],
    )
    mine = next(j for j in found.judged if j.label == "mine")
    gaps = {(s.metric, s.split): s.reference.gap for s in mine.scores if s.reference is not None}
    assert len(gaps) > 20 and ("population-mia-auc", "forget") in gaps
    assert {key for key, gap in gaps.items() if gap != 0} == set()


def test_the_obvious_is_called_what_it_is(problem: Problem, retrained: list) -> None:
    models = {"same": clone(problem.target), "destroyed": problem.fresh_model(7)}
    found = {
        c.label: c for c in expunge.audit(problem, models, retrained=retrained, metrics=["accuracy"]).claims
    }
    assert found["target"].standing == found["same"].standing == "not forgotten"
    assert found["destroyed"].standing == "damaged"
    assert all(c.claimed == "removal" for c in found.values())


def test_an_audit_gives_the_losses_of_every_retrained_model(problem: Problem, retrained: list) -> None:
    from expunge.api import audit_with_losses

    models = {"same": clone(problem.target)}
    scores, losses = audit_with_losses(problem, models, retrained=retrained, metrics=["mean-loss"])
    kept = losses[problem.name]
    names = ["retrained", *(f"retrained {k}" for k in range(2, len(retrained) + 1))]
    assert set(kept) == {"target", "same", *names} and len(retrained) > 1
    for seed, name in enumerate(names):
        model = next(j for j in scores.judged if (j.method, j.seed) == ("retrain", seed))
        score = model.score("mean-loss", "forget")
        assert score is not None
        assert sum(kept[name]["forget"]) / len(kept[name]["forget"]) == pytest.approx(score.value, rel=1e-6)


def test_standard_has_what_claims_need_and_leaves_out_shadows(problem: Problem) -> None:
    standard = {a.name for a in fitting_attacks(problem, "standard")}
    assert "relearning" in standard and not standard & {"lira", "u-lira"}
    assert {"lira", "u-lira"} <= {a.name for a in fitting_attacks(problem, "all")}


def test_undefined_stays_undefined(problem: Problem) -> None:
    found = expunge.audit(
        replace(problem, holdout=None),
        clone(problem.target),
        metrics=["accuracy"],
        attacks=["population-mia"],
    )
    score = found.judged[-1].score("population-mia-auc", "forget")
    assert score is not None and score.value is None and score.status == "not_applicable"
    assert '"value":null' in score.model_dump_json()


def test_models_that_are_built_otherwise_are_compared_where_that_has_a_meaning(
    problem: Problem, retrained: list
) -> None:
    deeper = Architecture(kind="builtin", name="mlp", options={"inputs": 4, "outputs": 3, "hidden": [16, 8]})
    other = expunge.forget(replace(problem, architecture=deeper), "retrain", seed=4).model
    for judged in ({"deep": other, "alike": retrained[0]}, {"alike": retrained[0], "deep": other}):
        found = expunge.audit(
            problem, judged, retrained=[other, *retrained[1:]], metrics=["accuracy", "cka-to-target"]
        )
        by_label = {j.label: j for j in found.judged}
        aligned = by_label["deep"].score("cka-to-target", "forget")
        assert aligned is not None and set(aligned.groups) == {"layers.0", "head"}  # what both have
        alike = by_label["alike"].score("cka-to-target", "forget")
        assert alike is not None and alike.value == pytest.approx(np.mean(list(alike.groups.values())))


def test_a_model_that_cannot_read_the_data_is_named(problem: Problem, retrained: list) -> None:
    narrow = replace(
        problem,
        architecture=Architecture(
            kind="builtin", name="mlp", options={"inputs": 9, "outputs": 3, "hidden": [4]}
        ),
    ).fresh_model(0)
    with pytest.raises(BadInput, match=r"'odd' cannot be run on the data of tiny-classifier: .*4"):
        expunge.audit(problem, {"odd": narrow}, retrained=retrained, metrics=["accuracy"])
    with pytest.raises(BadInput, match="reference 1 cannot be run on the data of tiny-classifier"):
        expunge.audit(problem, retrained[0], retrained=[retrained[1], narrow], metrics=["accuracy"])


def test_one_attack_may_be_named_without_a_list(problem: Problem) -> None:
    assert [a.name for a in Battery(problem, "pruning").attacks] == ["pruning"]
    with pytest.raises(BadInput, match="unknown attack 'prunning'; did you mean 'pruning'"):
        Battery(problem, "prunning")


def test_one_attack_twice_is_refused(problem: Problem) -> None:
    two = [ATTACKS["relearning"](budget=4), ATTACKS["relearning"](data="related")]
    with pytest.raises(BadInput, match="attack 'relearning' is named twice"):
        expunge.audit(problem, problem.target, attacks=two, metrics=["accuracy"])


@pytest.mark.parametrize("label", ["target", "retrain"])
def test_an_audited_model_is_not_called_as_its_yardsticks_are(
    label: str, problem: Problem, retrained: list
) -> None:
    with pytest.raises(BadInput, match=f"an audited model cannot be called '{label}'"):
        expunge.audit(problem, {label: retrained[0]}, retrained=retrained[1:], metrics=["accuracy"])
