"""Classifiers that are sums by class: naive Bayes, Gaussian and multinomial."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from scipy.special import log_softmax
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from expunge.exact.estimators.base import BadRows, Decremental
from expunge.exact.moments import Moments, Totals


class ByClass(ClassifierMixin, Decremental):
    """A classifier that is a function of sums over the rows of each class, by default their `Moments`.

    A class whose last row is forgotten is no longer among `classes_`. Where removals cost a class its digits, the sums of
    that class are made afresh from its rows.
    """

    _parts = {"Moments": Moments, "Totals": Totals}

    def _empty(self, width: int) -> Any:
        """Sums of a class without rows: what has `n`, `cancelled`, `add(rows)` and `remove(rows)`."""
        return Moments(width, full=False)

    def _sums(self, rows: np.ndarray) -> Any:
        made = self._empty(rows.shape[1])
        made.add(rows)
        return made

    def _refit(self) -> None:
        x, labels = self.rows_.x, self.rows_.y
        self._by_class = {label: self._sums(x[labels == label]) for label in dict.fromkeys(labels.tolist())}
        self._order()

    def _add(self, x: np.ndarray, y: Any) -> None:
        for label in dict.fromkeys(y.tolist()):
            self._by_class.setdefault(label, self._empty(x.shape[1])).add(x[y == label])
        self._order()

    def _remove(self, x: np.ndarray, y: Any, ranks: np.ndarray) -> None:
        for label in dict.fromkeys(y.tolist()):
            sums = self._by_class[label]
            sums.remove(x[y == label])
            if sums.n == 0:
                del self._by_class[label]
            elif sums.cancelled:
                self._by_class[label] = self._sums(self.rows_.x[self.rows_.y == label])
        self._order()

    def _order(self) -> None:
        labels = np.array(list(self._by_class))
        order = np.argsort(labels)
        self.classes_ = labels[order]
        self._publish([list(self._by_class.values())[i] for i in order])

    @abstractmethod
    def _publish(self, sums: list[Any]) -> None:
        """Set what was learned, from the sums of `classes_`."""

    @abstractmethod
    def _scores(self, x: np.ndarray) -> np.ndarray:
        """`[n, classes]`, the larger the likelier."""

    def predict(self, X: Any) -> np.ndarray:
        """`[n]` most likely classes; the first in order where several are."""
        likeliest = self._scores(self._asked(X)).argmax(1)
        return self.classes_[likeliest]

    def _asked(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return validate_data(self, X, reset=False, dtype=np.float64)  # pyright: ignore


class Probabilistic(ByClass):
    """A `ByClass` whose scores are joint log-likelihoods ``ln p(x, c)`` up to a constant in c."""

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """`[n, classes]` ln p(c | x)."""
        return log_softmax(self._scores(self._asked(X)), axis=1)

    def predict_proba(self, X: Any) -> np.ndarray:
        """`[n, classes]` p(c | x)."""
        return np.exp(self.predict_log_proba(X))


class GaussianNB(Probabilistic):
    """``p(x, c) = n_c / n prod_j N(x_j; mean_cj, var_cj + epsilon)``.

    Numbers, means and sums of squares are kept by class (Chan, Golub & LeVeque 1979) and down-dated; the smoothing
    ``epsilon = var_smoothing * max_j var_j`` depends on all rows and is down-dated with them.

    Deviation: where no column varies, epsilon is `var_smoothing` itself, and answers stay finite.

    Args:
        var_smoothing: share of the largest variance that is added to all.

    Attributes:
        classes_: `[C]` classes that have rows.
        class_prior_: `[C]` shares n_c / n.
        theta_: `[C, d]` means.
        var_: `[C, d]` variances, epsilon included.
    """

    guarantee = "numeric (1e-8)"

    def __init__(self, var_smoothing: float = 1e-9) -> None:
        self.var_smoothing = var_smoothing

    def _validate_parameters(self) -> None:
        if not self.var_smoothing > 0:
            raise BadRows(f"var_smoothing must be above 0, got {self.var_smoothing}")

    def _publish(self, sums: list[Any]) -> None:
        counts = np.array([m.n for m in sums])
        self.class_prior_ = counts / counts.sum()
        self.theta_ = np.stack([m.mean for m in sums])
        within = np.stack([m.scatter for m in sums])
        between = counts @ (self.theta_ - self.class_prior_ @ self.theta_) ** 2
        largest = float(((within.sum(0) + between) / counts.sum()).max())
        self.epsilon_ = self.var_smoothing * (largest or 1.0)
        self.var_ = within / counts[:, None] + self.epsilon_

    def _scores(self, x: np.ndarray) -> np.ndarray:
        pairs = zip(self.theta_, self.var_, strict=True)
        distance = np.stack([((x - mean) ** 2 / var).sum(1) for mean, var in pairs], axis=1)
        return np.log(self.class_prior_) - 0.5 * (distance + np.log(2 * np.pi * self.var_).sum(-1))


class MultinomialNB(Probabilistic):
    """``p(x, c) = n_c / n prod_j q_cj^x_j``, ``q_cj = (N_cj + alpha) / (N_c + alpha d)`` with counts ``N_cj = sum x_j``.

    Forgetting subtracts counts. Sums of whole numbers below 2^53 have no rounding: the model is then bitwise that of
    fitting on what remains. The d columns must have been chosen without the rows that are forgotten, as by hashing: a
    vocabulary taken from them remembers their words.

    Args:
        alpha: added to every count; above 0.

    Attributes:
        classes_: `[C]` classes that have rows.
        class_log_prior_: `[C]` ln n_c / n.
        feature_log_prob_: `[C, d]` ln q.
    """

    guarantee = "bitwise for whole numbers, else numeric (1e-8)"

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.classifier_tags.poor_score = True  # of blobs, which are no counts; so in scikit-learn
        return tags

    def _validate_parameters(self) -> None:
        if not self.alpha > 0:
            raise BadRows(f"alpha must be above 0, got {self.alpha}")

    def _read(self, X: Any, y: Any, *, reset: bool) -> tuple[np.ndarray, Any]:
        x, y = super()._read(X, y, reset=reset)
        if (x < 0).any():
            raise BadRows(
                f"Negative values in data passed to MultinomialNB (smallest {x.min()}); counts are 0 or more"
            )
        return x, y

    def _empty(self, width: int) -> Any:
        return Totals(width)

    def _publish(self, sums: list[Any]) -> None:
        counts = np.array([s.n for s in sums])
        self.class_log_prior_ = np.log(counts / counts.sum())
        smoothed = np.stack([s.total for s in sums]) + self.alpha
        self.feature_log_prob_ = np.log(smoothed / smoothed.sum(1, keepdims=True))

    def _scores(self, x: np.ndarray) -> np.ndarray:
        return self.class_log_prior_ + x @ self.feature_log_prob_.T
