"""A study of a benchmark with canaries, attacked by what looks for them: scores, references, index and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import expunge
from expunge.record import Judged, ScoreFile

STUDY: dict[str, Any] = {
    "name": "planted",
    "problems": [
        {
            "benchmark": "canaries",
            "options": {"of": "breast-cancer", "mark_rows": 20, "poison_std": 1.0},
            "forget": "fraction=0.1",
        }
    ],
    "methods": [{"name": "gradient-ascent", "lr": 0.001, "epochs": 2}],
    "attacks": [
        {"name": "relearning", "budget": 40},
        "watermark",
        "gaussian-poison",
        {"name": "inversion", "steps": 20},
    ],
    "seeds": [0, 1],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("planted")
    return expunge.run(STUDY, runs, workers=0, display="none").folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[tuple[str, int], Judged]:
    return {(j.method, j.seed): j for j in ScoreFile.read(folder / "scores.json").judged}


def test_every_row_is_attacked_and_referred_to_retraining(rows: dict[tuple[str, int], Judged]) -> None:
    assert len(rows) == 6
    for (method, _), judged in rows.items():
        assert judged.status == "ok", judged.reason
        for metric, split in (
            ("watermark-accuracy", "mark"),
            ("gaussian-poison-z", "forget"),
            ("inversion-accuracy", "forget"),
            ("relearning-level", "forget"),
        ):
            score = judged.score(metric, split)
            assert score is not None and score.status == "ok" and score.attack
            assert score.reference is not None
            assert len(score.reference.values) == (1 if method == "retrain" else 2)
    target = rows["target", 0].score("relearning-steps", "forget")
    assert target is not None and target.value == 0


def test_the_mark_is_recognized_after_retraining(rows: dict[tuple[str, int], Judged]) -> None:
    for seed in (0, 1):
        score = rows["retrain", seed].score("watermark-accuracy", "mark")
        assert score is not None and (score.value or 0) > 0.7


def test_the_anamnesis_index_is_a_ratio_to_retraining(rows: dict[tuple[str, int], Judged]) -> None:
    steps = [rows["retrain", s].score("relearning-steps", "forget") for s in (0, 1)]
    values = [s.value for s in steps if s is not None]
    ours = rows["gradient-ascent", 0].score("relearning-steps", "forget")
    index = rows["gradient-ascent", 0].score("anamnesis-index", "run")
    assert ours is not None and index is not None
    if None in (*values, ours.value) or sum(v or 0 for v in values) == 0:
        assert index.status == "undefined" and index.reason
    else:
        assert index.value == pytest.approx((ours.value or 0) / (sum(v or 0 for v in values) / 2))


def test_the_report_shows_them(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    for title in (
        "Relearning time",
        "Ownership mark recognized",
        "Poison left",
        "Recognizable reconstructions",
    ):
        assert title in page
