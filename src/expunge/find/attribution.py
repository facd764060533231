"""Training-data attribution: what each training row contributes to each prediction.

An attribution is linear in the rows: removing a set of rows changes a prediction by minus the sum of their
contributions. It is an approximation of retraining, exact for one row of ridge regression, and to be held against real
retraining with `calibrate` before anything is built on it.

Attribution libraries read a model through a loss and a loader of their own and give one score per pair of examples.
Here every output of a family is attributed, with exact leverage and in float64, and sets of rows are added up without
forming the pairs; that takes less code than an adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families import Batches, Family
from expunge.find.linearized import Linearized

PROJECTED_AT_ONCE = 1 << 16
"""Weights whose random signs are held at a time."""


@dataclass(frozen=True)
class Attribution:
    """Contributions of n training rows to the K outputs of m examples, kept as two factors."""

    features: Tensor
    """`[m, K, p]` how each output moves in p coordinates."""
    effects: Tensor
    """`[n, p]` how the removal of each training row moves the coordinates."""

    def contribution(self, rows: Tensor) -> Tensor:
        """`[len(rows), m, K]`: above 0 where including the row raises the output."""
        return -torch.einsum("mkp,np->nmk", self.features, self.effects[rows])

    def removal(self, rows: Tensor) -> Tensor:
        """`[m, K]` predicted change of the outputs when `rows` are removed together."""
        return self.features @ self.effects[rows].sum(0)


def influence(train: Linearized, decay: float, targets: Linearized | None = None) -> Attribution:
    """Influence of single rows by leave-one-out Newton steps (Koh & Liang 2017, with leverage).

    With the loss ``mean_i nll_i + decay / 2 ||theta||^2``, removing row i of n moves the weights by

        ``(H - J_i' M_i J_i)^-1 (J_i' r_i + decay theta)``,  ``H = sum_j J_j' M_j J_j + (n - 1) decay I``,

    r and M the derivatives of the loss in the outputs. The rank-K inverse is taken exactly, by Woodbury's
    identity; classical influence functions leave it out, and so underestimate rows of high leverage. At the
    optimum it is exact for squared error, and one Newton step for cross-entropy; away from it, it is the
    difference of the two Newton steps to first order. The sum over a group leaves out what its rows do
    together.

    Args:
        train: all n training rows.
        decay: L2 coefficient of the training loss, per example.
        targets: whose outputs to attribute, linearized in the same weights; default: the training rows.
    """
    slope, curvature = train.derivatives()
    n, outputs, size = train.jacobian.shape
    columns = train.jacobian.reshape(n * outputs, size).T
    # One factorization for all rows: their gradients and the columns of their Jacobians side by side.
    right = train.pull(slope) + decay * train.weights
    solved = train.solve(curvature, torch.cat([right.T, columns], 1), (n - 1) * decay)
    direct, spread = solved[:, :n].T, solved[:, n:].T.reshape(n, outputs, size)
    # (A - J'MJ)^-1 v = A^-1 v + A^-1 J' (I - M S)^-1 M J A^-1 v with S = J A^-1 J'
    own = train.jacobian @ spread.transpose(1, 2)
    gap = torch.eye(outputs, dtype=torch.float64) - curvature @ own
    pushed = curvature @ (train.jacobian @ direct.unsqueeze(2))
    correction = torch.linalg.solve(gap, pushed)
    effects = direct + (spread * correction).sum(1)
    return Attribution((targets or train).jacobian, effects)


def trak(
    family: Family,
    models: Sequence[nn.Module],
    train: Batches,
    targets: Batches | None = None,
    *,
    names: Sequence[str] | None = None,
    dim: int | None = 512,
    damping: float = 0.0,
    seed: int = 0,
) -> Attribution:
    """Attribution from randomly projected gradients (TRAK, Park et al. 2023), output by output.

    For each model: phi(x) the gradient of an example's output function, projected to `dim` random directions,
    Phi the training rows' (stacked), Q how much the loss still pulls on it; the contribution of row i to
    output k of x is ``phi_k(x)' (Phi' Phi + damping s I)^-1 phi_i Q_i`` (s the mean
    of the diagonal of Phi' Phi), with features and Q averaged over the
    models separately. For classifiers the training rows' output function is the margin ``ln p_y - ln(1 -
    p_y)`` with Q = 1 - p_y; for regressors the predicted values with Q the error y - f. Outputs to attribute
    are single logits or values.

    The scale means little (the estimator is for ranks): fit a multiplier with `calibrate`.

    Args:
        family: how models read a batch; classifier or regressor.
        models: trained models of one architecture; more of them, trained apart, attribute better.
        train: the training rows.
        targets: whose outputs to attribute; default: the training rows.
        names: parameters whose gradients count; default: all trainable ones.
        dim: random directions; None means all weights, unprojected.
        damping: in units of s; must be above 0 where there are fewer training rows than `dim`.
        seed: of the projection; every model has its own.
    """
    if not models:
        raise BadInput("trak was asked for without a model; pass at least one trained model")
    features, mixed, pulls = [], [], []
    for number, model in enumerate(models):
        rows = Linearized.of(family, model, train, names)
        slopes, pull = _output_functions(rows)
        functions = torch.einsum("nok,nkp->nop", slopes, rows.jacobian)
        phi = project(functions, dim, seed + number)
        seen = rows if targets is None else Linearized.of(family, model, targets, rows.names)
        features.append(project(seen.jacobian, dim, seed + number))
        flat = phi.reshape(-1, phi.shape[-1])
        kernel = flat.T @ flat
        kernel.diagonal().add_(damping * kernel.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(kernel)
        if failed:
            raise BadInput(
                f"trak: {len(flat)} gradients do not span {kernel.shape[0]} directions; lower dim or give a damping above 0"
            )
        mixed.append(torch.cholesky_solve(flat.T, factor).T.reshape(phi.shape))
        pulls.append(pull)
    pull = torch.stack(pulls).mean(0)
    effects = [-torch.einsum("nop,no->np", one, pull) / len(models) for one in mixed]
    return Attribution(torch.cat(features, 2), torch.cat(effects, 1))


def _output_functions(rows: Linearized) -> tuple[Tensor, Tensor]:
    """Derivatives `[n, O, K]` of the output functions in the outputs, and the pull Q `[n, O]` of the loss on them."""
    slope, _ = rows.derivatives()
    if "margin" not in rows.family.quantities:
        n, outputs = slope.shape
        return torch.eye(outputs, dtype=torch.float64).expand(n, -1, -1), -slope
    # The loss is softplus(-margin): its derivative in the logits is -(1 - p_y) times that of the margin.
    pull = -slope.gather(1, rows.batch.targets).clamp(max=-1e-12)
    return (-slope / pull).unsqueeze(1), pull


def project(gradients: Tensor, dim: int | None, seed: int) -> Tensor:
    """`[..., P]` to `[..., dim]` by random signs over sqrt(dim), which keeps inner products in expectation."""
    size = gradients.shape[-1]
    if dim is None:
        return gradients
    made = gradients.new_zeros(*gradients.shape[:-1], dim)
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, size, PROJECTED_AT_ONCE):
        part = gradients[..., start : start + PROJECTED_AT_ONCE]
        signs = torch.randint(2, (part.shape[-1], dim), generator=generator).to(gradients) * 2 - 1
        made += part @ signs
    return made / dim**0.5


@dataclass(frozen=True)
class Calibration:
    """How predicted changes of outputs compare with those that retraining made."""

    multiplier: float
    """mu of ``actual ~ mu * predicted``, by least squares through the origin."""
    r_squared: float
    """Share of the actual squared change that mu times the predicted one explains; at most 1, below 0 for none."""
    lds: float
    """Linear datamodeling score: Spearman correlation over the deletions, averaged over outputs that differ; or NaN."""


def calibrate(predicted: Tensor, actual: Tensor) -> Calibration:
    """Hold predicted against actual changes, both `[deletions, m, K]`, deletion by deletion in the same order."""
    x, y = predicted.flatten(1).double(), actual.flatten(1).double()
    power = float(x.square().sum())
    multiplier = float((x * y).sum()) / power if power > 0 else 0.0
    change = float(y.square().sum())
    r_squared = 1 - float((y - multiplier * x).square().sum()) / change if change > 0 else float("nan")
    return Calibration(multiplier, r_squared, _rank_correlation(x.numpy(), y.numpy()))


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Mean over columns of Spearman's correlation of `[deletions, columns]`; columns without spread do not count."""
    ranks = [rankdata(v, axis=0) for v in (x, y)]
    a, b = (r - r.mean(0) for r in ranks)
    spread = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    counted = spread > 0
    if not counted.any():
        return float("nan")
    return float(((a * b).sum(0)[counted] / spread[counted]).mean())
