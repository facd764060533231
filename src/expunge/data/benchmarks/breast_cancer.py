"""Breast tumors described by measurements of cell nuclei."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from expunge.data.benchmarks.base import Benchmark, fitted, split
from expunge.data.worlds.tables import breast_cancer
from expunge.families import Architecture, Classifier, Table
from expunge.families.estimator import Probabilities
from expunge.problem import Problem, Training


class BreastCancer(Benchmark):
    """569 tumors, malignant or benign, 30 measurements each: 369 to train, 100 to test on, 100 held out."""

    name: ClassVar[str] = "breast-cancer"
    title: ClassVar[str] = "Breast tumors"
    family: ClassVar[str] = "classifier"
    source: ClassVar[str] = (
        "scikit-learn load_breast_cancer, from Wolberg, Mangasarian, Street & Street, UCI, 1995 "
        "(doi:10.24432/C5DW2B)"
    )
    license: ClassVar[str] = "CC BY 4.0"
    version: ClassVar[int] = 1

    model: Literal["mlp", "dare", "gaussian-nb", "lda"] = Field(
        default="mlp",
        description="architecture of the classifier, or an estimator that is fitted to the measurements as they are",
    )

    def problem(self) -> Problem:  # noqa: D102
        data, measurements = breast_cancer()
        train, test, holdout = split(data, (369, 100, 100))
        names = data.features["label"].names
        if self.model != "mlp":
            # Not standardized: means of all rows would know the forgotten ones.
            family = Probabilities(Table(measurements), names)
            trees: dict[str, Any] = {"n_estimators": 20} if self.model == "dare" else {}
            return self.assemble(family, train, test, holdout, **fitted(self.model, 2, **trees))
        return self.assemble(
            Classifier(Table.fit(train, measurements), names),
            train,
            test,
            holdout,
            architecture=Architecture(
                kind="builtin",
                name=self.model,
                options={"inputs": len(measurements), "outputs": 2, "hidden": [32, 16]},
            ),
            recipe=Training(epochs=30, lr=0.02, batch_size=32),
        )
