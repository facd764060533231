"""Order, matrix and outcome of the findings, and the grouped tables."""

from __future__ import annotations

import random

from factory import report_input, scores

from expunge.record import Judged, Score, Verdict
from expunge.report import compose
from expunge.report.findings import Criterion, matrix, outcome, ranked
from expunge.report.matrices import attack_matrices, cost_matrix
from expunge.report.tables import Cell, Column, Row, Table

YES, NO, OPEN = "no larger difference", "different", "undecided"


def verdict(label: str, judgement: str, metric: str = "accuracy", margin: float = 0.05) -> Verdict:
    return Verdict.model_validate(
        {
            "problem": "p", "label": label, "metric": metric, "split": "test", "judgement": judgement,
            "margin": margin, "n": 3, "n_reference": 3, "sentence": "s",
        }
    )  # fmt: skip


def model(label: str, gap: float | None = None, seed: int = 0, method: str = "") -> Judged:
    gaps = [] if gap is None else [gap]
    return Judged(
        problem="p", problem_id="x", method=method or label, label=label, seed=seed,
        scores=[
            Score(metric="average-gap", split="run", value=g, unit="percentage points", direction="lower")
            for g in gaps
        ],
    )  # fmt: skip


def test_methods_are_ranked_by_agreements_then_by_average_gap() -> None:
    judged = [
        model("worst", 9.0),
        model("unmeasured"),
        model("second", 4.0),
        model("second", 2.0, seed=1),  # mean gap 3
        model("third", 3.5),
        model("first", 8.0),
        model("retrain", 0.5),
        model("target", 50.0),
    ]
    verdicts = [
        verdict("first", YES),
        verdict("first", YES, "ece"),
        verdict("second", YES),
        verdict("third", YES),
    ]
    random.Random(0).shuffle(judged)
    order = list(dict.fromkeys(m.label for m in ranked(judged, verdicts)))
    assert order == ["target", "retrain", "first", "second", "third", "worst", "unmeasured"]


def test_equal_methods_stay_as_they_were_run() -> None:
    assert [m.label for m in ranked([model("b"), model("a")], [])] == ["b", "a"]


def test_matrix_has_a_column_per_property_and_margin() -> None:
    verdicts = [verdict("a", YES), verdict("b", NO, "ece"), verdict("a", OPEN, "ece", margin=0.1)]
    criteria, rows = matrix([("b", "unlearned"), ("c", "unlearned"), ("a", "unlearned")], verdicts)
    assert criteria == [
        Criterion("accuracy", "test", 0.05),
        Criterion("ece", "test", 0.05),
        Criterion("ece", "test", 0.1),
    ]
    assert [(row.label, row.agreements) for row in rows] == [("b", 0), ("a", 1)]  # c has no verdict
    assert rows[1].verdicts == [verdicts[0], None, verdicts[2]]


def test_outcome_needs_every_property() -> None:
    verdicts = [
        *(verdict("all", YES, metric) for metric in ("accuracy", "ece")),
        verdict("half", YES),  # nothing was found about its calibration
        *(verdict("mixed", judgement, metric) for judgement, metric in ((OPEN, "accuracy"), (NO, "ece"))),
        *(verdict("unsure", judgement, metric) for judgement, metric in ((OPEN, "accuracy"), (YES, "ece"))),
    ]
    found = outcome(["all", "half", "mixed", "unsure", "never"], verdicts)
    assert found.properties == 2
    assert found.agreeing == ["all"]
    assert found.differing == ["mixed"]
    assert found.undecided == ["half", "unsure"]
    assert found.unjudged == ["never"]


def test_outcome_of_a_file_leaves_no_method_out() -> None:
    section = compose(report_input()).problems[0]
    found = section.outcome
    sorted_out = [*found.agreeing, *found.differing, *found.undecided, *found.unjudged]
    methods = {m.label for m in scores().judged if m.problem == "digits"} - {"target", "retrain"}
    assert sorted(sorted_out) == sorted(methods)
    assert found.unjudged == ["gradient-ascent", "blindspot"]
    assert found.differing == ["ssd"]


def test_every_table_has_the_same_order() -> None:
    section = compose(report_input()).problems[0]
    order = [label for label, _ in section.labels]
    assert order[:2] == ["target", "retrain"]
    for table in section.tables:
        labels = [row.label for row in table.rows]
        assert labels == [label for label in order if label in labels]


def table_of(*titles: tuple[str, str, str]) -> Table:
    """A table of columns (metric, split, title), whose one row counts them."""
    columns = [
        Column(metric=metric, split=split, title=title, unit="AUC", direction="match")
        for metric, split, title in titles
    ]
    cells = [Cell(status="ok", value=float(i)) for i, _ in enumerate(columns)]
    return Table(columns=columns, rows=[Row(label="a", role="unlearned", seeds=[0], cells=cells)])


def test_attacks_are_grouped_by_what_they_look_at() -> None:
    table = table_of(
        ("m1", "forget", "Membership AUC (loss, logistic)"),
        ("m2", "forget", "Membership AUC (entropy, logistic)"),
        ("m3", "retain", "Membership AUC (loss, logistic)"),
        ("m4", "forget", "Membership AUC (loss, linear SVM)"),
        ("m5", "forget", "Extraction"),
    )
    on_forget, on_retain, extraction = attack_matrices(table)
    assert on_forget.title == "Membership AUC, forget set"
    assert on_forget.groups == [("loss", 2), ("entropy", 1)]
    assert on_forget.names == ["logistic", "linear SVM", "logistic"]
    # Values move with their columns.
    assert [c.value for c in on_forget.table.rows[0].cells] == [0.0, 3.0, 1.0]
    assert [c.value for c in on_retain.table.rows[0].cells] == [2.0]
    assert (extraction.title, extraction.names) == ("Extraction, forget set", [""])


def test_costs_are_grouped_by_resource() -> None:
    costs = compose(report_input()).problems[0].costs
    matrix = cost_matrix(costs)
    assert matrix.groups == [
        ("Wall time", 2),
        ("Peak memory", 1),
        ("Passes over the data", 2),
        ("Changed parameters", 1),
    ]
    assert matrix.names == ["s", "×", "MiB", "passes", "×", "%"]
