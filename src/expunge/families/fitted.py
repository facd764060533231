"""Models that are fitted in one go: estimators with the interface of scikit-learn, called as modules are."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from expunge.errors import BadInput, did_you_mean
from expunge.registry import load_object

ESTIMATORS = {
    "dare": "expunge.exact.estimators:DaREForestClassifier",
    "gaussian-nb": "expunge.exact.estimators:GaussianNB",
    "multinomial-nb": "expunge.exact.estimators:MultinomialNB",
    "nearest-centroid": "expunge.exact.estimators:NearestCentroid",
    "k-nn": "expunge.exact.estimators:KNeighborsClassifier",
    "lda": "expunge.exact.estimators:LinearDiscriminantAnalysis",
    "certified": "expunge.exact.estimators:CertifiedClassifier",
    "ridge": "expunge.exact.estimators:Ridge",
    "kernel-ridge": "expunge.exact.estimators:KernelRidge",
}
"""Estimators that forget, by the name that an architecture has for them."""

FLOOR = 1e-9
"""Smallest probability: a forest says 0, and its logarithm must stay finite."""

Answers = Literal["probabilities", "scores", "labels", "values"]


def estimator_class(name: str) -> type[Any]:
    """The class of an estimator: one of `ESTIMATORS`, or ``package.module:Class``, which is imported."""
    if name not in ESTIMATORS and ":" not in name:
        raise BadInput(
            f"unknown estimator '{name}'{did_you_mean(name, ESTIMATORS)}; "
            "known are the names above and package.module:Class"
        )
    found = load_object(ESTIMATORS.get(name, name))
    if not isinstance(found, type) or not hasattr(found, "fit") or not hasattr(found, "predict"):
        raise BadInput(f"'{name}' is no estimator: it has no fit and predict as in scikit-learn")
    return found


def answers_of(estimator: Any) -> Answers:
    """What an estimator says of a row, the most that it can."""
    from sklearn.base import is_regressor

    if is_regressor(estimator):
        return "values"
    if hasattr(estimator, "predict_proba"):
        return "probabilities"
    return "scores" if hasattr(estimator, "decision_function") else "labels"


class FittedModel(nn.Module):
    """An estimator as a module without parameters: rows `[B, ...]`, each flattened, to `[B, outputs]`; no gradients.

    Of classes it gives the logarithms of ``predict_proba``, not below that of `FLOOR`; else the scores of
    ``decision_function``, of two classes 0 and the score; else 1 for what ``predict`` says and 0 for the others. Of
    values it gives what ``predict`` says. An estimator that was fitted to nothing yet gives 0 everywhere.

    What it learned is part of its state: arrays of each type in a row, and JSON (``structure``) that says what they are.
    That is for estimators which forget; others are pickled, where `allow_pickle` says so.

    Args:
        estimator: fitted or not.
        outputs: classes, or values.
        labels: what the estimator calls the classes, where it was not fitted to their numbers.
        allow_pickle: whether the estimator may be written as a pickle, which can run code when it is read.
    """

    def __init__(
        self, estimator: Any, outputs: int, labels: Sequence[Any] | None = None, allow_pickle: bool = False
    ) -> None:
        super().__init__()
        self.estimator, self.outputs, self.allow_pickle = estimator, outputs, allow_pickle
        self.labels = None if labels is None else list(labels)

    @classmethod
    def build(cls, name: str, options: Mapping[str, Any], seed: int) -> FittedModel:
        """An estimator that is fitted to nothing yet; `seed` is its `random_state`, where it has one and none is given."""
        parameters = {k: v for k, v in options.items() if k not in ("outputs", "allow_pickle")}
        found = estimator_class(name)
        if "random_state" in getattr(found, "_get_param_names", list)() and "random_state" not in parameters:
            parameters["random_state"] = seed
        try:
            estimator = found(**parameters)
        except TypeError as error:
            raise BadInput(f"estimator '{name}' cannot be built from {parameters}: {error}") from None
        allowed = bool(options.get("allow_pickle", False))
        return cls(estimator, int(options.get("outputs", 1)), allow_pickle=allowed)

    @property
    def fitted(self) -> bool:
        """Whether it has learned anything."""
        from sklearn.exceptions import NotFittedError
        from sklearn.utils.validation import check_is_fitted

        try:
            check_is_fitted(self.estimator)
        except NotFittedError:
            return False
        return True

    def learn(self, ids: Sequence[str], x: np.ndarray, y: np.ndarray) -> None:
        """Fit to rows `x`, `[n, d]`, with classes by number, `[n]`, or values, `[n]` or `[n, outputs]`."""
        named = {"ids": ids} if hasattr(self.estimator, "forget") else {}
        self.estimator.fit(x, y, **named)
        self.labels = None

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """`[B, outputs]` in float64; see the class."""
        if not self.fitted:
            return torch.zeros((len(features), self.outputs), dtype=torch.float64, device=features.device)
        x = features.flatten(1).double().cpu().numpy()
        return torch.from_numpy(np.ascontiguousarray(self._said(x))).to(features.device)

    def _said(self, x: np.ndarray) -> np.ndarray:
        kind = answers_of(self.estimator)
        if kind == "values":
            return np.asarray(self.estimator.predict(x), dtype=np.float64).reshape(len(x), self.outputs)
        places = self._places()
        if kind == "probabilities":
            said = np.full((len(x), self.outputs), FLOOR)
            said[:, places] = self.estimator.predict_proba(x)
            return np.log(np.maximum(said, FLOOR))
        if kind == "scores":
            scores = np.asarray(self.estimator.decision_function(x), dtype=np.float64)
            if scores.ndim == 1:
                scores = np.column_stack([np.zeros_like(scores), scores])
            # A class that it does not know never wins.
            said = np.full((len(x), self.outputs), scores.min(initial=0.0) - 1.0)
            said[:, places] = scores
            return said
        numbers = {str(label): place for label, place in zip(self.estimator.classes_, places, strict=True)}
        said = np.zeros((len(x), self.outputs))
        said[np.arange(len(x)), [numbers[str(label)] for label in self.estimator.predict(x)]] = 1.0
        return said

    def _places(self) -> list[int]:
        """The numbers of the classes that the estimator knows, in its order."""
        known = list(self.estimator.classes_)
        if self.labels is None:
            return [int(label) for label in known]
        named = [str(label) for label in self.labels]
        strange = [label for label in known if str(label) not in named]
        if strange:
            raise BadInput(
                f"the estimator knows a class {strange[0]!r}, which is none of {', '.join(named[:20])}; name all with 'classes'"
            )
        return [named.index(str(label)) for label in known]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, value in self._state().items():
            destination[prefix + name] = torch.from_numpy(value)

    def _state(self) -> dict[str, np.ndarray]:
        if hasattr(self.estimator, "to_state"):
            return self.estimator.to_state()
        if not self.allow_pickle:
            raise BadInput(
                f"a {type(self.estimator).__name__} can only be written as a pickle, which can run code when it is read; "
                "pass allow_pickle (--allow-pickle) if that is meant"
            )
        import joblib

        file = io.BytesIO()
        joblib.dump(self.estimator, file)
        texts = {"pickle": file.getvalue(), "labels": json.dumps(self.labels, default=str).encode()}
        return {name: np.frombuffer(text, dtype=np.uint8).copy() for name, text in texts.items()}

    def restore(self, state: Mapping[str, Tensor], source: str, *, allow_pickle: bool) -> None:
        """Become what `state_dict` gave; `source` is where it came from, for errors."""
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        if "pickle" not in arrays:
            if not hasattr(self.estimator, "from_state"):
                raise BadInput(f"'{source}' holds no {type(self.estimator).__name__}")
            self.estimator = self.estimator.from_state(arrays)
            return
        self.estimator = unpickled(arrays["pickle"].tobytes(), source, allow_pickle=allow_pickle)
        self.labels = json.loads(arrays["labels"].tobytes())


def unpickled(content: bytes, source: str, *, allow_pickle: bool) -> Any:
    """The estimator in a pickle of joblib; refused unless allowed."""
    if not allow_pickle:
        raise BadInput(
            f"'{source}' holds a pickled estimator, which can run code when it is read; "
            "pass --allow-pickle if you trust where it comes from"
        )
    import joblib

    try:
        found = joblib.load(io.BytesIO(content))
    except Exception as error:
        raise BadInput(
            f"'{source}' is damaged, or made by libraries that are not here: {type(error).__name__}"
        ) from None
    if not hasattr(found, "predict"):
        raise BadInput(f"'{source}' holds a {type(found).__name__}, which is no fitted estimator")
    return found


def json_options(estimator: Any) -> dict[str, Any]:
    """The hyperparameters of an estimator that differ from its defaults and are plain data."""
    given, usual = estimator.get_params(deep=False), type(estimator)().get_params(deep=False)
    found = {k: v for k, v in given.items() if repr(v) != repr(usual.get(k))}
    try:
        json.dumps(found)
    except TypeError:
        return {}
    return found
