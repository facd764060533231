"""KLoM: how far the outputs of unlearned models are from those of retrained ones, as distributions over training runs.

A single unlearned model can only be compared with retrained ones up to the noise of training. With N of each, every
example has two samples of its margin ``z_y - logsumexp of the other logits``, and the divergence of the one from the
other is what remains when that noise is taken into account (Georgiev et al., ICLR 2025, arXiv:2410.23232).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from expunge.errors import BadInput

BINS = 20
CLIP = 100.0
"""Margins beyond this, in logits, count as this."""
FLOOR = 1e-5
"""Smallest probability of a bin of the reference, so that disjoint samples have ln(1e5) = 11.5 nats."""


def klom(judged: ArrayLike, reference: ArrayLike) -> np.ndarray:
    """`[n]` KL(judged ‖ reference) of the margins of each example over models, nats.

    Per example both samples, clipped to ±100, are counted in 20 equal bins between the smallest and the largest of all
    values, the last bin closed. The reference's probability of a bin that the judged models reach is at least 1e-5; it
    is then normalized again, which keeps the divergence at 0 or above. 0 where all values are equal.

    The estimate is biased upward: two samples of one normal law have 0.36 on average with 100 models each, and 3.0 with
    20. It means something only beside the value of retrained against retrained models, as many on each side.

    The direction is that of the published benchmark; other implementations report KL(reference ‖ judged). Deviation: the
    benchmark leaves out the largest value, for its last bin is open.

    Args:
        judged: `[N, n]` margins of n examples under N models.
        reference: `[M, n]` margins of the same examples under M retrained models.
    """
    judged, reference = margins_of("judged", judged), margins_of("reference", reference)
    if judged.shape[1] != reference.shape[1]:
        raise BadInput(
            f"the judged models have margins of {judged.shape[1]} examples and the reference models of "
            f"{reference.shape[1]}; both must be of the same examples"
        )
    judged, reference = np.clip(judged, -CLIP, CLIP), np.clip(reference, -CLIP, CLIP)
    return np.array([_divergence(p, q) for p, q in zip(judged.T, reference.T, strict=True)])


def _divergence(judged: np.ndarray, reference: np.ndarray) -> float:
    span = (min(judged.min(), reference.min()), max(judged.max(), reference.max()))
    if span[0] == span[1]:
        return 0.0
    p, q = (np.histogram(sample, BINS, span)[0] / len(sample) for sample in (judged, reference))
    reached = p > 0
    q = np.where(reached, np.maximum(q, FLOOR), q)
    q /= q.sum()
    return float((p[reached] * np.log(p[reached] / q[reached])).sum())


def margins_of(whose: str, values: ArrayLike) -> np.ndarray:
    """`[N, n]` margins in float64, checked: one row per model, no NaN."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise BadInput(
            f"the {whose} margins have shape {array.shape}; give an array [models, examples] with a row for each model"
        )
    if np.isnan(array).any():
        raise BadInput(f"the {whose} margins hold NaN; leave models that diverged out")
    return array
