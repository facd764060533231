"""What is left of a manipulation of the training data, of which only a part was known (corrective unlearning)."""

from __future__ import annotations

from expunge.metrics.base import Estimate, Readings, by_group, decided, metric
from expunge.stats.intervals import wilson

_SOURCE = "Goel et al., TMLR 2024, arXiv:2402.14015"


@metric(
    "corrected-accuracy",
    title="Corrected accuracy",
    reads={("model", "*"): ["correct"]},
    splits=["affected", "unknown"],
    direction="higher",
    unit="share",
    low=0.0,
    high=1.0,
    source=f"{_SOURCE} (Acc_corr)",
)
def corrected_accuracy(readings: Readings) -> Estimate:
    """Share of examples in the manipulated domain whose most likely class is the TRUE label, in [0, 1].

    On `affected`: test rows with the trigger, or of the confused classes. On `unknown`: manipulated training
    rows that were not identified. The interval is Wilson's, over examples. Groups: per true class.
    """
    return _share(readings)


@metric(
    "manipulation-success",
    title="Success of the manipulation",
    reads={("model", "*"): ["correct"]},
    splits=["attacked"],
    direction="lower",
    unit="share",
    low=0.0,
    high=1.0,
    source=f"{_SOURCE}; attack success rate of Gu et al., arXiv:1708.06733",
)
def manipulation_success(readings: Readings) -> Estimate:
    """Share of `attacked` test rows that get the manipulator's label, which is not the true one, in [0, 1].

    For a trigger this is the attack success rate ``P(prediction = payload | trigger, y != payload)``. The
    interval is Wilson's, over examples. Groups: per label that the manipulator wants.
    """
    return _share(readings)


def _share(readings: Readings) -> Estimate:
    correct = decided(readings.model["correct"])
    successes = int(correct.sum())
    return Estimate(
        successes / len(correct),
        len(correct),
        wilson(successes, len(correct)),
        by_group(correct, readings.model.groups),
    )
