"""The contract of everything that is configured: what is declared is checked, stored and explained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from expunge.errors import BadInput
from expunge.parameters import Parameters
from expunge.testing.checks import Check, require


def check_parameters(cls: type[Parameters], subject: str, parameters: dict[str, Any]) -> Iterator[Check]:
    """What holds of the declared parameters of a method or an attack.

    Args:
        cls: the class.
        subject: its name.
        parameters: values that differ from the defaults.
    """

    def check(name: str, run: Any, *args: Any) -> Check:
        return Check(subject, name, lambda: run(cls, parameters, *args))

    yield check("documents every parameter", _documented)
    yield check("stores its parameters unchanged", _stores)
    for row in cls.describe():
        if row["limits"]:
            yield check(f"refuses a {row['name']} outside its range", _refuses_range, row)
    yield check("refuses an unknown parameter", _refuses_unknown)


def _documented(cls: type[Parameters], parameters: dict[str, Any]) -> None:
    for row in cls.describe():
        require(bool(row["doc"]), f"parameter '{row['name']}' has no description")
        require(row["required"] is False, f"parameter '{row['name']}' has no default")


def _stores(cls: type[Parameters], parameters: dict[str, Any]) -> None:
    made = cls(**parameters)
    for name, value in parameters.items():
        require(
            getattr(made, name) == value,
            f"parameter '{name}' became {getattr(made, name)!r}, given was {value!r}",
        )
    again = type(made)(**made.model_dump())
    require(again == made, "made again from its own parameters it differs")
    for name in type(made).model_fields:
        require(f"{name}=" in repr(made), f"its repr does not show '{name}'")


def _refuses_range(cls: type[Parameters], parameters: dict[str, Any], row: dict[str, Any]) -> None:
    limits = row["limits"]
    wrong = {
        "gt": lambda v: v, "ge": lambda v: v - 1, "lt": lambda v: v, "le": lambda v: v + 1,
    }  # fmt: skip
    for kind, limit in limits.items():
        if kind not in wrong:
            continue
        value = wrong[kind](limit)
        try:
            cls(**{**parameters, row["name"]: value})
        except BadInput as error:
            require(row["name"] in str(error), f"the error does not name '{row['name']}': {error}")
        else:
            require(False, f"'{row['name']}' = {value} was accepted, though its limits are {limits}")


def _refuses_unknown(cls: type[Parameters], parameters: dict[str, Any]) -> None:
    try:
        cls(**parameters, certainly_no_parameter=1)
    except BadInput as error:
        require("certainly_no_parameter" in str(error), f"the error does not name the key: {error}")
    else:
        require(False, "an unknown parameter was accepted")
