"""Adjusting p-values for how many tests were made, with the tests' names kept.

Twenty true null hypotheses tested at 5 % each are all kept in only 36 % of cases. An adjusted p-value can be compared
with the level directly, whatever else was tested in the same family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
from scipy.stats import false_discovery_control

from expunge.errors import BadInput

Name = TypeVar("Name", bound=Hashable)


def holm(p_values: Mapping[Name, float | None]) -> dict[Name, float | None]:
    """Adjusted p-values that bound the probability of any false rejection in the family (Holm 1979).

    In ascending order, the i-th of m (from 1) becomes the largest of ``min(1, (m - j + 1) p_j)`` over j up to i. Valid under
    any dependence between the tests. For primary questions, declared before the data were seen.

    A test that could not be made (None) stays None and is not counted in m.

    >>> holm({"accuracy": 0.01, "rouge": 0.04, "auc": 0.03, "mae": None})
    {'accuracy': 0.03, 'rouge': 0.06, 'auc': 0.06, 'mae': None}
    """
    return _adjusted(p_values, _step_down)


def benjamini_hochberg(p_values: Mapping[Name, float | None]) -> dict[Name, float | None]:
    """Adjusted p-values that bound the expected share of false rejections among all (Benjamini & Hochberg 1995).

    In ascending order, the i-th of m becomes the smallest of ``min(1, m p_j / j)`` over j from i on. Valid for independent
    and for positively dependent tests. For tables that are searched for something to look into.

    A test that could not be made (None) stays None and is not counted in m.

    >>> benjamini_hochberg({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.04, 'c': 0.04}
    """
    return _adjusted(p_values, false_discovery_control)


def _adjusted(
    p_values: Mapping[Name, float | None], adjust: Callable[[np.ndarray], np.ndarray]
) -> dict[Name, float | None]:
    given = {name: float(p) for name, p in p_values.items() if p is not None}
    for name, p in given.items():
        if math.isnan(p) or not 0 <= p <= 1:
            raise BadInput(
                f"the p-value of '{name}' is {p}; it must lie between 0 and 1, or be None where there is none"
            )
    found = dict(zip(given, adjust(np.array(list(given.values()))).tolist(), strict=True))
    return {name: found.get(name) for name in p_values}


def _step_down(p: np.ndarray) -> np.ndarray:
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted
