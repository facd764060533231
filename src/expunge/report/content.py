"""What a report says, as data: a score file in, a `Report` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from expunge.methods.base import METHODS
from expunge.metrics import METRICS
from expunge.record import Judged, Record, ScoreFile, Verdict
from expunge.report.statements import GLOSSARY, claim, listed, split_name, untested
from expunge.report.tables import (
    COSTS,
    Column,
    Role,
    Spread,
    Table,
    build_table,
    by_label,
    columns_of,
    describe,
    role_of,
    spread,
)

REPORT_SCHEMA_VERSION = 1

MAIN = ("accuracy", "mae", "kl-to-retrained", "prediction-distance", "average-gap")
"""Metrics of the first table, in this order; the others follow in a second one."""

_SPLIT_ORDER = ("forget", "retain", "test", "holdout")

Losses = Mapping[str, Mapping[str, Sequence[float]]]
"""Per-example losses of one problem in nats: 'target', 'retrained' or a label -> split -> values."""


@dataclass(frozen=True)
class ReportInput:
    """Everything a report is made from.

    Attributes:
        scores: what was measured and judged.
        losses: per-example losses by problem name, for the distributions; binned, no single value is shown.
        command: the command line that produces the same numbers again.
        passed: the study as it was passed, as YAML.
        effective: the study with every default filled in, as YAML.
    """

    scores: ScoreFile
    losses: Mapping[str, Losses] = field(default_factory=dict)
    command: str = ""
    passed: str = ""
    effective: str = ""


class Procedure(Record):
    """How one row of the tables was made."""

    label: str
    method: str
    role: Role
    seeds: list[int]
    passed: dict[str, Any]
    effective: dict[str, Any]
    paper: str = ""
    notes: list[str] = Field(
        default_factory=list, description="what the method reported, once per distinct note"
    )
    model_ids: list[str] = Field(default_factory=list, description="fingerprints of the weights, by seed")


class Failure(Record):
    """Something that gave no number."""

    what: str = Field(description="'Run', or the metric and split")
    status: str
    reason: str
    models: list[str] = Field(description="labels, with the seeds where not all of them are concerned")


class Untested(Record):
    """Something this report says nothing about."""

    title: str
    why: str


class ProblemSection(Record):
    """Everything about one problem."""

    name: str
    fingerprint: str
    scope: str
    family: str
    claim: str
    counts: dict[str, int] = Field(description="examples by split")
    digests: dict[str, str] = Field(
        description="fingerprints of the forget set's ids and of the training data"
    )
    source: dict[str, Any] = Field(default_factory=dict)
    verdicts: list[Verdict]
    procedures: list[Procedure]
    references: list[Spread] = Field(description="the retrained models' values and spread, by metric")
    results: Table
    further: Table
    attacks: Table
    costs: Table
    failures: list[Failure]
    untested: list[Untested]

    @property
    def tables(self) -> list[Table]:
        """All tables."""
        return [self.results, self.further, self.attacks, self.costs]

    def column(self, metric: str, split: str) -> Column | None:
        """A column of whichever table has it."""
        found = [t.columns[i] for t in self.tables if (i := t.find(metric, split)) is not None]
        return found[0] if found else None

    def spread(self, metric: str, split: str) -> Spread | None:
        """The retrained models' values of a metric."""
        return next(
            (s for s in self.references if (s.column.metric, s.column.split) == (metric, split)), None
        )


class Definition(Record):
    """A term with its meaning, or a thing with its source."""

    term: str
    meaning: str


class Report(Record):
    """`report.json`."""

    schema_version: int = REPORT_SCHEMA_VERSION
    kind: Literal["report"] = "report"
    name: str
    created: str
    problems: list[ProblemSection]
    seeds: list[int]
    environment: dict[str, Any]
    command: str
    passed: str
    effective: str
    glossary: list[Definition]
    sources: list[Definition] = Field(description="where methods and metrics were published")


def compose(given: ReportInput) -> Report:
    """Arrange what was measured; nothing is measured or judged here."""
    scores = given.scores
    return Report(
        name=scores.name,
        created=str(scores.environment.get("created", "")),
        problems=[_section(card, scores) for card in scores.problems],
        seeds=sorted({m.seed for m in scores.judged}),
        environment={k: v for k, v in scores.environment.items() if k != "created"},
        command=given.command,
        passed=given.passed,
        effective=given.effective,
        glossary=[Definition(term=t.term, meaning=t.meaning) for t in GLOSSARY],
        sources=_sources(scores.judged),
    )


def _section(card: Mapping[str, Any], scores: ScoreFile) -> ProblemSection:
    name = card["name"]
    judged = [m for m in scores.judged if m.problem == name]
    verdicts = [v for v in scores.verdicts if v.problem == name]
    columns = columns_of(judged)
    ordinary = [c for c, attack in columns.values() if not attack and not _is_cost(c)]
    main = sorted(
        (c for c in ordinary if c.metric in MAIN), key=lambda c: (MAIN.index(c.metric), *_split_rank(c.split))
    )
    further = [c for c in ordinary if c.metric not in MAIN]
    attacks = [c for c, attack in columns.values() if attack]
    references = [s for c in [*main, *further, *attacks] if (s := spread(judged, c)) is not None]
    done = [m for m in judged if role_of(m) == "unlearned" and m.status == "ok"]
    labels = {m.label for m in done}
    retrained = max((len(s.values) for s in references), default=0)
    return ProblemSection(
        name=name,
        fingerprint=card.get("fingerprint", ""),
        scope=card.get("scope", ""),
        family=card.get("family", ""),
        claim=claim(len(labels), len(done), retrained, [v for v in verdicts if v.label in labels]),
        counts=card.get("counts", {}),
        digests={k: card[k] for k in ("forget_digest", "train_digest") if k in card},
        source=card.get("source", {}),
        verdicts=verdicts,
        procedures=[_procedure(label, models) for label, models in by_label(judged).items()],
        references=references,
        results=build_table(judged, main),
        further=build_table(judged, further),
        attacks=build_table(judged, attacks),
        costs=build_table(judged, [c for c, attack in columns.values() if not attack and _is_cost(c)]),
        failures=_failures(judged),
        untested=[
            Untested(title=t, why=w) for t, w in untested({m for m, _ in columns}, card.get("family", ""))
        ],
    )


def _is_cost(column: Column) -> bool:
    return column.split == "run" and column.metric in COSTS


def _split_rank(split: str) -> tuple[int, str]:
    return (_SPLIT_ORDER.index(split) if split in _SPLIT_ORDER else len(_SPLIT_ORDER), split)


def _procedure(label: str, models: Sequence[Judged]) -> Procedure:
    first = models[0]
    return Procedure(
        label=label,
        method=first.method,
        role=role_of(first),
        seeds=[m.seed for m in models],
        passed=first.passed,
        effective=first.effective,
        paper=METHODS[first.method].paper if first.method in METHODS else "",
        notes=list(dict.fromkeys(note for m in models for note in m.notes)),
        model_ids=[m.model_id for m in models if m.model_id],
    )


def _failures(judged: Sequence[Judged]) -> list[Failure]:
    seeds: dict[tuple[str, str, str], dict[str, list[int]]] = {}

    def note(model: Judged, what: str, status: str, reason: str) -> None:
        seeds.setdefault((what, status.replace("_", " "), reason), {}).setdefault(model.label, []).append(
            model.seed
        )

    for model in judged:
        if model.status != "ok":
            note(model, "Run", model.status, model.reason)
        for score in model.scores:
            if score.status != "ok":
                note(model, f"{describe(score).title}, {split_name(score.split)}", score.status, score.reason)
    totals = {label: len(models) for label, models in by_label(judged).items()}
    return [
        Failure(
            what=what,
            status=status,
            reason=reason,
            models=[
                label if len(found) == totals[label] else f"{label} (seed {listed([str(s) for s in found])})"
                for label, found in by.items()
            ],
        )
        for (what, status, reason), by in seeds.items()
    ]


def _sources(judged: Sequence[Judged]) -> list[Definition]:
    methods = dict.fromkeys(m.method for m in judged if m.method in METHODS)
    metrics = dict.fromkeys(s.metric for m in judged for s in m.scores if s.metric in METRICS)
    found = [Definition(term=name, meaning=METHODS[name].paper) for name in methods if METHODS[name].paper]
    return found + [
        Definition(term=METRICS[n].title, meaning=METRICS[n].source) for n in metrics if METRICS[n].source
    ]
