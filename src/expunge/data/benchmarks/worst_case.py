"""The hardest (or easiest) forget set of another benchmark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator

from expunge.data.benchmarks.base import BENCHMARKS, Benchmark
from expunge.data.selection import Selection
from expunge.errors import BadInput
from expunge.files import canonical_json
from expunge.find.worst_case import Search, find_worst_case
from expunge.problem import Problem

_FOUND = Selection.parse("fraction=0.1")


class WorstCase(Benchmark):
    """Another benchmark's problem, with the rows to forget that stay best remembered (Fan et al., ECCV 2024).

    The set is found by `expunge.find.worst_case` on a target that is trained for the search, so a change of
    the base's data, architecture or recipe changes it. Training and rounding decide which rows are found:
    numbers of two machines are comparable only where `forget_digest` in their records agrees. To share a set,
    write it once with ``expunge find worst-case`` and pass the file as `forget`.

    Low loss after forgetting is the worst case for forget accuracy: the rows are typical, a retrained model
    knows them too, and only the gap to retraining says how well they were forgotten. `easiest` rows are atypical.
    """

    name: ClassVar[str] = "worst-case"
    title: ClassVar[str] = "Hardest rows of a benchmark"
    family: ClassVar[str] = "classifier"
    source: ClassVar[str] = "the base benchmark's data; rows by bilevel search"
    license: ClassVar[str] = "as the base benchmark"
    version: ClassVar[int] = 1

    forget: Selection = Field(default=_FOUND, description="cannot be given: the search finds the rows")
    base: str = Field(default="digits", description="benchmark whose rows are searched")
    options: dict[str, Any] = Field(default_factory=dict, description="its options, such as {model: mlp}")
    size: int = Field(default=100, ge=1, description="rows to forget")
    easiest: bool = Field(default=False, description="the rows easiest to forget instead")
    rounds: int = Field(default=10, ge=0, description="updates of the search; 0 draws the rows at random")
    seed: int = Field(default=0, description="of the search and of the target it is made on")

    @field_validator("forget")
    @classmethod
    def _not_given(cls, given: Selection) -> Selection:
        if given != _FOUND:
            raise BadInput(
                "worst-case: its forget set is found by search; leave out 'forget', and say how many rows with 'size'"
            )
        return given

    @field_validator("base")
    @classmethod
    def _other(cls, given: str) -> str:
        if issubclass(BENCHMARKS[given], WorstCase):
            raise BadInput("worst-case: 'base' must be another benchmark, such as digits, got 'worst-case'")
        return given

    def problem(self) -> Problem:  # noqa: D102
        base = BENCHMARKS[self.base](**self.options).problem()
        search = Search(size=self.size, easiest=self.easiest, rounds=self.rounds, seed=self.seed)
        return replace(
            base,
            name=self.name,
            forget_ids=_found(self.base, canonical_json(self.options), canonical_json(search)),
            scope=f"the {self.size} rows of {base.name} {'easiest' if self.easiest else 'hardest'} to forget",
            source={"benchmark": self.name, "version": self.version, "base": dict(base.source)},
        )


@lru_cache(maxsize=16)
def _found(base: str, options: str, settings: str) -> tuple[str, ...]:
    """Ids of the rows, from JSON of the base's options and of the search; searched once per process."""
    from expunge.methods.base import Workplace
    from expunge.methods.loop import fit  # the search is about a trained target, and only methods can train

    problem, search = BENCHMARKS[base](**json.loads(options)).problem(), Search(**json.loads(settings))
    if problem.recipe is None:
        raise AssertionError("a benchmark says how its target is trained")
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(search.seed)
        fresh = problem.fresh_model(search.seed)
        target = fit(problem, fresh, "train", problem.recipe, Workplace(search.seed))
        return find_worst_case(problem.with_model(target), search).ids


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums depend on the number of threads, and every process of a study must find the same rows."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
