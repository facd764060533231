"""The contract of an attack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any, get_args

import torch

from expunge.attacks.base import ATTACKS, Access, Attack, Scene, find_measure
from expunge.attacks.shadows import ShadowModels
from expunge.errors import BadInput
from expunge.families import FAMILIES
from expunge.families.models import clone, fingerprint
from expunge.methods.base import METHODS, NEEDS, Workplace
from expunge.methods.fine_tune import FineTune
from expunge.problem import Problem
from expunge.record import Score
from expunge.testing.checks import Check, require
from expunge.testing.parameters import check_parameters
from expunge.testing.problems import tiny_problem


def check_attack(attack: type[Attack], **parameters: Any) -> Iterator[Check]:
    """Every promise that an attack must keep, on a tiny problem of each family it fits.

    Args:
        attack: the class; parameters take their defaults unless given.
        parameters: parameters to use instead of the defaults, such as few shadow models.
    """

    def check(name: str, run: Any, *args: Any) -> Check:
        return Check(attack.name, name, lambda: run(attack, parameters, *args))

    yield check("is registered under its name", _registered)
    yield check("declares facts", _facts)
    yield from check_parameters(attack, attack.name, parameters)
    for family in FAMILIES:
        if not attack.fits(FAMILIES[family]):
            yield check(f"refuses {family}", _refuses_family, family)
            continue
        yield check(f"answers with what it declares on {family}", _answers, family)
        yield check(f"gives the same scores for the same seed on {family}", _deterministic, family)
        yield check(f"changes no model and no global random state on {family}", _leaves_alone, family)
        for need in sorted(attack.needs & {"retain", "holdout", "architecture", "recipe"}):
            yield check(f"refuses {family} without {need}", _refuses_without, family, need)


def _registered(attack: type[Attack], parameters: dict[str, Any]) -> None:
    found = ATTACKS[attack.name]
    require(found.__name__ == attack.__name__, f"'{attack.name}' is registered for another class")


def _facts(attack: type[Attack], parameters: dict[str, Any]) -> None:
    require(bool((attack.__doc__ or "").strip()), "it has no docstring; say the definition")
    require(bool(attack.paper.strip()), "it does not say its paper")
    require(bool(attack.threat_model.strip()), "it does not say what the attacker has and knows")
    require(bool(attack().spends()), "it does not say what it spends (`spends`: queries, passes, steps, ...)")
    require(
        getattr(attack, "access", None) in get_args(Access),
        f"it does not say by 'access' what it needs of the model: one of {', '.join(get_args(Access))}",
    )
    require(bool(attack.measures), "it declares no measure")
    for measure in attack.measures:
        require(len(measure.definition) > 20, f"measure '{measure.name}' does not say its definition")
        require(bool(measure.unit), f"measure '{measure.name}' has no unit")
        owner = find_measure(measure.name)
        require(
            owner is not None and owner[0].__name__ == attack.__name__,
            f"measure '{measure.name}' is another attack's too; begin it with '{attack.name}'",
        )
    strange = (attack.needs - set(NEEDS)) | ((attack.families or set()) - set(FAMILIES))
    require(not strange, f"it names {sorted(strange)}, which nothing offers")


@cache
def _shadows(family: str) -> ShadowModels:
    """Shadow models of the tiny problem; shared by all attacks, as in a study."""
    return ShadowModels(tiny_problem(family), Workplace())


def _scene(attack: Attack, family: str) -> Scene:
    shadows = _shadows(family)
    method = FineTune(epochs=1) if FAMILIES[family].gradients else METHODS["retrain"]()
    made = shadows.unlearned(attack, method) if attack.unlearns_shadows else shadows.trained(attack)
    return replace(_bare_scene(family), shadows=made)


def _bare_scene(family: str) -> Scene:
    """The target stands for the attacked model, as an object of its own."""
    problem = tiny_problem(family)
    return Scene(problem, clone(problem.target), Workplace(seed=3))


def _attack(attack: type[Attack], parameters: dict[str, Any], family: str) -> tuple[Scene, list[Score]]:
    chosen = attack(**parameters)
    obstacles = chosen.obstacles(tiny_problem(family))
    if obstacles:  # more than family and needs can stand in the way: inputs that are no numbers, too few rows
        return _bare_scene(family), chosen.unanswered("not_applicable", "; ".join(obstacles))
    scene = _scene(chosen, family)
    return scene, chosen.attack(scene)


def _answers(attack: type[Attack], parameters: dict[str, Any], family: str) -> None:
    for score in _attack(attack, parameters, family)[1]:
        declared = next(m for m in attack.measures if m.name == score.metric)
        require(score.attack, f"'{score.metric}' is not marked as an attacker's success")
        if score.value is None:
            require(bool(score.reason), f"'{score.metric}' is {score.status} without a reason")
            continue
        low, high = declared.low, declared.high
        inside = (low is None or score.value >= low) and (high is None or score.value <= high)
        require(inside, f"'{score.metric}' is {score.value}, outside {low} to {high}")
        if score.interval is not None:
            around = score.interval.low - 1e-9 <= score.value <= score.interval.high + 1e-9
            require(around, f"'{score.metric}' is {score.value}, outside its own interval")


def _deterministic(attack: type[Attack], parameters: dict[str, Any], family: str) -> None:
    first, second = (_attack(attack, parameters, family)[1] for _ in range(2))
    different = [a.metric for a, b in zip(first, second, strict=True) if a != b]
    require(
        not different, f"two runs with one seed differ in {different}; draw from scene.workplace.generator"
    )


def _leaves_alone(attack: type[Attack], parameters: dict[str, Any], family: str) -> None:
    target, state = fingerprint(tiny_problem(family).target), torch.get_rng_state()
    scene, _ = _attack(attack, parameters, family)
    require(fingerprint(scene.problem.target) == target, "it changed the target")
    require(fingerprint(scene.model) == target, "it changed the attacked model; work on a copy of it")
    require(not scene.model.training, "it left the attacked model in training mode")
    require(torch.equal(state, torch.get_rng_state()), "it left the global random state changed")


def _refuses_family(attack: type[Attack], parameters: dict[str, Any], family: str) -> None:
    _refused(attack, parameters, tiny_problem(family), family)


def _refuses_without(attack: type[Attack], parameters: dict[str, Any], family: str, need: str) -> None:
    problem = tiny_problem(family)
    problem = replace(problem, train=problem.forget) if need == "retain" else replace(problem, **{need: None})
    _refused(attack, parameters, problem, NEEDS[need])


def _refused(attack: type[Attack], parameters: dict[str, Any], problem: Problem, words: str) -> None:
    try:
        attack(**parameters).attack(Scene(problem, clone(problem.target)))
    except BadInput as error:
        require(
            attack.name in str(error) and words in str(error),
            f"the error names neither the attack nor '{words}': {error}",
        )
    else:
        require(False, f"it ran although it declares that it needs '{words}'")
