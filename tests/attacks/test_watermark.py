from __future__ import annotations

from math import comb

import pytest

import expunge
from expunge.attacks import Scene
from expunge.attacks.watermark import Watermark, p_value
from expunge.data.canaries import plant_mark
from expunge.record import Score
from tests.attacks.conftest import noisy_problem


def scores(scene: Scene) -> dict[str, Score]:
    return {s.metric: s for s in Watermark().attack(scene)}


def p_of(scene: Scene) -> float:
    value = scores(scene)["watermark-p-value"].value
    assert value is not None
    return value


def test_a_kept_mark_survives_retraining_and_an_unmarked_model_shows_none() -> None:
    marked = expunge.train_target(plant_mark(noisy_problem(), rows=40, key=3))
    assert p_of(Scene(marked, marked.target)) < 1e-6
    assert p_of(Scene(marked, expunge.forget(marked, "retrain").model)) < 1e-6
    unmarked = [p_of(Scene(marked, expunge.train_target(noisy_problem(), seed=s).target)) for s in range(4)]
    assert min(unmarked) > 1e-3


def test_a_forgotten_mark_vanishes_with_retraining() -> None:
    marked = expunge.train_target(plant_mark(noisy_problem(), rows=40, within="forget", key=3))
    assert p_of(Scene(marked, marked.target)) < 1e-6
    assert p_of(Scene(marked, expunge.forget(marked, "retrain").model)) > 1e-3
    found = scores(Scene(marked, marked.target))["watermark-accuracy"]
    assert (found.n, found.split, found.status) == (40, "mark", "ok")
    assert found.interval is not None


@pytest.mark.parametrize(("hits", "n", "classes"), [(0, 10, 2), (7, 10, 2), (10, 10, 4), (48, 50, 2)])
def test_p_value_is_the_binomial_tail(hits: int, n: int, classes: int) -> None:
    tail = sum(comb(n, k) * (classes - 1) ** (n - k) for k in range(hits, n + 1)) / classes**n
    assert p_value(hits, n, classes) == pytest.approx(tail)


def test_it_needs_a_mark() -> None:
    assert Watermark.obstacles(noisy_problem()) == [
        "it needs an ownership mark that was planted before training (benchmark canaries)"
    ]
