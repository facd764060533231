"""Is a forgetting method as good as retraining? Two one-sided tests over seeds (TOST; Schuirmann 1987).

A large p-value of a test for a difference never shows that there is none; it may only mean too few seeds.
The question is turned round: how large a difference counts as none (the *margin*) is declared first, and
the two one-sided Welch tests at level ALPHA reject "larger than the margin" exactly where the 1 - 2 ALPHA
interval of the difference lies within ±margin. The values must be independent: one per separately seeded
run, one per separately seeded retrained model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from expunge.errors import BadInput
from expunge.record import Interval, Score, Verdict, mean_of

ALPHA = 0.05
"""Level of each of the two one-sided tests."""
POWER = 0.8
"""With how much probability the further seeds asked for would decide."""
MOST_SEEDS = 1000
"""Beyond this many further seeds, the number is not named."""

Judgement = Literal["no larger difference", "different", "undecided"]


class Margin(NamedTuple):
    """The largest difference that counts as none."""

    value: float
    reason: str
    relative: bool = False
    """True where `value` is a share of the retrained models' mean, for errors in a target's own unit."""


MARGINS: dict[str, Margin] = {
    "accuracy": Margin(0.05, "5 percentage points, which users notice; near the sampling error of 200 rows"),
    "unlearning-accuracy": Margin(0.05, "5 percentage points of the images, as for accuracy"),
    "*-retain-accuracy": Margin(0.05, "5 percentage points of the images, as for accuracy"),
    "undesired-rate": Margin(0.02, "2 percentage points of the samples: one in fifty"),
    "coverage": Margin(0.05, "5 percentage points of the real images"),
    "concept-probability": Margin(0.05, "5 percentage points of the judge's probability, as for accuracy"),
    "probability": Margin(0.05, "5 percentage points of an answer's probability, as for accuracy"),
    "rouge-*": Margin(0.05, "one word in twenty of the answers"),
    "mia-*": Margin(0.05, "5 points of AUC or efficacy: half of a weak attacker's edge (AUC 0.6)"),
    "tpr-at-*": Margin(0.05, "5 percentage points: at most 6 % of members found where guessing finds 1 %"),
    "zrf": Margin(0.05, "5 % of the scale from the untrained model's distribution to one disjoint from it"),
    "ece": Margin(0.05, "5 percentage points between confidence and accuracy, as for accuracy"),
    "mae": Margin(0.1, "10 % of the retrained models' error: another seed may well change it", relative=True),
    "rmse": Margin(
        0.1, "10 % of the retrained models' error: another seed may well change it", relative=True
    ),
    "r2": Margin(0.05, "5 % of the target's variance"),
}
"""Default margins by metric name (or pattern), in the metric's unit unless relative.

They are conventions: state your own where the use of the model gives one. A relative margin rests on an
estimated mean, so its test is only approximately of level ALPHA. Distances to the retrained models have none:
they are not compared by a difference of means.
"""


class Outcome(NamedTuple):
    """What the tests say."""

    judgement: Judgement
    difference: float | None
    interval: Interval | None
    more_seeds: int | None


def judge(values: ArrayLike, reference_values: ArrayLike, margin: float) -> Outcome:
    """Judge the difference of means, values minus reference, by Welch's interval of level 0.90.

    Within ±margin it is "no larger difference"; wholly outside on one side it is "different"; else
    "undecided". Fewer than two values on a side are always undecided, for their variance is unknown. Where
    no value varies on either side the interval is the difference itself, and the judgement is that of a
    point: a deterministic method against models that all agree.

    Args:
        values: `[n]` one per seed of the method.
        reference_values: `[m]` one per retrained model.
        margin: above 0, in the metric's unit.

    `more_seeds` is the smallest k with which n + k against m + k values would decide with probability 0.8,
    were the observed difference and variances the true ones (normal approximation); None where undecidable
    by at most 1000, where decided, and where the variance is unknown.
    """
    if not margin > 0 or not math.isfinite(margin):
        raise BadInput(
            f"the margin must be a number above 0, got {margin}; without one equivalence cannot be tested"
        )
    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(reference_values, dtype=np.float64)
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise BadInput("cannot compare NaN or infinity with retraining; leave undefined values out")
    if not len(ours) or not len(theirs):
        return Outcome("undecided", None, None, None)
    difference = float(ours.mean() - theirs.mean())
    if len(ours) < 2 or len(theirs) < 2:
        return Outcome("undecided", difference, None, None)
    var_ours, var_theirs = float(ours.var(ddof=1)), float(theirs.var(ddof=1))
    half = float(_half_width(var_ours, var_theirs, len(ours), len(theirs)))
    interval = Interval(low=difference - half, high=difference + half, level=1 - 2 * ALPHA, method="welch")
    if max(abs(interval.low), abs(interval.high)) <= margin:
        return Outcome("no larger difference", difference, interval, None)
    if interval.low > margin or interval.high < -margin:
        return Outcome("different", difference, interval, None)
    more = seeds_to_decide(difference, var_ours, var_theirs, len(ours), len(theirs), margin)
    return Outcome("undecided", difference, interval, more)


def equivalence_p(values: ArrayLike, reference_values: ArrayLike, margin: float) -> float | None:
    """p-value of the equivalence test, for families of them: the larger of the two one-sided Welch tests'.

    At most ALPHA exactly where `judge` finds "no larger difference". 0 or 1 where nothing varies on either side, as the point
    lies within the margin or not; None for fewer than two values on a side.
    """
    from statsmodels.stats.weightstats import (
        ttost_ind,
    )  # half a second, which commands that test nothing need not wait

    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(reference_values, dtype=np.float64)
    outcome = judge(ours, theirs, margin)
    if outcome.interval is None or outcome.difference is None:
        return None
    if np.ptp(ours) == 0 and np.ptp(theirs) == 0:
        return float(abs(outcome.difference) > margin)
    return float(ttost_ind(ours, theirs, -margin, margin, usevar="unequal")[0])


def _half_width(
    var_a: float, var_b: float, n_a: np.ndarray | int, n_b: np.ndarray | int
) -> np.ndarray | float:
    """``t(df) se`` with the degrees of freedom of Welch and Satterthwaite; 0 where nothing varies."""
    if var_a == 0 and var_b == 0:
        return 0.0
    part_a, part_b = var_a / n_a, var_b / n_b
    df = (part_a + part_b) ** 2 / (part_a**2 / (n_a - 1) + part_b**2 / (n_b - 1))
    return stats.t.ppf(1 - ALPHA, df) * np.sqrt(part_a + part_b)


def seeds_to_decide(
    difference: float, var_a: float, var_b: float, n_a: int, n_b: int, margin: float
) -> int | None:
    """Smallest k with which n_a + k against n_b + k values would decide with probability 0.8, were these the true ones."""
    more = np.arange(1, MOST_SEEDS + 1)
    error = np.sqrt(var_a / (n_a + more) + var_b / (n_b + more))
    half = _half_width(var_a, var_b, n_a + more, n_b + more)
    # The interval lies within ±margin where the estimate does by `half`; wholly outside where it exceeds it
    # by `half`.
    room = margin - half
    within = np.where(
        room > 0,
        stats.norm.cdf((room - difference) / error) - stats.norm.cdf((-room - difference) / error),
        0.0,
    )
    beyond = stats.norm.cdf((abs(difference) - margin - half) / error)
    enough = np.flatnonzero(np.maximum(within, beyond) >= POWER)
    return int(more[enough[0]]) if len(enough) else None


def default_margin(metric: str) -> Margin:
    """The declared margin of `metric`."""
    for pattern, margin in MARGINS.items():
        if fnmatchcase(metric, pattern):
            return margin
    raise BadInput(f"metric '{metric}' has no default margin; pass one (declared: {', '.join(MARGINS)})")


def verdict(
    problem: str,
    label: str,
    scores: Sequence[Score],
    references: Sequence[Score],
    margin: float | None = None,
) -> Verdict:
    """Judge one metric on one split of one method over seeds, in words.

    Args:
        problem: name of the problem.
        label: the method and its parameters, as tables show it.
        scores: one per seed; those that are not ok are left out and so not counted in `n`.
        references: one per retrained model, likewise.
        margin: in the metric's unit; None takes the metric's default.
    """
    of = {(score.metric, score.split, score.unit) for score in (*scores, *references)}
    if len(of) != 1:
        raise BadInput(
            "a verdict is about one metric on one split in one unit, got "
            + (
                ", ".join(f"{metric} on {split} in {unit}" for metric, split, unit in sorted(of))
                or "no scores"
            )
        )
    ((metric, split, unit),) = of
    ours, theirs = ([s.value for s in side if s.value is not None] for side in (scores, references))
    if margin is None:
        declared = default_margin(metric)
        margin = declared.value * (abs(mean_of(theirs)) if declared.relative and theirs else 1.0)
        # Retrained models without any error leave a relative margin of 0, which is no margin to test with.
        outcome = _judge(ours, theirs, margin) if margin else Outcome("undecided", None, None, None)
    else:
        outcome = _judge(ours, theirs, margin)
    return Verdict(
        problem=problem,
        label=label,
        metric=metric,
        split=split,
        margin=margin,
        n=len(ours),
        n_reference=len(theirs),
        sentence=_sentence(outcome, margin, unit, len(ours), len(theirs)),
        **outcome._asdict(),
    )


def _judge(ours: Sequence[float], theirs: Sequence[float], margin: float) -> Outcome:
    """`judge` over seeds; of one model, whether it lies where a further retrained one would (`expunge.stats.excess`)."""
    if len(ours) != 1 or len(theirs) < 2:
        return judge(ours, theirs, margin)
    from expunge.stats.excess import excess  # it builds on this module

    one = excess(ours, theirs, margin)
    assert one is not None  # there are two or more references
    return Outcome(one.judgement, one.difference, one.interval, None)


def _are(n: int) -> str:
    return "is 1" if n == 1 else f"are {n}"


def _sentence(outcome: Outcome, margin: float, unit: str, n: int, n_reference: int) -> str:
    factor, words = (100.0, "percentage points") if unit == "share" else (1.0, unit)
    size = f"{factor * margin:.3g} {words}"
    if outcome.interval is None or outcome.difference is None:
        if margin == 0:
            return "undecided: the retrained models' mean is 0, and so is a margin relative to it; state one"
        if n_reference < 2:
            return (
                f"undecided: at least 2 retrained models are needed for a spread, there {_are(n_reference)}"
            )
        return f"undecided: at least 1 model is needed to judge, there {_are(n)}"
    low, high = (f"{factor * end:.3g}" for end in (outcome.interval.low, outcome.interval.high))
    level = f"{100 * outcome.interval.level:.0f} %"
    if outcome.interval.method.startswith("prediction"):
        found = (
            f"{level} prediction interval of the difference {low} to {high}, 1 against {n_reference} models"
        )
        if outcome.judgement == "no larger difference":
            return f"as a further retrained model might be, or within {size} ({found})"
        if outcome.judgement == "undecided":
            return f"undecided whether a further retrained model might be so ({found}); more retrained models would tell"
    else:
        found = f"{level} interval {low} to {high}, {n} against {n_reference} models"
    if outcome.judgement == "no larger difference":
        return f"no difference larger than {size} from retraining was found ({found})"
    if outcome.judgement == "different":
        return f"different from retraining by more than {size} ({found})"
    if outcome.more_seeds is None:
        further = f"more than {MOST_SEEDS} more seeds might be needed"
    else:
        further = f"{outcome.more_seeds} more seed{'s' * (outcome.more_seeds != 1)} would probably decide"
    return f"undecided whether the difference from retraining is larger than {size} ({found}); {further}"
