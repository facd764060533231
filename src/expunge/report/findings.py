"""What the verdicts say together: the order of the methods, a matrix of methods by properties, an outcome."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import Field

from expunge.record import Judged, Record, Verdict, mean_of
from expunge.report.tables import Key, Role, by_label, role_of


class Outcome(Record):
    """How the methods of one problem came out over all properties together."""

    properties: int = Field(description="properties with an equivalence test")
    agreeing: list[str] = Field(description="no difference larger than the margin on any property")
    differing: list[str] = Field(description="different on at least one property")
    undecided: list[str] = Field(description="neither: at least one property is undecided or has no test")
    unjudged: list[str] = Field(description="no test at all, such as methods that do not fit the model")


@dataclass(frozen=True)
class Criterion:
    """A property that is judged, at one margin: a column of the matrix."""

    metric: str
    split: str
    margin: float

    @property
    def key(self) -> Key:
        """What identifies the column of the tables that shows the same numbers."""
        return self.metric, self.split


@dataclass(frozen=True)
class Finding:
    """The verdicts on one method, one per criterion; None where there is none."""

    label: str
    role: Role
    verdicts: list[Verdict | None]

    @property
    def agreements(self) -> int:
        """On how many properties no difference larger than the margin was found."""
        return _agreements(v for v in self.verdicts if v is not None)


def ranked(judged: Sequence[Judged], verdicts: Sequence[Verdict]) -> list[Judged]:
    """Models in the order of every table and chart: target, retrained models, then methods.

    Methods with more judgements "no larger difference" come first, among equals those with the smaller average
    gap to the retrained models; what is equal in both stays as it was run.
    """
    place = {
        label: (
            ("target", "retrained", "unlearned").index(role_of(models[0])),
            -_agreements(v for v in verdicts if v.label == label),
            _average_gap(models),
        )
        for label, models in by_label(judged).items()
    }
    return sorted(judged, key=lambda model: place[model.label])


def matrix(
    labels: Sequence[tuple[str, Role]], verdicts: Sequence[Verdict]
) -> tuple[list[Criterion], list[Finding]]:
    """The criteria in order of appearance, and a row for each of `labels` with a verdict, in their order."""
    criteria = list(dict.fromkeys(Criterion(v.metric, v.split, v.margin) for v in verdicts))
    found = {(v.label, Criterion(v.metric, v.split, v.margin)): v for v in verdicts}
    rows = [Finding(label, role, [found.get((label, c)) for c in criteria]) for label, role in labels]
    return criteria, [row for row in rows if any(row.verdicts)]


def outcome(labels: Sequence[str], verdicts: Sequence[Verdict]) -> Outcome:
    """Sort the methods by what was found on all properties together; every label is in exactly one list."""
    properties = {(v.metric, v.split) for v in verdicts}
    sorted_out = Outcome(properties=len(properties), agreeing=[], differing=[], undecided=[], unjudged=[])
    for label in labels:
        mine = [v.judgement for v in verdicts if v.label == label]
        if not mine:
            sorted_out.unjudged.append(label)
        elif "different" in mine:
            sorted_out.differing.append(label)
        elif len(mine) == len(properties) and set(mine) == {"no larger difference"}:
            sorted_out.agreeing.append(label)
        else:
            sorted_out.undecided.append(label)
    return sorted_out


def _agreements(verdicts: Iterable[Verdict]) -> int:
    return sum(v.judgement == "no larger difference" for v in verdicts)


def _average_gap(models: Sequence[Judged]) -> float:
    gaps = [s.value for m in models if (s := m.score("average-gap", "run")) and s.value is not None]
    return mean_of(gaps) if gaps else math.inf
