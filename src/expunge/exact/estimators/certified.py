"""Linear classifiers whose removals are certified."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit, log_expit
from sklearn.base import ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from expunge.errors import BadInput
from expunge.exact.estimators.base import BadRows, Decremental
from expunge.exact.privacy import ResidualBudget

CURVATURE_SLOPE = {"logistic": 1 / (6 * math.sqrt(3)), "squared": 0.0}
"""Largest ``|l'''|``: how fast the curvature of a loss changes."""

ITERATIONS = 100
"""Newton steps of training; ten are usual."""


class Objective:
    """``sum_i l(y_i x_i w) + lambda n / 2 |w|^2 + b w`` of one class against the others.

    The loss l(z) is ``ln(1 + e^-z)`` or ``(1 - z)^2 / 2``.

    Args:
        x: `[n, d]` rows of norm at most 1.
        signs: `[n]` y, 1 or -1.
        noise: `[d]` b.
        penalty: lambda.
        loss: 'logistic' or 'squared'.
    """

    def __init__(
        self, x: np.ndarray, signs: np.ndarray, noise: np.ndarray, penalty: float, loss: str
    ) -> None:
        self.x, self.signs, self.noise, self.penalty, self.loss = x, signs, noise, penalty, loss

    def value(self, w: np.ndarray) -> float:
        """The objective."""
        z = self.signs * (self.x @ w)
        losses = -log_expit(z) if self.loss == "logistic" else (1 - z) ** 2 / 2
        return float(losses.sum() + self.penalty * len(self.x) / 2 * w @ w + self.noise @ w)

    def gradient(self, w: np.ndarray) -> np.ndarray:
        """`[d]`."""
        z = self.signs * (self.x @ w)
        slopes = -expit(-z) if self.loss == "logistic" else z - 1
        return self.x.T @ (slopes * self.signs) + self.penalty * len(self.x) * w + self.noise

    def hessian(self, w: np.ndarray) -> np.ndarray:
        """`[d, d]`."""
        z = self.x @ w
        curvature = expit(z) * expit(-z) if self.loss == "logistic" else np.ones(len(z))
        return (self.x.T * curvature) @ self.x + self.penalty * len(self.x) * np.eye(len(w))

    def minimize(self) -> np.ndarray:
        """`[d]` weights, by Newton steps that are halved until they descend."""
        w = np.zeros(self.x.shape[1])
        for _ in range(ITERATIONS):
            gradient = self.gradient(w)
            if np.linalg.norm(gradient) <= 1e-10:
                break
            step, now = cho_solve(cho_factor(self.hessian(w)), gradient), self.value(w)
            # Near the minimum values differ by rounding alone; there whole steps are taken.
            small = gradient @ step <= 1e-9 * (1 + abs(now))
            size = 1.0
            while not small and self.value(w - size * step) > now - 1e-4 * size * (gradient @ step):
                size /= 2
            w = w - size * step
        return w

    def removal(self, w: np.ndarray, gone: Objective) -> tuple[np.ndarray, float]:
        """The Newton step to this objective from the minimum w of one that had rows `gone` besides.

        Returns:
            `[d]` ``dw = H^-1 Delta`` with ``Delta = sum_gone (grad l + lambda w)`` and H the Hessian of this objective
            at w; and what the step can add to the norm of the gradient,
            ``max|l'''| / 2 * |X|_2 * |(X dw)^2|`` (squared entry by entry).
        """
        step = cho_solve(cho_factor(self.hessian(w)), gone.gradient(w) - gone.noise)
        bound = 0.5 * CURVATURE_SLOPE[self.loss] * np.linalg.norm(self.x, 2)
        return step, float(bound * np.linalg.norm((self.x @ step) ** 2))


class CertifiedClassifier(ClassifierMixin, Decremental):
    """One-vs-rest logistic or ridge classification whose removals are certified (epsilon, delta).

    Training minimizes, for each class, ``sum_i l(y_i x_i w) + penalty n / 2 |w|^2 + b w`` with secret noise
    ``b ~ N(0, sigma^2 I)``. Removal takes one Newton step to the minimum of what remains, in O(n d^2) per class, and
    then measures the gradient that is left. As long as its norm, over the weights of all classes, stays within the
    `ResidualBudget`, the law of the weights is (epsilon, delta)-close to that of training on what remains; when a
    removal would exceed it, or takes the last row of a class, the model is trained again with new noise. The squared loss
    is quadratic, so that its steps are exact and use nothing up but rounding.

    The guarantee is about the weights ``coef_`` alone: `rows_`, the noise and the numbers of spending stay with whoever
    removes. It holds for requests that do not depend on weights which were released, and for columns that were computed
    without the rows to forget; a backbone that was trained on them is not covered. Additions train again.

    Rows are divided by `radius`, joined by a 1 where there is an intercept, and those of a norm above 1 shortened to it:
    each by itself, as a scale taken from the data would remember it.

    Deviations from Guo et al. (ICML 2020, arXiv:1911.03030): the gradient itself is measured, with a margin for rounding,
    where the paper adds up bounds of it; ``bound_`` has their sum, by the constant ``max|l'''| = 1 / (6 sqrt 3)`` instead
    of 1/4. The gradients of all classes are one vector, so that one epsilon is for the whole classifier.

    Args:
        loss: 'logistic' or 'squared'.
        penalty: of squared weights, per row, above 0; chosen without the rows to forget.
        sigma: standard deviation of the noise.
        epsilon: of the certificate.
        delta: of the certificate.
        radius: rows up to this norm keep their length.
        fit_intercept: whether to join a 1; its weight is penalized as the others.
        random_state: seed of the noise. None draws it from the operating system; anything else makes it guessable, and
            the certificate void, outside of tests.

    Attributes:
        classes_: `[C]` classes that have rows.
        coef_: `[K, d]`, or `[K, d + 1]` with the intercept last; K is C, or 1 of two classes, or 0 of one.
        spent_: norm of the gradient, and a margin; compared with ``budget_.limit``.
        bound_: what `spent_` can be at most, from the sizes of the steps.
        trainings_: times that the model was trained, the first included.
    """

    guarantee = "certified (epsilon, delta)"
    _parts = {"ResidualBudget": ResidualBudget}

    def __init__(
        self,
        loss: Literal["logistic", "squared"] = "logistic",
        penalty: float = 1e-3,
        sigma: float = 1.0,
        epsilon: float = 1.0,
        delta: float = 1e-4,
        radius: float = 1.0,
        fit_intercept: bool = True,
        random_state: Any = None,
    ) -> None:
        self.loss = loss
        self.penalty = penalty
        self.sigma = sigma
        self.epsilon = epsilon
        self.delta = delta
        self.radius = radius
        self.fit_intercept = fit_intercept
        self.random_state = random_state

    def _validate_parameters(self) -> None:
        if self.loss not in CURVATURE_SLOPE:
            raise BadRows(f"loss must be 'logistic' or 'squared', got {self.loss!r}")
        for name in ("penalty", "radius"):
            if not getattr(self, name) > 0:
                raise BadRows(f"{name} must be above 0, got {getattr(self, name)}")
        try:
            self.budget_ = ResidualBudget(self.epsilon, self.delta, self.sigma)
        except BadInput as error:
            raise BadRows(str(error)) from None

    def _refit(self) -> None:
        entropy = None
        if self.random_state is not None:
            entropy = check_random_state(self.random_state).randint(2**31, size=4)
        self._generator = np.random.default_rng(entropy)
        self.trainings_ = 0
        self._train()

    def _add(self, x: np.ndarray, y: Any) -> None:
        self._train()

    def _train(self) -> None:
        """Train with new noise: noise that was used already is a secret between two models, which would tell it."""
        self.classes_ = np.unique(np.array(self.rows_.y.tolist()))
        x = self._scaled(self.rows_.x)
        self._noise = self._generator.normal(0.0, self.sigma, (self._columns(), x.shape[1]))
        objectives = self._objectives(x, self.rows_.y)
        self.coef_ = np.zeros_like(self._noise)
        for k, objective in enumerate(objectives):
            self.coef_[k] = objective.minimize()
        self.spent_ = self.bound_ = self._measured(objectives)
        self.trainings_ += 1
        if self.spent_ > self.budget_.limit:
            raise BadRows(
                f"training ends at a gradient of {self.spent_:.1e}, but sigma and epsilon allow {self.budget_.limit:.1e}; "
                "raise one of them"
            )

    def _remove(self, x: np.ndarray, y: Any, ranks: np.ndarray) -> None:
        if len(set(self.rows_.y.tolist())) < len(self.classes_):
            self._train()
            return
        remaining = self._objectives(self._scaled(self.rows_.x), self.rows_.y)
        leaving = self._objectives(self._scaled(x), y)
        bounds = [0.0]
        for k, (objective, gone) in enumerate(zip(remaining, leaving, strict=True)):
            step, bound = objective.removal(self.coef_[k], gone)
            self.coef_[k] += step
            bounds.append(bound)
        self.spent_ = self._measured(remaining)
        self.bound_ += float(np.linalg.norm(bounds))
        if self.spent_ > self.budget_.limit:
            self._train()

    def _columns(self) -> int:
        classes = len(self.classes_)
        return classes if classes > 2 else classes - 1

    def _objectives(self, x: np.ndarray, labels: np.ndarray) -> list[Objective]:
        positive = self.classes_[len(self.classes_) - self._columns() :]
        return [
            Objective(x, np.where(labels == label, 1.0, -1.0), noise, self.penalty, self.loss)
            for label, noise in zip(positive, self._noise, strict=True)
        ]

    def _measured(self, objectives: list[Objective]) -> float:
        parts = [o.gradient(w) for o, w in zip(objectives, self.coef_, strict=True)]
        return float(np.linalg.norm(parts)) * (1 + 1e-6) + 1e-9

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        x = x / self.radius
        if self.fit_intercept:
            x = np.column_stack([x, np.ones(len(x))])
        return x / np.maximum(1.0, np.linalg.norm(x, axis=1, keepdims=True))

    def decision_function(self, X: Any) -> np.ndarray:
        """`[n]` scores of the second of two classes, or `[n, C]`."""
        scores = self._scores(X)
        return scores[:, 1] if scores.shape[1] == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """`[n]` classes of the largest score; the first in order of several."""
        largest = self._scores(X).argmax(1)
        return self.classes_[largest]

    def _scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        x: Any = validate_data(self, X, reset=False, dtype=np.float64)
        scores = self._scaled(x) @ self.coef_.T
        if len(self.classes_) > 2:
            return scores
        return np.column_stack([np.zeros(len(x)), scores])
