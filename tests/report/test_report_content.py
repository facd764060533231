"""What a report says, against the score file it was made from."""

from __future__ import annotations

import math

import pytest
from factory import SEEDS, report_input, scores

from expunge.families import FAMILIES
from expunge.methods.base import METHODS
from expunge.metrics import METRICS
from expunge.record import Judged, Reference, Score, ScoreFile
from expunge.report import Report, compose
from expunge.report.content import ProblemSection
from expunge.report.notation import shown
from expunge.report.statements import PROPERTIES, untested
from expunge.report.tables import Cell


@pytest.fixture(scope="module")
def report() -> Report:
    return compose(report_input())


def section_of(
    values: dict[str, list[float]], *, unit: str = "share", metric: str = "accuracy"
) -> ProblemSection:
    """A section with one metric on 'forget'; one model per value."""
    judged = [
        Judged(
            problem="p",
            problem_id="x",
            method=label,
            label=label,
            seed=seed,
            scores=[Score(metric=metric, split="forget", value=value, unit=unit, direction="match")],
        )
        for label, by_seed in values.items()
        for seed, value in enumerate(by_seed)
    ]
    file = ScoreFile(name="n", problems=[{"name": "p", "family": "classifier"}], judged=judged)
    return compose(report_input(file)).problems[0]


def cell_of(section: ProblemSection, label: str, metric: str = "accuracy", split: str = "forget") -> Cell:
    for table in section.tables:
        i = table.find(metric, split)
        if i is not None:
            return next(row for row in table.rows if row.label == label).cells[i]
    raise AssertionError(f"no column {metric} on {split}")


def test_interval_over_seeds_is_the_hand_worked_one() -> None:
    # 0.1, 0.2, 0.3: mean 0.2, s = 0.1, s/sqrt(3) = 0.057735; t(0.975, 2) = 4.302653, so the half width is
    # 0.248414. The lower end, -0.048414, lies outside the range of an accuracy and is cut at 0.
    cell = cell_of(section_of({"ssd": [0.1, 0.2, 0.3]}), "ssd")
    assert cell.value == pytest.approx(0.2)
    assert cell.interval is not None
    assert cell.interval.high == pytest.approx(0.448414, abs=1e-6)
    assert cell.interval.low == 0.0

    wide = cell_of(
        section_of({"ssd": [0.1, 0.2, 0.3]}, metric="own-metric", unit="points"), "ssd", "own-metric"
    )
    assert wide.interval is not None
    assert wide.interval.low == pytest.approx(-0.048414, abs=1e-6)


def test_one_seed_has_no_interval_over_seeds() -> None:
    assert cell_of(section_of({"ssd": [0.4]}), "ssd").interval is None


def test_retrained_spread_is_the_hand_worked_one() -> None:
    # 2, 4, 9: mean 5; deviations -3, -1, 4; s^2 = 26/2 = 13.
    section = section_of({"retrain": [2.0, 4.0, 9.0], "ssd": [5.0]}, unit="points")
    column = section.column("accuracy", "forget")
    assert column is not None
    spread = column.retrained
    assert spread is not None and spread.deviation is not None
    assert (spread.mean, spread.low, spread.high) == (5.0, 2.0, 9.0)
    assert spread.deviation == pytest.approx(math.sqrt(13))


def test_spread_falls_back_on_attached_references() -> None:
    score = Score(
        metric="accuracy",
        split="forget",
        value=0.5,
        unit="share",
        direction="match",
        reference=Reference(mean=0.2, values=[0.1, 0.3], gap=0.3),
    )
    judged = Judged(problem="p", problem_id="x", method="ssd", label="ssd", seed=0, scores=[score])
    file = ScoreFile(name="n", problems=[{"name": "p"}], judged=[judged])
    section = compose(report_input(file)).problems[0]
    ((column, spread),) = section.references
    assert column.key == ("accuracy", "forget") and spread.values == [0.1, 0.3]
    assert "2 models retrained from scratch" in section.claim


def test_every_cell_is_the_mean_over_seeds(report: Report) -> None:
    file = scores()
    compared = 0
    for section in report.problems:
        for table in section.tables:
            for row in table.rows:
                models = [m for m in file.judged if m.problem == section.name and m.label == row.label]
                for column, cell in zip(table.columns, row.cells, strict=True):
                    found = [
                        s
                        for m in models
                        for s in m.scores
                        if (s.metric, s.split) == (column.metric, column.split)
                    ]
                    values = [s.value for s in found if s.value is not None]
                    if values:
                        assert cell.value == pytest.approx(sum(values) / len(values))
                        assert cell.values == values
                        compared += 1
                    else:
                        assert cell.status != "ok" and cell.value is None
    assert compared > 60


def test_every_score_is_in_a_table_or_said_to_be_missing(report: Report) -> None:
    file = scores()
    for section in report.problems:
        expected = {(s.metric, s.split) for m in file.judged if m.problem == section.name for s in m.scores}
        listed = [c.key for table in section.tables for c in (*table.columns, *table.missing)]
        # The judged attack stands in the main table and among the attacks; nothing else stands twice.
        twice = {("mia-loss-logistic", "forget")} & expected
        assert sorted(listed) == sorted([*expected, *twice])
        with_value = {
            (s.metric, s.split)
            for m in file.judged
            if m.problem == section.name
            for s in m.scores
            if s.value is not None
        }
        assert {c.key for table in section.tables for c in table.missing} == expected - with_value


def test_distance_is_relative_to_the_farthest_row_and_to_the_noise_of_retraining() -> None:
    def with_gap(method: str, value: float, gap: float | None) -> Judged:
        reference = None if gap is None else Reference(mean=value - gap, values=[value - gap], gap=gap)
        score = Score(
            metric="accuracy",
            split="test",
            value=value,
            unit="share",
            direction="higher",
            reference=reference,
        )
        return Judged(problem="p", problem_id="x", method=method, label=method, seed=0, scores=[score])

    def distances(*judged: Judged) -> dict[str, float | None]:
        section = compose(
            report_input(ScoreFile(name="n", problems=[{"name": "p"}], judged=list(judged)))
        ).problems[0]
        return {row.label: row.cells[0].distance for row in section.results.rows}

    assert distances(with_gap("a", 0.5, -0.4), with_gap("b", 0.8, -0.1)) == {
        "a": 1.0,
        "b": pytest.approx(0.25),
    }
    # Retrained at 0.7 and 0.9: standard deviation 0.141421, so the scale is 0.282843, not the gap of 0.1.
    retrained = [with_gap("retrain", 0.7, None), with_gap("retrain", 0.9, None)]
    assert distances(with_gap("b", 0.8, -0.1), *retrained)["b"] == pytest.approx(0.1 / 0.282843, rel=1e-5)


def test_missing_values_keep_their_reason(report: Report) -> None:
    section = report.problems[0]
    assert cell_of(section, "blindspot").status == "not_applicable"
    partly = cell_of(section, "bad-teacher")
    assert partly.status == "ok" and len(partly.values) == len(SEEDS) - 1
    assert section.results.notes[partly.notes[0] - 1].startswith(
        "Failed for 1 of 3 seeds: bad-teacher produced NaN"
    )
    # No model has this one: the column is left out, with its reason once among the failures.
    assert [c.metric for c in section.attacks.missing] == ["tpr-at-1-percent-fpr"]
    (undefined,) = [f for f in section.failures if f.status == "undefined"]
    assert undefined.reason == "only 20 non-members of the same class; 100 are needed"
    assert undefined.models == ["all 20 models"]  # seven rows of three seeds, of which one failed
    assert cell_of(section, "ssd", "peak-bytes", "run").value is not None
    assert "target" not in [row.label for row in section.costs.rows]  # no method made it


def test_a_row_without_any_value_is_explained_as_a_whole(report: Report) -> None:
    table = report.problems[0].results
    by_label = {row.label: row for row in table.rows}
    number = by_label["blindspot"].reason
    assert number is not None
    assert table.notes[number - 1] == "Not applicable: it fits regressor, not classifier"
    assert all(row.reason is None for label, row in by_label.items() if label != "blindspot")
    # Below the table stand the notes that its cells refer to by number.
    ((_, note),) = table.footnotes
    assert note.startswith("Failed for 1 of 3 seeds: bad-teacher")


def test_failures_are_gathered_by_reason(report: Report) -> None:
    failures = report.problems[0].failures
    assert len({(f.status, f.reason) for f in failures}) == len(failures)
    by_reason = {f.reason: f for f in failures}
    assert by_reason["it fits regressor, not classifier"].models == ["blindspot"]
    nan = next(f for reason, f in by_reason.items() if "NaN" in reason)
    assert (nan.what, nan.status, nan.models) == (["Run"], "failed", ["bad-teacher (seed 2)"])

    def without(split: str, seed: int) -> Score:
        return (
            Score(
                metric="own", split=split, unit="x", direction="match", status="undefined", reason="too few"
            )
            if seed
            else Score(metric="own", split=split, unit="x", direction="match", value=1.0)
        )

    judged = [
        Judged(
            problem="p", problem_id="x", method=label, label=label, seed=seed,
            scores=[without("forget", seed), without("test", seed)],
        )
        for label in ("a", "b")
        for seed in (0, 1, 2)
    ]  # fmt: skip
    (one,) = (
        compose(report_input(ScoreFile(name="n", problems=[{"name": "p"}], judged=judged)))
        .problems[0]
        .failures
    )
    assert one.what == ["own, forget set", "own, test"]
    assert one.models == ["a (seed 1 and 2)", "b (seed 1 and 2)"]


def test_claim_counts_what_was_judged(report: Report) -> None:
    assert report.problems[0].claim == (
        "5 methods (14 models) were judged, compared with 3 models retrained from scratch without the forget "
        "set. Of 6 equivalence tests, 3 found no difference larger than the stated margin, 1 found a "
        "difference and 2 were undecided."
    )
    assert report.problems[1].claim == (
        "1 method (1 model) was judged, without any retrained model to compare with, so that every statement "
        "rests on proxies. No equivalence test was made."
    )


def test_untested_is_everything_known_minus_what_ran() -> None:
    nothing = untested([], "classifier")
    assert [title for title, _ in nothing[:-1]] == [p.title for p in PROPERTIES]
    fitting = [n for n, m in METRICS.items() if m.fits(FAMILIES["classifier"])]
    assert nothing[-1][0] == "Metrics left out"
    assert all(name in nothing[-1][1] for name in fitting)

    everything = untested([*METRICS, "relearning-steps", "lira", "linear-probe-accuracy"], "classifier")
    titles = [title for title, _ in everything]
    assert not {"Relearning", "Per-example membership attacks", "Representation probes"} & set(titles)
    assert "Metrics left out" not in titles
    # No measurement of a model says anything about backups.
    assert "Copies outside the model" in titles


def test_untested_names_the_problems_it_is_missing_from(report: Report) -> None:
    by_title = {u.title: u for u in report.untested if u.title != "Metrics left out"}
    assert by_title["Relearning"].problems == ["digits", "pressure"]
    left_out = [u for u in report.untested if u.title == "Metrics left out"]
    assert sorted(name for u in left_out for name in u.problems) == ["digits", "pressure"]


def test_sources_name_each_publication_once(report: Report) -> None:
    papers = [s.term for s in report.sources]
    assert len(papers) == len(set(papers))
    membership = next(s for s in report.sources if s.term == METRICS["mia-loss-logistic"].source)
    assert membership.meaning == "Membership AUC"  # not once per statistic and attacker


def test_procedure_shows_what_differs_from_the_defaults() -> None:
    default = METHODS["scrub"].model_fields["rewind"].default
    judged = [
        Judged(
            problem="p", problem_id="x", method="scrub", label="scrub", seed=0, passed={"rewind": value},
            scores=[Score(metric="passes", split="run", unit="passes", direction="lower", value=2.5)],
        )
        for value in (default, not default)
    ]  # fmt: skip
    for model, changed in zip(judged, ({}, {"rewind": not default}), strict=True):
        file = ScoreFile(name="n", problems=[{"name": "p"}], judged=[model])
        (step,) = compose(report_input(file)).problems[0].procedures
        assert (step.passed, step.changed, step.passes) == (model.passed, changed, 2.5)


def test_json_round_trip(report: Report) -> None:
    text = report.model_dump_json(exclude_none=True)
    read = Report.model_validate_json(text)
    assert read.model_dump_json(exclude_none=True) == text
    # The values of single seeds stay in scores.json; means, intervals and reasons are here.
    cell = cell_of(read.problems[0], "ssd")
    assert cell.values == [] and cell.value == cell_of(report.problems[0], "ssd").value
    assert read.problems[0].verdicts == report.problems[0].verdicts
    assert read.problems[0].results.notes == report.problems[0].results.notes


def test_no_report_says_deleted(report: Report) -> None:
    assert "deleted" not in report.model_dump_json().lower()


@pytest.mark.parametrize(
    ("value", "unit", "signed", "expected"),
    [
        (0.91234, "share", False, "91.2"),
        (-0.0312, "share", True, "−3.1"),
        (0.0004, "share", True, "0.0"),
        (-0.0004, "share", True, "0.0"),
        (0.51234, "AUC", False, "0.512"),
        (3 * 2**20, "bytes", False, "3.00"),
        (1234567.0, "nats", False, "1,234,567"),
        (0.0000123, "nats", False, "1.23e-05"),
        (12.0, "nats", True, "+12.0"),
        (123.4, "nats", False, "123"),
        (999.9, "nats", False, "1,000"),
    ],
)
def test_numbers_as_text(value: float, unit: str, signed: bool, expected: str) -> None:
    assert shown(value, unit, signed=signed) == expected
