"""Tables of a report: a row per method, a column per metric and split."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from expunge.attacks.base import find_measure
from expunge.files import finite
from expunge.metrics import METRICS
from expunge.record import Across, Direction, Interval, Judged, Record, Score, Status, mean_of
from expunge.stats.bands import null_band
from expunge.stats.intervals import t_interval

Role = Literal["target", "retrained", "unlearned"]
CellStatus = Status | Literal["not measured"]
Key = tuple[str, str]
"""Metric and split."""

COSTS = {
    "seconds": ("Wall time", "Wall time of the method itself; loading is excluded."),
    "seconds-ratio": ("Wall time", "Wall time divided by that of retraining from scratch."),
    "peak-bytes": ("Peak memory", "Peak memory above the level at the start."),
    "peak-bytes-ratio": ("Peak memory", "Peak memory divided by that of retraining from scratch."),
    "passes": (
        "Passes over the data",
        "Examples that went through a model, divided by the number of training rows.",
    ),
    "passes-ratio": ("Passes over the data", "Passes divided by those of retraining from scratch."),
    "stored-bytes": (
        "Storage",
        "What has to be kept beside the target to have the unlearned model too: changed tensors, or merged adapters.",
    ),
    "changed-share": (
        "Changed parameters",
        "Share of the parameters whose value differs from the target model's.",
    ),
}
"""Title and definition of what a run costs; measured around the method, not claimed by it."""

COMPOSITES = {
    "average-gap": (
        "Average gap",
        "Mean absolute gap to the retrained models: of accuracy on forget, retain and test and membership efficacy; "
        "of a language model's probability and ROUGE-L recall on forget and retain and the AUC of min-k; of a "
        "regressor's errors on forget, retain and test. It hides which of them is off.",
    ),
    "tow": (
        "Tug of war",
        "Product over forget, retain and test of 1 minus the absolute gap in accuracy; 1 is retraining.",
    ),
    "tow-mia": (
        "Tug of war with membership",
        "As the tug of war, with membership efficacy on the forget set in the place of accuracy.",
    ),
    "anamnesis-index": (
        "Anamnesis index",
        "Relearning steps divided by those of the retrained models; 1 is retraining, near 0 is mere hiding.",
    ),
}
"""Title and definition of numbers made of other scores."""

ACROSS = {
    "klom-mean": (
        "KLoM, mean",
        "Mean over examples of KL(judged || retrained) of an example's margin over models. Read it beside the "
        "retrained row, half of the retrained models against the other half: with few models that is far from 0.",
    ),
    "klom-p95": ("KLoM, 95th percentile", "95th percentile over examples of the same divergence."),
    "klom-above-null": (
        "KLoM beyond retraining",
        "Share of examples whose divergence exceeds the 95th percentile of retrained against retrained models.",
    ),
    "forgetting-score": (
        "Forgetting score",
        "Score of the NeurIPS 2023 challenge in [0, 1]: mean of 2^-floor(2 epsilon) over forget examples. The "
        "retrained row shows what retraining itself scores with as many models.",
    ),
    "challenge-score": (
        "Challenge score",
        "Forgetting score times mean retain and mean test accuracy, each divided by the retrained models'.",
    ),
}
"""Title and definition of scores of all seeds of a method together."""


class Spread(Record):
    """How far the retrained models lie from one another in one metric: the yardstick of every gap."""

    values: list[float]
    mean: float
    low: float
    high: float
    deviation: float | None = Field(
        default=None, description="standard deviation (n - 1); None with fewer than two models"
    )
    band: Interval | None = Field(
        default=None,
        description="where one further retrained model lies, within the range of the metric; None with fewer than "
        "two models, and where they do not differ",
    )
    groups: dict[str, list[float]] = Field(
        default_factory=dict, exclude=True, description="the values by class, group or layer"
    )


class Column(Record):
    """What a column shows."""

    metric: str
    split: str
    title: str
    unit: str
    direction: Direction
    low: float | None = Field(
        default=None, description="smallest possible value; None where there is no bound or it is unknown"
    )
    high: float | None = Field(default=None, description="largest possible value")
    retrained: Spread | None = Field(default=None, description="None where nothing was retrained")

    @property
    def key(self) -> Key:
        """What identifies the column."""
        return self.metric, self.split


class Cell(Record):
    """One method's value: the mean over seeds, or the reason why there is none.

    What only charts read is left out of report.json; scores.json has it.
    """

    status: CellStatus
    value: float | None = Field(default=None, description="mean over the seeds that have a value")
    values: list[float] = Field(
        default_factory=list, exclude=True, description="one per seed that has a value"
    )
    seeds: list[int] = Field(default_factory=list, exclude=True, description="the seed of each value")
    n: int | None = Field(default=None, description="examples that each value rests on")
    interval: Interval | None = Field(
        default=None, description="95 % interval of the mean over seeds; of one seed: over examples"
    )
    gap: float | None = Field(default=None, description="mean minus mean of the retrained models")
    distance: float | None = Field(
        default=None, ge=0, le=1, description="size of the gap; 1 = largest gap of the column"
    )
    groups: dict[str, float] = Field(
        default_factory=dict, exclude=True, description="mean over seeds per class or group"
    )
    notes: list[int] = Field(default_factory=list, description="numbers of the table's notes, from 1")


class Row(Record):
    """One method with one set of parameters."""

    label: str
    role: Role
    seeds: list[int]
    cells: list[Cell]

    @property
    def reason(self) -> int | None:
        """Number of the note that explains the whole row, where no cell has a value and all say the same."""
        said = {(cell.value, *cell.notes) for cell in self.cells}
        value, *notes = said.pop() if len(said) == 1 else (None,)
        return notes[0] if value is None and len(notes) == 1 else None


class Table(Record):
    """Methods by metrics."""

    columns: list[Column]
    rows: list[Row]
    notes: list[str] = Field(
        default_factory=list, description="reasons of missing values, referred to by number"
    )

    missing: list[Column] = Field(
        default_factory=list, description="columns left out because no model has a value"
    )

    @property
    def footnotes(self) -> list[tuple[int, str]]:
        """Numbered notes that cells refer to; what explains a whole row stands in that row."""
        used = {n for row in self.rows if row.reason is None for cell in row.cells for n in cell.notes}
        return [(n, note) for n, note in enumerate(self.notes, 1) if n in used]

    def find(self, metric: str, split: str) -> int | None:
        """Position of a column, where the table has it."""
        return next((i for i, c in enumerate(self.columns) if c.key == (metric, split)), None)

    def only(self, kept: Sequence[Column]) -> Table:
        """The same rows with some of the columns."""
        places = [self.columns.index(column) for column in kept]
        rows = [row.model_copy(update={"cells": [row.cells[i] for i in places]}) for row in self.rows]
        return self.model_copy(update={"columns": list(kept), "rows": rows, "missing": []})


def role_of(judged: Judged) -> Role:
    """What part a judged model plays."""
    return {"target": "target", "retrain": "retrained"}.get(judged.method, "unlearned")  # pyright: ignore[reportReturnType]


def title_of(metric: str) -> str:
    """How the report calls a metric."""
    if metric in COSTS or metric in COMPOSITES or metric in ACROSS:
        return (COSTS | COMPOSITES | ACROSS)[metric][0]
    if metric in METRICS:
        return METRICS[metric].title
    attack = find_measure(metric)
    return (attack[1].title if attack else "") or metric


def columns_of(judged: Sequence[Judged]) -> dict[Key, tuple[Column, bool]]:
    """Every (metric, split) that occurs, in order of appearance: its column and whether it is an attack."""
    found: dict[Key, Score] = {}
    for model in judged:
        for score in model.scores:
            found.setdefault((score.metric, score.split), score)
    return {key: (_column(score, judged), score.attack) for key, score in found.items()}


def _column(score: Score, judged: Sequence[Judged]) -> Column:
    low, high = range_of(score)
    spread = _spread(judged, score.metric, score.split)
    column = Column(
        metric=score.metric,
        split=score.split,
        title=title_of(score.metric),
        unit=score.unit,
        direction=score.direction,
        low=low,
        high=high,
        retrained=spread,
    )
    if spread is not None and (band := null_band(spread.values)) is not None:
        spread.band = _clipped(band.values, column)
    return column


def range_of(score: Score) -> tuple[float | None, float | None]:
    """Smallest and largest possible value."""
    if score.metric in METRICS:
        return finite(METRICS[score.metric].low), finite(METRICS[score.metric].high)
    if score.metric in COSTS or score.metric in COMPOSITES or score.metric in ACROSS:
        return 0.0, 1.0 if score.unit.startswith("share") else None
    attack = find_measure(score.metric)
    return (attack[1].low, attack[1].high) if attack else (None, None)


def by_label(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """Models that differ in the seed only, in order of appearance."""
    rows: dict[str, list[Judged]] = {}
    for model in judged:
        rows.setdefault(model.label, []).append(model)
    return rows


def build_table(judged: Sequence[Judged], columns: Sequence[Column]) -> Table:
    """The table of the given columns; all models belong to one problem.

    Columns without a single value would only repeat their reason in every row; they become `missing`.
    """
    has_value = {(s.metric, s.split) for m in judged for s in m.scores if s.value is not None}
    filled = [column for column in columns if column.key in has_value]
    notes: list[str] = []
    rows = [
        Row(
            label=label,
            role=role_of(models[0]),
            seeds=[m.seed for m in models],
            cells=[_cell(models, column, notes) for column in filled],
        )
        for label, models in by_label(judged).items()
    ]
    for i, column in enumerate(filled):
        _set_distances([row.cells[i] for row in rows], column.retrained)
    missing = [column for column in columns if column.key not in has_value]
    return Table(columns=filled, rows=rows, notes=notes, missing=missing)


def across_table(rows: Sequence[Across]) -> Table:
    """The table of scores that all seeds of a method have together; all rows belong to one problem."""
    models = [
        Judged(problem=r.problem, problem_id="", method=r.method, label=r.label, seed=0, scores=r.scores)
        for r in rows
    ]
    table = build_table(models, [column for column, _ in columns_of(models).values()])
    seeds = {r.label: r.seeds for r in rows}
    return table.model_copy(
        update={"rows": [row.model_copy(update={"seeds": seeds[row.label]}) for row in table.rows]}
    )


def _spread(judged: Sequence[Judged], metric: str, split: str) -> Spread | None:
    """The retrained models' values: their own scores, or what is attached to the others' scores."""
    if split == "run" and metric in COSTS:
        return None  # a method is not meant to cost what retraining costs
    scores = [
        s
        for m in judged
        if role_of(m) == "retrained" and (s := m.score(metric, split)) and s.value is not None
    ]
    own = [s.value for s in scores if s.value is not None]
    attached = [s.reference.values for m in judged if (s := m.score(metric, split)) and s.reference]
    values = own or max(attached, key=len, default=[])
    if not values:
        return None
    return Spread(
        values=values,
        mean=mean_of(values),
        low=min(values),
        high=max(values),
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        groups={g: [s.groups[g] for s in scores if g in s.groups] for s in scores for g in s.groups},
    )


def _cell(models: Sequence[Judged], column: Column, notes: list[str]) -> Cell:
    scores = [(m, m.score(column.metric, column.split)) for m in models]
    valid = [(m.seed, s, s.value) for m, s in scores if s is not None and s.value is not None]
    said = [s or m for m, s in scores]  # a model that failed has no scores, and speaks for itself
    reasons: Counter[tuple[Status, str]] = Counter(
        (one.status, one.reason) for one in said if one.status != "ok"
    )
    numbers = []
    for (status, reason), count in reasons.items():
        which = f" for {count} of {len(models)} seeds" if count < len(models) else ""
        text = f"{status.replace('_', ' ').capitalize()}{which}: {reason}"
        if text not in notes:
            notes.append(text)
        numbers.append(notes.index(text) + 1)
    if not valid:
        return Cell(status=reasons.most_common(1)[0][0][0] if reasons else "not measured", notes=numbers)
    values = [value for _, _, value in valid]
    gaps = [s.reference.gap for _, s, _ in valid if s.reference is not None]
    groups = {
        g: mean_of(s.groups[g] for _, s, _ in valid if g in s.groups) for _, s, _ in valid for g in s.groups
    }
    return Cell(
        status="ok",
        value=mean_of(values),
        values=values,
        seeds=[seed for seed, _, _ in valid],
        n=valid[0][1].n,
        interval=_clipped(t_interval(values), column) if len(values) > 1 else valid[0][1].interval,
        gap=mean_of(gaps) if gaps and role_of(models[0]) != "retrained" else None,
        groups=groups,
        notes=numbers,
    )


def _clipped(interval: Interval | None, column: Column) -> Interval | None:
    """The part of an interval that the metric's range allows: a mean of shares cannot lie outside 0 to 1."""
    if interval is None:
        return None
    low = interval.low if column.low is None else max(column.low, interval.low)
    high = interval.high if column.high is None else min(column.high, interval.high)
    return interval.model_copy(update={"low": low, "high": high})


def _set_distances(cells: Sequence[Cell], retrained: Spread | None) -> None:
    """Distances from the retrained models on a scale of 0 to 1.

    1 is the largest gap of the column, or twice the retrained models' standard deviation where that is
    larger: gaps within the noise of retraining should look small.
    """
    noise = 2 * (retrained.deviation or 0.0) if retrained is not None else 0.0
    largest = max([abs(c.gap) for c in cells if c.gap is not None] + [noise])
    for cell in cells:
        if cell.gap is not None:
            cell.distance = abs(cell.gap) / largest if largest > 0 else 0.0
