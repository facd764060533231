"""A benchmark: declared facts, options, and a problem whose target is not trained yet."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from datasets import Dataset
from pydantic import Field, field_validator
from torch import nn

from expunge.data.checkpoints import Checkpoint
from expunge.data.order import shuffled
from expunge.data.selection import Selection
from expunge.errors import BadInput
from expunge.families import Architecture, Family
from expunge.parameters import Parameters
from expunge.problem import Problem, Training
from expunge.registry import Registry

BENCHMARKS: Registry[type[Benchmark]] = Registry("benchmark", "expunge.data.benchmarks")


class Benchmark(Parameters):
    """Base of the benchmarks. Subclasses declare facts as class variables and options as fields.

    The split is fixed by the ids alone, so that numbers can be compared between machines; `version` is
    raised whenever a change would change numbers.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    family: ClassVar[str]
    source: ClassVar[str]
    """Where the data comes from."""
    license: ClassVar[str]
    version: ClassVar[int]
    suite: ClassVar[str] = "standard"
    """Which metrics belong to it."""

    forget: Selection = Field(
        default=Selection.parse("fraction=0.1"),
        description="what to forget, as a mapping or in short as class=3",
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            BENCHMARKS.add(cls.name, cls)

    @field_validator("forget", mode="before")
    @classmethod
    def _parse_forget(cls, given: Any) -> Any:
        return Selection.parse(given) if isinstance(given, str) else given

    @abstractmethod
    def problem(self) -> Problem:
        """Data, split, architecture and recipe; the target is trained by whoever needs it."""

    def about(self, checkpoint: Checkpoint, start: nn.Module | None = None) -> Problem:
        """The problem about a given model, or one of its architecture; `start` is what training starts from."""
        return replace(
            self.problem(), model=checkpoint.model, architecture=checkpoint.architecture, start=start
        )

    def assemble(
        self, family: Family, train: Dataset, test: Dataset, holdout: Dataset, **rest: Any
    ) -> Problem:
        """The problem of these parts, with the rows that `forget` chooses."""
        forget_ids, scope = self.forget.apply(train, family)
        return Problem(
            name=self.name,
            family=family,
            train=train,
            forget_ids=forget_ids,
            holdout=holdout,
            probes={"test": test},
            scope=scope,
            source={"benchmark": self.name, "version": self.version, "data": self.source},
            **rest,
        )


def fitted(name: str, outputs: int, **options: Any) -> dict[str, Any]:
    """Architecture and recipe of an estimator; of the recipe nothing is read, since it is fitted in one go."""
    architecture = Architecture(kind="estimator", name=name, options={"outputs": outputs, **options})
    return {"architecture": architecture, "recipe": Training(epochs=1)}


def split(dataset: Dataset, sizes: Sequence[int]) -> list[Dataset]:
    """Disjoint parts of the given sizes, in a random order that the ids fix."""
    if sum(sizes) > len(dataset):
        raise BadInput(f"cannot split {len(dataset)} rows into parts of {', '.join(map(str, sizes))}")
    order = shuffled([str(i) for i in dataset["id"][:]])
    parts, start = [], 0
    for size in sizes:
        parts.append(dataset.select(order[start : start + size]))
        start += size
    return parts
