"""Pieces that the charts are put together from, in the words of Vega-Lite.

The data of a chart are one row per measure with a value, or a list of values, per model; the names of the
models stand once, in a parameter, and transforms unfold the rows when the chart is drawn. Written out, one
row per mark, the same data would be ten times as large.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from expunge.report.statements import DIRECTIONS, split_name
from expunge.report.tables import Cell, Column, Row
from expunge.stats.bands import null_band

Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
ROLES = ["target", "retrained", "unlearned"]
NOT_OTHERS = "(datum.role != 'unlearned' || datum.label == method)"
"""Keeps the target, the retrained models and the chosen method."""


def chart(values: Sequence[Spec], title: str, **parts: Any) -> Spec:
    """A specification as wide as its container."""
    data = {"name": "rows", "values": list(values)}
    return {"$schema": SCHEMA, "description": title, "width": "container", "data": data, **parts}


def rounded(value: float) -> float | int:
    """Four significant digits: more than a chart can show."""
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() else short


def models(labels: Sequence[str], roles: Sequence[str]) -> list[Spec]:
    """The parameters `models` and `roles`, which `per_model` reads."""
    return [{"name": "models", "value": list(labels)}, {"name": "roles", "value": list(roles)}]


def per_model(field: str, *more: str) -> list[Spec]:
    """Unfold lists with an entry per model into a row per model, where `field` has an entry for it."""
    return [
        {"calculate": "models", "as": "label"},
        {"calculate": "roles", "as": "role"},
        {"flatten": ["label", "role", field, *more]},
        {"filter": f"isValid(datum.{field})"},
    ]


def along(parameter: str, position: str, field: str, *more: str) -> list[Spec]:
    """Unfold the lists in `field` and others, whose entries lie at the positions that a parameter lists."""
    return [
        {"calculate": parameter, "as": position},
        {"flatten": [position, field, *more]},
        {"filter": f"isValid(datum.{field})"},
    ]


def by_position(cell: Cell, positions: Sequence[str]) -> list[float | int | None] | None:
    """The cell's values by group, in the order of `positions`; None where it has no groups."""
    values = [cell.groups.get(position) for position in positions]
    return [None if v is None else rounded(v) for v in values] if cell.groups else None


def distinct(items: Iterable[str]) -> list[str]:
    """Each item once, in order of appearance."""
    return list(dict.fromkeys(items))


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key in which ``layer2`` comes before ``layer10``."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def by_layer(column: Column) -> bool:
    """Whether the groups of a column are layers."""
    return column.metric.startswith("cka")


def name_of(column: Column) -> str:
    """Title and data set."""
    return f"{column.title}, {split_name(column.split)}"


def measured(column: Column) -> Spec:
    """Title and format of an axis that shows a metric."""
    glyph, words = DIRECTIONS[column.direction]
    if column.unit == "share":
        return {"title": f"{name_of(column)} ({glyph} {words})", "axis": {"format": "~%"}}
    return {"title": [name_of(column), f"{column.unit} ({glyph} {words})"]}


def number_format(column: Column) -> str:
    """How tooltips show the values of a column."""
    return ".2%" if column.unit == "share" else ".4~r"


def quantity(field: str, **more: Any) -> Spec:
    """A quantitative channel."""
    return {"field": field, "type": "quantitative", **more}


def label_axis(order: Sequence[str]) -> Spec:
    """One line of the chart per model."""
    return {"field": "label", "type": "nominal", "title": None, "sort": list(order)}


def roles() -> Spec:
    """Color by role."""
    return {"field": "role", "type": "nominal", "scale": {"domain": ROLES, "range": "ordinal"}}


def series(rows: Sequence[Row]) -> Spec:
    """Color and shape of the models: both, so that neither is needed to tell them apart."""
    labels = [row.label for row in rows]
    label = {"field": "label", "type": "nominal", "scale": {"domain": labels}, "legend": legend(labels)}
    return {"color": label, "shape": label}


def legend(labels: Sequence[str]) -> Spec:
    """As many columns as fit below a chart of half a page; one that is too wide would be cut off."""
    width = 34 + 7 * min(34, max(map(len, labels), default=1))
    return {"columns": max(1, min(4, 420 // width))}


def tips(*fields: tuple[str, ...]) -> list[Spec]:
    """Tooltip rows from (field, title, format); title and format may be left out."""
    keys = ("field", "title", "format")
    return [dict(zip(keys, given, strict=False)) for given in fields]


BANDS = (("null", "least", "most"), ("reference", "low", "high"))
"""Style of each part of the band of retrained models, and its ends; the outer part first."""


class Band(NamedTuple):
    """Where the retrained models lie, behind what is compared with them: drawn faint as far as one more of them would lie."""

    low: float
    """Smallest and largest of the retrained models."""
    high: float
    least: float
    """Ends of the 95 % band of one further model; where there is none, those of the models themselves."""
    most: float

    def within(self, low: float, high: float) -> Band:
        """The part that a chart from `low` to `high` shows: few models have a band much wider than any chart."""
        return Band(
            self.low, self.high, min(self.low, max(self.least, low)), max(self.high, min(self.most, high))
        )

    def fields(self) -> Spec:
        """As a row of data."""
        return {name: rounded(value) for name, value in self._asdict().items()}


def band_of(values: Sequence[float], low: float | None = None, high: float | None = None) -> Band | None:
    """The band of retrained models' values, no wider than the possible ones; None of no model."""
    if not values:
        return None
    ends = min(values), max(values)
    null = null_band(values)
    least, most = ends if null is None else (null.values.low, null.values.high)
    return Band(*ends, least if low is None else max(least, low), most if high is None else min(most, high))


def column_band(column: Column) -> Band | None:
    """The band of a column of the tables."""
    return None if column.retrained is None else band_of(column.retrained.values, column.low, column.high)


def boxes(x: Band, y: Band) -> list[Spec]:
    """Layers behind the points of two measures: the box of the retrained models, the pale one around it, and their name."""
    box = {f"{name}{c}": value for c, band in (("x", x), ("y", y)) for name, value in band.fields().items()}
    region = {"data": {"values": [box]}}
    # The inner box is wider than its corners by some pixels, to be visible where the retrained models agree exactly; so is the
    # pale one in a measure in which it reaches no farther.
    room = {"x": {"xOffset": -9, "x2Offset": 9}, "y": {"yOffset": 9, "y2Offset": -9}}
    inner = {"type": "rect", "style": "reference", "cornerRadius": 5, **room["x"], **room["y"]}
    outer: Spec = {"type": "rect", "style": "null", "clip": True}
    for c, band in (("x", x), ("y", y)):
        if (band.least, band.most) == (band.low, band.high):
            outer |= room[c]
    name = {"type": "text", "text": "retrained", "align": "right", "baseline": "bottom", "dy": -11, "dx": 9}
    return [
        {**region, "mark": outer, "encoding": _corners("least", "most")},
        {**region, "mark": inner, "encoding": _corners("low", "high")},
        {**region, "mark": name, "encoding": {"x": quantity("highx"), "y": quantity("highy")}},
    ]


def _corners(low: str, high: str) -> Spec:
    """Encoding of a box between two pairs of fields."""
    ends = {c: quantity(f"{low}{c}") for c in "xy"}
    return {**ends, **{f"{c}2": {"field": f"{high}{c}"} for c in "xy"}}


def extent(values: Iterable[float | None], room: float = 0.08) -> tuple[float, float]:
    """Ends of an axis on which all values are seen, with a share of their range as room on either side."""
    known = [v for v in values if v is not None]
    low, high = min(known), max(known)
    more = room * (high - low) or 0.01 * max(abs(high), 1e-9)
    return low - more, high + more


def guide(at: float) -> Spec:
    """A dashed line across the chart; one row of data, or it would be drawn once per row."""
    mark = {"type": "rule", "style": "guide"}
    return {"data": {"values": [{}]}, "mark": mark, "encoding": {"x": {"datum": at, "type": "quantitative"}}}


def dropdown(name: str, label: str, options: Sequence[str], first: str | None = None) -> Spec:
    """A parameter that the reader chooses from a list."""
    bind = {"input": "select", "options": list(options), "name": f"{label} "}
    return {"name": name, "value": first or options[0], "bind": bind}


def legend_click() -> Spec:
    """The parameter `picked`: the models whose legend entries were clicked."""
    return {"name": "picked", "select": {"type": "point", "fields": ["label"]}, "bind": "legend"}


def faded(full: float = 1.0) -> Spec:
    """Opacity that fades what was not picked."""
    return {"condition": {"param": "picked", "value": full}, "value": 0.08}
