"""Claims and attack curves in the report: the standing, every test with its numbers, the retrained models' band."""

from __future__ import annotations

import json

import pytest
import vl_convert

import expunge
from expunge.families.models import clone
from expunge.record import ScoreFile
from expunge.report.card import claim_sections
from expunge.report.charts import attack_curves
from expunge.report.content import Report, ReportInput, compose
from expunge.report.html import render
from expunge.testing.problems import tiny_problem


@pytest.fixture(scope="module")
def scores() -> ScoreFile:
    problem = tiny_problem("classifier")
    retrained = [expunge.forget(problem, "retrain", seed=seed).model for seed in (1, 2, 3)]
    models = {"same": clone(problem.target), "destroyed": problem.fresh_model(7)}
    return expunge.audit(problem, models, retrained=retrained, metrics=["accuracy"], attacks=["quantization"])


@pytest.fixture(scope="module")
def report(scores: ScoreFile) -> Report:
    return compose(ReportInput(scores))


def test_claims_come_in_the_order_of_the_tables_and_the_target_last(report: Report) -> None:
    claims = report.problems[0].claims
    assert [c.label for c in claims][-1] == "target" and {c.label for c in claims} == {
        "same",
        "destroyed",
        "target",
    }
    again = json.loads(report.model_dump_json())["problems"][0]
    assert again["claims"] and "curves" not in again  # scores.json has the curves


def test_the_page_says_what_stands_and_why(report: Report) -> None:
    page = render(report)
    assert '<span class="standing not">not forgotten</span>' in page
    assert '<span class="standing damaged">damaged</span>' in page
    assert "bit by bit: nothing was forgotten" in page
    assert "relearning: no such test was run" in page
    assert page.index("<h3>Claims</h3>") < page.index("<h3>Findings</h3>")


def test_the_table_of_tests_has_the_numbers_of_the_scores(report: Report, scores: ScoreFile) -> None:
    claim = next(c for c in report.problems[0].claims if c.label == "same")
    test = next(t for t in claim.tests if t.metric == "quantization-knowledge")
    mine = next(j for j in scores.judged if j.label == "same").score("quantization-knowledge", "forget")
    theirs = [
        s.value
        for j in scores.judged
        if j.method == "retrain" and (s := j.score("quantization-knowledge", "forget"))
    ]
    known = [v for v in theirs if v is not None]
    assert mine is not None and test.unlearned == mine.value and test.budget == mine.budget
    assert test.reference == pytest.approx(sum(known) / 3) and test.excess == pytest.approx(
        mine.value - sum(known) / 3
    )


def test_curves_lie_over_the_band_of_the_retrained_models(report: Report, scores: ScoreFile) -> None:
    section = report.problems[0]
    (spec,) = attack_curves(section)
    band = spec["layer"][0]["data"]["values"]
    curves = [
        s.curve for j in scores.judged if j.method == "retrain" for s in j.scores if s.curve is not None
    ]
    at = curves[0].at[0]
    values = [v for c in curves for x, v in zip(c.at, c.values, strict=True) if x == at and v is not None]
    found = next(row for row in band if row["at"] == at)
    assert (found["low"], found["high"]) == (
        pytest.approx(min(values), abs=1e-3),
        pytest.approx(max(values), abs=1e-3),
    )
    assert vl_convert.vegalite_to_svg(spec, "6.1").startswith("<svg")


def test_a_section_for_a_model_card(scores: ScoreFile) -> None:
    text = claim_sections([c for c in scores.claims if c.label == "destroyed"])
    assert text.startswith("## Unlearning claim of destroyed: damaged (claimed: removal)\n")
    assert "**Against it**" in text and "worse than retrained models" in text
