"""`expunge meta-evaluate`: a file per problem, a table, and nothing computed twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.methods.base import METHODS
from expunge.studies import meta_evaluation
from expunge.studies.meta_evaluation import MetaEvaluation

from .conftest import Run

STUDY = """
name: small
problems:
  - {name: threes, benchmark: digits, forget: class=3}
methods:
  - {name: fine-tune, label: gentle, epochs: 1, lr: 0.01}
metrics: [accuracy, mean-loss]
attacks: [detach-guard]
"""


def test_one_file_per_problem_and_resume(
    expunge: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.yaml").write_text(STUDY)
    out = tmp_path / "meta"
    asked = ("meta-evaluate", tmp_path / "small.yaml", "--models", 3, "--out", out)
    done = expunge(*asked)
    assert done.code == 0 and "accuracy" in done.out and "threes: 3 + 3 models" in done.out
    found = MetaEvaluation.read(out / "threes.json")
    by_name = {q.metric: q for q in found.qualities}
    # Who never saw a three never says three.
    assert by_name["accuracy"].auc == 1 and by_name["accuracy"].ignorant == [0, 0, 0]
    assert min(by_name["accuracy"].knowing) > 0.8 and by_name["detach-guard-knowledge"].kind == "attack"
    assert found.unlearned == ["gentle"]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(meta_evaluation._Gauge, "_measured", refuse)
    monkeypatch.setattr(METHODS["fine-tune"], "forget", refuse)
    trained = []
    fit = meta_evaluation.fit
    monkeypatch.setattr(meta_evaluation, "fit", lambda *args: trained.append(args[2]) or fit(*args))
    again = expunge(*asked, "--json")
    assert (
        again.code == 0
        and json.loads(again.out)[0]["qualities"] == found.model_dump(mode="json")["qualities"]
    )
    assert set(trained) <= {"forget"}  # relearning of retrained models, whose scores are there already


def test_too_few_models_are_refused(expunge: Run, tmp_path: Path) -> None:
    done = expunge("meta-evaluate", "--models", 2, "--out", tmp_path)
    assert done.code == 2 and "take at least 3" in done.err
