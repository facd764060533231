"""Scores of all seeds together in the report: shown where there are values, named as untested where there are none."""

from __future__ import annotations

import re

import pytest
from factory import report_input

from expunge.record import Across, Reference, Score
from expunge.report import ReportInput
from expunge.report.content import compose
from expunge.report.html import render


def scored(value: float | None, floor: float | None) -> list[Score]:
    facts = {"metric": "klom-mean", "split": "forget", "unit": "nats", "direction": "lower"}
    if value is None:
        return [Score(**facts, status="undefined", reason="1 are too few")]
    reference = None if floor is None else Reference(mean=floor, values=[floor], gap=value - floor)
    return [Score(**facts, value=value, n=123, reference=reference)]


def with_across(given: ReportInput, *rows: tuple[str, str, float | None, float | None]) -> ReportInput:
    name = given.scores.problems[0]["name"]
    across = [
        Across(problem=name, method=method, label=label, seeds=list(range(20)), scores=scored(value, floor))
        for method, label, value, floor in rows
    ]
    scores = given.scores.model_copy(update={"across": across})
    return ReportInput(scores, given.losses, given.command, given.passed, given.effective)


@pytest.fixture(scope="module")
def given() -> ReportInput:
    return report_input()


def test_the_table_has_the_floor_as_yardstick(given: ReportInput) -> None:
    report = compose(with_across(given, ("retrain", "retrain", 3.0, None), ("ssd", "ssd", 4.5, 3.0)))
    table = report.problems[0].across
    (column,) = table.columns
    assert (column.title, column.unit) == ("KLoM, mean", "nats")
    assert column.retrained is not None and column.retrained.values == [3.0]
    retrained, ssd = table.rows
    assert (retrained.role, retrained.cells[0].value, retrained.cells[0].gap) == ("retrained", 3.0, None)
    assert (ssd.cells[0].value, ssd.cells[0].gap, len(ssd.seeds)) == (4.5, 1.5, 20)
    assert "klom-mean" in {m.name for m in report.measures}
    first = report.problems[0].name
    assert all(first not in u.problems for u in report.untested if u.title == "Distributions over models")


def test_the_page_shows_it(given: ReportInput) -> None:
    page = render(compose(with_across(given, ("retrain", "retrain", 3.0, None), ("ssd", "ssd", 4.5, 3.0))))
    shown = re.search(r"All models of a method together.*?</details>", page, re.S)
    assert shown is not None
    assert "4.50" in shown[0] and "KLoM, mean" in shown[0]


def test_without_values_it_is_named_as_untested(given: ReportInput) -> None:
    report = compose(with_across(given, ("retrain", "retrain", None, None)))
    assert report.problems[0].across.columns == []
    assert any(u.title == "Distributions over models" for u in report.untested)
    assert "All models of a method together" not in render(report)
