"""Time to result: how long a method takes until it is as near to retraining as asked, and who is soonest over problems.

After AlgoPerf (Dahl et al., 2023, arXiv:2306.07179): a workload is a problem, its target an average gap to the retrained
models, and `t` the median over seeds of the method's running time, infinite for a seed that misses the target. A run
that takes longer than retraining is a miss as well. Deviations: the gap is known at the end of a run only, so `t` is the
time of the whole run; and it is verified on the audited splits, which is stricter than stopping the clock on validation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from expunge.record import Judged, Record, ScoreFile, mean_of
from expunge.studies.sensitivity import NEAR

R_MAX = 4.0
"""Ratios to the soonest from which a workload counts nothing, as in AlgoPerf."""


class TimeToResult(Record):
    """One method on one problem."""

    problem: str
    label: str
    target: float = Field(description="average gap that must be reached")
    unit: str = Field(description="of the target")
    seconds: float | None = Field(description="median over seeds; None for a miss")
    reached: int = Field(description="seeds that reached the target within the time of retraining")
    n: int = Field(description="seeds")
    retrain_seconds: float = Field(description="mean over the retrained models")


class TimeTable(Record):
    """Times of all methods, and their standing over the problems."""

    rows: list[TimeToResult]
    benchmark_score: dict[str, float] = Field(
        description="by label, area under the performance profile up to ratio 4, in [0, 1]; higher is better"
    )


def time_to_result(scores: ScoreFile) -> TimeTable:
    """Times to the target for every method of a finished run that has a retrained reference.

    The target of a problem is the larger of the mean gap of the retrained models to each other and the gap that counts
    as none (`NEAR`).
    """
    rows: list[TimeToResult] = []
    for problem in scores.problems:
        mine = [j for j in scores.judged if j.problem == problem["name"] and j.status == "ok"]
        retrained = [j for j in mine if j.method == "retrain"]
        limit = [s for j in retrained if (s := _value(j, "seconds")) is not None]
        for label in dict.fromkeys(j.label for j in mine if j.method not in ("retrain", "target")):
            found = _row(problem["name"], label, [j for j in mine if j.label == label], retrained, limit)
            if found is not None:
                rows.append(found)
    times: dict[str, dict[str, float]] = {}
    for row in rows:
        times.setdefault(row.label, {})[row.problem] = math.inf if row.seconds is None else row.seconds
    return TimeTable(rows=rows, benchmark_score=benchmark_scores(times))


def _row(
    problem: str, label: str, judged: Sequence[Judged], retrained: Sequence[Judged], limit: Sequence[float]
) -> TimeToResult | None:
    gap = judged[0].score("average-gap", "run")
    if not limit or gap is None or gap.unit not in NEAR:
        return None
    spread = [g for j in retrained if (g := _value(j, "average-gap")) is not None]
    target = max(NEAR[gap.unit], mean_of(spread)) if spread else NEAR[gap.unit]
    times = [_time(j, target, mean_of(limit)) for j in judged]
    middle = statistics.median(times)
    return TimeToResult(
        problem=problem,
        label=label,
        target=target,
        unit=gap.unit,
        seconds=middle if math.isfinite(middle) else None,
        reached=sum(math.isfinite(t) for t in times),
        n=len(times),
        retrain_seconds=mean_of(limit),
    )


def _time(judged: Judged, target: float, limit: float) -> float:
    gap, seconds = _value(judged, "average-gap"), _value(judged, "seconds")
    if gap is None or seconds is None or gap > target or seconds > limit:
        return math.inf
    return seconds


def _value(judged: Judged, metric: str) -> float | None:
    score: Any = judged.score(metric, "run")
    return None if score is None else score.value


def benchmark_scores(times: Mapping[str, Mapping[str, float]], r_max: float = R_MAX) -> dict[str, float]:
    """Area under the performance profile by method, from times by method and workload (seconds, infinite for a miss).

    The profile of a method is the share of workloads on which its time is at most τ times the least of all methods; its
    area over 1 ≤ τ ≤ `r_max`, divided by ``r_max - 1``, is ``mean max(0, (r_max - r) / (r_max - 1))``. A workload that a
    method did not run is a miss; one that all miss counts 0 for all. Adding a fast method lowers the others: the times
    are what lasts.
    """
    workloads = sorted({w for own in times.values() for w in own})
    soonest = {w: min(own.get(w, math.inf) for own in times.values()) for w in workloads}
    return {
        label: mean_of(_credit(own.get(w, math.inf), soonest[w], r_max) for w in workloads)
        for label, own in times.items()
    }


def _credit(time: float, soonest: float, r_max: float) -> float:
    if math.isinf(time):
        return 0.0
    ratio = time / soonest if soonest > 0 else 1.0
    return max(0.0, (r_max - ratio) / (r_max - 1))
