"""Where the spread between runs comes from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.methods.base import METHODS, Workplace
from expunge.problem import Training
from expunge.record import Interval, Judged, Score, ScoreFile
from expunge.studies.graph import build_graph
from expunge.studies.results import complete
from expunge.studies.spec import StudySpec
from expunge.studies.spread import deviation_interval, variances
from expunge.testing.problems import tiny_problem

KEY = ("accuracy", "test")


def run(value: float, seed: int, problem: str = "p", init: int | None = None) -> Judged:
    interval = Interval(low=value - 0.0196, high=value + 0.0196, method="wilson")
    score = Score(
        metric="accuracy", split="test", value=value, unit="share", direction="higher", interval=interval
    )
    return Judged(
        problem=problem, problem_id=problem, method="npo", label="npo", seed=seed, init=init, scores=[score],
        model_id=f"{problem}-{seed}-{init}",
    )  # fmt: skip


def file(judged: list[Judged], scope: str = "a random 0.1 of the rows (seed {})") -> ScoreFile:
    names = list(dict.fromkeys(j.problem for j in judged))
    cards = [{"name": n, "fingerprint": n, "scope": scope.format(i)} for i, n in enumerate(names)]
    return complete("test", cards, judged)


def crossed(levels: tuple[int, int, int]) -> tuple[np.ndarray, list[Judged]]:
    rng = np.random.default_rng(3)
    a, b, c = levels
    table = (
        0.7
        + rng.normal(0, 0.03, (a, 1, 1))
        + rng.normal(0, 0.02, (1, b, 1))
        + rng.normal(0, 0.015, (1, 1, c))
    )
    table = table + rng.normal(0, 0.005, levels)
    return table, [
        run(float(table[i, j, k]), seed=k, problem=f"p{i}", init=j) for i in range(a) for j in range(b) for k in range(c)
    ]  # fmt: skip


def test_components_of_a_crossed_study_are_those_of_the_analysis_of_variance():
    levels = (4, 3, 3)
    table, judged = crossed(levels)
    (found,) = variances(file(judged), [KEY])
    n = table.size
    means = [table.mean(axis=tuple({0, 1, 2} - {i})) for i in range(3)]
    ss = [n / k * ((m - table.mean()) ** 2).sum() for m, k in zip(means, levels, strict=True)]
    residual = (((table - table.mean()) ** 2).sum() - sum(ss)) / (n - 1 - sum(k - 1 for k in levels))
    expected = {
        name: (s / (k - 1) - residual) / (n / k)
        for name, s, k in zip(("data", "init", "order"), ss, levels, strict=True)
    }
    parts = {p.factor: p for p in found.parts}
    for name, variance in expected.items():
        assert parts[name].deviation == pytest.approx(np.sqrt(variance), rel=0.02), name
    assert parts["residual"].deviation == pytest.approx(np.sqrt(residual), rel=0.01)
    assert sum(p.share or 0 for p in found.parts) == pytest.approx(1)
    assert (parts["data"].levels, parts["init"].levels, parts["order"].levels) == levels
    assert found.runs == 36 and found.deviation == pytest.approx(table.std(ddof=1))
    assert found.examples == pytest.approx(0.01)


def test_seeds_that_draw_both_are_one_factor_and_the_two_are_undefined():
    rng = np.random.default_rng(0)
    judged = [run(float(rng.normal(0.7, 0.01)), seed=s, problem=p) for p in ("a", "b", "c") for s in range(4)]
    (found,) = variances(file(judged), [KEY])
    assert found.problems == ["a", "b", "c"]
    parts = {p.factor: p for p in found.parts}
    assert parts["seed"].levels == 4 and parts["data"].levels == 3
    assert parts["init"].deviation is None and "draws both" in parts["init"].reason
    (alone,) = variances(file(judged[:4]), [KEY])
    reasons = {p.factor: p.reason for p in alone.parts}
    assert reasons["data"] == "it has 1 level; vary it to know"
    assert "every run has a level of its own" in reasons["seed"]


def test_other_questions_are_not_other_data():
    judged = [run(0.7 + s / 100, seed=s, problem=p) for p in ("a", "b") for s in range(2)]
    found = variances(file(judged, scope="class {}"), [KEY])
    assert [v.problems for v in found] == [["a"], ["b"]]
    assert variances(file(judged), [("accuracy", "nowhere")]) == []


def test_the_interval_of_a_deviation():
    # Factors of the chi-square distribution: 0.60 to 2.87 with 5 runs, 0.69 to 1.83 with 10.
    for n, factors in ((5, (0.60, 2.87)), (10, (0.69, 1.83))):
        interval = deviation_interval(1.0, n)
        assert interval is not None
        assert (round(interval.low, 2), round(interval.high, 2)) == factors
    assert deviation_interval(1.0, 1) is None and deviation_interval(0.0, 5) is None


def test_init_fixes_the_weights_that_retraining_starts_from():
    untrained = replace(tiny_problem("classifier"), recipe=Training(epochs=0))

    def start(seed: int, init: int | None) -> torch.Tensor:
        made = METHODS["retrain"]().forget(untrained, Workplace(seed, init=init)).model
        return torch.cat([p.flatten() for p in made.parameters()])

    assert torch.equal(start(0, 5), start(1, 5)) and torch.equal(start(5, None), start(1, 5))
    assert not torch.equal(start(0, None), start(1, None))


def test_a_study_with_init_trains_every_target_from_the_same_weights(tmp_path: Path):
    study = {
        "name": "i", "problems": [{"benchmark": "diabetes"}], "methods": ["retrain"], "seeds": [0, 1], "init": 7,
    }  # fmt: skip
    graph = build_graph(StudySpec(**study), tmp_path, lambda _: None)
    trained = [job for job in graph.jobs.values() if job.kind in ("target", "forget")]
    assert {job.payload["init"] for job in trained} == {7} and {row.init for row in graph.rows} == {7}
    other = build_graph(StudySpec(**study | {"init": None}), tmp_path, lambda _: None)
    assert not {j.key for j in trained} & set(other.jobs)
    assert all("init" not in job.payload for job in other.jobs.values())
