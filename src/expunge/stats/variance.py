"""Variance components: how much of the spread between runs is the data, the initialization, the order."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from expunge.errors import BadInput
from expunge.stats.intervals import finite_values


class Component(NamedTuple):
    """What one factor contributes."""

    variance: float | None
    """In the square of the values' unit, 0 or more; None where the runs do not tell."""
    share: float | None
    """Of the sum of all components."""
    reason: str
    """Why there is none; '' where there is."""


def variance_components(values: ArrayLike, factors: Mapping[str, Sequence[object]]) -> dict[str, Component]:
    """Random effects of each factor and a residual, by restricted maximum likelihood (`statsmodels` MixedLM).

    The model is ``value = mean + sum over factors of effect(level) + residual``, all effects independent and normal, factors
    crossed. In balanced designs where none is 0 the estimates are those of the analysis of variance. The residual holds
    interactions and whatever was not varied on purpose. Few levels say little: with five, a factor's variance is known
    within a factor of ten.

    Args:
        values: `[runs]` one score per run.
        factors: by name (data, init, order, ...), the level of each run.

    A factor with fewer than two levels, one level per run, or the same grouping as another cannot be told apart, and is undefined
    with that reason; the others are estimated without it.
    """
    values = finite_values(values)
    reasons: dict[str, str] = {}
    groupings: dict[str, np.ndarray] = {}
    for name, levels in factors.items():
        if len(levels) != len(values):
            raise BadInput(
                f"factor '{name}' has {len(levels)} levels for {len(values)} values; there must be one per run"
            )
        index = np.unique(np.asarray([str(level) for level in levels]), return_inverse=True)[1]
        n = len(np.unique(index))
        twin = next((other for other, seen in groupings.items() if _same(index, seen)), None)
        if n < 2:
            reasons[name] = f"it has {n} level{'s' * (n != 1)}; vary it to know"
        elif n == len(values):
            reasons[name] = "every run has a level of its own, which the residual cannot be told from"
        elif twin is not None:
            reasons[name] = f"it varies only together with '{twin}'"
        else:
            groupings[name] = index
    found = _fit(values, groupings) if groupings else {}
    if not groupings and len(values) > 1:
        found = {"residual": float(values.var(ddof=1))}
    if len(values) < 2:
        reasons["residual"] = "it takes two runs at least"
    total = math.fsum(found.values())
    return {
        name: Component(None, None, reasons[name])
        if name in reasons
        else Component(found[name], found[name] / total if total else None, "")
        for name in (*factors, "residual")
    }


def _same(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether two factors divide the runs alike."""
    return len(np.unique(one)) == len(np.unique(two)) == len(np.unique(np.stack([one, two]), axis=1).T)


def _fit(values: np.ndarray, groupings: Mapping[str, np.ndarray]) -> dict[str, float]:
    from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec

    scale = float(values.std())
    if scale == 0:
        return {**dict.fromkeys(groupings, 0.0), "residual": 0.0}
    designs = [np.eye(index.max() + 1)[index] for index in groupings.values()]
    names = [[str(c) for c in range(d.shape[1])] for d in designs]
    spec = VCSpec(list(groupings), [[n] for n in names], [[d] for d in designs])
    model = MixedLM(
        (values - values.mean()) / scale, np.ones((len(values), 1)), np.zeros(len(values)), exog_vc=spec
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a component of 0 lies on the boundary, which it warns of
        fitted = model.fit(reml=True, method=["lbfgs", "powell"])
    parts = {name: float(v) * scale**2 for name, v in zip(groupings, fitted.vcomp, strict=True)}
    return {**parts, "residual": float(fitted.scale) * scale**2}
