"""Density and coverage: how many generated samples fall near each real one, and whether any does."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist


def near_real(real: np.ndarray, drawn: np.ndarray, neighbors: int = 5) -> np.ndarray:
    """`[n]` how many of `drawn` (`[m, d]`) lie in the ball of each of `real` (`[n, d]`).

    A ball reaches to the real row's `neighbors`-th nearest other one, its border left out (Naeem et al., ICML 2020,
    arXiv:2002.09797). Coverage is the share of balls with a sample in them; density the mean of
    ``counts * n / (neighbors * m)`` over m samples, hence ``counts / (neighbors * m) * n`` of each row. NaN where there are
    too few rows for so many neighbors, or a sample is not finite.
    """
    if len(real) <= neighbors or not np.isfinite(drawn).all():
        return np.full(len(real), np.nan)
    radii = np.partition(cdist(real, real), neighbors, axis=1)[:, neighbors]
    return (cdist(real, drawn) < radii[:, None]).sum(1).astype(np.float64)
