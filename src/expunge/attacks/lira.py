"""LiRA and U-LiRA: one attacker per row, calibrated with shadow models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from expunge.attacks.base import Attack, Scene, Shadow
from expunge.attacks.roc import FEWEST_ROWS, roc_measures, roc_scores
from expunge.attacks.shadows import pool_of
from expunge.evidence import Evidence
from expunge.families import Family
from expunge.metrics.base import Undefined, finite_values
from expunge.parameters import param
from expunge.problem import Problem
from expunge.record import Score

ENOUGH_FOR_A_ROW = 64
"""Shadow models from which the variance is estimated row by row; below, one variance for all rows does better (Carlini et
al., S&P 2022, section VI-C)."""


@dataclass(frozen=True)
class Gaussians:
    """A Gaussian per row and component: what shadow models say about the row."""

    mean: np.ndarray
    """`[n, d]`."""
    deviation: np.ndarray
    """`[n, d]` standard deviation, above 0."""

    @classmethod
    def fit(cls, values: np.ndarray, chosen: np.ndarray, *, per_row: bool) -> Gaussians:
        """Mean of each row over the chosen models; variance of each row or, pooled within rows, of all.

        Args:
            values: `[k, n, d]` statistic by model, row and component.
            chosen: `[k, n]` bool: which models count for which row; two at least for each.
            per_row: whether rows have variances of their own.
        """
        weight = chosen[..., None].astype(np.float64)
        count = weight.sum(0)
        if count.min() < 2:
            raise Undefined("a row has fewer than two shadow models on one side; ask for more shadows")
        mean = (weight * values).sum(0) / count
        squares = (weight * (values - mean) ** 2).sum(0)
        pooled = squares.sum(0) / (count - 1).sum(0)
        if not pooled.min() > 0:
            raise Undefined("all shadow models say the same about every row; nothing to calibrate with")
        # A floor, for a row on which a few models happen to agree would otherwise decide the curve alone.
        variance = (
            np.maximum(squares / (count - 1), 1e-6 * pooled)
            if per_row
            else np.broadcast_to(pooled, mean.shape)
        )
        return cls(mean, np.sqrt(variance))

    def log_density(self, observed: np.ndarray) -> np.ndarray:
        """`[n]` log density of `observed` (`[n, d]`), components independent, nats."""
        return stats.norm.logpdf(observed, self.mean, self.deviation).sum(-1)

    def log_below(self, observed: np.ndarray) -> np.ndarray:
        """`[n]` log probability of a value of at most `observed`."""
        return stats.norm.logcdf(observed, self.mean, self.deviation).sum(-1)

    def log_farther(self, observed: np.ndarray) -> np.ndarray:
        """`[n]` log probability of a value at least as far from 0 as `observed`."""
        upper = stats.norm.logsf(np.abs(observed), self.mean, self.deviation)
        return np.logaddexp(upper, stats.norm.logcdf(-np.abs(observed), self.mean, self.deviation)).sum(-1)


class Lira(Attack):
    """Likelihood ratio of each row between shadow models that were trained on it and shadow models that were not.

    The statistic phi of a row is ln p_y - ln(1 - p_y) for a classifier (near Gaussian over models, unlike a loss), the
    signed error for a regressor (several target columns as independent), minus the loss otherwise. Over the shadow models
    with the row among their training data and over those without, a Gaussian each is fitted. Then

        online:   Lambda = ln N(phi; mu_in, s_in) - ln N(phi; mu_out, s_out), and the attacker says member above 0,
        offline:  Lambda = ln P(a model without the row looks at most as much like a member), one-sided, s_out only,

    and the rows are ranked by Lambda: forget rows against holdout rows of the same groups. Half of the shadow models are
    trained on each row. On a model that never saw the forget rows the AUC is 0.5 but for chance, as no row of either
    side was trained on.

    Cost: training `shadows` models, once for all methods and seeds of a study.

    Deviations: the attacker knows all retained rows and draws only the rows in question at random, where Carlini et al.
    draw the whole training set (a stronger attacker, and shadow models of the attacked model's size); the fixed variance is
    pooled within rows, where theirs also holds the spread between rows; no augmented queries.
    """

    name = "lira"
    paper = "Carlini et al., IEEE S&P 2022, arXiv:2112.03570"
    threat_model = "logits and labels; all retained rows; the rows in question; the training recipe and compute to repeat it"
    access = "logits"
    likelihood = True
    measures = roc_measures("lira", "likelihood ratio, LiRA")
    needs = frozenset({"retain", "holdout", "architecture", "recipe"})
    trains = True

    shadows: int = param(
        16, "shadow models, half of them trained on each row", source="ours, for cost; the paper uses up to 256", ge=4, le=4096,
        multiple_of=2,
    )  # fmt: skip
    variant: Literal["online", "offline"] = param(
        "online", "calibrate with both kinds of shadow model, or only with those without the row", source="the paper's stronger"
    )  # fmt: skip
    variance: Literal["auto", "row", "global"] = param(
        "auto", f"of each row or one for all; auto: of each row from {ENOUGH_FOR_A_ROW} shadows up", source="the paper's advice"
    )  # fmt: skip

    @classmethod
    def obstacles(cls, problem: Problem) -> list[str]:
        """Also too few rows in question to draw a curve through: shadow models are not trained in vain."""
        found = super().obstacles(problem)
        if found:
            return found
        pool = pool_of(problem)
        sides = {"forget rows": pool.forget, "holdout rows of the groups in the forget set": pool.holdout}
        return [
            f"it needs at least {FEWEST_ROWS} {n}, not {len(r)}"
            for n, r in sides.items()
            if len(r) < FEWEST_ROWS
        ]

    def shadow_models(self) -> int:  # noqa: D102
        return self.shadows

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {"shadow models": self.shadows}

    def quantities(self, family: Family) -> set[str]:  # noqa: D102
        return {statistic_of(family)}

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        statistic = statistic_of(scene.problem.family)
        sides = [
            self._lambda(scene.evidence(split, [statistic]), split, scene.shadows, statistic)
            for split in ("forget", "holdout")
        ]
        return roc_scores(self, *sides, threshold=0.0 if self.variant == "online" else None)

    def _lambda(self, seen: Evidence, split: str, shadows: Sequence[Shadow], statistic: str) -> np.ndarray:
        """`[n]` Lambda of the rows of `split` that are in the pool."""
        rows = np.flatnonzero([i in shadows[0].member for i in seen.ids]) if shadows else np.arange(0)
        if not len(rows):
            raise Undefined(f"no shadow model was trained with and without rows of '{split}'")
        ids = [seen.ids[row] for row in rows]
        observed = _values(seen, statistic)[rows]
        said = np.stack([_values(_aligned(self._views(s)[split], ids), statistic) for s in shadows])
        member = np.asarray([[s.member[i] for i in ids] for s in shadows])
        per_row = self.variance == "row" or (self.variance == "auto" and len(shadows) >= ENOUGH_FOR_A_ROW)
        outside = Gaussians.fit(said, ~member, per_row=per_row)
        if self.variant == "online":
            inside = Gaussians.fit(said, member, per_row=per_row)
            return inside.log_density(observed) - outside.log_density(observed)
        return outside.log_farther(observed) if statistic == "error" else outside.log_below(observed)

    def _views(self, shadow: Shadow) -> Mapping[str, Evidence]:
        """What the attacker compares the attacked model with, by split."""
        return shadow.before


class ULira(Lira):
    """LiRA against unlearning: rows that were trained on and then unlearned, against rows that were never trained on.

    As `lira`, but every shadow model first unlearns its half of the pool with the method, parameters included, that made the
    attacked model. Lambda then asks of each row: is this what the method leaves of a row it forgot, or how models speak of a
    row they have never seen? An AUC above 0.5 is what the method fails to remove. On the target, where nothing was unlearned,
    it is `lira`; on a retrained model 0.5 but for chance.

    Cost: one run of the method for each shadow model, on top of training them.

    Deviations: those of `lira`; a shadow without a row forgets other rows of the pool, as Hayes et al. prefer, and is not
    retrained.
    """

    name = "u-lira"
    paper = "Hayes et al., SaTML 2025, arXiv:2403.01218 (U-LiRA)"
    threat_model = "as lira, and the unlearning method with its parameters"
    access = "logits"
    measures = roc_measures("u-lira", "likelihood ratio, U-LiRA")
    unlearns_shadows = True

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        if any(shadow.after is None for shadow in scene.shadows):
            return self.unanswered(
                "not_applicable",
                "which method made the model is not known, so shadow models cannot be unlearned alike",
            )
        return super().run(scene)

    def _views(self, shadow: Shadow) -> Mapping[str, Evidence]:
        return shadow.after or {}


def statistic_of(family: Family) -> str:
    """The quantity that LiRA compares: near Gaussian over models where the family has one that is."""
    return next((q for q in ("margin", "error") if q in family.quantities), "loss")


def _values(evidence: Evidence, statistic: str) -> np.ndarray:
    """`[n, d]` the statistic; minus the loss, so that more means member."""
    found = finite_values(evidence[statistic], statistic)
    found = found.reshape(len(found), -1)
    return -found if statistic == "loss" else found


def _aligned(evidence: Evidence, ids: list[str]) -> Evidence:
    """The rows called `ids`, in that order."""
    place = {i: row for row, i in enumerate(evidence.ids)}
    return evidence.select(np.asarray([place[i] for i in ids]))
