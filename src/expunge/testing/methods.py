"""The contract of a method."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from expunge.errors import BadInput
from expunge.families import FAMILIES
from expunge.families.models import fingerprint, innermost
from expunge.families.weights import load_folder, save_model
from expunge.methods.base import METHODS, NEEDS, Method, Workplace
from expunge.methods.objective import Objective
from expunge.problem import Problem, Training
from expunge.testing.checks import Check, require
from expunge.testing.parameters import check_parameters
from expunge.testing.problems import problem_for, tiny_problem


def check_method(method: type[Method], **parameters: Any) -> Iterator[Check]:
    """Every promise that a method must keep, on a tiny problem of each family it fits.

    Args:
        method: the class; hyperparameters take their defaults unless given.
        parameters: hyperparameters to use instead of the defaults.
    """
    subject = method.name

    def check(name: str, run: Any, *args: Any) -> Check:
        return Check(subject, name, lambda: run(method, parameters, *args))

    yield check("is registered under its name", _registered)
    yield check("declares facts", _facts)
    yield from check_parameters(method, subject, parameters)
    for family in FAMILIES:
        if not method.fits(FAMILIES[family]):
            yield check(f"refuses {family}", _refuses_family, family)
            continue
        yield check(f"runs on {family}", _runs, family)
        yield check(f"gives the same weights for the same seed on {family}", _deterministic, family)
        yield check(f"leaves the global random state alone on {family}", _random_state, family)
        if method.composes:
            yield check(f"gives a model that can be written and read on {family}", _saved, family)
        if issubclass(method, Objective):
            yield check(f"changes nothing in zero epochs on {family}", _zero_epochs, family)
        if issubclass(method, Objective) or (method.composes and issubclass(method, Training)):
            yield check(f"gives the same weights in micro-batches on {family}", _micro_batches, family)
            yield check(f"gives the same weights with a live reference on {family}", _live_reference, family)
        for need in sorted(method.needs & {"retain", "holdout", "architecture", "recipe"}):
            yield check(f"refuses {family} without {need}", _refuses_without, family, need)


def _make(method: type[Method], parameters: dict[str, Any], **more: Any) -> Method:
    return method(**{**parameters, **more})


def _registered(method: type[Method], parameters: dict[str, Any]) -> None:
    require(
        METHODS[method.name].__name__ == method.__name__, f"'{method.name}' is registered for another class"
    )


def _facts(method: type[Method], parameters: dict[str, Any]) -> None:
    require(bool((method.__doc__ or "").strip()), "it has no docstring; say the definition")
    require(bool(method.paper.strip()), "it does not say its paper")
    require(method.kind in ("objective", "edit", "exact"), f"its kind is {method.kind!r}")
    unknown = method.needs - set(NEEDS)
    require(not unknown, f"it needs {sorted(unknown)}, which nothing offers")
    strange = (method.families or set()) - set(FAMILIES)
    require(not strange, f"it names unknown families {sorted(strange)}")


def _refuses_family(method: type[Method], parameters: dict[str, Any], family: str) -> None:
    try:
        _make(method, parameters).forget(tiny_problem(family), Workplace())
    except BadInput as error:
        require(
            method.name in str(error) and family in str(error),
            f"the error names neither method nor family: {error}",
        )
    else:
        require(False, f"it ran on {family}, which it does not declare")


def _weights(
    method: type[Method], parameters: dict[str, Any], problem: Problem, **more: Any
) -> dict[str, torch.Tensor]:
    reference = more.pop("reference", "precompute")
    forgotten = _make(method, parameters, **more).forget(problem, Workplace(seed=3, reference=reference))
    return forgotten.model.state_dict()


def _runs(method: type[Method], parameters: dict[str, Any], family: str) -> None:
    problem = problem_for(method, family)
    before = fingerprint(problem.target)
    forgotten = _make(method, parameters).forget(problem, Workplace(seed=3))
    require(
        fingerprint(problem.target) == before, "it changed the target; it must work on the copy it is given"
    )
    require(forgotten.model is not problem.target, "it returned the target itself")
    require(not forgotten.model.training, "the model it returned is in training mode")
    made = innermost(forgotten.model) if method.composes else forgotten.model
    same = set(made.state_dict()) == set(problem.target.state_dict())
    require(same, "the model it returned has other parameters than the target")
    require(
        fingerprint(forgotten.model) != before or bool(forgotten.notes),
        "it changed nothing and left no note that says why",
    )
    for entry in forgotten.log:
        bad = [k for k, v in entry.items() if isinstance(v, float) and not math.isfinite(v)]
        require(not bad, f"its loss term '{bad[0] if bad else ''}' is not finite at step {entry.get('step')}")


def _deterministic(method: type[Method], parameters: dict[str, Any], family: str) -> None:
    problem = problem_for(method, family)
    first, second = _weights(method, parameters, problem), _weights(method, parameters, problem)
    different = [k for k in first if not torch.equal(first[k], second[k])]
    require(
        not different,
        f"two runs with one seed differ in {different[:3]}; draw from step.generator or workplace.generator",
    )


def _random_state(method: type[Method], parameters: dict[str, Any], family: str) -> None:
    before = torch.get_rng_state()
    _weights(method, parameters, problem_for(method, family))
    require(torch.equal(before, torch.get_rng_state()), "it left the global random state changed")


def _saved(method: type[Method], parameters: dict[str, Any], family: str) -> None:
    problem = problem_for(method, family)
    made = _make(method, parameters).forget(problem, Workplace(seed=3)).model
    batch = problem.batches("forget").take(torch.arange(3))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save_model(made, Path(folder), problem.architecture, problem.family.describe(), {})
        read = load_folder(Path(folder))[0].eval()
        answers = [problem.family.forward(model, batch).prediction for model in (made, read)]
    require(torch.equal(*answers), "written and read again, the model answers otherwise")


def _zero_epochs(method: type[Method], parameters: dict[str, Any], family: str) -> None:
    problem = problem_for(method, family)
    after = _weights(method, parameters, problem, epochs=0)
    before = problem.target.state_dict()
    different = [k for k in before if not torch.equal(before[k], after[k])]
    require(not different, f"zero epochs changed {different[:3]}")


def _micro_batches(method: type[Method], parameters: dict[str, Any], family: str) -> None:
    problem = problem_for(method, family)
    # Plain gradient steps: adaptive ones turn a gradient that is zero up to rounding into a full step of random sign.
    whole = _weights(method, parameters, problem, epochs=1, optimizer="sgd")
    pieces = _weights(method, parameters, problem, epochs=1, optimizer="sgd", micro_batch_size=5)
    _close(
        whole, pieces, "micro-batches of 5 give other weights than whole batches; use step.mean and step.once"
    )


def _live_reference(method: type[Method], parameters: dict[str, Any], family: str) -> None:
    problem = problem_for(method, family)
    stored = _weights(method, parameters, problem, epochs=1, optimizer="sgd")
    live = _weights(method, parameters, problem, epochs=1, optimizer="sgd", reference="live")
    _close(stored, live, "a live reference gives other weights than a precomputed one")


def _close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], message: str) -> None:
    for name, value in first.items():
        gap = (value.double() - second[name].double()).abs().max().item()
        # Sums in another order differ by rounding, which a few steps of training magnify.
        require(gap < 2e-5, f"{message} ('{name}' differs by {gap:.1e})")


def _refuses_without(method: type[Method], parameters: dict[str, Any], family: str, need: str) -> None:
    problem = problem_for(method, family)
    if need == "retain":
        problem = replace(problem, train=problem.forget)
    else:
        problem = replace(problem, **{need: None})
    try:
        _make(method, parameters).forget(problem, Workplace())
    except BadInput as error:
        require(NEEDS[need] in str(error), f"the error does not say that it needs {NEEDS[need]}: {error}")
    else:
        require(False, f"it ran without {NEEDS[need]}, which it declares to need")
