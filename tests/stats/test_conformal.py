"""Coverage and size of conformal sets in simulation, with the probabilities known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from expunge.errors import BadInput
from expunge.stats.conformal import aps_scores, lac_scores, prediction_sets, threshold


def world(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of four labels, and labels drawn by them."""
    p = rng.dirichlet(np.ones(4), n)
    return p, (rng.random((n, 1)) > p.cumsum(1)).sum(1)


def test_the_threshold_of_99_rows_is_the_90th_score():
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 100))
    assert threshold(scores, 0.1) == 90
    assert threshold(np.arange(1.0, 10), 0.1) == 9
    assert threshold(np.arange(1.0, 9), 0.1) == np.inf
    assert threshold([], 0.5) == np.inf
    # numpy's quantile by rank is the same thing where the rank exists.
    for n in (19, 50, 333):
        values = np.random.default_rng(n).random(n)
        level = np.ceil((n + 1) * 0.9) / n
        assert threshold(values, 0.1) == np.quantile(values, level, method="inverted_cdf")
    with pytest.raises(BadInput, match="between 0 and 1"):
        threshold([1.0], 1.0)


@pytest.mark.parametrize("how", ["lac", "aps"])
def test_coverage_follows_its_law(how: str):
    """Over repeats the coverage of sets calibrated on 99 rows is Beta(90, 10): mean 0.9, deviation 0.03."""
    rng = np.random.default_rng(1)
    coverage, sizes = [], []
    for _ in range(300):
        (known, labels), (asked, truth) = world(99, rng), world(1000, rng)
        score = (lambda p: lac_scores(p)) if how == "lac" else (lambda p: aps_scores(p, rng))
        found = prediction_sets(score(known), labels, score(asked), 0.1)
        coverage.append(found[np.arange(1000), truth].mean())
        sizes.append(found.sum(1).mean())
    law = stats.beta(90, 10)
    assert np.mean(coverage) == pytest.approx(law.mean(), abs=4 * law.std() / np.sqrt(300))
    assert np.std(coverage) == pytest.approx(np.sqrt(law.var() + 0.09 / 1000), rel=0.15)
    assert stats.kstest(coverage, law.cdf).statistic < 0.12
    assert 2 < np.mean(sizes) < 3


def test_lac_has_the_smaller_sets():
    rng = np.random.default_rng(2)
    (known, labels), (asked, _) = world(5000, rng), world(5000, rng)
    lac = prediction_sets(lac_scores(known), labels, lac_scores(asked)).sum(1).mean()
    aps = prediction_sets(aps_scores(known, rng), labels, aps_scores(asked, rng)).sum(1).mean()
    assert lac < aps


def test_aps_scores_by_hand():
    class Half:
        def random(self, shape: tuple[int, int]) -> np.ndarray:
            return np.full(shape, 0.5)

    found = aps_scores([[0.2, 0.5, 0.3]], Half())  # type: ignore[arg-type]
    np.testing.assert_allclose(found, [[0.5 + 0.3 + 0.1, 0.25, 0.5 + 0.15]])


def test_uniform_probabilities_give_all_or_nothing():
    flat = np.full((40, 4), 0.25)
    assert prediction_sets(lac_scores(flat), np.zeros(40, int), lac_scores(flat)).all()
    surer = np.asarray([[0.24, 0.26, 0.25, 0.25]] * 3)
    assert (prediction_sets(lac_scores(flat), np.zeros(40, int), lac_scores(surer)).sum(1) == 3).all()


def test_by_class_every_class_is_covered():
    """A label whose probability is always underrated loses its coverage in the whole and keeps it by class."""
    rng = np.random.default_rng(3)
    p, y = world(4000, rng)
    p = p * [0.2, 1, 1, 1]
    p /= p.sum(1, keepdims=True)
    known, asked = lac_scores(p[:2000]), lac_scores(p[2000:])
    truth = y[2000:]
    for by_class, low, high in ((False, 0.0, 0.8), (True, 0.86, 0.94)):
        found = prediction_sets(known, y[:2000], asked, by_class=by_class)
        of_first = found[truth == 0, 0].mean()
        assert low < of_first < high
    few = prediction_sets(known[:3], y[:3], asked, by_class=True)
    assert few.all()


def test_shapes_are_refused():
    with pytest.raises(BadInput, match=r"\[n, C\] and \[m, C\]"):
        prediction_sets(np.ones((3, 2)), [0, 1], np.ones((3, 2)))
