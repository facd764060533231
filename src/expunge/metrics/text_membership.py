"""Membership inference on texts: can forgotten rows be told from never-seen rows by the model's likelihoods?

Every attack gives each row a score, oriented so that higher means less likely trained on; the value is the AUC of telling
holdout rows (higher) from forget rows. 1: the forget rows are still much easier; 0.5: no difference; below 0.5: they
became harder than texts the model never saw, which gives them away as well. The value to match is the retrained model's,
which is 0.5 only where forget and holdout rows are exchangeable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from expunge.evidence import Evidence
from expunge.metrics.base import Estimate, Readings, Undefined, finite_values, metric
from expunge.metrics.memorization import answer_tokens
from expunge.stats.intervals import delong

SHARE = 0.4
"""Share of a text's tokens that min-k and min-k++ look at; what MUSE and OpenUnlearning use."""
FEWEST_ROWS = 10


def loss_score(evidence: Evidence) -> np.ndarray:
    """`[n]` mean negative log-likelihood of the completion's tokens, nats (Yeom et al. 2018)."""
    return finite_values(evidence["loss"], "loss")


def zlib_score(evidence: Evidence) -> np.ndarray:
    """`[n]` mean loss divided by the compressed length of the completion in bytes (Carlini et al. 2021)."""
    return loss_score(evidence) / evidence["zlib_bytes"]


def lowest(values: np.ndarray, share: float) -> float:
    """Mean of the `share` lowest of `values` (`[T]`), at least one of them; NaN where there are none."""
    if not len(values):
        return np.nan
    n = max(1, int(share * len(values)))
    return float(np.partition(values, n - 1)[:n].mean())


def min_k_score(evidence: Evidence, share: float = SHARE) -> np.ndarray:
    """`[n]` minus the mean log-probability of the least likely tokens (Shi et al. 2024)."""
    return np.asarray([-lowest(row, share) for row in _finite_tokens(evidence, "token_logp")])


def min_k_plus_score(evidence: Evidence, share: float = SHARE) -> np.ndarray:
    """`[n]` minus the mean of the lowest standardized log-probabilities (ln p - mu) / sigma (Zhang et al. 2024).

    mu and sigma are mean and standard deviation of ln p over the vocabulary under p itself; sigma is at least 1e-3.
    """
    columns = [_finite_tokens(evidence, f"token_{name}") for name in ("logp", "mean_logp", "std_logp")]
    return np.asarray(
        [
            -lowest((logp - mean) / np.maximum(std, 1e-3), share)
            for logp, mean, std in zip(*columns, strict=True)
        ]
    )


def _finite_tokens(evidence: Evidence, quantity: str) -> list[np.ndarray]:
    # A sum is finite where every term is. NaN would be taken for a row without tokens.
    rows = answer_tokens(evidence, quantity)
    finite_values(np.asarray([row.sum() for row in rows]), "the log-probability of tokens")
    return rows


TextScore = Callable[[Evidence], np.ndarray]


class Attack(NamedTuple):
    """A score of texts and what it reads."""

    words: str
    function: TextScore
    quantities: list[str]
    source: str


SCORES: dict[str, Attack] = {
    "loss": Attack("loss", loss_score, ["loss"], "Yeom et al., CSF 2018, arXiv:1709.01604"),
    "zlib": Attack(
        "loss per compressed byte", zlib_score, ["loss", "zlib_bytes"],
        "Carlini et al., USENIX Security 2021, arXiv:2012.07805",
    ),
    "min-k": Attack(
        f"min-k, the {SHARE:.0%} least likely tokens", min_k_score, ["token_logp", "ends"],
        "Shi et al., ICLR 2024, arXiv:2310.16789",
    ),
    "min-k-plus": Attack(
        f"min-k++, the {SHARE:.0%} lowest standardized tokens", min_k_plus_score,
        ["token_logp", "token_mean_logp", "token_std_logp", "ends"], "Zhang et al., ICLR 2025, arXiv:2404.02936",
    ),
}  # fmt: skip


THREAT = "token log-probabilities; one threshold for all rows (population attack)"


def membership_auc(score: TextScore, forget: Evidence, holdout: Evidence) -> Estimate:
    """AUC of telling holdout from forget rows by `score`, with DeLong's interval."""
    return auc_of_scores(score(forget), score(holdout))


def auc_of_scores(forget: np.ndarray, holdout: np.ndarray) -> Estimate:
    """AUC of telling holdout from forget rows by their scores (`[n]`, `[m]`); rows without one (NaN) are not counted."""
    sides = []
    for name, values in (("holdout", holdout), ("forget", forget)):
        values = finite_values(values[~np.isnan(values)], f"the score of the {name} rows")
        if len(values) < FEWEST_ROWS:
            raise Undefined(f"only {len(values)} {name} rows; at least {FEWEST_ROWS} are needed")
        sides.append(values)
    auc, interval = delong(*sides)
    return Estimate(auc, len(sides[0]) + len(sides[1]), interval)


def _register(name: str) -> None:
    words, score, quantities, source = SCORES[name]

    def function(readings: Readings) -> Estimate:
        return membership_auc(score, readings["model", "forget"], readings["model", "holdout"])

    function.__doc__ = f"""AUC of telling holdout rows from forget rows by their {words}; DeLong interval.

    1: forget rows are still easier than texts never seen; below 0.5: harder, which gives them away too. The value to
    match is the retrained model's.
    """
    metric(
        f"mia-text-{name}",
        title=f"Membership AUC on texts ({words.split(',')[0]})",
        reads={("model", split): quantities for split in ("forget", "holdout")},
        splits=["forget"],
        direction="match",
        unit="AUC",
        low=0,
        high=1,
        families=["causal_lm"],
        source=source,
        attack=THREAT,
    )(function)


for _name in SCORES:
    _register(_name)


@metric(
    "mia-text-reference",
    title="Membership AUC on texts (against a reference model)",
    reads={(role, split): ["loss"] for role in ("model", "retrained") for split in ("forget", "holdout")},
    splits=["forget"],
    direction="match",
    unit="AUC",
    low=0,
    high=1,
    families=["causal_lm"],
    source="Carlini et al., USENIX Security 2021, arXiv:2012.07805",
    attack="token log-probabilities of the model and of one that was never trained on the forget rows",
)
def reference_attack(readings: Readings) -> Estimate:
    """AUC of telling holdout from forget rows by their loss minus the retrained model's loss; DeLong interval.

    The reference takes away what makes a text easy for every model. 0.5 where the model is the reference (all scores tie);
    1: every forget row is easier, relative to the reference, than every holdout row; below 0.5: harder.
    """
    differences = []
    for split in ("forget", "holdout"):
        ours, theirs = Readings(split, readings.evidence).paired("retrained")
        differences.append(ours["loss"] - theirs["loss"])
    return auc_of_scores(*differences)
