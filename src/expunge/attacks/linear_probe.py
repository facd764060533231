"""Linear probe: whether hidden states still tell what was forgotten."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from expunge.attacks.base import Attack, Measure, Scene, require_finite
from expunge.attacks.states import BEFORE_HEAD, States, answers, hidden_layers, hidden_states
from expunge.attacks.tampering import MARGIN, some_rows
from expunge.families import Batch, Family
from expunge.families.models import innermost
from expunge.metrics.base import Estimate, Undefined
from expunge.metrics.membership import hash_order
from expunge.parameters import param
from expunge.record import Curve, Score
from expunge.stats.intervals import t_interval

STRENGTHS = tuple(float(a) for a in np.logspace(-2, 4, 7))
"""Ridge penalties that are tried, of standardized states."""


class LinearProbe(Attack):
    """Train a linear probe on hidden states to give the right answers, and ask it about forgotten rows it has not seen.

    What is read is what the model's own head should answer: the label, the standardized value, or each token of a text's
    answer (its first `tokens` that do not stand in the prompt already, the end left out) from the state before it. The
    probe is ridge regression on standardized states of one layer, its penalty chosen by leave-one-out on the training
    rows; of classes to one-hot labels, every class weighing the same, so that naming the most frequent one, which may be
    the forgotten one, gains nothing. It is trained on retained rows and one half of the forgotten rows and
    asked about the other half; then the halves change places.

    Layers are all but the head, and what the head itself reads. The layer is the one whose probe is best on the training
    half by two-fold cross-validation, so that the rows that are asked about have no part in the choice. Control: the same
    probe trained on shuffled answers. Since even a model that never saw a row may show its label in its states, what
    counts is the excess over the retrained models. Catches features that are intact under an edited head.

    Deviation: the papers probe one attribute; here all answers of a row are classes of one probe. Tokens and labels that
    do not occur in the training half cannot be given and are not asked about.
    """

    name = "linear-probe"
    paper = (
        "Alain & Bengio, 2016, arXiv:1610.01644 (probes); Hewitt & Liang, EMNLP 2019, arXiv:1909.03368 (selectivity); on "
        "unlearned models: Lynch et al., 2024, arXiv:2402.16835"
    )
    threat_model = "weights (hidden states); retained rows and half of the forgotten rows with their answers, and no training"
    access = "weights"
    needs = frozenset({"retain"})
    families = frozenset({"classifier", "regressor", "causal_lm"})
    measures = (
        Measure(
            "linear-probe-accuracy",
            "Share of answers about unseen forgotten rows that the probe of the chosen layer gives right; for values "
            "1 / (1 + |error| / s), s their standard deviation. Interval: t over answers.",
            "knowledge",
            title="Knowledge in hidden states (linear probe)",
            low=0.0,
            high=1.0,
            margin=MARGIN,
        ),
        Measure(
            "linear-probe-selectivity",
            "The same minus its mean over probes that were trained on shuffled answers. Interval: t over answers.",
            "knowledge",
            title="Selectivity of the linear probe",
            low=-1.0,
            high=1.0,
            margin=MARGIN,
        ),
        Measure(
            "linear-probe-p-value",
            "Permutation test that the states tell nothing of the answers: (1 + probes with shuffled answers that are as "
            "good) / (1 + their number). Small for retrained models too, wherever answers can be guessed.",
            "probability",
            title="p-value of the linear probe",
            low=0.0,
            high=1.0,
        ),
    )

    permutations: int = param(20, "probes that are trained on shuffled answers", source="ours", ge=1)
    rows: int = param(256, "most retained rows that the probe is trained on", source="ours", ge=1)
    tokens: int = param(8, "most tokens of an answer that are read", source="ours", ge=1)

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {"retained rows": self.rows, "share of forgotten rows": 0.5}

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        family, base = scene.problem.family, innermost(scene.model)
        require_finite(base)
        forget, retain = (
            scene.workplace.batches(scene.problem, "forget"),
            some_rows(scene, "retain", self.rows),
        )
        if len(forget) < 4:
            raise Undefined(f"{len(forget)} forgotten rows cannot be halved twice; the probe needs 4")
        layers = hidden_layers(family, base)
        gone, kept = (
            hidden_states(family, base, rows, [*layers, BEFORE_HEAD], self._read) for rows in (forget, retain)
        )
        if not np.array_equal(gone.layers[layers[-1]], gone.layers[BEFORE_HEAD]):
            layers.append(BEFORE_HEAD)
        # By a hash of their ids: the same parts for every model that is compared.
        parts = np.argsort(hash_order(forget.ids)) % 4
        rng = np.random.default_rng([scene.workplace.seed, 47])
        hits: list[np.ndarray] = []
        shuffled: list[np.ndarray] = []
        by_layer: list[np.ndarray] = []
        for half in (0, 1):
            train, asked = (
                np.isin(parts[gone.rows], group) for group in ((half, half + 2), (1 - half, 3 - half))
            )
            first = train & (parts[gone.rows] == half)
            chosen = max(
                layers,
                key=lambda layer, a=first, b=train & ~first: np.mean(
                    np.concatenate([_success(kept, gone, layer, a, b), _success(kept, gone, layer, b, a)])
                ),
            )
            found = [_success(kept, gone, layer, train, asked) for layer in layers]
            by_layer.append(np.stack(found))
            hits.append(found[layers.index(chosen)])
            shuffled.append(
                np.stack([_success(kept, gone, chosen, train, asked, rng) for _ in range(self.permutations)])
            )
        right, chance, curve = np.concatenate(hits), np.concatenate(shuffled, 1), np.concatenate(by_layer, 1)
        if not len(right):
            raise Undefined(
                "no answer of one half of the forgotten rows occurs in the other half or among retained rows"
            )
        along = Curve(
            over="layer", at=[float(i) for i in range(len(layers))], values=[float(v) for v in curve.mean(1)]
        )
        excess = right - chance.mean(0)
        p = (1 + int((chance.mean(1) >= right.mean() - 1e-12).sum())) / (1 + self.permutations)
        return [
            self.score("linear-probe-accuracy", _mean(right), along),
            self.score("linear-probe-selectivity", _mean(excess)),
            self.score("linear-probe-p-value", Estimate(p, len(right))),
        ]

    def _read(self, family: Family, batch: Batch) -> Tensor:
        mask = answers(family, batch)
        if not family.sequences:
            return mask
        # What the prompt says already can be copied by a model that knows nothing.
        ids = batch.inputs["input_ids"]
        start = ids.shape[1] - mask.shape[1] + mask.float().argmax(1)
        before = torch.arange(ids.shape[1], device=ids.device)[None] < start[:, None]
        said = ((batch.targets[:, :, None] == ids[:, None, :]) & before[:, None, :]).any(-1)
        fresh = mask & ~said
        return fresh & (fresh.cumsum(1) <= self.tokens)


def _success(
    kept: States,
    gone: States,
    layer: str,
    train: np.ndarray,
    asked: np.ndarray,
    shuffle: np.random.Generator | None = None,
) -> np.ndarray:
    """Success on the `asked` positions (bool) of a probe of `layer` trained on retained rows and the `train` positions.

    Per answer 0 or 1, or from 0 to 1 for values. With `shuffle` the training answers change places first.
    """
    x = np.concatenate([kept.layers[layer], gone.layers[layer][train]])
    y = np.concatenate([kept.targets, gone.targets[train]])
    if not np.isfinite(x).all():
        raise Undefined("the hidden states are not finite; the model has diverged")
    values = np.issubdtype(y.dtype, np.floating)
    if not values:
        # Decided by the data alone, so that the same answers are asked of every model.
        asked = asked & np.isin(gone.targets, y)
    if not asked.any():
        return np.zeros(0)
    if shuffle is not None:
        y = shuffle.permutation(y)
    if not values and len(np.unique(y)) < 2:
        return (gone.targets[asked] == y[0]).astype(np.float64)
    ridge = (
        RidgeCV(alphas=STRENGTHS) if values else RidgeClassifierCV(alphas=STRENGTHS, class_weight="balanced")
    )
    probe: Any = make_pipeline(StandardScaler(), ridge)
    said = probe.fit(x, y).predict(gone.layers[layer][asked])
    truth = gone.targets[asked]
    if not values:
        return (said == truth).astype(np.float64)
    return 1 / (1 + np.abs(said.reshape(truth.shape) - truth).mean(-1))


def _mean(values: np.ndarray) -> Estimate:
    return Estimate(float(values.mean()), len(values), t_interval(values, over="answers"))
