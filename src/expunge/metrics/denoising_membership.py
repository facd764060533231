"""Membership inference from a denoiser's losses: training images are denoised better, and not at all timesteps alike.

A row's losses are taken at T fixed draws of timestep and noise, one in each T-th part of the way, so that column j means
about the same noise level in every row. Attacks on the loss averaged over them are the general ones (`mia-loss-logistic` and its
kin); these look at the timesteps. Rows shown, rows asked about and matched non-members are those of all population attacks.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from expunge.evidence import Evidence
from expunge.metrics.base import Estimate, Readings, Reads, Undefined, finite_values, metric
from expunge.metrics.membership import demand_matched, demand_rows, held_out, shown_rows
from expunge.stats.intervals import delong

THREAT = "weights or the denoiser's losses on given images; one attacker for all examples (population attack)"
READS: Reads = {("model", split): ["token_loss"] for split in ("*", "retain", "holdout")}


def _shared(readings: Readings) -> tuple[Evidence, Evidence, Evidence, Evidence]:
    members, nonmembers = shown_rows(readings["model", "retain"], readings["model", "holdout"])
    demand_rows(members, nonmembers)
    asked, matched = held_out(readings)
    demand_matched(readings, asked, matched)
    return members, nonmembers, asked, matched


def losses(rows: Evidence) -> np.ndarray:
    """`[n, T]` logarithm of the loss at each timestep, in the order of the timesteps."""
    found = [np.asarray(row, dtype=np.float64) for row in rows["token_loss"]]
    if len({len(row) for row in found}) != 1 or not len(found[0]):
        raise Undefined("rows without images have no losses at timesteps")
    values = finite_values(np.stack(found), "the loss at a timestep")
    return np.log(np.maximum(values, 1e-30))


@metric(
    "mia-timestep-loss-logistic",
    title="Membership AUC (losses at timesteps, logistic)",
    reads=READS,
    splits=["forget", "retain"],
    direction="match",
    unit="AUC",
    low=0.0,
    high=1.0,
    families=["diffusion"],
    source="after Matsumoto et al., SPW 2023, arXiv:2302.03262, and Carlini et al., USENIX Security 2023, arXiv:2301.13188",
    attack=THREAT,
)
def mia_timestep_losses(readings: Readings) -> Estimate:
    """Area under the ROC curve of a logistic attacker on the logarithms of a row's T losses: asked rows against non-members.

    Standardized, fitted with balanced weights on halves of retained and holdout rows; it can weigh timesteps against each
    other, which an attacker on their mean cannot. The interval is DeLong's, over rows, with the attacker held fixed.
    """
    members, nonmembers, asked, matched = _shared(readings)
    # Sorted, so that the solver's rounding does not depend on the order of the rows.
    shown = [values[np.lexsort(values.T)] for values in (losses(members), losses(nonmembers))]
    labels = np.repeat([1, 0], [len(values) for values in shown])
    attacker = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    attacker.fit(np.concatenate(shown), labels)
    decided = [attacker.decision_function(losses(rows)) for rows in (asked, matched)]
    area, interval = delong(decided[0], decided[1])
    return Estimate(area, len(asked), interval)


@metric(
    "mia-best-timestep-loss",
    title="Membership AUC (loss at the most telling timestep)",
    reads=READS,
    splits=["forget", "retain"],
    direction="match",
    unit="AUC",
    low=0.0,
    high=1.0,
    families=["diffusion"],
    source="Matsumoto et al., SPW 2023, arXiv:2302.03262; Carlini et al., USENIX Security 2023, arXiv:2301.13188",
    attack=THREAT,
)
def mia_best_timestep(readings: Readings) -> Estimate:
    """Area under the ROC curve of minus the loss at one timestep: asked rows against non-members.

    The timestep is the one at which halves of retained and holdout rows are told apart best by a smaller loss; the rows
    asked about have no part in the choice. The interval is DeLong's, over rows, with the timestep held fixed.
    """
    members, nonmembers, asked, matched = _shared(readings)
    shown = [losses(members), losses(nonmembers)]
    labels = np.repeat([1, 0], [len(values) for values in shown])
    areas = [roc_auc_score(labels, -column) for column in np.concatenate(shown).T]
    best = int(np.argmax(areas))
    area, interval = delong(-losses(asked)[:, best], -losses(matched)[:, best])
    return Estimate(area, len(asked), interval)
