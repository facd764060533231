"""A metric is a pure function of evidence plus declared facts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from expunge.errors import BadInput
from expunge.evidence import Evidence
from expunge.record import Direction, Interval, Reference, Score, mean_of
from expunge.registry import Registry

Role = Literal["model", "target", "retrained", "fresh"]
"""`model` is judged; `target` is the model before forgetting; `fresh` has random weights and was never trained."""


class Undefined(Exception):
    """Raised by a metric that has no value here; the message is the reason that reports show."""


@dataclass(frozen=True)
class Estimate:
    """What a metric returns."""

    value: float
    n: int
    interval: Interval | None = None
    groups: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Readings:
    """The evidence a metric declared that it reads, and the split it is asked about."""

    split: str
    evidence: Mapping[tuple[Role, str], Evidence]

    def __getitem__(self, key: tuple[Role, str]) -> Evidence:
        """Evidence by (role, split)."""
        return self.evidence[key]

    @property
    def model(self) -> Evidence:
        """The judged model on the split in question."""
        return self.evidence["model", self.split]


Function = Callable[[Readings], Estimate]


@dataclass(frozen=True)
class Metric:
    """A pure function of evidence with its declaration.

    Attributes:
        reads: quantities by (role, split); the split '*' stands for the split in question.
        splits: data sets it is computed on.
        direction: which way is better, by split ('*' for the others).
        attack: the threat model where the metric is an attacker's success, else ''.
    """

    name: str
    title: str
    definition: str
    function: Function
    reads: Mapping[tuple[Role, str], Sequence[str]]
    splits: Sequence[str]
    direction: Mapping[str, Direction]
    unit: str
    low: float
    high: float
    families: frozenset[str] | None
    source: str
    attack: str
    by_layer: bool = False

    def needs(self, split: str, layers: Sequence[str] = ()) -> dict[tuple[Role, str], set[str]]:
        """Quantities by (role, split) that computing it on `split` takes; LAYER is filled in from `layers`."""
        wanted: dict[tuple[Role, str], set[str]] = {}
        for (role, where), quantities in self.reads.items():
            place = wanted.setdefault((role, split if where == "*" else where), set())
            for quantity in quantities:
                if quantity.endswith(":LAYER"):
                    place.update(quantity.replace("LAYER", layer) for layer in layers)
                else:
                    place.add(quantity)
        return wanted

    def better(self, split: str) -> Direction:
        """Which way is better on `split`."""
        return self.direction.get(split, self.direction.get("*", "match"))

    def __call__(self, split: str, evidence: Mapping[tuple[Role, str], Sequence[Evidence]]) -> Score:
        """The score on `split`.

        `evidence` holds one or, for `retrained`, several data sets by (role, split). A metric that reads the retrained
        model is computed against each and averaged.
        """
        facts = {
            "metric": self.name, "split": split, "unit": self.unit, "direction": self.better(split),
            "attack": bool(self.attack),
        }  # fmt: skip
        keys = [(role, split if where == "*" else where) for role, where in self.reads]
        absent = [key for key in keys if not evidence.get(key)]
        if absent:
            role, where = absent[0]
            reason = {
                "retrained": "there is no retrained model to compare with",
                "target": "the target model was not given",
                "fresh": "no fresh model could be built",
            }.get(role, f"the problem has no '{where}' data") if where in _splits_of(evidence) or role != "model" else (
                f"the problem has no '{where}' data"
            )
            return Score(**facts, status="undefined", reason=reason)
        turns = max(len(evidence[key]) for key in keys)
        estimates = []
        try:
            for turn in range(turns):
                chosen = {key: evidence[key][turn % len(evidence[key])] for key in keys}
                estimates.append(self.function(Readings(split, chosen)))
        except Undefined as reason:
            return Score(**facts, status="undefined", reason=str(reason))
        value = mean_of(e.value for e in estimates)
        if not math.isfinite(value):
            return Score(**facts, status="undefined", reason=f"the value is {value}")
        groups = {g: mean_of(e.groups[g] for e in estimates if g in e.groups) for g in estimates[0].groups}
        return Score(
            **facts, value=value, n=estimates[0].n, groups={g: v for g, v in groups.items() if math.isfinite(v)},
            interval=estimates[0].interval if turns == 1 else None,
        )  # fmt: skip


def _splits_of(evidence: Mapping[tuple[Role, str], Sequence[Evidence]]) -> set[str]:
    return {split for (role, split), found in evidence.items() if role == "model" and found}


METRICS: Registry[Metric] = Registry("metric", "expunge.metrics", "expunge.attacks")


def metric(
    name: str,
    *,
    title: str,
    reads: Mapping[tuple[Role, str], Sequence[str]],
    splits: Sequence[str],
    direction: Direction | Mapping[str, Direction],
    unit: str,
    low: float = -math.inf,
    high: float = math.inf,
    families: Sequence[str] | None = None,
    source: str = "",
    attack: str = "",
) -> Callable[[Function], Metric]:
    """Register a function of evidence as a metric; its docstring is the definition."""

    def register(function: Function) -> Metric:
        if not function.__doc__:
            raise BadInput(f"metric '{name}' has no docstring; it must say its definition")
        by_layer = any(q.endswith(":LAYER") for qs in reads.values() for q in qs)
        declared = Metric(
            name, title, function.__doc__.strip(), function, reads, tuple(splits),
            {"*": direction} if isinstance(direction, str) else direction, unit, low, high,
            None if families is None else frozenset(families), source, attack, by_layer,
        )  # fmt: skip
        return METRICS.add(name, declared)

    return register


def by_group(values: np.ndarray, groups: np.ndarray | None) -> dict[str, float]:
    """Mean of `values` within each group; empty where there are no groups."""
    if groups is None:
        return {}
    return {str(g): float(np.mean(values[groups == g])) for g in np.unique(groups)}


def with_reference(score: Score, references: Sequence[Score]) -> Score:
    """The score with the retrained models' values of the same metric attached."""
    values = [r.value for r in references if r.status == "ok" and r.value is not None]
    if score.value is None or not values:
        return score
    mean = mean_of(values)
    return score.model_copy(update={"reference": Reference(mean=mean, values=values, gap=score.value - mean)})
