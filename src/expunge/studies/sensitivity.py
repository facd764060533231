"""How much a method's result depends on its parameters, from all trials of a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field
from scipy import stats

from expunge.record import Record
from expunge.studies.space import Dimension

NEAR = {"percentage points": 5.0, "% of the retrained error": 10.0}
"""A gap difference that counts as none, by unit: as the verdicts' margins of accuracies and errors."""
FEWEST = 5
"""Trials that succeeded, below which no parameter's importance is given."""


class Sensitivity(Record):
    """What the trials say together."""

    near_best: float = Field(
        description="share of all trials, failed ones included, whose gap is within `margin` of the least"
    )
    margin: float = Field(description="in the unit of the gap")
    failed: int = Field(description="trials without a gap")
    importance: dict[str, float | None] = Field(
        description="by parameter, share of the variance of the gaps' ranks that it explains by itself; None where unknown"
    )


def sensitivity(
    dimensions: Sequence[Dimension], trials: Sequence[tuple[dict[str, Any], float | None]], unit: str
) -> Sensitivity | None:
    """Sensitivity over `trials` (parameters and gap, None where it failed); None where all failed.

    Importance of a number is the square of Spearman's rank correlation with the gap, which sees monotone dependence
    only; of a choice, the share of the ranks' variance between its values (the effect size eta² of Kruskal and Wallis).
    Neither sees interactions. The trials are those of a search that goes where gaps are small: not a uniform sample.
    """
    done = [(parameters, gap) for parameters, gap in trials if gap is not None]
    if not done:
        return None
    gaps = np.asarray([gap for _, gap in done])
    margin = NEAR[unit]
    importance = {
        d.parameter: _importance([p[d.parameter] for p, _ in done], gaps, d.kind == "choice")
        for d in dimensions
    }
    return Sensitivity(
        near_best=float((gaps <= gaps.min() + margin).sum() / len(trials)),
        margin=margin,
        failed=len(trials) - len(done),
        importance=importance,
    )


def _importance(values: Sequence[Any], gaps: np.ndarray, choice: bool) -> float | None:
    ranks = stats.rankdata(gaps)
    total = float(((ranks - ranks.mean()) ** 2).sum())
    if len(values) < FEWEST or len(set(values)) < 2 or total == 0:
        return None
    if not choice:
        return float(np.corrcoef(stats.rankdata(np.asarray(values, dtype=float)), ranks)[0, 1] ** 2)
    between = 0.0
    for value in set(values):
        mine = ranks[[v == value for v in values]]
        between += len(mine) * float((mine.mean() - ranks.mean()) ** 2)
    return between / total
