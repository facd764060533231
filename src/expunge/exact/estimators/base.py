"""What all estimators that forget share: rows kept by id, and when they come and go."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import get_tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from expunge.errors import BadInput
from expunge.exact.estimators.state import Writer, read


class BadRows(BadInput, ValueError):
    """Rows, ids or a hyperparameter that an estimator cannot use; a ValueError too, as scikit-learn has it."""


class Rows:
    """Training rows by id, in the order in which they came.

    A row that leaves is overwritten at once and its place given up later, when half of all places are empty: removing
    one takes O(d) on average, however many there are.
    """

    def __init__(self, ids: Sequence[Hashable], x: np.ndarray, y: np.ndarray | None) -> None:
        self._places: dict[Hashable, int] = {}
        self._used = np.zeros(0, dtype=bool)
        self._x = x[:0].copy()
        self._y = None if y is None else y[:0].copy()
        self.append(ids, x, y)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def ids(self) -> list[Hashable]:
        """In order."""
        return list(self._places)

    @property
    def x(self) -> np.ndarray:
        """`[n, d]` in order; a copy."""
        return self._x[: len(self._used)][self._used]

    @property
    def y(self) -> Any:
        """`[n]` or `[n, C]` targets in order; a copy. None where there are none."""
        return None if self._y is None else self._y[: len(self._used)][self._used]

    def append(self, ids: Sequence[Hashable], x: np.ndarray, y: np.ndarray | None) -> None:
        """Rows with new ids, behind the others."""
        known = self._places.keys() & set(ids)
        if known or len(set(ids)) < len(ids):
            twice = next(iter(known)) if known else next(i for n, i in enumerate(ids) if i in ids[:n])
            raise BadRows(f"id {twice!r} is taken; every row needs an id of its own")
        start, end = len(self._used), len(self._used) + len(x)
        if end > len(self._x):
            self._x = _grown(self._x, start, end)
            self._y = None if self._y is None else _grown(self._y, start, end)
        self._x[start:end] = x
        if self._y is not None and y is not None:
            self._y[start:end] = y
        self._used = np.concatenate([self._used, np.ones(len(x), dtype=bool)])
        self._places.update(zip(ids, range(start, end), strict=True))

    def find(self, ids: Iterable[Hashable]) -> list[Hashable]:
        """The ids as a list, or an error that names what is wrong with them."""
        if isinstance(ids, (str, bytes)):
            raise BadRows(f"ids must be a collection of ids, got {ids!r}; put it in a list")
        ids = list(ids)
        unknown = [i for i in ids if i not in self._places]
        if unknown:
            raise BadRows(
                f"{len(unknown)} of the ids to forget are not in the model (first: {unknown[0]!r}); "
                "were they forgotten already?"
            )
        if len(set(ids)) < len(ids):
            raise BadRows("an id to forget is named twice; name each once")
        return ids

    def pop(self, ids: Sequence[Hashable]) -> tuple[np.ndarray, Any, np.ndarray]:
        """Take rows out: their x, their y, and `[k]` which places in the order they had."""
        places = np.asarray([self._places.pop(i) for i in ids], dtype=np.intp)
        x, y = self._x[places], None if self._y is None else self._y[places]
        ranks = np.array([np.count_nonzero(self._used[:place]) for place in places], dtype=np.intp)
        self._used[places] = False
        self._x[places] = 0.0
        if self._y is not None:
            self._y[places] = None if self._y.dtype == object else 0.0
        if 2 * len(self._places) < len(self._used):
            self._x, self._y, ids = self.x, self.y, self.ids
            self._used = np.ones(len(ids), dtype=bool)
            self._places = {i: place for place, i in enumerate(ids)}
        return x, y, ranks


def _grown(array: np.ndarray, used: int, needed: int) -> np.ndarray:
    """A copy with room for more; twice the place, so that a row costs O(1) on average."""
    made = np.zeros((needed if not used else max(needed, 2 * used), *array.shape[1:]), dtype=array.dtype)
    made[:used] = array[:used]
    return made


class Decremental(BaseEstimator):
    """Base of estimators that forget.

    The rows stay inside, in `rows_`, because forgetting needs their values: guard a saved estimator as you guard the
    data. A row that is forgotten is overwritten.
    """

    guarantee: ClassVar[str]
    """How close forgetting is to fitting on what remains."""
    _parts: ClassVar[Mapping[str, type[Any]]] = {}
    """Classes of ours that an estimator is made of, by the name under which they are saved."""

    def fit(self, X: Any, y: Any = None, ids: Iterable[Hashable] | None = None) -> Self:
        """Fit on rows `X`, `[n, d]`.

        Args:
            X: real values.
            y: targets, where the estimator learns any.
            ids: one for each row, hashable and unique; by default their numbers, from 0.
        """
        self._validate_parameters()
        x, y = self._read(X, y, reset=True)
        self._count = 0
        self.rows_ = Rows(self._named(ids, len(x)), x, y)
        self._refit()
        return self

    def add(self, X: Any, y: Any = None, ids: Iterable[Hashable] | None = None) -> Self:
        """Learn more rows; arguments as for `fit`, ids must be new."""
        check_is_fitted(self)
        x, y = self._read(X, y, reset=False)
        self.rows_.append(self._named(ids, len(x)), x, y)
        self._add(x, y)
        return self

    def forget(self, ids: Iterable[Hashable]) -> Self:
        """Become what fitting on the other rows gives; unknown ids are refused, and nothing is changed then."""
        check_is_fitted(self)
        found = self.rows_.find(ids)
        if len(self.rows_) - len(found) < self._fewest():
            raise BadRows(
                f"{len(self.rows_) - len(found)} rows would remain, but {type(self).__name__} needs {self._fewest()}; "
                "drop the estimator instead"
            )
        if found:
            self._remove(*self.rows_.pop(found))
        return self

    def to_state(self) -> dict[str, np.ndarray]:
        """Everything it is made of, the rows included, as arrays: no pickle. `from_state` is the inverse."""
        return Writer({"Rows": Rows, **self._parts}).arrays(vars(self))

    def from_state(self, arrays: Mapping[str, np.ndarray]) -> Self:
        """The estimator that `to_state` was called on, which must be of this class."""
        made = type(self)()
        found = read(arrays, {"Rows": Rows, **self._parts})
        if not isinstance(found, dict) or not set(made.get_params()) <= set(found):
            raise BadRows(f"the state is not that of a {type(self).__name__}")
        vars(made).update(found)
        return made

    def _named(self, ids: Iterable[Hashable] | None, n: int) -> list[Hashable]:
        named: list[Hashable] = list(range(self._count, self._count + n))
        if ids is not None:
            # Numbers of numpy are equal to Python's, but print and therefore hash to text otherwise.
            named = [i.item() if isinstance(i, np.generic) else i for i in ids]
        if len(named) != n:
            raise BadRows(f"{n} rows came with {len(named)} ids; each row needs one")
        self._count += n
        return named

    def _read(self, X: Any, y: Any, *, reset: bool) -> tuple[np.ndarray, Any]:
        tags = get_tags(self)
        if not tags.target_tags.required:
            return validate_data(self, X, reset=reset, dtype=np.float64), None  # pyright: ignore
        numeric = tags.estimator_type == "regressor"
        x, y = validate_data(
            self,
            X,
            y,
            reset=reset,
            dtype=np.float64,
            y_numeric=numeric,
            multi_output=numeric and tags.target_tags.multi_output,
        )
        if numeric:
            return x, np.asarray(y, dtype=np.float64)  # pyright: ignore
        check_classification_targets(y)
        # As objects: the names of classes that come later may be longer than those that are there.
        return x, np.asarray(y).astype(object)  # pyright: ignore

    def _validate_parameters(self) -> None:
        """Refuse hyperparameters that make no sense."""

    def _fewest(self) -> int:
        """Rows that must remain."""
        return 1

    @abstractmethod
    def _refit(self) -> None:
        """Compute everything from `rows_`."""

    def _add(self, x: np.ndarray, y: Any) -> None:
        """Take in rows that were appended to `rows_`."""
        self._refit()

    @abstractmethod
    def _remove(self, x: np.ndarray, y: Any, ranks: np.ndarray) -> None:
        """Take out rows that `rows_` holds no longer; `ranks` are the places in the order that they had."""
