"""Copies of training images among generated ones, by the distance to the nearest."""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import NearestNeighbors

from expunge.metrics.base import Estimate, Readings, Undefined, by_group, finite_values, metric
from expunge.stats.intervals import wilson

SHARE = 0.05
"""Of training images that lie nearer to another one than what counts as near."""


def nearest_distances(points: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """`[n]` Euclidean distance of each of `points` (`[n, d]`) to the nearest of `others`; to the nearest other point, if None."""
    pool = points if others is None else others
    index = NearestNeighbors(algorithm="brute").fit(pool)
    if others is None:
        return index.kneighbors(n_neighbors=1)[0][:, 0]
    return index.kneighbors(points, n_neighbors=1)[0][:, 0]


def copies(drawn: np.ndarray, train: np.ndarray, share: float = SHARE) -> np.ndarray:
    """`[n]` bool: which of `drawn` (`[n, d]`) lie nearer to an image of `train` than is usual among the images of `train`.

    What is usual: all but `share` of the training images have their nearest other training image at least so far away.

    Raises:
        Undefined: so many training images repeat each other that the usual distance is 0.
    """
    usual = float(np.quantile(nearest_distances(train), share))
    if usual <= 0:
        raise Undefined(
            f"more than {share:.0%} of the training images have an exact duplicate, so no distance is unusual"
        )
    return nearest_distances(drawn, train) < usual


@metric(
    "copy-rate",
    title="Copies of training images",
    reads={
        ("model", "*"): ["judge_features"],
        ("model", "retain"): ["image_features"],
        ("model", "forget"): ["image_features"],
    },
    splits=["test", "concept"],
    direction="match",
    unit="share",
    low=0,
    high=1,
    families=["diffusion"],
    source="ours; nearest neighbors against the distances within the training set, after Carlini et al. 2023, arXiv:2301.13188",
)
def copy_rate(readings: Readings) -> Estimate:
    """Share of generated images that lie nearer to a training image than 95 % of training images lie to another one.

    Distances are Euclidean on what the judges' last layers read; training images are those of forget and retain rows,
    decoded from their latents. A model that draws as the training images were drawn has 0.05; one that draws a class's
    typical image over and over can have more without copying any, for typical images are near to many. Hence the value to
    match is the retrained model's, and images that count are to be looked at. By group; the interval is Wilson's, over images.
    """
    train = [
        finite_values(readings["model", s]["image_features"], "image_features") for s in ("retain", "forget")
    ]
    pool = np.concatenate(train)
    if len(pool) < 2:
        raise Undefined("one training image has no distance to another")
    near = copies(finite_values(readings.model["judge_features"], "judge_features"), pool)
    return Estimate(
        float(near.mean()),
        len(near),
        wilson(int(near.sum()), len(near)),
        by_group(near, readings.model.groups),
    )
