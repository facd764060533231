"""Pareto fronts of methods: what is kept against what is forgotten, with uncertainty over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from expunge.record import Interval, Judged, Record
from expunge.stats.bands import null_band
from expunge.stats.pareto import front_probability, pareto_front

Key = tuple[str, str]
"""Metric and split."""

FORGETTING: tuple[Key, ...] = (
    ("accuracy", "forget"), ("mae", "forget"), ("probability", "forget"), ("unlearning-accuracy", "concept"),
    ("undesired-rate", "samples"),
)  # fmt: skip
UTILITY: tuple[Key, ...] = (
    ("accuracy", "test"), ("mae", "test"), ("probability", "retain"), ("accuracy", "retain"), ("mae", "retain"),
    ("in-domain-retain-accuracy", "test"), ("coverage", "test"),
)  # fmt: skip
"""The objectives of the Pareto front: the first of each that was measured."""


class Front(Record):
    """The Pareto front of one problem."""

    problem: str
    objectives: list[str]
    units: list[str]
    directions: list[Literal["higher", "lower"]]
    points: dict[str, list[float]] = Field(
        description="by method, in the objectives' units; a gap where retraining is to be matched"
    )
    front: list[str] = Field(description="methods that no other beats in everything")
    probability: dict[str, float] = Field(
        description="share of the resampled tables in which it is on the front"
    )
    retrained: list[list[float]] = Field(
        default_factory=list,
        description="of every retrained model with all objectives, its values as in points",
    )
    bands: list[Interval | None] = Field(
        default_factory=list,
        description="by objective, where one further retrained model lies (95 %); None with fewer than two, and where they "
        "do not differ",
    )


def goodness(judged: Judged, key: Key) -> float | None:
    """The score, signed so that higher is better; None where it has none, or nothing to match."""
    score = judged.score(*key)
    if score is None or score.value is None:
        return None
    if score.direction == "match":
        return None if score.reference is None else -abs(score.reference.gap)
    return score.value if score.direction == "higher" else -score.value


def _band(judged: Sequence[Judged], key: Key) -> Interval | None:
    """Where one further retrained model lies in an objective; of a gap, which has no sign, how far from 0."""
    scores = [s for j in judged if (s := j.score(*key)) is not None and s.value is not None]
    band = null_band([s.value for s in scores if s.value is not None])
    if band is None or scores[0].direction != "match":
        return None if band is None else band.values
    return band.gaps.model_copy(update={"low": 0.0})


def fronts_of(
    rows: Mapping[tuple[str, str], Sequence[Judged]], labels: Sequence[str], objectives: Sequence[Key], resamples: int,
    rng: np.random.Generator,
) -> list[Front]:  # fmt: skip
    """One front per problem that has two methods with a value of every objective; `rows` holds models by problem and label."""
    fronts = []
    for problem in dict.fromkeys(p for p, _ in rows):
        mine = {label: rows[problem, label] for label in labels if (problem, label) in rows}
        keys = list(objectives) or [
            key
            for kind in (FORGETTING, UTILITY)
            if (
                key := next(
                    (k for k in kind if any(goodness(j, k) is not None for js in mine.values() for j in js)),
                    None,
                )
            )
        ]
        goods = {
            label: np.array(
                [[math.nan if (g := goodness(j, k)) is None else g for k in keys] for j in judged]
            )
            for label, judged in mine.items()
        }
        goods = {label: g for label, g in goods.items() if len(keys) > 1 and not np.isnan(g).all(0).any()}
        if len(goods) < 2:
            continue
        names, arrays = list(goods), list(goods.values())
        points = np.stack([np.nanmean(g, 0) for g in arrays])
        samples = []
        for _ in range(resamples if any(len(g) > 1 for g in arrays) else 0):
            drawn = [g[rng.integers(len(g), size=len(g))] for g in arrays]
            samples.append(
                np.stack(
                    [np.where(np.isnan(d).all(0), p, _nanmean(d)) for d, p in zip(drawn, points, strict=True)]
                )
            )
        scores = [next(s for j in mine[names[0]] if (s := j.score(*k)) is not None) for k in keys]
        signs = np.array([1.0 if s.direction == "higher" else -1.0 for s in scores])
        retrained = [j for judged in mine.values() for j in judged if j.method == "retrain"]
        measured = [g for g in ([goodness(j, k) for k in keys] for j in retrained) if None not in g]
        on = pareto_front(points)
        share = front_probability(np.array(samples)) if samples else on.astype(float)
        fronts.append(
            Front(
                problem=problem,
                objectives=[f"{'gap of ' * (s.direction == 'match')}{s.metric}@{s.split}" for s in scores],
                units=[s.unit for s in scores], directions=["higher" if s > 0 else "lower" for s in signs],
                points={label: (signs * p + 0.0).tolist() for label, p in zip(names, points, strict=True)},
                front=[label for label, is_on in zip(names, on, strict=True) if is_on],
                probability={label: float(p) for label, p in zip(names, share, strict=True)} if samples else {},
                retrained=(signs * np.array(measured, dtype=float) + 0.0).tolist() if measured else [],
                bands=[_band(retrained, k) for k in keys] if measured else [],
            )
        )  # fmt: skip
    return fronts


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without NaN; 0 where all are, without a warning."""
    there = ~np.isnan(values)
    return np.where(there, values, 0.0).sum(0) / np.maximum(there.sum(0), 1)
