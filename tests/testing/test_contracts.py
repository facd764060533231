"""The contract suites over everything that is registered: the matrix is generated, nothing is listed by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from expunge.data.benchmarks.base import BENCHMARKS, Benchmark
from expunge.errors import Missing
from expunge.methods import METHODS
from expunge.methods.objective import Objective, Step
from expunge.metrics.base import METRICS, Estimate, Metric, Readings
from expunge.problem import Problem
from expunge.testing import (
    Check,
    ContractBroken,
    check_benchmark,
    check_family,
    check_method,
    check_metric,
    tiny_problems,
)

FEW: dict[str, dict[str, Any]] = {
    "adapt-then-unlearn": {"copies": 2, "adapting_steps": 5, "steps": 15},
    "advunlearn": {"epochs": 1, "batch_size": 20, "attack_steps": 1, "clean": 0.0, "latents": "once", "start": "data"},
    "cupid": {"epochs": 4, "probes": 4},
    "doco": {"epochs": 2, "batch_size": 20, "n_images": 6, "discriminator_steps": 2, "width": 8},
    "freezeasguard": {"mask_steps": 10},
    "saeuron": {"images": 16, "epochs": 1},
    "spm": {"epochs": 2, "batch_size": 20, "anchors": 1},
    "text-to-unlearn": {"mapper_steps": 10, "steps": 20},
}  # fmt: skip
"""Small parameters of methods that take long by default."""

MATRIX: list[Check] = [
    *(check for name, method in METHODS.items() for check in check_method(method, **FEW.get(name, {}))),
    *(check for problem in tiny_problems() for check in check_family(problem)),
    *(check for _, metric in METRICS.items() for check in check_metric(metric)),
    *(check for name in BENCHMARKS for check in check_benchmark(name)),
]


@pytest.mark.parametrize("check", MATRIX, ids=str)
def test_contract(check: Check) -> None:
    try:
        check()
    except Missing as absent:
        if check.subject not in BENCHMARKS:
            raise
        pytest.skip(str(absent))


def test_every_promised_name_is_registered() -> None:
    promised = (
        "retrain fine-tune gradient-ascent gradient-difference kl-minimization random-labeling bad-teacher scrub ssd lfssd "
        "salun l1-sparse npo task-vector blindspot"
    )
    assert set(promised.split()) <= set(METHODS)
    assert {"digits", "breast-cancer", "diabetes"} <= set(BENCHMARKS)


def broken(checks: list[Check], name: str) -> str:
    """The message with which the check called `name` fails."""
    (check,) = [c for c in checks if c.name == name]
    with pytest.raises(ContractBroken) as caught:
        check()
    return str(caught.value)


def test_a_method_that_ignores_its_seed_is_caught() -> None:
    class Careless(Objective):
        """Ascent with noise from nowhere."""

        name = "careless"
        paper = "none"

        def loss(self, step: Step) -> dict[str, Tensor]:
            noise = torch.randn((), generator=torch.Generator().manual_seed(torch.seed() % 2**31))
            return {
                "forget": -step.mean("forget", step.family.nll(step.outputs("forget"), step.forget)) * noise
            }

    try:
        checks = list(check_method(Careless))
        assert "differ in" in broken(checks, "gives the same weights for the same seed on classifier")
    finally:
        METHODS._items.pop("careless")


def test_a_method_whose_mean_depends_on_micro_batches_is_caught() -> None:
    class Mean(Objective):
        """Ascent that averages each micro-batch by itself."""

        name = "micro-mean"
        paper = "none"

        def loss(self, step: Step) -> dict[str, Tensor]:
            return {"forget": -step.family.nll(step.outputs("forget"), step.forget).mean()}

    try:
        checks = list(check_method(Mean))
        assert "use step.mean" in broken(checks, "gives the same weights in micro-batches on regressor")
    finally:
        METHODS._items.pop("micro-mean")


def test_a_metric_that_leaves_its_range_is_caught() -> None:
    def wrong(readings: Readings) -> Estimate:
        return Estimate(float(readings.model["loss"].sum()) + 2.0, len(readings.model))

    metric = Metric(
        "wrong", "Wrong", "definition of a wrong metric", wrong, {("model", "*"): ["loss"]}, ("forget",), {"*": "lower"},
        "share", 0.0, 1.0, None, "", "",
    )  # fmt: skip
    assert "outside 0.0 to 1.0" in broken(list(check_metric(metric)), "stays in its range on classifier")


class Elsewhere(Benchmark):
    """A benchmark whose data is not here."""

    title = "Elsewhere"
    family = "classifier"
    source = license = "none"
    version = 1
    hint: ClassVar[str] = ""

    data_dir: str | None = None

    def problem(self) -> Problem:
        raise Missing(f"the data is not here{self.hint}")


@pytest.mark.parametrize("hint", ["", "; give its folder as the option data_dir"])
def test_absent_data_is_missing_and_not_a_passed_check(hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Elsewhere, "hint", hint)
    BENCHMARKS.add("elsewhere", Elsewhere)
    try:
        checks = list(check_benchmark("elsewhere"))
        same = "gives the same problem twice"
        if not hint:
            assert "names no option that brings it" in broken(checks, same)
            return
        with pytest.raises(Missing, match="give its folder as the option data_dir"):
            next(c for c in checks if c.name == same)()
    finally:
        BENCHMARKS._items.pop("elsewhere")


def test_a_family_that_forgets_its_mask_is_caught() -> None:
    problem = next(p for p in tiny_problems() if p.family.name == "classifier")
    original = type(problem.family)

    class Unmasked(original):
        def nll(self, outputs: object, batch: object) -> Tensor:
            return super().nll(outputs, replace(batch, mask=torch.ones_like(batch.mask)))  # type: ignore[arg-type,type-var]

    changed = replace(problem, family=Unmasked.restore(problem.family.describe()))
    assert "masked positions count" in broken(
        list(check_family(changed)), "sums the likelihood over valid positions"
    )
