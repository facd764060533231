"""Gaussian poisons (GUS): what is left of secret noise that was added to the forget rows before training.

Before training, each forget input gets noise ``xi_i ~ N(0, std^2 I)`` that nobody else knows. A model that was trained
on ``x_i + xi_i`` has a loss that falls in the direction of ``xi_i``. The statistic is the projection of the noise on the
unit gradient of the loss at the clean input,

    t_i = - <xi_i, g_i> / (std ||g_i||),    g_i = grad_x loss(f(x_i), y_i).

Where the model does not depend on the noise, ``t_i`` is standard normal whatever the model and its gradients are: exactly,
without retrained or shadow models. What remains of the noise shifts the mean upward (Pawelczyk et al., ICLR 2025,
arXiv:2406.17216).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm

from expunge.errors import BadInput


def poison_statistics(poisons: ArrayLike, gradients: ArrayLike, std: float) -> np.ndarray:
    """`[n]` t of each row; NaN where the gradient is zero and so has no direction.

    Deviation: the paper leaves the sign to what the poisoned model shows; with the minus, remaining influence is positive.

    Args:
        poisons: `[n, d]` the noise that was added.
        gradients: `[n, d]` gradient of each row's loss at its clean input, in the same units.
        std: standard deviation that the noise was drawn with.
    """
    poisons, gradients = np.asarray(poisons, dtype=np.float64), np.asarray(gradients, dtype=np.float64)
    if poisons.ndim != 2 or poisons.shape != gradients.shape:
        raise BadInput(
            f"poisons have shape {poisons.shape} and gradients {gradients.shape}; both must be [rows, inputs]"
        )
    if not std > 0:
        raise BadInput(f"the standard deviation of the poisons is {std}; it must be above 0")
    lengths = np.linalg.norm(gradients, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return -(poisons * gradients).sum(1) / (std * lengths)


def z_score(statistics: ArrayLike) -> float:
    """``sqrt(n) mean(t)``: standard normal where nothing of the noise is left."""
    statistics = np.asarray(statistics, dtype=np.float64)
    return float(math.sqrt(len(statistics)) * statistics.mean())


def power(shift: float, fpr: float = 0.01) -> float:
    """Share of rows that the test at false-positive rate `fpr` finds when t has mean `shift`.

    >>> [round(power(shift), 3) for shift in (0, 1, 2, 3)]
    [0.01, 0.092, 0.372, 0.75]
    """
    return float(norm.sf(norm.isf(fpr) - shift))
