from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import rankdata

from expunge.errors import BadInput
from expunge.stats.borda import borda, pairwise_wins, ranks_of, two_level_borda

NAN = float("nan")


def test_by_hand():
    # Three systems on four tasks; the mean would put system 0 first.
    scores = [[0.90, 0.50, 0.52, 0.51], [0.40, 0.60, 0.61, 0.60], [0.41, 0.55, 0.56, 0.70]]
    assert borda(scores).count.tolist() == [2, 5, 5]
    assert pairwise_wins(scores).tolist() == [[0, 1, 1], [3, 0, 2], [3, 2, 0]]
    assert borda(scores).share.tolist() == [2 / 8, 5 / 8, 5 / 8]
    assert ranks_of(borda(scores).count).tolist() == [3, 1.5, 1.5]


def test_ties_are_average_ranks():
    scores = np.random.default_rng(0).integers(0, 4, (6, 30)).astype(float)
    average = sum(rankdata(column) - 1 for column in scores.T)
    assert borda(scores).count == pytest.approx(average)


def test_only_order_counts_and_names_do_not():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(5, 8))
    stretched = np.exp(scores) * rng.uniform(1, 9, 8)
    assert borda(stretched).count.tolist() == borda(scores).count.tolist()
    shuffled = rng.permutation(5)
    assert borda(scores[shuffled]).count.tolist() == borda(scores).count[shuffled].tolist()


def test_sparse_ballots_are_shares_of_what_was_compared():
    scores = [[2.0, 1.0, NAN], [1.0, NAN, 1.0], [NAN, 2.0, 2.0], [NAN, NAN, NAN]]
    found = borda(scores)
    assert found.share[:3].tolist() == [0.5, 0.0, 1.0]
    assert np.isnan(found.share[3]) and found.ballots.tolist() == [2, 2, 2, 0]
    # A competitor that is alone on a ballot is compared with nobody.
    assert np.isnan(borda([[1.0], [NAN]]).share).all()
    assert ranks_of(found.share)[:3].tolist() == [2, 3, 1] and np.isnan(ranks_of(found.share)[3])


def test_a_margin_makes_ties():
    scores = [[1.0, 1.0], [0.9, 0.0]]
    assert borda(scores, margin=0.1).count.tolist() == [1.5, 0.5]
    assert pairwise_wins(scores, margin=0.1).tolist() == [[0, 1], [0, 0]]


def test_weights_are_repetitions():
    scores = np.random.default_rng(2).normal(size=(4, 3))
    weighted, repeated = borda(scores, weights=[2, 1, 3]), borda(np.repeat(scores, [2, 1, 3], axis=1))
    assert weighted.count == pytest.approx(repeated.count)
    assert weighted.share == pytest.approx(repeated.share)


def test_it_agrees_with_a_public_implementation(shared):
    folder = shared / "golden" / "statistics" / "rank_aggregation"
    given, expected = (json.loads((folder / f"{n}.json").read_text()) for n in ("inputs", "values"))
    for name in ("tasks_without_ties", "tasks_with_ties"):
        count = borda(given[name]).count.tolist()
        assert count == expected[name]["borda_count_average_ranks_own_arithmetic"]
    assert borda(given["tasks_without_ties"]).count.tolist() == expected["tasks_without_ties"]["borda_count"]
    tables = [np.asarray(t) for t in given["instances"].values()]
    assert (
        borda(np.concatenate(tables, axis=1)).count.tolist() == expected["instances"]["one_level_borda_count"]
    )
    assert two_level_borda(tables).count.tolist() == expected["instances"]["two_level_borda_count"]
    votes = expected["cycle"]["votes_best_first"]
    places = np.array([[vote.index(i) for vote in votes] for i in range(4)])
    assert borda(-places.astype(float)).count.tolist() == expected["cycle"]["borda_count"]


def test_refusals():
    with pytest.raises(BadInput, match=r"two competitors at least, got shape \(1, 2\)"):
        borda([[1.0, 2.0]])
    with pytest.raises(BadInput, match="infinity has no place"):
        borda([[1.0], [np.inf]])
    with pytest.raises(BadInput, match="one weight of 0 or more for each of 1 ballots"):
        borda([[1.0], [2.0]], weights=[-1])
