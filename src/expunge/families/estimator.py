"""Estimators with the interface of scikit-learn: fitted in one go, no layers, no gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import nn

from expunge.errors import BadInput
from expunge.families.base import Family, count_examples
from expunge.families.classifier import Classifier
from expunge.families.fitted import Answers, FittedModel
from expunge.families.inputs import restore_inputs
from expunge.families.regressor import Regressor

if TYPE_CHECKING:
    from datasets import Dataset

_PROBABLE = {k: v for k, v in Classifier.quantities.items() if "LAYER" not in k}
_VALUED = {k: v for k, v in Regressor.quantities.items() if "LAYER" not in k}


class Estimator(Family):
    """What a `FittedModel` says of rows: classes with probabilities, with scores or without, or values.

    Everything is read as by the families `classifier` and `regressor`, whose metrics therefore mean the same here; but
    there are no layers to look into and no gradients, so methods and attacks that need these are refused. Inputs are
    flattened to one row of numbers. An estimator without ``predict_proba`` has no likelihood: of it only what it predicts is
    known, and, where it has scores, their margin.
    """

    name = "estimator"
    likelihood = "exact"
    gradients = False
    like = frozenset({"classifier", "regressor"})
    quantities = {**_PROBABLE, **{k: v for k, v in _VALUED.items() if k not in _PROBABLE}}
    relabelings = {**Classifier.relabelings, **Regressor.relabelings}
    answers: ClassVar[Answers]

    @classmethod
    def restore(cls, description: dict[str, Any]) -> Family:
        """The inverse of `describe`."""
        answers = description["answers"]
        found = Values if answers == "values" else of_classes(answers)
        return found.restore(description)

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {**super().describe(), "answers": self.answers}  # pyright: ignore[reportAbstractUsage]

    def layers(self, model: nn.Module) -> list[str]:
        """None: an estimator has no layers."""
        return []

    def head(self, model: nn.Module) -> str:
        """There is none."""
        raise BadInput("an estimator has no layers, so no head either")

    def learn(self, model: nn.Module, dataset: Dataset) -> None:
        """Fit `model` to all rows of `dataset`, afresh."""
        if not isinstance(model, FittedModel):
            raise BadInput(f"family {self.name} fits estimators, not a {type(model).__name__}")
        rows = dataset.with_format("numpy")[:]
        count_examples(len(dataset))
        model.learn([str(i) for i in rows["id"]], self.features(dataset), self.outcomes(dataset))

    def features(self, dataset: Dataset) -> np.ndarray:
        """`[n, d]` float64, the numbers that the estimator is asked with, too."""
        encoded = self.inputs.encode(dataset.with_format("numpy")[:])  # pyright: ignore[reportAttributeAccessIssue]
        if len(encoded) != 1:
            raise BadInput(f"an estimator reads one table of numbers, not {', '.join(encoded)}")
        (only,) = encoded.values()
        return only.flatten(1).double().numpy()

    def outcomes(self, dataset: Dataset) -> np.ndarray:
        """What is learned: `[n]` numbers of classes, or `[n]` or `[n, C]` values in the target's unit."""
        raise BadInput(f"family {self.name} does not say what its estimators learn")


class Probabilities(Estimator, Classifier):
    """Classes, with probabilities."""

    answers = "probabilities"
    like = frozenset({"classifier"})
    quantities = _PROBABLE
    relabelings = Classifier.relabelings

    def outcomes(self, dataset: Dataset) -> np.ndarray:  # noqa: D102
        return np.asarray(dataset[self.target][:], dtype=np.int64)

    @classmethod
    def restore(cls, description: dict[str, Any]) -> Probabilities:  # noqa: D102
        classes, target, group = (description[k] for k in ("classes", "target", "group"))
        return cls(restore_inputs(description["inputs"]), classes, target, group)


class Scores(Probabilities):
    """Classes, with scores whose scale means nothing."""

    answers = "scores"
    likelihood = "none"
    quantities = {k: _PROBABLE[k] for k in ("correct", "predicted", "target")} | {
        "margin": "score of the label - logsumexp of the other scores, [n]"
    }


class Labels(Probabilities):
    """Classes alone."""

    answers = "labels"
    likelihood = "none"
    quantities = {k: _PROBABLE[k] for k in ("correct", "predicted", "target")}


class Values(Estimator, Regressor):
    """Values."""

    answers = "values"
    like = frozenset({"regressor"})
    quantities = _VALUED
    relabelings = Regressor.relabelings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.raw = True  # estimators are fitted to the targets as they are

    def outcomes(self, dataset: Dataset) -> np.ndarray:  # noqa: D102
        values = np.column_stack([np.asarray(dataset[t][:], dtype=np.float64) for t in self.targets])
        return values[:, 0] if values.shape[1] == 1 else values

    @classmethod
    def restore(cls, description: dict[str, Any]) -> Values:  # noqa: D102
        values = {k: v for k, v in description.items() if k not in ("family", "answers", "inputs")}
        return cls(restore_inputs(description["inputs"]), **values)


def of_classes(answers: str) -> type[Probabilities]:
    """The family of estimators that answer so."""
    return {"probabilities": Probabilities, "scores": Scores, "labels": Labels}[answers]
