"""Principal components and linear discriminants that forget."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from expunge.exact.estimators.base import BadRows, Decremental
from expunge.exact.estimators.bayes import Probabilistic
from expunge.exact.moments import Moments


class PCA(TransformerMixin, Decremental):
    """Projection onto the eigenvectors of the covariance ``scatter / (n - 1)`` with the largest eigenvalues.

    Forgetting takes the rows out of mean and scatter, and decomposes again: O(k d^2 + d^3) however many rows there are.
    Each eigenvector has its largest entry positive. Variances and the subspaces of well separated eigenvalues agree with
    fitting on what remains; within equal eigenvalues no basis is determined.

    Args:
        n_components: how many; None means d.

    Attributes:
        components_: `[n_components, d]` eigenvectors, unit length.
        explained_variance_: `[n_components]` eigenvalues, largest first.
        mean_: `[d]`.
    """

    guarantee = "numeric (1e-8)"
    _parts = {"Moments": Moments}

    def __init__(self, n_components: int | None = None) -> None:
        self.n_components = n_components

    def _validate_parameters(self) -> None:
        if self.n_components is not None and not self.n_components >= 1:
            raise BadRows(f"n_components must be None, or 1 or more, got {self.n_components}")

    def _refit(self) -> None:
        x = self.rows_.x
        if self.n_components is not None and self.n_components > x.shape[1]:
            raise BadRows(f"n_components is {self.n_components}, but the rows have {x.shape[1]} columns")
        self._moments = Moments.of(x, full=True)
        self._publish()

    def _add(self, x: np.ndarray, y: Any) -> None:
        self._moments.add(x)
        self._publish()

    def _remove(self, x: np.ndarray, y: Any, ranks: np.ndarray) -> None:
        self._moments.remove(x)
        if self._moments.cancelled:
            self._moments = Moments.of(self.rows_.x, full=True)
        self._publish()

    def _publish(self) -> None:
        values, vectors = np.linalg.eigh(self._moments.scatter / max(self._moments.n - 1, 1))
        kept = len(values) if self.n_components is None else int(self.n_components)
        components = vectors.T[::-1][:kept]
        largest = np.abs(components).argmax(1)
        self.components_ = components * np.sign(components[np.arange(kept), largest])[:, None]
        self.explained_variance_ = np.maximum(values[::-1][:kept], 0.0)
        self.mean_ = self._moments.mean

    def transform(self, X: Any) -> np.ndarray:
        """`[n, n_components]` coordinates about the mean."""
        check_is_fitted(self)
        x: Any = validate_data(self, X, reset=False, dtype=np.float64)
        return (x - self.mean_) @ self.components_.T


class LinearDiscriminantAnalysis(Probabilistic):
    """Gaussian classes of one covariance: ``ln p(x, c) = ln n_c / n + x w_c - m_c w_c / 2``, ``w_c = Sigma^-1 m_c``.

    ``Sigma = (1 - s) S + s tr(S) / d I`` with the pooled ``S = sum_c scatter_c / n`` and a fixed shrinkage s. A singular
    Sigma is inverted on its range.

    Args:
        shrinkage: s, between 0 and 1; it must have been chosen without the rows that are forgotten.

    Attributes:
        classes_: `[C]` classes that have rows.
        priors_: `[C]` shares n_c / n.
        means_: `[C, d]`.
        covariance_: Sigma, `[d, d]`.
        coef_: `[C, d]` w.
        intercept_: `[C]`.
    """

    guarantee = "numeric (1e-8)"

    def __init__(self, shrinkage: float = 0.0) -> None:
        self.shrinkage = shrinkage

    def _validate_parameters(self) -> None:
        if not 0 <= self.shrinkage <= 1:
            raise BadRows(f"shrinkage must lie between 0 and 1, got {self.shrinkage}")

    def _empty(self, width: int) -> Any:
        return Moments(width, full=True)

    def _publish(self, sums: list[Any]) -> None:
        counts = np.array([m.n for m in sums])
        self.priors_ = counts / counts.sum()
        self.means_ = np.stack([m.mean for m in sums])
        pooled = np.sum([m.scatter for m in sums], axis=0) / counts.sum()
        d = len(pooled)
        self.covariance_ = (1 - self.shrinkage) * pooled + self.shrinkage * np.trace(pooled) / d * np.eye(d)
        values, vectors = np.linalg.eigh(self.covariance_)
        kept = values > 1e-12 * max(values[-1], np.finfo(float).tiny)
        scaled = np.divide(1.0, values, out=np.zeros_like(values), where=kept)
        self.coef_ = self.means_ @ (vectors * scaled) @ vectors.T
        self.intercept_ = np.log(self.priors_) - 0.5 * (self.means_ * self.coef_).sum(1)

    def _scores(self, x: np.ndarray) -> np.ndarray:
        return x @ self.coef_.T + self.intercept_
