"""Attacks in `expunge.audit`: the controls are attacked too, and shadow models unlearn as the model did."""

from __future__ import annotations

from dataclasses import replace

import pytest

import expunge
from expunge.attacks.lira import Lira, ULira
from expunge.methods.base import METHODS
from expunge.problem import Problem
from expunge.record import ScoreFile, Status


@pytest.fixture(scope="module")
def audited(memorized: Problem) -> ScoreFile:
    weak = METHODS["fine-tune"](epochs=1, lr=1e-4)
    model = expunge.forget(memorized, weak).model
    retrained = expunge.forget(memorized, "retrain").model
    return expunge.audit(
        memorized, {"known": model, "unknown": model}, retrained=[retrained], metrics=["accuracy"],
        attacks=["population-mia", Lira(shadows=8), ULira(shadows=8)], methods={"known": weak},
    )  # fmt: skip


def statuses(scores: ScoreFile, metric: str) -> dict[str, Status]:
    found = {j.label: j.score(metric, "forget") for j in scores.judged}
    return {label: score.status for label, score in found.items() if score is not None}


def test_every_model_is_attacked(audited: ScoreFile) -> None:
    everyone = dict.fromkeys(("target", "retrain", "known", "unknown"), "ok")
    assert statuses(audited, "population-mia-auc") == everyone
    assert statuses(audited, "lira-auc") == everyone


def test_u_lira_needs_the_method(audited: ScoreFile) -> None:
    assert statuses(audited, "u-lira-auc") == {
        "target": "ok", "retrain": "ok", "known": "ok", "unknown": "not_applicable",
    }  # fmt: skip


def test_what_is_left_stands_out_against_the_retrained_model(audited: ScoreFile) -> None:
    values = {j.label: j.score("u-lira-auc", "forget") for j in audited.judged}
    known, retrained = values["known"], values["retrain"]
    assert known is not None and retrained is not None
    assert known.interval is not None and known.interval.low > 0.6
    assert retrained.interval is not None and retrained.interval.low < 0.5 < retrained.interval.high
    assert known.reference is not None and known.reference.values == [retrained.value]


def test_what_cannot_run_says_why(memorized: Problem) -> None:
    problem = replace(memorized, holdout=None)
    scores = expunge.audit(problem, memorized.target, metrics=["accuracy"], attacks=["lira"])
    score = scores.judged[0].score("lira-auc", "forget")
    assert score is not None
    assert score.status == "not_applicable" and "it needs a holdout set" in score.reason


def test_no_attack_unless_asked(memorized: Problem) -> None:
    scores = expunge.audit(memorized, memorized.target, metrics=["accuracy"])
    assert not any(s.attack for j in scores.judged for s in j.scores)
