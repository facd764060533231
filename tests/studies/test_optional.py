"""A problem whose data is missing is left out of a study where it says that it is optional."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.errors import Missing
from expunge.studies.graph import build_graph
from expunge.studies.spec import StudySpec

ABSENT = {"name": "pictures", "benchmark": "fashion-mnist", "forget": "class=0"}
PRESENT = {"name": "tumors", "benchmark": "breast-cancer"}


def study(*problems: dict) -> StudySpec:
    return StudySpec(name="s", problems=list(problems), methods=["ssd"], seeds=[0])  # pyright: ignore


def test_an_optional_problem_is_left_out_with_a_notice(tmp_path: Path) -> None:
    said: list[str] = []
    graph = build_graph(study({**ABSENT, "optional": True}, PRESENT), tmp_path, said.append)
    assert list(graph.problems) == ["tumors"]
    assert len(said) == 1 and said[0].startswith("left out: ")


def test_another_one_is_missed(tmp_path: Path) -> None:
    with pytest.raises(Missing):
        build_graph(study(ABSENT, PRESENT), tmp_path, lambda _: None)


def test_a_study_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no problem left"):
        build_graph(study({**ABSENT, "optional": True}), tmp_path, lambda _: None)
