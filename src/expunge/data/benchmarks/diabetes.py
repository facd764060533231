"""Progression of diabetes: a regression, with a range of the target to forget."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from expunge.data.benchmarks.base import Benchmark, fitted, split
from expunge.data.selection import Selection
from expunge.data.worlds.tables import diabetes
from expunge.families import Architecture, Regressor, Table
from expunge.families.estimator import Values
from expunge.problem import Problem, Training


class Diabetes(Benchmark):
    """442 patients, progression of the disease after a year: 282 to train on, 80 to test on, 80 held out.

    By default the patients with a progression of 200 or more are forgotten, a range of the target as in
    Tarun et al. (ICML 2023). The column `range` has the same bounds (low below 100, middle, high from 200),
    so that what is forgotten can be compared with held-out patients of the same range.
    """

    name: ClassVar[str] = "diabetes"
    title: ClassVar[str] = "Diabetes progression"
    family: ClassVar[str] = "regressor"
    source: ClassVar[str] = (
        "scikit-learn load_diabetes, from Efron, Hastie, Johnstone & Tibshirani, Ann. Stat. 32, 2004"
    )
    license: ClassVar[str] = "not stated by its authors; distributed with scikit-learn (BSD-3-Clause)"
    version: ClassVar[int] = 1

    forget: Selection = Field(
        default=Selection.parse("where:progression >= 200"),
        description="what to forget, as a mapping or in short as fraction=0.1",
    )
    model: Literal["mlp", "ridge", "kernel-ridge"] = Field(
        default="mlp",
        description="architecture of the regressor, or an estimator that is fitted to the measurements as they are",
    )

    def problem(self) -> Problem:  # noqa: D102
        data, measurements = diabetes()
        ranges = ["low" if v < 100 else "middle" if v < 200 else "high" for v in data["progression"]]
        train, test, holdout = split(data.add_column("range", ranges), (282, 80, 80))  # pyright: ignore
        if self.model != "mlp":
            # Not standardized: means of all rows would know the forgotten ones. The kernel is as wide as such rows need.
            family = Values.fit(Table(measurements), train, "progression", group="range")
            options: dict[str, Any] = {"gamma": 1e-4} if self.model == "kernel-ridge" else {}
            return self.assemble(family, train, test, holdout, **fitted(self.model, 1, **options))
        return self.assemble(
            Regressor.fit(Table.fit(train, measurements), train, "progression", group="range"),
            train,
            test,
            holdout,
            architecture=Architecture(
                kind="builtin",
                name=self.model,
                options={"inputs": len(measurements), "outputs": 1, "hidden": [32, 16]},
            ),
            recipe=Training(epochs=40, lr=0.01, batch_size=32),
        )
