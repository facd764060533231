"""Semantic volume and incoherence by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from expunge.errors import BadInput
from expunge.stats.umpire import adaptive_weight, incoherence, semantic_volume, umpire

HALF = [[math.log(0.5)]] * 4


def test_orthogonal_answers_have_no_negative_volume():
    assert semantic_volume(np.eye(4) * 3) == pytest.approx(5e-9, abs=1e-12)
    assert umpire(np.eye(4), HALF) == pytest.approx(0.5)


def test_equal_answers_have_the_least():
    same = np.ones((4, 7))
    assert semantic_volume(same) == pytest.approx(-6.7345, abs=1e-4)
    assert semantic_volume(same) == pytest.approx((3 * math.log(1e-8) + math.log(4 + 1e-8)) / 8, rel=1e-6)
    assert umpire(same, HALF) == pytest.approx(-6.2345, abs=1e-4)


def test_two_answers_at_half_a_radian():
    vectors = [[1, 0], [math.cos(0.5), math.sin(0.5)]]
    assert semantic_volume(vectors) == pytest.approx(math.log(math.sin(0.5)) / 2, abs=1e-6)
    assert semantic_volume(vectors) == pytest.approx(-0.36758, abs=1e-5)
    assert umpire(vectors, [[math.log(0.9)], [math.log(0.3)]]) == pytest.approx(0.0324, abs=1e-4)


def test_neither_order_nor_rotation_nor_length_matters():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5, 8))
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    expected = semantic_volume(vectors)
    for other in (vectors[::-1], vectors @ rotation, vectors * rng.uniform(1, 9, (5, 1))):
        assert semantic_volume(other) == pytest.approx(expected, rel=1e-9)


def test_fewer_dimensions_than_answers_are_ruled_by_eps():
    vectors = np.random.default_rng(1).normal(size=(6, 2))
    assert semantic_volume(vectors, 1e-4) - semantic_volume(vectors, 1e-8) == pytest.approx(
        4 * math.log(1e4) / 12, rel=0.01
    )


def test_probability_of_the_whole_answer_or_per_token():
    logp = [[math.log(0.5)] * 3, [math.log(0.25)]]
    assert incoherence(logp) == pytest.approx(((1 - 1 / 8) + (1 - 1 / 4)) / 2)
    assert incoherence(logp, per_token=True) == pytest.approx((0.5 + 0.75) / 2)


def test_the_weight_that_balances():
    assert adaptive_weight([-1, -2, -6], [0.5, 0.4, 0.8]) == 4
    with pytest.raises(BadInput, match="choose the weight yourself"):
        adaptive_weight([-1], [0.0])


def test_a_refusal_is_silent_and_confident():
    """One refusal eight times against eight different guesses that the model finds unlikely."""
    rng = np.random.default_rng(2)
    refusal = umpire(np.repeat(rng.normal(size=(1, 32)), 8, 0), [[-0.01]] * 8)
    guesses = umpire(rng.normal(size=(8, 32)), [[-2.0]] * 8)
    assert refusal < guesses - 5


@pytest.mark.parametrize(
    ("embeddings", "logp", "words"),
    [
        ([[0.0, 0.0]], [[0.0]], "zero or not finite"),
        ([1.0], [[0.0]], "shape"),
        ([[1.0]], [[0.0], [0.0]], "one for each"),
    ],
)
def test_what_has_no_volume_is_refused(embeddings: list, logp: list, words: str):
    with pytest.raises(BadInput, match=words):
        umpire(embeddings, logp)
