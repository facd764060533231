"""How much of the spread between runs is the data, the initialization, the order."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field
from scipy.stats import chi2

from expunge.record import Interval, Judged, Record, Score, ScoreFile
from expunge.stats.variance import variance_components
from expunge.studies.fronts import Key

LEVEL = 0.95
TOGETHER = (
    "each seed draws both the initial weights and the order; run the study also with `init: 0`, `init: 1`, "
    "... and compare these runs"
)


class Part(Record):
    """What one factor contributes to the spread."""

    factor: str = Field(
        description="data: which rows are forgotten and kept; init: the initial weights; order: everything else that "
        "a seed draws; seed: both of these; residual: interactions, and what was not varied on purpose"
    )
    levels: int | None = Field(default=None, description="how many were tried")
    deviation: float | None = Field(
        default=None, description="square root of the variance component, unit of the score"
    )
    share: float | None = Field(default=None, description="of the sum of all variance components")
    reason: str = Field(default="", description="why there is none")


class Variance(Record):
    """One score of one method over all its runs on the same kind of problem."""

    problems: list[str] = Field(description="they differ in nothing but their data")
    label: str
    metric: str
    split: str
    unit: str
    runs: int
    mean: float
    deviation: float | None = Field(description="standard deviation over runs; None of a single one")
    interval: Interval | None = Field(
        default=None, description="of the deviation, if runs are normal and independent"
    )
    examples: float | None = Field(
        default=None,
        description="standard error of one run's value over its examples, from the scores' own 95 % intervals; what "
        "the deviation over runs does not hold if all runs are measured on the same rows",
    )
    parts: list[Part] = Field(description="by restricted maximum likelihood, crossed random effects")


def variances(scores: ScoreFile, metrics: Sequence[Key]) -> list[Variance]:
    """Variance components of each of `metrics` for every method, over problems that differ only in their data.

    The levels of ``data`` are those problems; of ``init`` and ``order`` the numbers that fixed initial weights and everything
    else (`init` and `seeds` of the study). The order that a seed draws is another one on other data: what does not carry over
    is in the residual. See `expunge.stats.variance_components`.
    """
    found = []
    for names in _designs(scores.problems):
        mine = [j for j in scores.judged if j.problem in names and j.status == "ok"]
        for label in dict.fromkeys(j.label for j in mine):
            for metric, split in metrics:
                runs = [
                    (j, s)
                    for j in mine
                    if j.label == label and (s := j.score(metric, split)) is not None and s.value is not None
                ]
                if runs:
                    found.append(_variance(runs))
    return found


def deviation_interval(deviation: float, n: int) -> Interval | None:
    """The 95 % interval of a standard deviation of n independent normal values, by the chi-square distribution."""
    if n < 2 or deviation == 0:
        return None
    low, high = (
        deviation * math.sqrt((n - 1) / float(chi2.ppf(p, n - 1))) for p in ((1 + LEVEL) / 2, (1 - LEVEL) / 2)
    )
    return Interval(low=low, high=high, level=LEVEL, method="chi-square")


def _designs(problems: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Names of the problems, together where they differ in their rows alone: same model, recipe, source and kind of request."""
    found: dict[str, list[str]] = {}
    for card in problems:
        same = {k: card.get(k) for k in ("family", "source", "architecture", "recipe")}
        # Another seed of the same draw; another class or user is another question.
        same["scope"] = re.sub(r" \(seed -?\d+\)", "", str(card.get("scope") or card["name"]))
        found.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(card["name"])
    return list(found.values())


def _variance(runs: Sequence[tuple[Judged, Score]]) -> Variance:
    judged, scores = zip(*runs, strict=True)
    values = np.array([s.value for s in scores], dtype=float)
    inits = [j.seed if j.init is None else j.init for j in judged]
    seeds = [j.seed for j in judged]
    together = inits == seeds
    factors: dict[str, list[Any]] = {"data": [j.problem for j in judged]}
    factors |= {"seed": seeds} if together else {"init": inits, "order": seeds}
    parts = []
    for name, component in variance_components(values, factors).items():
        levels = len(set(factors[name])) if name in factors else None
        deviation = None if component.variance is None else math.sqrt(component.variance)
        parts.append(
            Part(
                factor=name,
                levels=levels,
                deviation=deviation,
                share=component.share,
                reason=component.reason,
            )
        )
    if together:
        parts += [Part(factor=name, reason=TOGETHER) for name in ("init", "order")]
    deviation = float(values.std(ddof=1)) if len(values) > 1 else None
    within = [(i.high - i.low) / 2 / 1.96 for s in scores if (i := s.interval) is not None]
    return Variance(
        problems=list(dict.fromkeys(factors["data"])), label=judged[0].label, metric=scores[0].metric, split=scores[0].split,
        unit=scores[0].unit, runs=len(runs), mean=float(values.mean()), deviation=deviation,
        interval=None if deviation is None else deviation_interval(deviation, len(values)),
        examples=math.sqrt(float(np.mean(np.square(within)))) if within else None, parts=parts,
    )  # fmt: skip
