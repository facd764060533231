"""Lower bounds on epsilon from an attack: what its errors rule out, with confidence.

Two distributions are (epsilon, delta)-indistinguishable where every event has ``P(S) <= e^epsilon Q(S) + delta``, and the
reverse. An attacker who finds members at a rate that such an epsilon would forbid has shown that it is larger (Kairouz et al.
2015). Rates are estimated from finitely many rows, so their Clopper-Pearson limits are taken (Jagielski et al., NeurIPS 2020;
Nasr et al., S&P 2021).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta

from expunge.errors import BadInput
from expunge.stats.intervals import finite_values

DELTA = 1e-5


def epsilon_bound(
    found: int, members: int, false_alarms: int, nonmembers: int, delta: float = DELTA, level: float = 0.95
) -> float:
    """The epsilon that an attack with these counts exceeds with confidence `level`, nats; 0 where it shows nothing.

    ``max( ln((TPR - delta) / FPR), ln((1 - FPR - delta) / (1 - TPR)), 0 )`` with the lower Clopper-Pearson limit for TPR and
    the upper one for FPR, each at half of the error. The attack must have been fixed before it saw these rows, and the rows be
    independent trials. However well it does, n rows on each side show at most about ``ln(n / 3.7)`` at 95 %: `largest_epsilon`.

    Args:
        found: members called members, of `members`.
        members: rows that are members.
        false_alarms: non-members called members, of `nonmembers`.
        nonmembers: rows that are none.
        delta: of the definition.
        level: one-sided confidence of the bound.
    """
    for count, n, what in ((found, members, "members"), (false_alarms, nonmembers, "non-members")):
        if not 0 <= count <= n or n < 1:
            raise BadInput(
                f"{count} of {n} {what} cannot be; counts are between 0 and the number of rows, above 0"
            )
    error = (1 - level) / 2
    tpr = 0.0 if found == 0 else float(beta.ppf(error, found, members - found + 1))
    rest = nonmembers - false_alarms
    fpr = 1.0 if rest == 0 else float(beta.ppf(1 - error, false_alarms + 1, rest))
    return max(_log_ratio(tpr - delta, fpr), _log_ratio(1 - fpr - delta, 1 - tpr), 0.0)


def largest_epsilon(members: int, nonmembers: int, delta: float = DELTA, level: float = 0.95) -> float:
    """The bound of a perfect attack on so many rows: what they can show at most."""
    return epsilon_bound(members, members, 0, nonmembers, delta, level)


def epsilon_of_scores(
    members: ArrayLike, nonmembers: ArrayLike, delta: float = DELTA, level: float = 0.95, seed: int = 0
) -> float:
    """The bound of the best threshold on attack scores, chosen on one half of the rows and counted on the other.

    The threshold, and whether members lie above or below it, are those with the largest bound on the first half (a random
    one, by `seed`); only the second half is counted, so that the search costs no confidence. Whatever is below guessing on the
    second half counts as 0.

    Args:
        members: `[m]` scores of the members, m at least 2.
        nonmembers: `[n]` of the non-members, n at least 2.
        delta: of the definition.
        level: one-sided confidence.
        seed: of the halves.
    """
    members, nonmembers = finite_values(members), finite_values(nonmembers)
    if len(members) < 2 or len(nonmembers) < 2:
        raise BadInput(
            f"a bound needs two rows on each side, got {len(members)} members and {len(nonmembers)} non-members"
        )
    rng = np.random.default_rng(seed)
    (tune_in, count_in), (tune_out, count_out) = (
        np.array_split(rng.permutation(side), 2) for side in (members, nonmembers)
    )
    cuts = np.unique(np.concatenate([tune_in, tune_out]))
    best = max(
        ((sign, cut) for sign in (1.0, -1.0) for cut in cuts),
        key=lambda rule: _bound(tune_in, tune_out, *rule, delta, level),
    )
    return _bound(count_in, count_out, *best, delta, level)


def _bound(
    members: np.ndarray, nonmembers: np.ndarray, sign: float, cut: float, delta: float, level: float
) -> float:
    found, alarms = (int((sign * side >= sign * cut).sum()) for side in (members, nonmembers))
    return epsilon_bound(found, len(members), alarms, len(nonmembers), delta, level)


def _log_ratio(above: float, below: float) -> float:
    if above <= 0:
        return 0.0
    return math.inf if below <= 0 else math.log(above / below)
