from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import kendalltau

from expunge.errors import BadInput
from expunge.stats.plackett_luce import Choices, fit, plackett_luce
from expunge.stats.tournament import Match, bradley_terry, elo, single_elimination, wins_of

NAN = float("nan")


def ballots(rankings: list[list[int]], k: int) -> np.ndarray:
    """Scores of rankings that name the best first and may leave some out."""
    table = np.full((k, len(rankings)), NAN)
    for t, ranking in enumerate(rankings):
        table[ranking, t] = -np.arange(len(ranking))
    return table


def slow_log_likelihood(theta: np.ndarray, rankings: list[list[int]]) -> float:
    return sum(
        theta[i] - math.log(sum(math.exp(theta[j]) for j in ranking[place:]))
        for ranking in rankings
        for place, i in enumerate(ranking)
    )


def drawn(theta: np.ndarray, n: int, rng: np.random.Generator, size: int | None = None) -> list[list[int]]:
    """Rankings from the model, by exponential clocks."""
    found = []
    for _ in range(n):
        some = rng.permutation(len(theta))[:size]
        found.append(some[np.argsort(rng.exponential(np.exp(-theta[some])))].tolist())
    return found


def test_it_maximizes_the_likelihood():
    rng = np.random.default_rng(0)
    rankings = drawn(np.array([1.0, 0.2, -0.3, -0.9]), 30, rng, size=3)
    found = plackett_luce(ballots(rankings, 4))
    assert found.strength is not None and found.reason == ""
    assert found.log_likelihood == pytest.approx(slow_log_likelihood(found.strength, rankings))
    best = minimize(lambda t: -slow_log_likelihood(t, rankings), np.zeros(4), method="BFGS").x
    assert found.strength == pytest.approx(best - best.mean(), abs=1e-4)
    assert found.strength.mean() == pytest.approx(0, abs=1e-12)


def test_two_competitors_by_hand():
    # Three wins of four: theta_0 - theta_1 = ln 3.
    found = plackett_luce([[1, 1, 1, 0], [0, 0, 0, 1]])
    assert found.strength == pytest.approx([math.log(3) / 2, -math.log(3) / 2])
    assert found.log_likelihood == pytest.approx(3 * math.log(0.75) + math.log(0.25))


def test_ties_say_nothing_between_the_tied_and_share_one_choice():
    # Competitors 0 and 1 succeed, 2 and 3 fail: half a choice each from {i, 2, 3}.
    choices = Choices.of([[1, 5], [1, 5], [0, 5], [0, 5]])
    assert choices.winner.tolist() == [0, 1] and choices.weight.tolist() == [0.5, 0.5]
    assert choices.among.tolist() == [[True, False, True, True], [False, True, True, True]]
    # A column of equals adds nothing, and doubling all ballots changes nothing.
    rng = np.random.default_rng(2)
    table = rng.integers(0, 3, (4, 40)).astype(float)
    alone = plackett_luce(table).strength
    assert plackett_luce(np.hstack([table, np.ones((4, 9))])).strength == pytest.approx(alone, abs=1e-7)
    assert plackett_luce(np.hstack([table, table])).strength == pytest.approx(alone, abs=1e-7)


def test_weights_and_bootstrap_counts_are_repetitions():
    table = np.random.default_rng(3).normal(size=(4, 6))
    counts = np.array([0, 2, 1, 3, 1, 2])
    repeated = plackett_luce(np.repeat(table, counts, axis=1), 0.1).strength
    assert plackett_luce(table, 0.1, counts).strength == pytest.approx(repeated, abs=1e-7)
    assert fit(Choices.of(table), 0.1, counts).strength == pytest.approx(repeated, abs=1e-7)


def test_without_a_loss_there_is_no_finite_strength():
    found = plackett_luce([[2, 2], [1, 0], [0, 1]])
    assert found.strength is None and "in one direction only" in found.reason
    regularized = plackett_luce([[2, 2], [1, 0], [0, 1]], 0.1)
    assert regularized.strength is not None and regularized.reason == ""
    assert regularized.strength[0] > 0
    apart = [[1, 0, NAN, NAN], [0, 1, NAN, NAN], [NAN, NAN, 1, 0], [NAN, NAN, 0, 1]]
    assert "2 groups of competitors were never compared" in plackett_luce(apart).reason
    assert "the prior's alone" in plackett_luce(apart, 0.1).reason


@pytest.mark.parametrize("hidden", [0.5, 0.8, 0.95])
def test_the_order_survives_missing_cells(hidden):
    rng = np.random.default_rng(4)
    theta = np.linspace(2, -2, 10)
    table = ballots(drawn(theta, 600, rng), 10)
    table[rng.uniform(size=table.shape) < hidden] = NAN
    found = plackett_luce(table, 0.01).strength
    assert found is not None
    assert kendalltau(found, theta).statistic > (0.9 if hidden < 0.9 else 0.6)


def test_it_agrees_with_a_public_implementation(shared):
    folder = shared / "golden" / "statistics" / "plackett_luce"
    given, expected = (json.loads((folder / f"{n}.json").read_text()) for n in ("inputs", "values"))
    k = given["n_items"]
    top = np.full((k, len(given["top1_winner_losers"])), NAN)
    for t, (winner, losers) in enumerate(given["top1_winner_losers"]):
        top[winner, t], top[losers, t] = 1, 0
    cases = {
        "full": ballots(given["full"], k),
        "partial": ballots(given["partial"], k),
        "pairwise": ballots(given["pairwise_winner_loser"], k),
        "top1": top,
    }
    compared = 0
    for name, table in cases.items():
        for key, values in expected[name].items():
            estimator, _, alpha = key.partition("|alpha=")
            maximum = estimator.startswith("opt") or (
                estimator[:4] in ("ilsr", "mm_r", "mm_p") and alpha == "0.0"
            )
            if maximum:
                found = plackett_luce(table, float(alpha))
                assert found.strength == pytest.approx(values["centred"], abs=1e-5), (name, key)
                assert found.log_likelihood == pytest.approx(values["log_likelihood"], abs=1e-6)
                compared += 1
    assert compared == 15


def test_bradley_terry_by_hand():
    found = bradley_terry([[0, 6, 8], [4, 0, 7], [2, 3, 0]])
    assert found.strength is not None
    pi = np.exp(found.strength)
    assert pi / pi.sum() == pytest.approx([0.5245, 0.3370, 0.1384], abs=1e-4)
    assert elo(found.strength, center=0) == pytest.approx([102.7, 25.9, -128.7], abs=0.1)


def test_bradley_terry_is_a_logistic_regression():
    from statsmodels.discrete.discrete_model import Logit

    wins = np.array([[0, 3, 5, 2], [4, 0, 2, 6], [1, 5, 0, 3], [2, 1, 4, 0]])
    rows, outcomes = [], []
    for i in range(4):
        for j in range(4):
            for _ in range(wins[i, j]):
                row = np.zeros(4)
                row[i], row[j] = 1, -1
                rows += [row, -row]
                outcomes += [1, 0]
    fitted = Logit(outcomes, np.array(rows)[:, 1:]).fit(disp=0).params
    theta = np.concatenate([[0], fitted])
    assert bradley_terry(wins).strength == pytest.approx(theta - theta.mean(), abs=1e-5)


@pytest.mark.parametrize("k", [2, 3, 5, 8, 13])
def test_a_tournament_takes_one_match_less_than_players_and_the_best_wins(k):
    rng = np.random.default_rng(k)
    for _ in range(5):
        matches = single_elimination(k, min, rng)
        assert len(matches) == k - 1
        assert matches[-1].winner == 0
        assert sorted(m.loser for m in matches) == list(range(1, k))


def test_ratings_are_recovered_from_tournaments():
    rng = np.random.default_rng(6)
    rating = np.arange(8) * 100.0

    def play(a: int, b: int) -> int:
        return a if rng.random() < 1 / (1 + 10 ** ((rating[b] - rating[a]) / 400)) else b

    matches = [m for _ in range(500) for m in single_elimination(8, play, rng)]
    found = bradley_terry(wins_of(matches, 8)).strength
    assert found is not None
    assert elo(found) == pytest.approx(rating - rating.mean() + 1000, abs=60)
    shuffled = [matches[i] for i in rng.permutation(len(matches))]
    assert bradley_terry(wins_of(shuffled, 8)).strength == pytest.approx(found)


def test_refusals():
    with pytest.raises(BadInput, match="0 or more, got -1"):
        plackett_luce([[1], [0]], -1)
    with pytest.raises(BadInput, match=r"numbers of 0 or more, got shape \(1, 2\)"):
        bradley_terry([[0, 1]])
    with pytest.raises(BadInput, match="two competitors at least, got 1"):
        single_elimination(1, min, np.random.default_rng(0))
    with pytest.raises(BadInput, match="the judge named 7 the winner"):
        single_elimination(2, lambda a, b: 7, np.random.default_rng(0))
    assert wins_of([Match(0, 1), Match(0, 1)], 2).tolist() == [[0, 2], [0, 0]]
