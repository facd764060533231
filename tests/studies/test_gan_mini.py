"""The study of GANs, with models that are trained far too short: everything arrives in the scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.data.selection import Selection
from expunge.studies.study import load_study, run_study

SHORT = {
    "epochs": 8,
    "lr": 3e-3,
    "batch_size": 64,
    "optimizer": "rmsprop",
    "weight_decay": 0.0,
    "schedule": "linear",
}


def test_the_embedded_study_forgets_a_class_and_a_feature() -> None:
    spec = load_study("gan-mini")[0]
    asked = [p.forget for p in spec.problems]
    assert asked == [Selection.parse(text) for text in ("class=3", "where:stroke == heavy")]
    methods = {m.shown() for m in spec.methods}
    assert methods == {"retrain", "adapt-then-unlearn", "fine-tune", "text-to-unlearn"}
    assert spec.seeds == [0, 1, 2]


@pytest.mark.slow
def test_every_method_is_judged_beside_the_retrained_model(tmp_path: Path) -> None:
    study = {
        "name": "short",
        "problems": [{"benchmark": "gan-mini", "recipe": SHORT}],
        "methods": [
            "npo",
            {"name": "adapt-then-unlearn", "adapting_steps": 4, "steps": 4, "copies": 1, "screened": 1000},
            {"name": "text-to-unlearn", "mapper_steps": 40, "steps": 4},
        ],
        "seeds": [0],
    }
    scores = run_study(study, tmp_path, workers=0, display="none").scores
    found = {j.method: j for j in scores.judged}
    assert found["npo"].status == "not_applicable" and "it needs a likelihood" in str(found["npo"].reason)
    asked = [
        ("undesired-rate", "samples"),
        ("frechet-distance", "test"),
        ("coverage", "concept"),
        ("average-gap", "run"),
    ]
    for method in ("target", "adapt-then-unlearn", "text-to-unlearn"):
        values = [found[method].score(*key) for key in asked]
        assert all(s is not None and s.value is not None for s in values), method
    assert {v.metric for v in scores.verdicts} >= {"undesired-rate", "coverage"}
