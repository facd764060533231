from __future__ import annotations

import json
from itertools import permutations

import numpy as np
import pytest

from expunge.errors import BadInput
from expunge.stats import kemeny as module
from expunge.stats.borda import pairwise_wins
from expunge.stats.kemeny import kemeny


def brute_force(wins: np.ndarray) -> tuple[float, list[tuple[int, ...]]]:
    """Every order in turn."""

    def cost(order):
        return sum(wins[b, a] for n, a in enumerate(order) for b in order[n + 1 :])

    costs = {order: cost(order) for order in permutations(range(len(wins)))}
    least = min(costs.values())
    return least, [order for order, c in costs.items() if c <= least + 1e-9]


@pytest.mark.parametrize("seed", range(30))
def test_all_optima_of_small_tables_are_those_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    k, ballots = rng.integers(2, 7), rng.integers(1, 8)
    scores = rng.integers(0, 4, (k, ballots)).astype(float)
    if seed % 2:
        scores[rng.uniform(size=scores.shape) < 0.3] = np.nan
    wins = pairwise_wins(scores)
    least, optima = brute_force(wins)
    found = kemeny(wins)
    assert found.exact and found.disagreements == pytest.approx(least)
    assert found.optima == len(optima) and tuple(found.order) in optima
    places = np.array([np.argsort(order) + 1 for order in optima])
    assert found.best.tolist() == places.min(0).tolist()
    assert found.worst.tolist() == places.max(0).tolist()


def test_a_tie_is_reported_as_a_tie():
    wins = [[0, 1, 1], [3, 0, 2], [3, 2, 0]]
    found = kemeny(wins)
    assert (found.disagreements, found.optima, found.order) == (4, 2, [1, 2, 0])
    assert (found.best.tolist(), found.worst.tolist()) == ([3, 1, 1], [3, 2, 2])


def test_who_beats_all_others_is_first_and_unanimity_wins():
    # Borda would put competitor 1 first: 3 of 5 prefer 0 to 1, and 0 beats 2 as well.
    places = np.array([[0, 1, 2]] * 3 + [[2, 0, 1]] * 2).T
    assert kemeny(pairwise_wins(-places.astype(float))).order == [0, 1, 2]
    same = np.tile(np.array([[3.0], [1.0], [2.0]]), 5)
    found = kemeny(pairwise_wins(same))
    assert (found.order, found.disagreements, found.optima) == ([0, 2, 1], 0, 1)


@pytest.mark.parametrize("seed", range(4))
def test_the_integer_program_finds_what_the_subsets_find(seed, monkeypatch):
    scores = np.random.default_rng(seed).normal(size=(9, 4))
    wins = pairwise_wins(scores)
    exact = kemeny(wins)
    monkeypatch.setattr(module, "ENUMERATED", 1)
    programmed = kemeny(wins)
    assert programmed.exact and programmed.disagreements == pytest.approx(exact.disagreements)
    assert programmed.optima is None or programmed.optima == 1
    monkeypatch.setattr(module, "PROGRAMMED", 1)
    searched = kemeny(wins)
    assert exact.disagreements <= searched.disagreements <= 1.1 * exact.disagreements + 1e-9
    if searched.exact:
        assert searched.disagreements == pytest.approx(exact.disagreements)


def test_many_competitors_with_noise_are_put_in_order():
    rng = np.random.default_rng(3)
    scores = np.arange(30)[:, None] + rng.normal(0, 2.5, (30, 15))
    found = kemeny(pairwise_wins(scores))
    assert found.exact  # the majority relation leaves only small knots
    assert np.corrcoef(np.argsort(found.order), -np.arange(30))[0, 1] > 0.98


def test_a_heuristic_says_that_it_is_one(monkeypatch):
    monkeypatch.setattr(module, "ENUMERATED", 2)
    monkeypatch.setattr(module, "PROGRAMMED", 2)
    circle = np.array([[0, 2, 1], [1, 0, 2], [2, 1, 0]])  # every order contradicts a majority
    found = kemeny(circle)
    assert (found.exact, found.optima, found.disagreements) == (False, None, 4)


def test_it_agrees_with_an_enumeration_of_all_orders(shared):
    folder = shared / "golden" / "statistics" / "rank_aggregation"
    given, expected = (json.loads((folder / f"{n}.json").read_text()) for n in ("inputs", "values"))
    tables = {name: np.asarray(given[name]) for name in ("tasks_without_ties", "tasks_with_ties")}
    tables["instances"] = np.concatenate([np.asarray(t) for t in given["instances"].values()], axis=1)
    places = [[vote.index(i) for vote in expected["cycle"]["votes_best_first"]] for i in range(4)]
    tables["cycle"] = -np.asarray(places, dtype=float)
    for name, table in tables.items():
        wins, found = pairwise_wins(table), kemeny(pairwise_wins(table))
        assert wins.tolist() == expected[name]["pairwise_wins"], name
        assert found.disagreements == expected[name]["kemeny_disagreements"]
        assert found.order in expected[name]["kemeny_orders_best_first"]
        assert found.optima == len(expected[name]["kemeny_orders_best_first"])


def test_refusals():
    with pytest.raises(BadInput, match=r"an array \[k, k\], got one of shape \(2, 3\)"):
        kemeny(np.zeros((2, 3)))
    with pytest.raises(BadInput, match="numbers of 0 or more"):
        kemeny([[0, -1], [0, 0]])
