"""A metric is a pure function of evidence plus declared facts."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from expunge.errors import BadInput
from expunge.evidence import Evidence
from expunge.families import Family
from expunge.record import Direction, Interval, Reference, Score, mean_of
from expunge.registry import Registry
from expunge.stats.intervals import t_interval

Role = Literal["model", "target", "retrained", "fresh"]
"""`model` is judged, `target` is the model before forgetting, `fresh` has random weights and no training."""
Reads = Mapping[tuple[Role, str], Sequence[str]]
"""Quantities by (role, split)."""


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

    def paired(self, role: Role) -> tuple[Evidence, Evidence]:
        """The judged model and another one on the split in question, row by row the same examples."""
        other = self.evidence[role, self.split]
        if not self.model.table["id"].equals(other.table["id"]):
            raise BadInput(
                f"the evidence of the {role} model on '{self.split}' ({len(other)} rows) is not of the same "
                f"examples in the same order as the judged model's ({len(self.model)} rows); "
                "collect both from one data set"
            )
        return self.model, other


Function = Callable[[Readings], Estimate]


@dataclass(frozen=True)
class Metric:
    """A pure function of evidence with its declaration.

    Attributes:
        reads: quantities by (role, split); the split '*' stands for the split in question.
        splits: data sets it is computed on.
        direction: which way is better, by split ('*' for the others).
        families: the only families it means something for; None where having the quantities is enough.
        standard: whether it is computed unless asked otherwise; what costs more than a pass is not.
        attack: the threat model where the metric is an attacker's success, else ''.
    """

    name: str
    title: str
    definition: str
    function: Function
    reads: Reads
    splits: Sequence[str]
    direction: Mapping[str, Direction]
    unit: str
    low: float
    high: float
    families: frozenset[str] | None
    source: str
    attack: str
    by_layer: bool = False
    standard: bool = True

    def __post_init__(self) -> None:
        # As functools.wraps does: the registry tells two metrics of one name apart by the module they were
        # written in.
        object.__setattr__(self, "__module__", self.function.__module__)

    def fits(self, family: Family | type[Family]) -> bool:
        """Whether `family` yields every quantity that the metric reads, in the meaning that it needs."""
        if self.families is not None and not self.families & {family.name, *family.like}:
            return False
        return all(q in family.quantities for quantities in self.reads.values() for q in quantities)

    def needs(self, split: str, layers: Sequence[str] = ()) -> dict[tuple[Role, str], set[str]]:
        """Quantities by (role, split) that computing it on `split` takes; LAYER is each of `layers`."""
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

        `evidence` holds one or, for `retrained`, several data sets by (role, split). A metric that reads
        the retrained model is computed against each and averaged; the average has no interval, because the
        terms share the judged model.
        """
        facts = {
            "metric": self.name, "split": split, "unit": self.unit, "direction": self.better(split),
            "attack": bool(self.attack),
        }  # fmt: skip
        keys = list(self.needs(split))
        try:
            for role, where in keys:
                _demand(role, where, evidence)
            turns = max(len(evidence[key]) for key in keys)
            estimates = self._estimates(
                [
                    Readings(split, {key: evidence[key][turn % len(evidence[key])] for key in keys})
                    for turn in range(turns)
                ]
            )
        except Undefined as reason:
            return Score(**facts, status="undefined", reason=str(reason))
        value = mean_of(e.value for e in estimates)
        if not math.isfinite(value):
            return Score(**facts, status="undefined", reason=f"the value is {value}")
        groups = {g: mean_of(e.groups[g] for e in estimates if g in e.groups) for g in estimates[0].groups}
        return Score(
            **facts,
            value=value,
            n=estimates[0].n,
            groups={g: v for g, v in groups.items() if math.isfinite(v)},
            interval=estimates[0].interval if turns == 1 else None,
        )

    def _estimates(self, turns: Sequence[Readings]) -> list[Estimate]:
        """One for each retrained model; what is undefined against one of them is so altogether."""
        made: list[Estimate] = []
        reasons: dict[int, str] = {}
        for turn, readings in enumerate(turns, 1):
            try:
                made.append(self.function(readings))
            except Undefined as reason:
                reasons[turn] = str(reason)
        if not reasons:
            return made
        turn, reason = next(iter(reasons.items()))
        # Where it is undefined against all, the reason lies with the judged model.
        raise Undefined(f"against retrained model {turn} of {len(turns)}: {reason}" if made else reason)


_ABSENT: dict[Role, str] = {
    "target": "the target model was not given",
    "retrained": "there is no retrained model to compare with",
    "fresh": "no fresh model could be built",
}


def _demand(role: Role, split: str, evidence: Mapping[tuple[Role, str], Sequence[Evidence]]) -> None:
    """Raise Undefined with the reason where the evidence of (role, split) is absent or empty."""
    found = evidence.get((role, split))
    if not found:
        # Every model is measured on every split, so a split that the judged model lacks is not part of the
        # problem.
        measured = role != "model" and bool(evidence.get(("model", split)))
        raise Undefined(_ABSENT[role] if measured else f"the problem has no '{split}' data")
    if not all(len(one) for one in found):
        raise Undefined(f"the '{split}' data has no rows")


METRICS: Registry[Metric] = Registry("metric", "expunge.metrics")


def standard_metrics(family: Family | type[Family]) -> list[Metric]:
    """Every registered metric that fits `family` and is computed unless asked otherwise, by name."""
    return [metric for _, metric in METRICS.items() if metric.standard and metric.fits(family)]


def chosen_metrics(names: Sequence[str], family: Family | type[Family]) -> list[Metric]:
    """The metrics of these names, each once; ``standard`` stands for all standard ones of `family`."""
    found = [m for n in names for m in (standard_metrics(family) if n == "standard" else [METRICS[n]])]
    return list({metric.name: metric for metric in found}.values())


def metric(
    name: str,
    *,
    title: str,
    reads: Reads,
    splits: Sequence[str],
    direction: Direction | Mapping[str, Direction],
    unit: str,
    low: float = -math.inf,
    high: float = math.inf,
    families: Sequence[str] | None = None,
    source: str = "",
    attack: str = "",
    standard: bool = True,
) -> Callable[[Function], Metric]:
    """Register a function of evidence as a metric; its docstring is the definition."""

    def register(function: Function) -> Metric:
        if not function.__doc__:
            raise BadInput(f"metric '{name}' has no docstring; it must say its definition")
        by_layer = any(q.endswith(":LAYER") for qs in reads.values() for q in qs)
        declared = Metric(
            name, title, inspect.cleandoc(function.__doc__), function, reads, tuple(splits),
            {"*": direction} if isinstance(direction, str) else direction, unit, low, high,
            None if families is None else frozenset(families), source, attack, by_layer, standard,
        )  # fmt: skip
        return METRICS.add(name, declared)

    return register


def by_group(
    values: np.ndarray,
    groups: np.ndarray | None,
    reduce: Callable[[np.ndarray], float | np.floating] = np.mean,
) -> dict[str, float]:
    """`reduce` of `values` (`[n, ...]`) within each group; empty where there are no groups."""
    if groups is None:
        return {}
    return {str(g): float(reduce(values[groups == g])) for g in np.unique(groups)}


def finite_values(values: np.ndarray, what: str) -> np.ndarray:
    """`values` in float64; Undefined where some are NaN or infinite, as after a training that diverged."""
    bad = int(np.sum(~np.isfinite(values)))
    if bad:
        raise Undefined(f"{what} is not finite for {bad} of {values.size} values; the model has diverged")
    return values.astype(np.float64)


def decided(correct: np.ndarray) -> np.ndarray:
    """What is right and wrong (`[n]`); Undefined where the outputs it was read from are not finite for some row."""
    return finite_values(correct, "the model's output")


def mean_estimate(values: np.ndarray, evidence: Evidence, what: str) -> Estimate:
    """Mean over examples of `values` (`[n]`), its t interval over examples and the mean of each group."""
    values = finite_values(values, what)
    return Estimate(
        float(values.mean()),
        len(values),
        t_interval(values, over="examples"),
        by_group(values, evidence.groups),
    )


def with_reference(score: Score, references: Sequence[Score]) -> Score:
    """The score with the retrained models' values of the same metric attached."""
    values = [r.value for r in references if r.status == "ok" and r.value is not None]
    if score.value is None or not values:
        return score
    mean = mean_of(values)
    curves = [r.curve for r in references if r.curve is not None] if score.curve is not None else []
    reference = Reference(mean=mean, values=values, gap=score.value - mean, curves=curves)
    return score.model_copy(update={"reference": reference})
