"""Time to result and sensitivity, against worked examples and other libraries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from expunge.record import Judged, Score, ScoreFile
from expunge.studies.sensitivity import sensitivity
from expunge.studies.space import Dimension
from expunge.studies.time_to_result import TimeTable, benchmark_scores, time_to_result

INF = math.inf
TIMES = {"a": {"x": 1.0, "y": 2.0, "z": INF}, "b": {"x": 2.0, "y": 2.0, "z": 3.0}}


def test_benchmark_scores_by_hand() -> None:
    # Ratios: a 1, 1, infinite; b 2, 1, 1. With the end at 4: a (1 + 1 + 0) / 3, b (2/3 + 1 + 1) / 3.
    assert benchmark_scores(TIMES) == pytest.approx({"a": 2 / 3, "b": 8 / 9})


def test_benchmark_scores_are_the_area_under_the_performance_profile() -> None:
    rng = np.random.default_rng(0)
    times = {m: {w: float(rng.lognormal()) for w in "pqrstu"} for m in "abc"}
    times["c"]["q"] = INF
    best = {w: min(times[m][w] for m in times) for w in "pqrstu"}
    for method, score in benchmark_scores(times).items():
        ratios = np.asarray([times[method][w] / best[w] for w in "pqrstu"])
        tau = np.linspace(1, 4, 300_001)
        profile = (ratios[:, None] <= tau).mean(0)
        assert score == pytest.approx(integrate.trapezoid(profile, tau) / 3, abs=1e-5)


def test_scaling_all_times_changes_nothing_and_a_ratio_of_four_counts_nothing() -> None:
    scaled = {m: {w: 60 * t for w, t in own.items()} for m, own in TIMES.items()}
    assert benchmark_scores(scaled) == pytest.approx(benchmark_scores(TIMES))
    assert benchmark_scores({"a": {"x": 1.0}, "b": {"x": 4.0}}) == {"a": 1.0, "b": 0.0}


def test_a_workload_that_all_miss_or_that_was_not_run_counts_nothing() -> None:
    assert benchmark_scores({"a": {"x": 1.0, "y": INF}, "b": {"x": INF}}) == {"a": 0.5, "b": 0.0}


def row(method: str, seed: int, gap: float | None, seconds: float, label: str = "") -> Judged:
    reason = "" if gap is not None else "there is none"
    scores = [
        Score(
            metric="average-gap", split="run", value=gap, unit="percentage points", direction="lower",
            status="ok" if gap is not None else "undefined", reason=reason,
        ),
        Score(metric="seconds", split="run", value=seconds, unit="seconds", direction="lower"),
    ]  # fmt: skip
    return Judged(problem="p", problem_id="0", method=method, label=label or method, seed=seed, scores=scores)


def table(*judged: Judged) -> TimeTable:
    return time_to_result(ScoreFile(name="n", problems=[{"name": "p"}], judged=list(judged)))


RETRAINED = [row("retrain", 0, 1.0, 10.0), row("retrain", 1, 3.0, 30.0)]


@pytest.mark.parametrize(
    ("runs", "seconds", "reached"),
    [
        ([(4.9, 2.0), (5.0, 8.0), (1.0, 4.0)], 4.0, 3),  # the median
        ([(5.1, 2.0), (1.0, 8.0), (1.0, 4.0)], 8.0, 2),  # one seed misses: it counts as infinitely slow
        ([(5.1, 2.0), (9.0, 2.0), (1.0, 4.0)], None, 1),
        ([(1.0, 20.1), (1.0, 20.1), (1.0, 4.0)], None, 1),  # slower than retraining's 20 s
        ([(None, 1.0)], None, 0),
    ],
)
def test_the_time_of_a_method(
    runs: Sequence[tuple[float | None, float]], seconds: float | None, reached: int
) -> None:
    judged = [row("npo", seed, gap, t) for seed, (gap, t) in enumerate(runs)]
    (made,) = table(*RETRAINED, *judged).rows
    assert (made.seconds, made.reached, made.n) == (seconds, reached, len(runs))
    assert (made.target, made.retrain_seconds) == (5.0, 20.0)


def test_the_target_is_no_smaller_than_the_gap_between_retrained_models() -> None:
    spread = [row("retrain", 0, 6.0, 10.0), row("retrain", 1, 8.0, 10.0)]
    (made,) = table(*spread, row("npo", 0, 6.9, 1.0)).rows
    assert (made.target, made.seconds) == (7.0, 1.0)


def test_without_a_retrained_model_there_is_no_table() -> None:
    assert table(row("npo", 0, 1.0, 1.0)).rows == []


NUMBER = Dimension(parameter="lr", kind="real", low=0.0, high=1.0, origin="declared")
CHOICE = Dimension(parameter="mix", kind="choice", choices=["x", "y", "z"], origin="declared")


def test_importance_is_the_share_of_rank_variance() -> None:
    rng = np.random.default_rng(1)
    lr, gap = rng.random(40), rng.random(40)
    mix = rng.choice(["x", "y", "z"], 40)
    gap += lr + (mix == "z")
    trials = [({"lr": a, "mix": b}, float(g)) for a, b, g in zip(lr, mix, gap, strict=True)]
    found = sensitivity([NUMBER, CHOICE], trials, "percentage points")
    assert found is not None
    spearman: Any = stats.spearmanr(lr, gap)
    assert found.importance["lr"] == pytest.approx(spearman.statistic**2)
    # Kruskal and Wallis: H = (n - 1) eta², where there are no ties.
    statistic = stats.kruskal(*(gap[mix == c] for c in "xyz")).statistic
    assert found.importance["mix"] == pytest.approx(statistic / 39)


def test_near_best_counts_failed_trials_and_few_trials_have_no_importance() -> None:
    trials = [({"lr": 0.1}, 2.0), ({"lr": 0.2}, 7.0), ({"lr": 0.3}, 7.1), ({"lr": 0.4}, None)]
    found = sensitivity([NUMBER], trials, "percentage points")
    assert found is not None
    assert (found.near_best, found.margin, found.failed) == (0.5, 5.0, 1)
    assert found.importance == {"lr": None}
    assert sensitivity([NUMBER], trials[3:], "") is None


def test_a_parameter_that_never_varied_or_gaps_that_are_all_equal_say_nothing() -> None:
    same = [({"lr": 0.1}, float(i)) for i in range(6)]
    flat = [({"lr": i / 6}, 1.0) for i in range(6)]
    for trials in (same, flat):
        found = sensitivity([NUMBER], trials, "percentage points")
        assert found is not None and found.importance == {"lr": None}
