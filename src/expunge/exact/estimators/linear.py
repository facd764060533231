"""Ridge regression and ordinary least squares that forget."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from expunge.exact.estimators.base import BadRows, Decremental
from expunge.exact.moments import LeastSquares, Moments


class Ridge(MultiOutputMixin, RegressorMixin, Decremental):
    """``argmin_w sum (y_i - x_i w - b)^2 + alpha |w|^2``; the intercept b is not penalized.

    Forgetting k rows of d columns is an update of rank k + 1 of the inverse of the centered normal equations by the
    identity of Sherman, Morrison and Woodbury: O(k d^2) however many rows there are, against O(n d^2 + d^3). With
    ``alpha = 0`` this is ordinary least squares, of least norm where it has many solutions.

    Alpha must have been chosen without the rows that are forgotten, or it remembers them.

    Args:
        alpha: penalty, 0 or more.
        fit_intercept: whether to fit b.

    Attributes:
        coef_: `[d]`, or `[C, d]` for targets `[n, C]`.
        intercept_: number, or `[C]`.
    """

    guarantee = "numeric (1e-8)"
    _parts = {"LeastSquares": LeastSquares, "Moments": Moments}

    def __init__(self, alpha: float = 1.0, fit_intercept: bool = True) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept

    def _validate_parameters(self) -> None:
        if not self.alpha >= 0:
            raise BadRows(f"alpha must be 0 or more, got {self.alpha}")

    def _refit(self) -> None:
        x, y = self.rows_.x, self.rows_.y
        outputs = 1 if y.ndim == 1 else y.shape[1]
        self._squares = LeastSquares(x.shape[1], outputs, float(self.alpha), centered=self.fit_intercept)
        self._add(x, y)

    def _add(self, x: np.ndarray, y: Any) -> None:
        self._squares.add(x, y.reshape(len(y), -1))
        self._publish(y.ndim == 1)

    def _remove(self, x: np.ndarray, y: Any, ranks: np.ndarray) -> None:
        self._squares.remove(x, y.reshape(len(y), -1))
        if self._squares.moments.cancelled:
            self._refit()
        self._publish(y.ndim == 1)

    def _publish(self, single: bool) -> None:
        weights, intercept = self._squares.weights, self._squares.intercept
        self.coef_ = weights[:, 0].copy() if single else weights.T.copy()
        self.intercept_ = float(intercept[0]) if single else intercept

    def predict(self, X: Any) -> np.ndarray:
        """`[n]` or `[n, C]` predicted values."""
        check_is_fitted(self)
        x = validate_data(self, X, reset=False, dtype=np.float64)
        return x @ self.coef_.T + self.intercept_  # pyright: ignore
