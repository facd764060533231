"""What the app's addresses answer, as data; `server` puts them on the network, `bundle` into files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field

from expunge.app.processes import State
from expunge.record import Curve, Interval, Record, Score, Verdict, mean_of
from expunge.report.tables import Role
from expunge.report.vega import Band, band_of


class Session(Record):
    """What the page needs to know of the server."""

    version: str
    folder: str = Field(description="name of the folder of runs")
    token: str = Field(description="to be sent with every change")
    bundle: bool = Field(description="True where the pages are files and nothing can be started")
    umap: bool = Field(description="whether the extra for UMAP is installed")
    ledger: bool


class RunLine(Record):
    """A run in the list."""

    name: str
    state: State
    controlled: bool
    modified: str
    seconds_ago: float
    report: bool


class RunList(Record):
    """Runs, the newest first."""

    runs: list[RunLine]


class Ends(Record):
    """The ends of an interval."""

    low: float
    high: float

    @classmethod
    def of(cls, interval: Interval | None) -> Ends | None:
        """Those of a recorded interval."""
        return None if interval is None else cls(low=interval.low, high=interval.high)


class BandEnds(Ends):
    """Where retrained models lie in one number: the ends are the smallest and the largest of them."""

    least: float = Field(
        description="lower end of the 95 % prediction interval of one further retrained model; `low` where it is unknown, of "
        "one model and where all agree"
    )
    most: float = Field(description="its upper end")


class Bands(Record):
    """Where retrained models lie, position by position; None where none of them has a value."""

    models: int = Field(description="how many retrained models there are; 0: nothing to draw")
    mean: list[float | None]
    low: list[float | None] = Field(description="the smallest of them")
    high: list[float | None] = Field(description="the largest of them")
    least: list[float | None] = Field(
        description="lower end of the 95 % prediction interval of one further retrained model at this position; `low` where it "
        "is unknown, of one model and where all agree"
    )
    most: list[float | None] = Field(description="its upper end")

    @staticmethod
    def ends(
        values: Sequence[Sequence[float]], low: float | None = None, high: float | None = None
    ) -> dict[str, Any]:
        """The fields, from the retrained models' values at each position and the smallest and largest possible ones."""
        bands = [band_of([v for v in at if math.isfinite(v)], low, high) for at in values]
        fields = {k: [None if b is None else b._asdict()[k] for b in bands] for k in Band._fields}
        means = [
            None if b is None else mean_of(v for v in at if math.isfinite(v))
            for at, b in zip(values, bands, strict=True)
        ]
        return {"models": max(map(len, values), default=0), "mean": means, **fields}


class BandCurve(Bands):
    """The same along a curve."""

    at: list[float]


class Points(Record):
    """A curve."""

    over: str = Field(description="what is spent, with its unit")
    at: list[float]
    values: list[float | None] = Field(description="None where undefined")

    @classmethod
    def of(cls, curve: Curve) -> Points:
        """Those of a recorded curve."""
        return cls(over=curve.over, at=curve.at, values=curve.values)


class RecordedScore(Record):
    """A score as scores.json has it."""

    metric: str
    unit: str
    value: float | None
    status: str
    reason: str
    interval: Ends | None
    retrained: float | None = Field(description="mean of the retrained models")
    gap: float | None

    @classmethod
    def of(cls, score: Score | None) -> RecordedScore | None:
        """What a page shows of a score."""
        if score is None:
            return None
        reference = score.reference
        return cls(
            metric=score.metric, unit=score.unit, value=score.value, status=score.status, reason=score.reason,
            interval=Ends.of(score.interval), retrained=None if reference is None else reference.mean,
            gap=None if reference is None else reference.gap,
        )  # fmt: skip


class VerdictLine(Record):
    """A judgement over seeds."""

    label: str
    metric: str
    split: str
    judgement: Literal["no larger difference", "different", "undecided"]
    margin: float
    difference: float | None
    more_seeds: int | None
    sentence: str

    @classmethod
    def of(cls, verdict: Verdict) -> VerdictLine:
        """What a page shows of a verdict."""
        return cls(**{k: getattr(verdict, k) for k in cls.model_fields})


class TableCell(Record):
    """A method's value in a column."""

    value: float | None
    low: float | None
    high: float | None
    interval: str = Field(description="how the interval was computed")
    gap: float | None
    distance: float | None = Field(description="size of the gap in 0 to 1 of the largest of the column")
    n: int | None
    status: str
    reason: str


class TableColumn(Record):
    """What a column shows."""

    metric: str
    split: str
    title: str
    unit: str
    direction: str
    definition: str
    group: Literal["results", "further", "across", "attacks", "costs"]
    low: float | None
    high: float | None
    retrained: BandEnds | None = Field(description="where the retrained models lie; None of no model")


class TableRow(Record):
    """A method with its parameters."""

    label: str
    role: Role
    seeds: list[int]
    method: str
    parameters: dict[str, Any]
    paper: str
    notes: list[str]
    cells: list[TableCell | None]


class CurveScore(Record):
    """A score that was followed along what was spent."""

    label: str
    seed: int
    metric: str
    title: str
    split: str
    unit: str
    attack: bool
    value: float | None
    budget: dict[str, float]
    curve: Points
    retrained: BandCurve = Field(description="where the same attack brings retrained models")


class AttackScore(Record):
    """What an attack achieved on a model."""

    label: str
    seed: int
    metric: str
    title: str
    split: str
    unit: str
    value: float | None
    status: str
    reason: str
    interval: Ends | None
    gap: float | None
    n: int | None
    budget: dict[str, float]


class ClaimLine(Record):
    """What may be claimed of a method, and what supports or breaks it."""

    label: str
    claimed: str
    standing: str = Field(description="the strongest claim whose every requirement was met")
    residue: str = Field(description="whether something of the forgotten data was found")
    sentence: str
    supports: list[str]
    breaks: list[str]
    missing: list[str]
    proxies: list[str]


class ProblemView(Record):
    """Everything about one problem of a run but its examples."""

    name: str
    family: str
    scope: str
    claim: str
    counts: dict[str, int]
    columns: list[TableColumn]
    rows: list[TableRow]
    verdicts: list[VerdictLine]
    claims: list[ClaimLine]
    curves: list[CurveScore]
    attacks: list[AttackScore]
    threats: dict[str, str] = Field(description="by metric: what the attacker has and knows")
    models: list[str] = Field(description="label@seed of every model that was made")
    transcripts: dict[str, list[str]] = Field(description="by label@seed: attacks that kept transcripts")


class RunView(Record):
    """A run."""

    name: str
    created: str
    command: str
    passed: str
    effective: str
    environment: dict[str, Any]
    problems: list[ProblemView]
    untested: list[dict[str, Any]]
    files: list[str] = Field(description="records that can be fetched")
    evidence: str = Field(description="why there is no evidence per example; empty where there is")


class Charts(Record):
    """The report's charts."""

    problems: dict[str, dict[str, Any]] = Field(description="by problem and kind: a Vega-Lite specification")
    captions: dict[str, str] = Field(description="by kind: how to read it")


class PlanView(Record):
    """What a study would do."""

    faults: list[str]
    skipped: list[str]
    jobs: dict[str, int] = Field(description="by kind: jobs in all")
    to_do: dict[str, int] = Field(description="by kind: jobs that are not done")
    problems: list[dict[str, Any]]
    memory: list[dict[str, Any]]
    seconds: float | None = Field(description="of the jobs to do, as their kinds took in earlier runs here")
    unknown: list[str] = Field(description="kinds of job that never ran here")


class Start(Record):
    """A study to start."""

    study: dict[str, Any]
    workers: int | None = Field(default=None, ge=0, le=256)


class StartedRun(Record):
    """What was started."""

    run: str


class ErrorView(Record):
    """What is wrong, in a sentence."""

    error: str


def seconds_ago(at: float) -> float:
    """Seconds since a time."""
    return max(0.0, datetime.now(UTC).timestamp() - at)
