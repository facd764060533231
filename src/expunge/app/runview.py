"""From the records of a run to what its pages show; nothing is measured or judged here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.app.runs import Runs
from expunge.app.views import (
    AttackScore,
    BandCurve,
    BandEnds,
    Bands,
    Charts,
    ClaimLine,
    CurveScore,
    Ends,
    PlanView,
    Points,
    ProblemView,
    RunView,
    TableCell,
    TableColumn,
    TableRow,
    VerdictLine,
)
from expunge.errors import ExpungeError, Missing
from expunge.files import read_json
from expunge.record import Curve, Judged, ScoreFile
from expunge.report.content import Measure, ProblemSection
from expunge.report.html import CAPTIONS, chart_specs
from expunge.report.tables import Cell, Table, title_of
from expunge.report.vega import column_band
from expunge.studies.jobs import TRANSCRIPTS
from expunge.studies.plan import faults_of, planned

FILES = ("scores.json", "report.json", "report.html", "run.yaml", "jobs.json", "log.jsonl")
"""Records of a run that can be fetched."""
SHARES = ("knowledge", "share", "AUC")
"""Units whose values lie between 0 and 1."""


def run_view(runs: Runs, run: str) -> RunView:
    """Everything of a run but its examples."""
    report, scores = runs.report(run), runs.scores(run)
    measures = {m.name: m for m in report.measures}
    why = ""
    try:
        runs.index(run)
    except Missing as error:
        why = str(error)
    return RunView(
        name=run, created=report.created, command=report.command, passed=report.passed, effective=report.effective,
        environment=report.environment,
        problems=[_problem(runs, run, section, scores, measures) for section in report.problems],
        untested=[u.model_dump(mode="json") for u in report.untested],
        files=[name for name in FILES if (runs.folder(run) / name).is_file()], evidence=why,
    )  # fmt: skip


def charts(runs: Runs, run: str) -> Charts:
    """The charts of a run's report."""
    losses = runs.folder(run) / "losses.json"
    drawn = read_json(runs.confined(losses)) if losses.exists() else {}
    sections = runs.report(run).problems
    return Charts(
        problems={s.name: chart_specs(s, drawn.get(s.name, {})) for s in sections}, captions=CAPTIONS
    )


def _problem(
    runs: Runs,
    run: str,
    section: ProblemSection,
    scores: ScoreFile,
    measures: dict[str, Measure],
) -> ProblemView:
    columns, cells = _columns(section, measures)
    mine = [j for j in scores.judged if j.problem == section.name]
    rows = [
        TableRow(
            label=step.label, role=step.role, seeds=step.seeds, method=step.method, parameters=step.effective,
            paper=step.paper, notes=step.notes, cells=cells.get(step.label, [None] * len(columns)),
        )
        for step in section.procedures
    ]  # fmt: skip
    return ProblemView(
        name=section.name,
        family=section.family,
        scope=section.scope,
        claim=section.claim,
        counts=section.counts,
        columns=columns,
        rows=rows,
        verdicts=[VerdictLine.of(v) for v in section.verdicts],
        claims=_claims(scores, section.name),
        curves=_curves(mine),
        attacks=_attacks(mine),
        threats={m.name: m.threat for m in measures.values() if m.threat},
        models=[f"{j.label}@{j.seed}" for j in mine if j.status == "ok"],
        transcripts=_transcripts(runs, run, section.name),
    )


def _columns(
    section: ProblemSection, measures: dict[str, Measure]
) -> tuple[list[TableColumn], dict[str, list[TableCell | None]]]:
    columns: list[TableColumn] = []
    cells: dict[str, list[TableCell | None]] = {row: [] for row, _ in section.labels}
    tables: Sequence[tuple[Any, Table]] = (
        ("results", section.results), ("attacks", section.attacks), ("further", section.further),
        ("across", section.across), ("costs", section.costs),
    )  # fmt: skip
    for group, table in tables:
        by_label = {row.label: row for row in table.rows}
        for i, c in enumerate(table.columns):
            if any((o.metric, o.split) == c.key for o in columns):
                continue
            measure = measures.get(c.metric)
            columns.append(
                TableColumn(
                    metric=c.metric,
                    split=c.split,
                    title=c.title,
                    unit=c.unit,
                    direction=c.direction,
                    definition="" if measure is None else measure.definition,
                    group=group,
                    low=c.low,
                    high=c.high,
                    retrained=None if (band := column_band(c)) is None else BandEnds(**band._asdict()),
                )
            )
            for label, found in cells.items():
                row = by_label.get(label)
                found.append(None if row is None else _cell(row.cells[i], table))
    return columns, cells


def _cell(cell: Cell, table: Table) -> TableCell:
    ends = cell.interval
    return TableCell(
        value=cell.value, low=None if ends is None else ends.low, high=None if ends is None else ends.high,
        interval="" if ends is None else f"{100 * ends.level:g} %, {ends.method}", gap=cell.gap, distance=cell.distance,
        n=len(cell.values) or None, status=cell.status, reason="; ".join(table.notes[i - 1] for i in cell.notes),
    )  # fmt: skip


def _curves(judged: Sequence[Judged]) -> list[CurveScore]:
    return [
        CurveScore(
            label=j.label, seed=j.seed, metric=s.metric, title=title_of(s.metric), split=s.split, unit=s.unit, attack=s.attack,
            value=s.value, budget=s.budget, curve=Points.of(s.curve),
            retrained=_curve_band(s.reference.curves if s.reference else (), s.unit),
        )
        for j in judged for s in j.scores if s.curve is not None
    ]  # fmt: skip


def _curve_band(curves: Sequence[Curve], unit: str) -> BandCurve:
    """Where retrained models lie along what was spent, at every point that one of them has."""
    at = list(dict.fromkeys(x for curve in curves for x in curve.at))
    points = [
        (x, v) for curve in curves for x, v in zip(curve.at, curve.values, strict=True) if v is not None
    ]
    low, high = (0.0, 1.0) if unit in SHARES else (None, None)
    return BandCurve(at=at, **Bands.ends([[v for x, v in points if x == one] for one in at], low, high))


def _attacks(judged: Sequence[Judged]) -> list[AttackScore]:
    return [
        AttackScore(
            label=j.label, seed=j.seed, metric=s.metric, title=title_of(s.metric), split=s.split, unit=s.unit, value=s.value,
            status=s.status, reason=s.reason, interval=Ends.of(s.interval),
            gap=None if s.reference is None else s.reference.gap, n=s.n,
            budget=s.budget,
        )
        for j in judged for s in j.scores if s.attack
    ]  # fmt: skip


def _claims(scores: ScoreFile, problem: str) -> list[ClaimLine]:
    """Typed claims, where the record has them."""
    found = [claim.model_dump(mode="json") for claim in getattr(scores, "claims", ())]
    return [
        ClaimLine(**{k: facts[k] for k in ClaimLine.model_fields})
        for facts in found
        if facts["problem"] == problem
    ]


def _transcripts(runs: Runs, run: str, problem: str) -> dict[str, list[str]]:
    try:
        rows = runs.index(run).rows
    except ExpungeError:
        return {}
    made: dict[str, list[str]] = {}
    for row in rows:
        if row.problem != problem:
            continue
        for attack, key in row.attacks.items():
            if (runs.root / "store" / "jobs" / key / TRANSCRIPTS).is_file():
                made.setdefault(f"{row.label}@{row.seed}", []).append(attack)
    return made


def plan_view(study: dict[str, Any], runs: Path) -> PlanView:
    """What a study would do; with faults, nothing but these."""
    faults, skipped = faults_of(study)
    if faults:
        return PlanView(
            faults=faults,
            skipped=skipped,
            jobs={},
            to_do={},
            problems=[],
            memory=[],
            seconds=None,
            unknown=[],
        )
    found = planned(study, runs)
    return PlanView(
        faults=[], skipped=skipped, jobs=Counter(j["kind"] for j in found["jobs"]),
        to_do=Counter(j["kind"] for j in found["jobs"] if not j["done"]), problems=found["problems"],
        memory=found["memory"], seconds=found["seconds"], unknown=found["unknown"],
    )  # fmt: skip
