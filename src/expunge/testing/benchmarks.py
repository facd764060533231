"""The contract of a benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from expunge.data.benchmarks.base import BENCHMARKS
from expunge.data.specification import ProblemSpec
from expunge.errors import Missing
from expunge.problem import Problem
from expunge.testing.checks import Check, require


def check_benchmark(name: str, **options: Any) -> Iterator[Check]:
    """Every promise that a benchmark must keep; builds it, trains nothing.

    `options` are keys of a problem, such as ``options={"data_dir": ...}``. Where a benchmark's data is neither
    here nor to be had, a check raises `expunge.errors.Missing`: nothing was found out, neither good nor bad, and a
    test should skip with the message. That message must name the option that brings the data, else the contract
    is broken.
    """

    def check(title: str, run: Any) -> Check:
        return Check(name, title, lambda: run(name, options))

    yield check("declares facts", _facts)
    yield check("gives the same problem twice", _same)
    yield check("has a retain set, holdout rows and a test set that share no example", _disjoint)
    yield check("builds a model that reads its data", _model)


def _build(name: str, options: dict[str, Any]) -> Problem:
    try:
        return ProblemSpec(benchmark=name, **options).build()
    except Missing as absent:
        named = [option for option in BENCHMARKS[name].model_fields if option in str(absent)]
        require(bool(named), f"its data is missing, and the error names no option that brings it: {absent}")
        raise


def _facts(name: str, options: dict[str, Any]) -> None:
    benchmark = BENCHMARKS[name]
    for fact in ("title", "family", "source", "license"):
        require(bool(getattr(benchmark, fact, "")), f"it does not say its {fact}")


def _same(name: str, options: dict[str, Any]) -> None:
    one, two = _build(name, options), _build(name, options)
    require(one.fingerprint == two.fingerprint, "building it twice gives two different problems")


def _disjoint(name: str, options: dict[str, Any]) -> None:
    problem = _build(name, options)
    for needed in ("forget", "retain", "holdout", "test"):
        require(needed in problem.splits, f"it has no '{needed}' rows")
    seen: dict[str, str] = {}
    for split, dataset in problem.splits.items():
        for example in dataset["id"]:
            require(
                str(example) not in seen, f"'{example}' is in '{seen.get(str(example))}' and in '{split}'"
            )
            seen[str(example)] = split


def _model(name: str, options: dict[str, Any]) -> None:
    import torch

    from expunge.families import Batches

    problem = _build(name, options)
    model = problem.fresh_model(0)
    batch = Batches(problem.family, problem.retain).take(torch.arange(4))
    losses = problem.family.losses(model, batch).values()
    require(
        all(bool(torch.isfinite(loss).all()) for loss in losses), "the loss of a fresh model is not finite"
    )
    require(problem.recipe is not None, "it does not say how its target is trained")
