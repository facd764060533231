"""UMPIRE: how far apart a model's answers to one question are in meaning, and how unlikely it found them.

A forgotten fact should leave a model as uncertain as the retrained one. A refusal that is always the same has hardly any
semantic volume: silence, but confident silence, which tells it from not knowing.

Lau et al. 2026, arXiv:2602.24195. Values depend on the number of answers and, where answers repeat, on `eps`: compare
models at one setting, by ranks or differences. Unlearning moves a model's own embeddings, so embeddings of a fixed model
are the safer choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from expunge.errors import BadInput

EPS = 1e-8


def semantic_volume(embeddings: ArrayLike, eps: float = EPS) -> float:
    """``logdet(E E^T + eps I) / (2k)``, nats, of `[k, d]` embeddings scaled to length 1; at most about 0.

    0 for orthogonal answers, and ``((k - 1) ln eps + ln(k + eps)) / (2k)`` for equal ones.
    """
    vectors = np.asarray(embeddings, dtype=float)
    if vectors.ndim != 2 or not len(vectors):
        raise BadInput(f"embeddings of k answers have shape [k, d], got {vectors.shape}")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(vectors).all() or not norms.all():
        raise BadInput("an embedding is zero or not finite; leave the answer out")
    unit = vectors / norms
    return volume_of(unit @ unit.T, eps)


def volume_of(similarity: ArrayLike, eps: float = EPS) -> float:
    """`semantic_volume` from the cosines `[k, k]` of the embeddings.

    >>> round(volume_of([[1.0, 0.0], [0.0, 1.0]]), 6)
    0.0
    """
    cosines = np.asarray(similarity, dtype=float)
    if cosines.ndim != 2 or cosines.shape[0] != cosines.shape[1] or not len(cosines):
        raise BadInput(f"cosines of k answers have shape [k, k], got {cosines.shape}")
    return float(np.linalg.slogdet(cosines + eps * np.eye(len(cosines)))[1] / (2 * len(cosines)))


def incoherence(token_logp: Sequence[ArrayLike], *, per_token: bool = False) -> float:
    """Mean over answers of 1 - P, in [0, 1]; P is the answer's probability, or with `per_token` its geometric mean.

    Args:
        token_logp: log-probabilities of each answer's tokens, nats.
        per_token: for sentences, whose whole probability is about 0.
    """
    if not len(token_logp):
        raise BadInput("there are no answers to take a probability of")
    reduce = np.mean if per_token else np.sum
    return float(np.mean([1 - np.exp(reduce(np.asarray(logp, dtype=float))) for logp in token_logp]))


def umpire(
    embeddings: ArrayLike,
    token_logp: Sequence[ArrayLike],
    weight: float = 1.0,
    *,
    per_token: bool = False,
    eps: float = EPS,
) -> float:
    """``semantic_volume + weight * incoherence``, nats; larger is more uncertain.

    `weight` must be one for all models that are compared: public code takes |median volume / median incoherence| over a
    development set of each model, see `adaptive_weight`, which makes their values incomparable.
    """
    if len(np.asarray(embeddings)) != len(token_logp):
        raise BadInput(
            f"{len(np.asarray(embeddings))} embeddings but {len(token_logp)} answers; give one for each"
        )
    return semantic_volume(embeddings, eps) + weight * incoherence(token_logp, per_token=per_token)


def adaptive_weight(volumes: ArrayLike, incoherences: ArrayLike) -> float:
    """``|median(volumes) / median(incoherences)|`` over questions: the weight that makes both parts equally large."""
    below = float(np.median(np.asarray(incoherences, dtype=float)))
    if below == 0:
        raise BadInput("half of the questions have an incoherence of 0; choose the weight yourself")
    return abs(float(np.median(np.asarray(volumes, dtype=float))) / below)
