"""Shares of examples by the size of a value: bins that all models share, and the band of retrained models over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from expunge.report.vega import Band, band_of

WIDE = 50.0
"""How many times the smallest value the largest one is, from where a logarithmic axis shows more."""


def bin_edges(pooled: np.ndarray, bins: int) -> tuple[np.ndarray, Literal["linear", "log"]]:
    """`[bins + 1]` edges and kind of scale, from the values of all models together.

    Logarithmic where no value is negative and they span more than `WIDE` times their first percentile; what is below that
    percentile, 0 itself too, is then outside and belongs to the first bin.
    """
    low, high = float(pooled.min()), float(pooled.max())
    floor = max(1e-6, float(np.quantile(pooled, 0.01)))
    if low < 0 or high <= WIDE * floor:
        high = high if high > low else low + 1.0
        return np.linspace(low, high, bins + 1), "linear"
    return np.geomspace(floor, high, bins + 1), "log"


def shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """`[bins]` share of the values in each bin; what lies outside is counted in the first or last one."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return counts / len(values)


def density_band(models: Sequence[np.ndarray], edges: np.ndarray) -> list[Band]:
    """By bin, where the retrained models' shares lie; empty of no model.

    Pointwise: a whole further distribution lies within it less often than each of its bins.

    Args:
        models: one array of values per retrained model, each with one value or more.
        edges: as of `bin_edges`.
    """
    by_bin = np.array([shares(values, edges) for values in models]).T
    return [band for of_bin in by_bin.tolist() if (band := band_of(of_bin, 0.0, 1.0)) is not None]
