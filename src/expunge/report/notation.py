"""How numbers become text: one display scale per unit, the same in every table."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.record import Interval


@dataclass(frozen=True)
class Scale:
    """How values of one unit are shown.

    Attributes:
        symbol: what the column header says after the title.
        factor: shown number = value times factor.
        decimals: fixed decimals; None shows three significant digits.
        difference: unit of a difference of two shown numbers, where it is not `symbol`.
    """

    symbol: str
    factor: float = 1.0
    decimals: int | None = None
    difference: str = ""


SCALES = {
    "share": Scale("%", 100.0, 1, "percentage points"),
    "percentage points": Scale("percentage points", 1.0, 1),
    "share of parameters": Scale("%", 100.0, 1, "percentage points"),
    "share of variance": Scale("share of variance", 1.0, 3),
    "% of the retrained error": Scale("% of the retrained error", 1.0, 1, "percentage points"),
    "auc": Scale("AUC", 1.0, 3),
    "cka": Scale("CKA", 1.0, 3),
    "bytes": Scale("MiB", 1 / 2**20),
    "seconds": Scale("s"),
    "times retraining": Scale("× retraining"),
    "passes over the training data": Scale("passes"),
}
"""By unit of a score; any other unit is shown as it is, with three significant digits."""


def scale(unit: str) -> Scale:
    """The display scale of a unit."""
    return SCALES.get(unit.lower(), Scale(unit))


def shown(value: float, unit: str, *, signed: bool = False) -> str:
    """The number as text, without its unit.

    >>> shown(0.91234, "share"), shown(-0.0312, "share", signed=True), shown(1234567.0, "examples")
    ('91.2', '−3.1', '1,234,567')
    """
    as_shown = scale(unit)
    number, decimals = value * as_shown.factor, as_shown.decimals
    if decimals is not None:
        text = f"{number:,.{decimals}f}"
    elif abs(number) >= 999.5:  # would round to 1000
        text = f"{number:,.0f}"
    else:
        text = f"{number:#.3g}".rstrip(".")
    if float(text.replace(",", "")) == 0:
        text = text.removeprefix("-")
    elif signed and number > 0:
        text = f"+{text}"
    return text.replace("-", "−", 1) if text.startswith("-") else text


def shown_interval(interval: Interval, unit: str) -> str:
    """Both ends as text, such as ``89.0 to 93.4``."""
    return f"{shown(interval.low, unit)} to {shown(interval.high, unit)}"
