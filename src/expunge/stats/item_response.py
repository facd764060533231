"""Item response models: how hard each probe is, apart from who was asked.

For probes of equal difficulty on either side of a comparison: a forgotten fact must not be confused with one that was always too
hard. Take the difficulties from models that never saw the forget set, or what was memorized looks easy.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logsumexp

from expunge.errors import BadInput

FEWEST = {"1pl": 5, "2pl": 30}
"""Respondents that each model takes; with fewer, the answers say next to nothing about an item."""
NODES = 41
SLOPE_SD = 0.5
"""Of the prior of log slopes."""


class Items(NamedTuple):
    """A fitted model: ``P(right) = sigmoid(slope (ability - difficulty))``."""

    difficulty: np.ndarray
    """`[items]` in standard deviations of ability; 0 is solved by half of the average respondents."""
    error: np.ndarray
    """`[items]` posterior standard deviation of the difficulty, the other parameters taken as known."""
    slope: np.ndarray
    """`[items]` above 0; one for all in the 1PL model. Items that only the weak solve get slopes near 0: look at those."""
    ability: np.ndarray
    """`[respondents]` posterior mean."""


def item_response(
    responses: ArrayLike, model: Literal["1pl", "2pl"] = "1pl", difficulty_sd: float = 2.0
) -> Items:
    """Fit by marginal maximum likelihood with priors (Bock & Aitkin 1981; Mislevy 1986).

    Abilities are standard normal and integrated out on 41 Gauss-Hermite nodes. Priors: difficulties N(0, difficulty_sd²),
    without which an item that all or none solve would have none, and log slopes N(0, 0.5²). '1pl' has one slope (the Rasch
    model in units of ability), '2pl' one per item; the first takes 5 respondents at least and the second 30.

    Args:
        responses: `[respondents, items]` 1 right, 0 wrong, NaN not asked.
        model: which.
        difficulty_sd: above 0.
    """
    y = np.asarray(responses, dtype=np.float64)
    if y.ndim != 2 or not y.size or not np.isin(y[~np.isnan(y)], (0, 1)).all():
        raise BadInput(f"responses are an array [respondents, items] of 0, 1 and NaN, got shape {y.shape}")
    if len(y) < FEWEST[model]:
        raise BadInput(f"the {model} model needs {FEWEST[model]} respondents, got {len(y)}; ask more models")
    if not difficulty_sd > 0:
        raise BadInput(f"the prior of difficulties needs a standard deviation above 0, got {difficulty_sd}")
    theta, weight = hermegauss(NODES)
    log_weight = np.log(weight / weight.sum())
    right, wrong = np.nan_to_num(y), np.where(np.isnan(y), 0.0, 1 - np.nan_to_num(y))
    asked, items = right + wrong, y.shape[1]

    def at(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Difficulty, slope, `[nodes, items]` logits, `[respondents, nodes]` log joint of answers and ability."""
        b, slope = parameters[:items], np.broadcast_to(np.exp(parameters[items:]), items)
        z = slope * (theta[:, None] - b)
        return b, slope, z, right @ log_expit(z).T + wrong @ log_expit(-z).T + log_weight

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        b, slope, z, joint = at(parameters)
        marginal = np.asarray(logsumexp(joint, axis=1))
        posterior = np.exp(joint - marginal[:, None])
        # [nodes, items]: expected number right beyond what the model says.
        surplus = posterior.T @ right - (posterior.T @ asked) * expit(z)
        log_slope = parameters[items:]
        by_item = -(surplus * z).sum(0)
        gradient = np.concatenate(
            [
                slope * surplus.sum(0) + b / difficulty_sd**2,
                (by_item if model == "2pl" else by_item.sum(keepdims=True)) + log_slope / SLOPE_SD**2,
            ]
        )
        priors = (b @ b) / difficulty_sd**2 / 2 + (log_slope @ log_slope) / SLOPE_SD**2 / 2
        return float(-marginal.sum() + priors), gradient

    start = np.zeros(items + (items if model == "2pl" else 1))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "maxfun": 5000}).x
    b, slope, z, joint = at(found)
    posterior = np.exp(joint - np.asarray(logsumexp(joint, axis=1))[:, None])
    # Louis (1982): the information that the answers would hold were abilities known, less what their uncertainty takes away.
    p = expit(z)
    complete = (posterior.T @ asked * p * (1 - p)).sum(0)
    first = right - asked * (posterior @ p)
    second = right * (posterior @ (1 - p) ** 2) + wrong * (posterior @ p**2)
    missing = (second - first**2).sum(0)
    information = slope**2 * (complete - missing) + 1 / difficulty_sd**2
    error = 1 / np.sqrt(np.maximum(information, 1 / difficulty_sd**2))
    return Items(b, error, np.array(slope), posterior @ theta)
