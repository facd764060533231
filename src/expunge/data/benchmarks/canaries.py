"""An embedded benchmark with canaries in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from expunge.data.benchmarks.base import BENCHMARKS, Benchmark
from expunge.data.canaries import plant_mark, plant_poison
from expunge.errors import BadInput
from expunge.problem import Problem


class Canaries(Benchmark):
    """Another benchmark with secret noise on its forget rows and an ownership mark in its training data.

    For the attacks `gaussian-poison`, which looks for the noise after forgetting, and `watermark`, which looks for the
    mark.
    """

    name: ClassVar[str] = "canaries"
    title: ClassVar[str] = "Benchmark with canaries"
    family: ClassVar[str] = "classifier"
    source: ClassVar[str] = "another embedded benchmark, and random numbers fixed by a key"
    license: ClassVar[str] = "that of the other benchmark"
    version: ClassVar[int] = 1

    of: str = Field(
        default="digits", description="benchmark of classification that the canaries are put into"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="options of that benchmark")
    poison_std: float = Field(
        default=0.5,
        ge=0,
        description="standard deviation of the noise on forget rows, in input units; 0 for none",
    )
    mark_rows: int = Field(default=30, ge=0, description="rows of the ownership mark; 0 for none")
    mark_in: Literal["forget", "retain"] = Field(
        default="retain", description="whether the mark is to be kept or to be forgotten"
    )
    key: int = Field(default=0, description="fixes the noise and the mark")

    def problem(self) -> Problem:  # noqa: D102
        if self.of == self.name:
            raise BadInput("canaries: 'of' must name another benchmark, such as digits")
        problem = BENCHMARKS[self.of](**{"forget": self.forget, **self.options}).problem()
        if self.poison_std:
            problem = plant_poison(problem, self.poison_std, self.key)
        if self.mark_rows:
            problem = plant_mark(problem, self.mark_rows, self.mark_in, self.key)
        source = {**problem.source, "benchmark": self.name, "of": self.of}
        return replace(problem, name=f"{self.of}-{self.name}", source=source)
