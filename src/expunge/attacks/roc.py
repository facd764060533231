"""How well a membership attack separates: area under the ROC curve, and members found at few false alarms."""

from __future__ import annotations

import math

import numpy as np

from expunge.attacks.base import Attack, Measure
from expunge.metrics.base import Estimate, Undefined
from expunge.record import Score
from expunge.stats.epsilon import epsilon_of_scores
from expunge.stats.intervals import delong, wilson

FEWEST_ROWS = 10
"""Rows that each side of a ROC curve must have."""
RATES = {"1-percent": 0.01, "0.1-percent": 0.001}
"""False-positive rates at which members are counted (Carlini et al., S&P 2022), by their name in scores."""


def roc_measures(name: str, attacker: str) -> tuple[Measure, ...]:
    """The measures of a membership attack called `name`: forget rows are the positives, holdout rows the negatives.

    `attacker` is what titles have in brackets, the statistic and the attacker, as in "Membership AUC (loss, logistic)".
    """

    def measure(suffix: str, title: str, unit: str, definition: str, margin: float | None = None) -> Measure:
        named = f"{title} ({attacker})"
        return Measure(f"{name}-{suffix}", definition, unit, title=named, low=0.0, high=1.0, margin=margin)

    return (
        measure(
            "auc",
            "Membership AUC",
            "AUC",
            "Probability that a random forget row scores above a random matched holdout row, ties counted half; "
            "0.5: they cannot be told apart. DeLong's interval over rows.",
            margin=0.05,
        ),
        measure(
            "accuracy",
            "Balanced membership accuracy",
            "share",
            "Balanced accuracy of the attacker's own decision: mean of the shares of forget rows called members and of "
            "holdout rows called non-members; 0.5 is guessing. Undefined where the attack has no threshold of its own.",
        ),
        *(
            measure(
                f"tpr-at-{words}-fpr",
                f"Members found at {100 * rate:g} % false positives",
                "share",
                f"Share of forget rows above a threshold that at most {100 * rate:g} % of the holdout rows exceed, one of their "
                f"own scores; {rate:g} is guessing. Wilson's interval over forget rows with the threshold held fixed. "
                f"Undefined with fewer than {round(1 / rate)} holdout rows: so small a rate cannot be told from 0.",
            )
            for words, rate in RATES.items()
        ),
        measure(
            "tpr-at-smallest-fpr",
            "Members found without a false positive",
            "share",
            "Share of forget rows above every one of the n holdout rows: members found without a false alarm, at the "
            "smallest false-positive rate that these rows resolve, below 1/n. Wilson's interval over forget rows.",
        ),
        Measure(
            f"{name}-epsilon",
            "Lower bound, at 95 % confidence, on the epsilon of any (epsilon, 1e-5) guarantee that forget rows look like holdout "
            "rows: Clopper-Pearson limits of the two error rates at the best threshold, which is chosen on one half of the "
            "rows and counted on the other. Rows are taken as independent trials. 0 says that nothing was shown; n rows on "
            "each side can show at most about ln(n / 7.4). The retrained models' value is its floor.",
            "nats",
            direction="lower",
            title=f"Epsilon shown ({attacker})",
            low=0.0,
        ),
    )


def roc_scores(
    attack: Attack, members: np.ndarray, nonmembers: np.ndarray, threshold: float | None = 0.0
) -> list[Score]:
    """The scores for `roc_measures` of the attack's name.

    Args:
        attack: whose scores they are.
        members: `[m]` attack scores of the forget rows; higher says member.
        nonmembers: `[n]` of holdout rows.
        threshold: above it the attacker says member; None where the attack has none.
    """
    for side, values in (("forget rows", members), ("holdout rows of the forgotten groups", nonmembers)):
        if len(values) < FEWEST_ROWS:
            raise Undefined(f"only {len(values)} {side} to attack; at least {FEWEST_ROWS} are needed")
    area, interval = delong(members, nonmembers)
    scores = [attack.score(f"{attack.name}-auc", Estimate(area, len(members), interval))]
    name = f"{attack.name}-accuracy"
    if threshold is None:
        scores.append(attack.undefined(name, "the attack ranks rows and has no threshold of its own"))
    else:
        called = (np.mean(members > threshold), np.mean(nonmembers <= threshold))
        scores.append(attack.score(name, Estimate(float(np.mean(called)), len(members) + len(nonmembers))))
    n = len(nonmembers)
    for words, rate in RATES.items():
        name = f"{attack.name}-tpr-at-{words}-fpr"
        if n * rate < 1 - 1e-9:
            scores.append(
                attack.undefined(
                    name,
                    f"{n} holdout rows resolve no false-positive rate below {1 / n:.2g}; "
                    f"at least {round(1 / rate)} are needed",
                )
            )
        else:
            scores.append(attack.score(name, found_at(members, nonmembers, rate)))
    scores.append(attack.score(f"{attack.name}-tpr-at-smallest-fpr", found_at(members, nonmembers, 0.0)))
    shown = Estimate(epsilon_of_scores(members, nonmembers), len(members) + len(nonmembers))
    return [*scores, attack.score(f"{attack.name}-epsilon", shown)]


def found_at(members: np.ndarray, nonmembers: np.ndarray, rate: float) -> Estimate:
    """Share of `members` above a threshold that at most the share `rate` of `nonmembers` exceeds.

    The threshold is one of the non-members' own scores, never interpolated.
    """
    allowed = math.floor(len(nonmembers) * rate + 1e-9)  # 0.001 * 3000 is 3, not 2.9999999999999996
    threshold = np.sort(nonmembers)[::-1][min(allowed, len(nonmembers) - 1)]
    above = int((members > threshold).sum())
    return Estimate(above / len(members), len(members), wilson(above, len(members)))
