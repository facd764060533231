"""What a report says, as data: a score file in, a `Report` out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from expunge.attacks.base import find_measure
from expunge.methods.base import METHODS
from expunge.metrics import METRICS
from expunge.record import Claim, Judged, Record, Score, ScoreFile, Verdict, mean_of
from expunge.report.findings import Outcome, outcome, ranked
from expunge.report.statements import GLOSSARY, claim, listed, split_name, split_rank, untested
from expunge.report.tables import (
    ACROSS,
    COMPOSITES,
    COSTS,
    Column,
    Role,
    Spread,
    Table,
    across_table,
    build_table,
    by_label,
    columns_of,
    role_of,
    title_of,
)

REPORT_SCHEMA_VERSION = 3

MAIN = (
    *(("accuracy", split) for split in ("forget", "retain", "test")),
    *(("mae", split) for split in ("forget", "retain", "test")),
    ("forget-quality", "forget"),
    ("model-utility", "retain"),
    *(("probability", split) for split in ("forget", "retain")),
    *(("rouge-l-recall", split) for split in ("forget", "retain")),
    ("truth-ratio", "forget"),
    ("extraction-strength", "forget"),
    ("verbatim-memorization", "verbatim"),
    *(("knowledge-memorization", split) for split in ("knowledge", "retain-knowledge")),
    ("privleak", "forget"),
    ("mia-text-min-k", "forget"),
    ("mia-loss-logistic", "forget"),
    ("kl-to-retrained", "forget"),
    ("prediction-distance", "forget"),
    ("zrf", "forget"),
    ("ece", "test"),
    ("r2", "test"),
    ("unlearning-accuracy", "concept"),
    ("concept-probability", "concept"),
    ("unlearning-accuracy", "earlier"),
    *((f"{domain}-domain-retain-accuracy", "test") for domain in ("in", "cross")),
    ("undesired-rate", "samples"),
    ("coverage", "test"),
    ("density", "test"),
    ("class-distance", "samples"),
    ("frechet-distance", "test"),
    ("average-gap", "run"),
)
"""Columns of the main table, in this order; the others follow in further ones."""

Losses = Mapping[str, Mapping[str, Sequence[float]]]
"""Per-example losses of one problem in nats: 'target', 'retrained' ('retrained 2' ...) or a label -> split -> values."""
Images = Mapping[str, Mapping[str, Sequence[Sequence[str]]]]
"""Images that models of one problem made: split -> 'target', 'retrained' or a label -> (what was asked for, PNG)."""


@dataclass(frozen=True)
class ReportInput:
    """Everything a report is made from.

    Attributes:
        scores: what was measured and judged.
        losses: per-example losses by problem name, for the distributions; binned, no single value is shown.
        command: the command line that produces the same numbers again.
        passed: the study as it was passed, as YAML.
        effective: the study with every default filled in, as YAML.
        images: images that models made, by problem name.
    """

    scores: ScoreFile
    losses: Mapping[str, Losses] = field(default_factory=dict)
    command: str = ""
    passed: str = ""
    effective: str = ""
    images: Mapping[str, Images] = field(default_factory=dict)


class Procedure(Record):
    """How one row of the tables was made."""

    label: str
    method: str
    role: Role
    seeds: list[int]
    passed: dict[str, Any] = Field(description="parameters as passed")
    changed: dict[str, Any] = Field(
        description="those passed parameters that differ from the method's defaults"
    )
    effective: dict[str, Any] = Field(description="all parameters in effect")
    passes: float | None = Field(default=None, description="mean over seeds, in sizes of the training data")
    paper: str = ""
    notes: list[str] = Field(
        default_factory=list, description="what the method reported, once per distinct note"
    )
    model_ids: list[str] = Field(default_factory=list, description="fingerprints of the weights, by seed")


class Failure(Record):
    """A reason why there is no number, with everything it took away."""

    status: str
    reason: str
    what: list[str] = Field(description="'Run', or metric and split")
    models: list[str] = Field(
        description="labels, with the seeds where not all of them are concerned; or how many, where all are"
    )


class Untested(Record):
    """Something this report says nothing about."""

    title: str
    why: str
    problems: list[str] = Field(description="names of the problems that it was not tested on")


class CurveLine(Record):
    """How an attack's success grows with what it spends, for one row of the tables: mean over seeds at each point."""

    metric: str
    title: str
    unit: str
    over: str
    label: str
    role: Role
    at: list[float]
    values: list[float | None]
    lows: list[float | None] = Field(description="smallest over models")
    highs: list[float | None]
    points: list[list[float]] = Field(
        default_factory=list, description="of every model that has a value, at each point"
    )


class ProblemSection(Record):
    """Everything about one problem."""

    name: str
    fingerprint: str
    scope: str
    family: str
    claim: str
    outcome: Outcome
    counts: dict[str, int] = Field(description="examples by split")
    digests: dict[str, str] = Field(
        description="fingerprints of the forget set's ids and of the training data"
    )
    source: dict[str, Any] = Field(default_factory=dict)
    verdicts: list[Verdict]
    claims: list[Claim] = Field(description="what may be said of each method, unlearned models first")
    curves: list[CurveLine] = Field(default_factory=list, exclude=True)
    procedures: list[Procedure]
    results: Table
    further: Table
    across: Table = Field(description="scores of all seeds of a method together")
    attacks: Table
    costs: Table
    failures: list[Failure]

    @property
    def tables(self) -> list[Table]:
        """All tables."""
        return [self.results, self.further, self.attacks, self.costs]

    @property
    def labels(self) -> list[tuple[str, Role]]:
        """Label and role of every row, in the order of the tables."""
        return [(step.label, step.role) for step in self.procedures]

    @property
    def references(self) -> list[tuple[Column, Spread]]:
        """Every column that the retrained models have values of, with their spread."""
        columns = {c.key: c for table in self.tables for c in table.columns}
        return [(c, c.retrained) for c in columns.values() if c.retrained is not None]

    def column(self, metric: str, split: str) -> Column | None:
        """A column of whichever table has it."""
        return next((c for table in self.tables for c in table.columns if c.key == (metric, split)), None)


class Measure(Record):
    """What a metric of this report means."""

    name: str
    title: str
    definition: str
    threat: str = Field(default="", description="what the attacker sees, where it is an attacker's success")


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
    untested: list[Untested]
    measures: list[Measure]
    glossary: list[Definition]
    sources: list[Definition] = Field(
        description="publications, with the methods and metrics taken from each"
    )


def compose(given: ReportInput) -> Report:
    """Arrange what was measured; nothing is measured or judged here."""
    scores = given.scores
    metrics = list(dict.fromkeys(s.metric for m in (*scores.judged, *scores.across) for s in m.scores))
    return Report(
        name=scores.name,
        created=str(scores.environment.get("created", "")),
        problems=[_section(card, scores) for card in scores.problems],
        seeds=sorted({m.seed for m in scores.judged}),
        environment={k: v for k, v in scores.environment.items() if k != "created"},
        command=given.command,
        passed=given.passed,
        effective=given.effective,
        untested=_untested(scores),
        measures=[_measure(name) for name in metrics],
        glossary=[Definition(term=t.term, meaning=t.meaning) for t in GLOSSARY],
        sources=_sources(list(dict.fromkeys(m.method for m in scores.judged)), metrics),
    )


def _section(card: Mapping[str, Any], scores: ScoreFile) -> ProblemSection:
    name = card["name"]
    verdicts = [v for v in scores.verdicts if v.problem == name]
    judged = ranked([m for m in scores.judged if m.problem == name], verdicts)
    # Methods that gave nothing at all stand in the main table with their reason, and nowhere else.
    ran = {m.label for m in judged if m.status == "ok"}
    measured = [m for m in judged if m.label in ran]
    columns = columns_of(judged)
    main = [columns[key][0] for key in MAIN if key in columns]
    others = [(c, attack) for key, (c, attack) in columns.items() if key not in MAIN]
    costs = [c for c, attack in others if not attack and _is_cost(c)]
    further = [c for c, attack in others if not attack and not _is_cost(c)]
    attacks = [c for c, attack in columns.values() if attack]
    judged_on = {(v.metric, v.split) for v in verdicts}
    done = [m for m in judged if role_of(m) == "unlearned" and m.status == "ok"]
    methods = {m.label for m in judged if role_of(m) == "unlearned"}
    tested = [v for v in verdicts if v.label in methods]
    retrained = max((len(c.retrained.values) for c, _ in columns.values() if c.retrained), default=0)
    return ProblemSection(
        name=name,
        fingerprint=card.get("fingerprint", ""),
        scope=card.get("scope", ""),
        family=card.get("family", ""),
        claim=claim(len({m.label for m in done}), len(done), retrained, tested),
        outcome=outcome([label for label in by_label(judged) if label in methods], tested),
        counts=card.get("counts", {}),
        digests={k: card[k] for k in ("forget_digest", "train_digest") if k in card},
        source=card.get("source", {}),
        verdicts=verdicts,
        claims=_claims([c for c in scores.claims if c.problem == name], by_label(judged)),
        curves=_curves(measured),
        procedures=[_procedure(label, models) for label, models in by_label(judged).items()],
        results=build_table(judged, main),
        further=build_table(measured, sorted(further, key=_by_metric)),
        across=across_table([a for a in scores.across if a.problem == name]),
        attacks=build_table(
            measured, sorted(attacks, key=lambda c: (split_rank(c.split), c.key not in judged_on))
        ),
        costs=build_table([m for m in measured if any(m.score(*c.key) for c in costs)], costs),
        failures=_failures(judged),
    )


def _claims(claims: Sequence[Claim], labels: Iterable[str]) -> list[Claim]:
    """In the order of the tables, but the target, which is the control, last."""
    order = list(labels)
    return sorted(
        claims, key=lambda c: (c.label == "target", order.index(c.label) if c.label in order else 0)
    )


def _curves(judged: Sequence[Judged]) -> list[CurveLine]:
    """One line per attack with a curve and row of the tables."""
    lines = []
    for label, models in by_label(judged).items():
        followed = [s for m in models for s in m.scores if s.curve is not None]
        for metric in dict.fromkeys(s.metric for s in followed):
            mine = [s for s in followed if s.metric == metric]
            curves = [s.curve for s in mine if s.curve is not None]
            at = sorted({x for curve in curves for x in curve.at})
            points = [(x, v) for curve in curves for x, v in zip(curve.at, curve.values, strict=True)]
            by_point = [[v for x, v in points if x == one and v is not None] for one in at]
            lines.append(
                CurveLine(
                    metric=metric, title=title_of(metric), unit=mine[0].unit, over=curves[0].over, label=label,
                    role=role_of(models[0]), at=at, values=[mean_of(v) if v else None for v in by_point],
                    lows=[min(v) if v else None for v in by_point], highs=[max(v) if v else None for v in by_point],
                    points=by_point,
                )
            )  # fmt: skip
    return lines


def _is_cost(column: Column) -> bool:
    return column.split == "run" and column.metric in COSTS


def _by_metric(column: Column) -> tuple[str, tuple[int, str]]:
    return column.metric, split_rank(column.split)


def _procedure(label: str, models: Sequence[Judged]) -> Procedure:
    first = models[0]
    known = first.method in METHODS
    fields = METHODS[first.method].model_fields if known else {}
    passes = [s.value for m in models if (s := m.score("passes", "run")) and s.value is not None]
    return Procedure(
        label=label,
        method=first.method,
        role=role_of(first),
        seeds=[m.seed for m in models],
        passed=first.passed,
        changed={k: v for k, v in first.passed.items() if k not in fields or fields[k].default != v},
        effective=first.effective,
        passes=mean_of(passes) if passes else None,
        paper=METHODS[first.method].paper if known else "",
        notes=list(dict.fromkeys(note for m in models for note in m.notes)),
        model_ids=[m.model_id for m in models if m.model_id],
    )


def _failures(judged: Sequence[Judged]) -> list[Failure]:
    """What gave no number, gathered by reason."""
    failed: dict[tuple[str, str], dict[str, list[Judged]]] = {}
    asked: dict[str, int] = {"Run": len(judged)}
    for model in judged:
        if model.status != "ok":
            failed.setdefault((model.status, model.reason), {}).setdefault("Run", []).append(model)
        for score in model.scores:
            what = _what(score)
            asked[what] = asked.get(what, 0) + 1
            if score.status != "ok":
                failed.setdefault((score.status, score.reason), {}).setdefault(what, []).append(model)
    rows = by_label(judged)
    found = []
    for (status, reason), by_what in failed.items():
        everywhere = len(rows) > 1 and all(len(models) == asked[what] for what, models in by_what.items())
        concerned = {id(model) for models in by_what.values() for model in models}
        models = by_label([model for model in judged if id(model) in concerned])
        named = [
            label
            if len(some) == len(rows[label])
            else f"{label} (seed {listed([str(m.seed) for m in some])})"
            for label, some in models.items()
        ]
        found.append(
            Failure(
                status=status.replace("_", " "),
                reason=reason,
                what=list(by_what),
                models=[f"all {len(concerned)} models"] if everywhere else named,
            )
        )
    return found


def _what(score: Score) -> str:
    title = title_of(score.metric) + (" relative to retraining" if score.metric.endswith("-ratio") else "")
    return title if score.split == "run" else f"{title}, {split_name(score.split)}"


def _untested(scores: ScoreFile) -> list[Untested]:
    """Everything known minus what ran, with the problems that each is missing from."""
    found: dict[tuple[str, str], list[str]] = {}
    for card in scores.problems:
        measured = {s.metric for m in scores.judged if m.problem == card["name"] for s in m.scores}
        together = [s for m in scores.across if m.problem == card["name"] for s in m.scores]
        measured |= {s.metric for s in together if s.status == "ok"}
        for gap in untested(measured, card.get("family", "")):
            found.setdefault(gap, []).append(card["name"])
    return [Untested(title=title, why=why, problems=names) for (title, why), names in found.items()]


def _measure(name: str) -> Measure:
    definition, threat = "", ""
    if name in METRICS:
        definition, threat = METRICS[name].definition, METRICS[name].attack
    elif name in COSTS or name in COMPOSITES or name in ACROSS:
        definition = (COSTS | COMPOSITES | ACROSS)[name][1]
    elif (found := find_measure(name)) is not None:
        definition, threat = found[1].definition, found[0].threat_model
    return Measure(name=name, title=title_of(name), definition=" ".join(definition.split()), threat=threat)


def _sources(methods: Sequence[str], metrics: Sequence[str]) -> list[Definition]:
    papers: dict[str, list[str]] = {}
    for name in methods:
        if name in METHODS and METHODS[name].paper:
            papers.setdefault(METHODS[name].paper, []).append(name)
    for name in metrics:
        if name in METRICS and METRICS[name].source:
            # What a title has in brackets is a variant, such as the statistic that an attacker looks at.
            papers.setdefault(METRICS[name].source, []).append(METRICS[name].title.split(" (")[0])
        elif (found := find_measure(name)) is not None:
            papers.setdefault(found[0].paper, []).append(found[0].name)
    return [
        Definition(term=paper, meaning=listed(list(dict.fromkeys(names)))) for paper, names in papers.items()
    ]
