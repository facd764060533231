"""Scores of all seeds together, from evidence that is made up: forty models without training any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from expunge.evidence import Evidence
from expunge.record import Across, Score
from expunge.stats.forgetting_score import forgetting_score
from expunge.stats.klom import klom
from expunge.studies.across import across, margins_of
from expunge.studies.graph import Graph, Row
from expunge.studies.jobs import Store
from expunge.testing.problems import tiny_problem

SEEDS = 40


class World:
    """A run of some methods on the tiny classifier, with made-up log-probabilities."""

    def __init__(self, root: Path) -> None:
        self.problem = tiny_problem("classifier")
        self.store = Store(root)
        self.graph = Graph({}, [], {self.problem.name: self.problem})
        self.logp: dict[tuple[str, int, str], np.ndarray] = {}

    def add(self, method: str, seeds: int, logits: Callable[[np.random.Generator, int], np.ndarray]) -> None:
        for seed in range(seeds):
            rng = np.random.default_rng([seed, len(self.graph.rows)])
            key = f"{method}-{seed}"
            row = Row(
                self.problem.name, "0", method, method, {}, {}, seed, [], model=key, observe=key, score=key
            )
            self.graph.rows.append(row)
            for split in ("forget", "retain", "test"):
                dataset = self.problem.splits[split]
                z = logits(rng, len(dataset))
                logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
                self.logp[method, seed, split] = logp
                columns = {
                    "id": pa.array(dataset["id"][:]),
                    "logp": pa.FixedSizeListArray.from_arrays(pa.array(logp.reshape(-1)), 3),
                }
                Evidence(pa.table(columns)).write(self.store.folder(key) / f"{split}.parquet")

    def labels(self, split: str) -> np.ndarray:
        return np.asarray(self.problem.splits[split]["label"][:])

    def margins(self, method: str, split: str, seeds: range) -> np.ndarray:
        """By hand: ln p - ln(1 - p) from the probability of the label."""
        p = np.stack(
            [
                np.exp(self.logp[method, s, split])[np.arange(len(y)), y]
                for s in seeds
                for y in [self.labels(split)]
            ]
        )
        return np.log(p) - np.log1p(-p)

    def found(self) -> dict[str, Across]:
        return {a.label: a for a in across(self.graph, self.store)}


def gaussian(shift: float) -> Callable[[np.random.Generator, int], np.ndarray]:
    return lambda rng, n: rng.normal(size=(n, 3)) + shift * np.array([1.0, 0.0, -1.0])


def score(row: Across, metric: str, split: str) -> Score:
    return next(s for s in row.scores if (s.metric, s.split) == (metric, split))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("across"))
    made.add("target", SEEDS, gaussian(3.0))
    made.add("retrain", SEEDS, gaussian(0.0))
    made.add("same-law", SEEDS, gaussian(0.0))
    made.add("few", 5, gaussian(0.0))
    constant = np.random.default_rng(0).normal(size=(200, 3))
    made.add("constant", SEEDS, lambda rng, n: constant[:n])
    return made


@pytest.fixture(scope="module")
def found(world: World) -> dict[str, Across]:
    return world.found()


def test_as_many_models_on_both_sides_and_none_against_itself(world: World, found: dict[str, Across]) -> None:
    first, second = range(20), range(20, 40)
    for split in ("forget", "retain", "test"):
        reference = world.margins("retrain", split, first)
        floor = klom(world.margins("retrain", split, second), reference)
        ours = klom(world.margins("same-law", split, first), reference)
        row = found["same-law"]
        assert score(row, "klom-mean", split).value == pytest.approx(ours.mean())
        assert score(row, "klom-p95", split).value == pytest.approx(np.percentile(ours, 95))
        assert score(row, "klom-above-null", split).value == (ours > np.percentile(floor, 95)).mean()
        assert score(found["retrain"], "klom-mean", split).value == pytest.approx(floor.mean())
        attached = score(row, "klom-mean", split).reference
        assert attached is not None
        assert attached.values == [pytest.approx(floor.mean())]
    assert found["retrain"].seeds == list(second)
    assert found["same-law"].seeds == list(first)
    assert score(found["retrain"], "klom-mean", "forget").reference is None


def test_a_shifted_law_is_far_beyond_the_floor_and_the_same_law_is_not(found: dict[str, Across]) -> None:
    far, near, floor = (
        score(found[m], "klom-mean", "test").value or 0 for m in ("target", "same-law", "retrain")
    )
    assert far > 1.5 * floor
    assert near == pytest.approx(floor, rel=0.15)
    assert (score(found["target"], "klom-above-null", "test").value or 0) > 0.3
    assert (score(found["retrain"], "klom-above-null", "test").value or 0) <= 0.08


def test_forgetting_score_and_its_calibration(world: World, found: dict[str, Across]) -> None:
    reference = world.margins("retrain", "forget", range(20))
    expected = forgetting_score(world.margins("target", "forget", range(20)), reference)
    ours = score(found["target"], "forgetting-score", "forget")
    assert ours.value == pytest.approx(expected)
    assert ours.reference is not None and ours.reference.mean > expected

    def accuracy(method: str, split: str) -> float:
        return float(
            np.mean([world.logp[method, s, split].argmax(-1) == world.labels(split) for s in range(SEEDS)])
        )

    ratios = [accuracy("target", s) / accuracy("retrain", s) for s in ("retain", "test")]
    final = score(found["target"], "challenge-score", "forget").value
    assert final == pytest.approx(expected * ratios[0] * ratios[1])


def test_too_few_or_equal_models_are_undefined_with_a_reason(found: dict[str, Across]) -> None:
    assert score(found["few"], "klom-mean", "forget").reason == (
        "there are 5 models of this row to compare with 20 retrained ones"
    )
    assert "the same outputs" in score(found["constant"], "forgetting-score", "forget").reason


def test_three_seeds_say_nothing_about_distributions(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add("retrain", 3, gaussian(0.0))
    world.add("x", 3, gaussian(0.0))
    row = world.found()["x"]
    assert {s.status for s in row.scores} == {"undefined"}
    assert "1 are too few; 20 are needed, which takes 40 seeds" in row.scores[0].reason


def test_missing_probabilities_are_named(world: World, tmp_path: Path) -> None:
    bare = World(tmp_path)
    bare.add("retrain", SEEDS, gaussian(0.0))
    for seed in range(SEEDS):
        (bare.store.folder(f"retrain-{seed}") / "retain.parquet").unlink()
    row = bare.found()["retrain"]
    assert score(row, "klom-mean", "forget").status == "ok"
    assert "did not collect class probabilities on 'retain'" in score(row, "klom-mean", "retain").reason
    assert "on 'retain'" in score(row, "forgetting-score", "forget").reason


def test_margins_keep_their_digits() -> None:
    # p_y = 1 - 3e-12: its complement is lost in the logarithm of p_y, and kept in the others.
    logp = np.array([[-3e-12, np.log(1e-12), np.log(2e-12)]])
    rows: Any = {"logp": logp}
    assert margins_of(rows, np.array([0])) == pytest.approx([-np.log(3e-12)], rel=1e-12)
