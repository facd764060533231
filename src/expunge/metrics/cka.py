"""How alike two models' representations are, layer by layer: linear centered kernel alignment."""

from __future__ import annotations

import numpy as np

from expunge.metrics.base import Estimate, Readings, Role, Undefined, finite_values, metric

FEWEST_ROWS = 3
"""With two centered rows every representation is one-dimensional, and CKA is 1 whatever the features are."""


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA of features `[n, d]` and `[n, e]` of the same rows, in [0, 1]; NaN where one is constant.

    ``|Y'X|² / (|X'X| |Y'Y|)`` in Frobenius norms, columns centered; 1 for features equal up to rotation and
    scale (Kornblith et al., ICML 2019). Time n d e. Biased upward where n is not well above d and e.
    """
    if not (np.ptp(x, axis=0).any() and np.ptp(y, axis=0).any()):
        return float("nan")
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.square(np.linalg.norm(y.T @ x)) / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def _alignment(readings: Readings, role: Role) -> Estimate:
    model, other = readings.paired(role)
    if len(model) < FEWEST_ROWS:
        raise Undefined(f"CKA needs {FEWEST_ROWS} or more examples, there are {len(model)}")
    shared = set(other.table.column_names)
    layers = [
        c.removeprefix("features:")
        for c in model.table.column_names
        if c.startswith("features:") and c in shared
    ]
    if not layers:
        raise Undefined("no layer's features were collected of both models")
    found: dict[str, float] = {}
    for layer in layers:
        of_model, of_other = (
            finite_values(e[f"features:{layer}"], f"feature of '{layer}'") for e in (model, other)
        )
        found[layer] = linear_cka(of_model, of_other)
        if not np.isfinite(found[layer]):
            raise Undefined(f"the features of layer '{layer}' are the same for all {len(model)} examples")
    return Estimate(float(np.mean(list(found.values()))), len(model), groups=found)


@metric(
    "cka-to-retrained",
    title="Representation similarity to retrained (CKA)",
    reads={("model", "*"): ["features:LAYER"], ("retrained", "*"): ["features:LAYER"]},
    splits=["forget", "test"],
    direction="higher",
    unit="CKA",
    low=0.0,
    high=1.0,
    source="Kornblith et al., ICML 2019, arXiv:1905.00414",
)
def cka_to_retrained(readings: Readings) -> Estimate:
    """Linear CKA between the judged and the retrained model's features, mean over layers; groups: the layers.

    Features are averaged over positions before. Low similarity on `forget` where `test` is similar points
    at what the forgetting did to the representation. Biased upward where a layer is not much narrower than
    there are examples, so compare only values over the same data.
    """
    return _alignment(readings, "retrained")


@metric(
    "cka-to-target",
    title="Representation similarity to target (CKA)",
    reads={("model", "*"): ["features:LAYER"], ("target", "*"): ["features:LAYER"]},
    splits=["forget", "test"],
    direction="match",
    unit="CKA",
    low=0.0,
    high=1.0,
    source="Kornblith et al., ICML 2019, arXiv:1905.00414",
)
def cka_to_target(readings: Readings) -> Estimate:
    """Linear CKA between the features before and after forgetting, mean over layers; groups: the layers.

    Near 1 on `forget` in all layers but the last: the output changed and the representation stayed, a sign of
    suppression rather than removal. The value to match is the retrained model's similarity to the target.
    """
    return _alignment(readings, "target")
