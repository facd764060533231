"""One number out of several scores. Functions of scores, not of evidence, and so not in the registry.

They hide more than they show: a method that forgets nothing and one that destroys the model can have the
same average gap. Reports put them beside the scores that they are made of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from expunge.metrics.base import Undefined
from expunge.record import Direction, Judged, Score, mean_of

EFFICACY = ("mia-efficacy-confidence-logistic", "forget")
AVERAGED = (("accuracy", "forget"), ("accuracy", "retain"), ("accuracy", "test"), EFFICACY)
"""UA (1 - forget accuracy: the gap is the same), RA, TA and MIA-efficacy."""
AVERAGED_REGRESSION = (("mae", "forget"), ("mae", "retain"), ("mae", "test"))
AVERAGED_TEXT = (
    *((metric, split) for metric in ("probability", "rouge-l-recall") for split in ("forget", "retain")),
    ("mia-text-min-k", "forget"),
)
"""Whether the answers are still likely, whether they are still said, and whether forget rows look trained on."""
AVERAGED_IMAGES = (
    ("unlearning-accuracy", "concept"),
    *((f"{domain}-domain-retain-accuracy", "test") for domain in ("in", "cross")),
)
"""UnlearnCanvas' three accuracies."""
AVERAGED_GANS = (("undesired-rate", "samples"), ("coverage", "test"), ("class-distance", "samples"))
"""Whether it is still drawn, whether everything else is, and how often."""


def average_gap(judged: Judged, retrained: Sequence[Judged]) -> Score:
    """Mean absolute gap to the retrained models; 0 is retraining itself, lower is better.

    For classifiers over UA, RA, TA and MIA-efficacy, in percentage points (Fan et al., ICLR 2024,
    arXiv:2310.12508). Deviation: the efficacy is that of the held-out logistic attacker on the confidence,
    not of the SVC. For language models (those with a score `probability`), our counterpart of it: over probability and
    ROUGE-L recall of the answers on forget and retain and the AUC of min-k, in percentage points; for image generators
    (those with a score `unlearning-accuracy`) over unlearning, in-domain and cross-domain retain accuracy; for GANs (those
    with a score `undesired-rate`) over that rate, coverage of what is to be kept and the distance of class shares. For
    regressors (those with a score `mae`), whose errors have a unit, over the mean absolute errors on forget, retain and
    test, each gap as a percentage of the retrained models' error.

    The reference is the mean over `retrained`. Undefined where one of the scores is, with its reason.
    """
    measured = {score.metric for score in judged.scores}
    regression = "mae" in measured
    known = {
        "mae": AVERAGED_REGRESSION,
        "probability": AVERAGED_TEXT,
        "unlearning-accuracy": AVERAGED_IMAGES,
        "undesired-rate": AVERAGED_GANS,
    }
    averaged = next((found for metric, found in known.items() if metric in measured), AVERAGED)
    unit = "% of the retrained error" if regression else "percentage points"

    def value() -> float:
        gaps = []
        for metric, split in averaged:
            ours, theirs = _pair(judged, retrained, metric, split)
            if regression and theirs == 0:
                raise Undefined(
                    f"the retrained models' {metric} on '{split}' is 0, so no gap relative to it exists"
                )
            gaps.append(abs(ours - theirs) / (theirs if regression else 1.0))
        return 100 * mean_of(gaps)

    return _score("average-gap", value, unit, "lower")


def tow(judged: Judged, retrained: Sequence[Judged]) -> Score:
    """Tug of war: product over forget, retain and test of 1 - |accuracy - retrained accuracy|, in [0, 1].

    1 is retraining itself, higher is better (Zhao et al., NeurIPS 2024, arXiv:2406.01257). The reference is
    the mean over `retrained`. For classifiers; undefined where one of the accuracies is, with its reason.
    """

    def value() -> float:
        pairs = [_pair(judged, retrained, "accuracy", split) for split in ("forget", "retain", "test")]
        return math.prod(1 - abs(ours - theirs) for ours, theirs in pairs)

    return _score("tow", value, "share", "higher")


def tow_mia(judged: Judged, retrained: Sequence[Judged]) -> Score:
    """Tug of war with membership: as `tow`, with MIA-efficacy in the place of forget accuracy.

    1 - |efficacy - retrained efficacy| on forget, times the factors of the accuracies on retain and test (Zhao et
    al., NeurIPS 2024, arXiv:2406.01257). Deviation: the efficacy is that of the held-out logistic attacker on the
    confidence, not of the SVC, as in `average_gap`.
    """

    def value() -> float:
        parts = (EFFICACY, ("accuracy", "retain"), ("accuracy", "test"))
        pairs = [_pair(judged, retrained, metric, split) for metric, split in parts]
        return math.prod(1 - abs(ours - theirs) for ours, theirs in pairs)

    return _score("tow-mia", value, "share", "higher")


def anamnesis_index(judged: Judged, retrained: Sequence[Judged]) -> Score:
    """Anamnesis index: relearning time divided by the retrained models' mean (Chundawat et al., TIFS 2023).

    Both are minibatches until the target's accuracy on what was forgotten is back within a margin (the attack
    `relearning`). 1 is retraining itself; near 0 the knowledge was hidden, not removed; above 1 the model resists
    learning it more than one that never knew. Undefined where either time is, such as beyond the attack's budget.
    """

    def value() -> float:
        ours, theirs = _pair(judged, retrained, "relearning-steps", "forget")
        if theirs == 0:
            raise Undefined("the retrained models are at the target's level without any relearning")
        return ours / theirs

    return _score("anamnesis-index", value, "times retraining", "match")


def _pair(judged: Judged, retrained: Sequence[Judged], metric: str, split: str) -> tuple[float, float]:
    """Our value of a score, and the mean of the retrained models'."""
    if not retrained:
        raise Undefined("there is no retrained model to compare with")
    values = []
    for whose, one in (("", judged), *(("the retrained model's ", r) for r in retrained)):
        score = one.score(metric, split)
        if score is None or score.value is None:
            why = "was not computed" if score is None else f"is {score.status}: {score.reason}"
            raise Undefined(f"{whose}{metric} on '{split}' {why}")
        values.append(score.value)
    return values[0], mean_of(values[1:])


def _score(metric: str, value: Callable[[], float], unit: str, direction: Direction) -> Score:
    try:
        return Score(metric=metric, split="run", value=value(), unit=unit, direction=direction)
    except Undefined as reason:
        return Score(
            metric=metric, split="run", unit=unit, direction=direction, status="undefined", reason=str(reason)
        )
