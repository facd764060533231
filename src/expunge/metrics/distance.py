"""How far the outputs are from those of the retrained model, and from those of a model that knows nothing.

Symbols: p(x) and r(x) are the class probabilities `[C]` of the judged and of the retrained model at the
same example. Two retrained models are not at distance 0 from each other: what counts as near is their
distance.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import log_softmax
from scipy.stats import wasserstein_distance

from expunge.evidence import Evidence
from expunge.metrics.base import Estimate, Readings, Reads, finite_values, mean_estimate, metric

SPLITS = ["forget", "retain", "test"]
CLASS_PROBABILITIES: Reads = {("model", "*"): ["logp"], ("retrained", "*"): ["logp"]}
PREDICTIONS: Reads = {("model", "*"): ["predicted"], ("retrained", "*"): ["predicted"]}


def kl(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """`[n]` Kullback-Leibler divergence D(p‖q) = sum p ln(p/q), nats, of log-probabilities `[n, C]`."""
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def js(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """`[n]` Jensen-Shannon divergence (D(p‖m) + D(q‖m)) / 2, m = (p + q) / 2, nats, in [0, ln 2]."""
    log_m = np.logaddexp(log_p, log_q) - math.log(2)
    return (kl(log_p, log_m) + kl(log_q, log_m)) / 2


@metric(
    "kl-to-retrained",
    title="KL divergence to retrained",
    reads=CLASS_PROBABILITIES,
    splits=SPLITS,
    direction="lower",
    unit="nats",
    low=0.0,
    source="Kullback & Leibler, Ann. Math. Statist. 1951",
)
def kl_to_retrained(readings: Readings) -> Estimate:
    """Mean over examples of D(r‖p) = sum_c r_c ln(r_c / p_c), natural logarithm, retrained model first.

    Unbounded: one example that the judged model is confidently wrong about can dominate. The other direction,
    D(p‖r), is a different number.
    """
    model, retrained = readings.paired("retrained")
    return mean_estimate(kl(_log_probabilities(retrained), _log_probabilities(model)), model, "KL divergence")


@metric(
    "js-to-retrained",
    title="JS divergence to retrained",
    reads=CLASS_PROBABILITIES,
    splits=SPLITS,
    direction="lower",
    unit="nats",
    low=0.0,
    high=math.log(2),
    source="Lin, IEEE Trans. Inf. Theory 1991",
)
def js_to_retrained(readings: Readings) -> Estimate:
    """Mean over examples of the Jensen-Shannon divergence of p and r, natural logarithm, in [0, ln 2]."""
    model, retrained = readings.paired("retrained")
    return mean_estimate(js(_log_probabilities(model), _log_probabilities(retrained)), model, "JS divergence")


@metric(
    "activation-distance",
    title="Activation distance to retrained",
    reads=CLASS_PROBABILITIES,
    splits=SPLITS,
    direction="lower",
    unit="L2 of probabilities",
    low=0.0,
    high=math.sqrt(2),
    source="Chundawat et al., AAAI 2023, arXiv:2205.08096",
)
def activation_distance(readings: Readings) -> Estimate:
    """Mean over examples of the Euclidean distance of the class probabilities p and r, in [0, sqrt 2]."""
    model, retrained = readings.paired("retrained")
    difference = np.exp(_log_probabilities(model)) - np.exp(_log_probabilities(retrained))
    return mean_estimate(np.linalg.norm(difference, axis=-1), model, "distance")


@metric(
    "zrf",
    title="Zero retrain forgetting",
    reads={("model", "*"): ["logp"], ("fresh", "*"): ["logp"]},
    splits=["forget"],
    direction="match",
    unit="share",
    low=0.0,
    high=1.0,
    source="Chundawat et al., AAAI 2023, arXiv:2205.08096",
)
def zrf(readings: Readings) -> Estimate:
    """1 - mean over examples of JS(p, f) / ln 2, where f are the class probabilities of an untrained model.

    1: as ignorant as random weights; the value to match is the retrained model's. Deviation: the paper
    subtracts the divergence in nats, so its values lie in [1 - ln 2, 1]; dividing by ln 2 makes the range
    [0, 1]. Published code moreover swaps the arguments of the divergence and averages it over classes,
    which brings every value near 1.
    """
    model, fresh = readings.paired("fresh")
    return mean_estimate(
        1 - js(_log_probabilities(model), _log_probabilities(fresh)) / math.log(2), model, "ZRF"
    )


@metric(
    "prediction-distance",
    title="Prediction distance to retrained",
    reads=PREDICTIONS,
    splits=SPLITS,
    direction="lower",
    unit="target's unit",
    low=0.0,
    families=["regressor"],
    source="Tarun et al., ICML 2023, arXiv:2210.08196, without their division by the target",
)
def prediction_distance(readings: Readings) -> Estimate:
    """Mean over examples and target columns of |prediction - prediction of the retrained model|."""
    model, retrained = readings.paired("retrained")
    distance = np.abs(model["predicted"] - retrained["predicted"])
    return mean_estimate(distance.reshape(len(model), -1).mean(1), model, "prediction")


@metric(
    "wasserstein-to-retrained",
    title="Wasserstein distance to retrained",
    reads=PREDICTIONS,
    splits=SPLITS,
    direction="lower",
    unit="target's unit",
    low=0.0,
    families=["regressor"],
    source="Tarun et al., ICML 2023, arXiv:2210.08196",
)
def wasserstein_to_retrained(readings: Readings) -> Estimate:
    """Wasserstein-1 distance between the distributions of the two models' predictions over the split.

    Several target columns are averaged. It compares marginals: predictions exchanged between examples leave
    it as it is; `prediction-distance` compares example by example and is never smaller.
    """
    model, retrained = readings.paired("retrained")
    ours, theirs = (
        finite_values(one["predicted"], "prediction").reshape(len(model), -1) for one in (model, retrained)
    )
    return Estimate(
        float(np.mean([wasserstein_distance(a, b) for a, b in zip(ours.T, theirs.T, strict=True)])),
        len(model),
    )


def _log_probabilities(evidence: Evidence) -> np.ndarray:
    # Normalized again in float64: stored log-probabilities sum to 1 within float32 only, and divergences
    # could be below 0.
    return log_softmax(finite_values(evidence["logp"], "log-probability"), axis=-1)
