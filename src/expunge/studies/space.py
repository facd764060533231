"""The search space of a method, from the ranges that its parameters declare."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from pydantic import Field

from expunge.methods.base import Method
from expunge.methods.objective import Objective
from expunge.record import Record

DECADES = 2
"""Real numbers without a finite declared range are searched this many powers of ten around their value, each way."""
FACTOR = 4
"""Whole numbers without one: up to this many times their value, and down to as small a part of it."""
TUNED_FOR_ALL = ("lr", "epochs")
"""What every trained method has in common and is tuned; the rest (batch size, optimizer, precision, ...) is held."""


class Dimension(Record):
    """One tuned parameter."""

    parameter: str
    kind: Literal["real", "whole", "choice"]
    low: float | None = None
    high: float | None = None
    log: bool = Field(default=False, description="searched by order of magnitude")
    choices: list[Any] = Field(default_factory=list)
    origin: Literal["declared", "around the given value"]
    """Where the range comes from."""

    def shown(self) -> str:
        """The range in words, as in ``beta: 0.001 to 10 (log, around the given value)``."""
        if self.kind == "choice":
            return f"{self.parameter}: {' or '.join(str(c) for c in self.choices)}"
        how = f"{'log, ' if self.log else ''}{self.origin}"
        return f"{self.parameter}: {self.low:g} to {self.high:g} ({how})"


@dataclass
class Space:
    """What is tuned, and what is held at its value with the reason."""

    dimensions: list[Dimension] = field(default_factory=list)
    held: dict[str, str] = field(default_factory=dict)


def search_space(method: Method) -> Space:
    """The space around `method`, whose values are in it.

    The method's own parameters, its learning rate and its epochs are tuned. A number whose declared limits are finite is
    searched evenly between them; any other on a log scale around its value, cut off at a declared limit. What every
    objective shares besides, and what has no scale (0, None) or no order (tuples, text), is held.
    """
    space = Space()
    shared = set(Objective.model_fields) - set(TUNED_FOR_ALL)
    for row in type(method).describe():
        name, value = row["name"], getattr(method, row["name"])
        annotation = type(method).model_fields[name].annotation
        if name in shared:
            space.held[name] = "common to all methods"
        elif annotation is bool:
            space.dimensions.append(_choice(name, [False, True]))
        elif get_origin(annotation) is Literal:
            space.dimensions.append(_choice(name, list(get_args(annotation))))
        elif annotation not in (int, float):
            space.held[name] = "neither a number nor a choice"
        else:
            found = _number(name, value, annotation is int, row["limits"])
            if isinstance(found, str):
                space.held[name] = found
            else:
                space.dimensions.append(found)
    return space


def _choice(name: str, choices: list[Any]) -> Dimension:
    return Dimension(parameter=name, kind="choice", choices=choices, origin="declared")


def _number(name: str, value: float, whole: bool, limits: dict[str, float]) -> Dimension | str:
    """The dimension of one number, or why it is held."""
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    kind = "whole" if whole else "real"
    if low is not None and high is not None:
        # An end that is open is moved in by a thousandth of the range.
        inward = 1 if whole else (high - low) / 1000
        low, high = low + inward * ("ge" not in limits), high - inward * ("le" not in limits)
        low, high = min(low, value), max(high, value)
        return Dimension(parameter=name, kind=kind, low=low, high=high, origin="declared")
    if value <= 0:
        return "its value is 0, which gives no scale" if value == 0 else "its value is negative"
    if whole:
        least, most = max(1, math.ceil(value / FACTOR)), value * FACTOR
    else:
        least, most = value / 10**DECADES, value * 10**DECADES
    if low is not None:
        least = max(least, low if "ge" in limits else _inside(low, 1, whole))
    if high is not None:
        most = min(most, high if "le" in limits else _inside(high, -1, whole))
    return Dimension(
        parameter=name, kind=kind, low=least, high=most, log=True, origin="around the given value"
    )


def _inside(end: float, direction: int, whole: bool) -> float:
    """The next number beyond an open end."""
    return end + direction if whole else math.nextafter(end, direction * math.inf)
