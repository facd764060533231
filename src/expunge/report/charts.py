"""The charts of a report, as Vega-Lite specifications that the page, the app and notebooks can all show.

Every function returns None where there is nothing to draw. No specification holds a color: `palette.theme`
gives the configuration. Clicking an entry of a legend keeps that entry and fades the others; a double click
brings all back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from expunge.report.content import Losses, ProblemSection
from expunge.report.statements import DIRECTIONS, split_name
from expunge.report.tables import Column, Row

Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
UTILITY = (("accuracy", "test"), ("mae", "test"), ("accuracy", "retain"), ("mae", "retain"))
"""What the horizontal axis of the first chart shows: the first of these that was measured."""
ROLES = ["target", "retrained", "unlearned"]
NOT_OTHERS = "(datum.role != 'unlearned' || datum.label == method)"
"""Keeps the target, the retrained models and the chosen method."""


def forgetting_against_utility(section: ProblemSection) -> Spec | None:
    """A point per model and a larger one per method's mean; the box holds the retrained models."""
    table = section.results
    across = next((k for k in UTILITY if table.find(*k) is not None), ("", ""))
    down = (across[0], "forget")
    i, j = table.find(*across), table.find(*down)
    if i is None or j is None:
        return None
    points, means = [], []
    for row in table.rows:
        x, y = row.cells[i], row.cells[j]
        at_y = dict(zip(y.seeds, y.values, strict=True))
        points += [
            {"label": row.label, "seed": seed, "x": value, "y": at_y[seed]}
            for seed, value in zip(x.seeds, x.values, strict=True)
            if seed in at_y
        ]
        if x.value is not None and y.value is not None:
            means.append({"label": row.label, "x": x.value, "y": y.value, "seeds": len(y.values)})
    if not means:
        return None
    columns = table.columns[i], table.columns[j]
    position = {"x": _quantity("x", **_measured(columns[0])), "y": _quantity("y", **_measured(columns[1]))}
    series = _series([row for row in table.rows if any(m["label"] == row.label for m in means)])
    tips = [
        ("label", "model"),
        ("x", _name(columns[0]), _format(columns[0])),
        ("y", _name(columns[1]), _format(columns[1])),
    ]
    layers: list[Spec] = [
        {
            "data": {"values": points},
            "mark": {"type": "point", "filled": True, "size": 34},
            "encoding": {**position, **series, "opacity": _faded(0.5), "tooltip": _tips(*tips, ("seed",))},
        },
        {
            "params": [_legend_click()],
            "mark": {"type": "point", "filled": False, "size": 170, "strokeWidth": 2.5},
            "encoding": {**position, **series, "opacity": _faded(), "tooltip": _tips(*tips, ("seeds",))},
        },
    ]
    width, height = section.spread(*across), section.spread(*down)
    if width is not None and height is not None:
        box = {"x": width.low, "x2": width.high, "y": height.low, "y2": height.high}
        corners = {"x": _quantity("x"), "x2": {"field": "x2"}, "y": _quantity("y"), "y2": {"field": "y2"}}
        # The wide stroke keeps the box visible where the retrained models agree exactly.
        mark = {"type": "rect", "style": "reference", "strokeWidth": 8, "strokeJoin": "round"}
        layers.insert(0, {"data": {"values": [box]}, "mark": mark, "encoding": corners})
    return _chart(means, "Forgetting against utility", height=360, layer=layers)


def by_class(section: ProblemSection) -> Spec | None:
    """Bars per class or group: target, retrained models, and one method at a time."""
    rows = [
        {"measure": _name(column), "role": row.role, "label": row.label, "group": group, "value": value}
        for table in (section.results, section.further)
        for i, column in enumerate(table.columns)
        if not _by_layer(column)
        for row in table.rows
        for group, value in row.cells[i].groups.items()
    ]
    methods = _distinct(r["label"] for r in rows if r["role"] == "unlearned")
    if not methods:
        return None
    measures = _distinct(r["measure"] for r in rows)
    first = next((m for m in measures if m.endswith("test")), measures[0])
    groups = sorted({r["group"] for r in rows}, key=natural)
    return _chart(
        rows,
        "Values by class",
        height=260,
        params=[_dropdown("method", "Method", methods), _dropdown("measure", "Measure", measures, first)],
        transform=[{"filter": f"datum.measure == measure && {NOT_OTHERS}"}],
        mark={"type": "bar", "cornerRadiusEnd": 1},
        encoding={
            "x": {
                "field": "group",
                "type": "nominal",
                "title": "Class",
                "sort": groups,
                "axis": {"labelAngle": 0},
            },
            "xOffset": {"field": "role", "sort": ROLES},
            "y": _quantity("value", title=None),
            "color": _roles(),
            "tooltip": _tips(("label", "model"), ("group", "class"), ("value", "value", ".4~g")),
        },
    )


def loss_distributions(losses: Losses, bins: int = 40) -> Spec | None:
    """Histograms of per-example loss, a panel per data set: target, retrained models, one method at a time.

    Values are binned here: the page holds shares of examples, never single examples.
    """
    given = {
        (label, split): np.asarray(v, dtype=float) for label, by in losses.items() for split, v in by.items()
    }
    values = {key: finite for key, v in given.items() if len(finite := v[np.isfinite(v)])}
    methods = _distinct(label for label, _ in values if label not in ROLES[:2])
    if not methods:
        return None
    edges, kind = _edges(np.concatenate(list(values.values())), bins)
    rows = []
    for (label, split), v in values.items():
        counts, _ = np.histogram(np.clip(v, edges[0], edges[-1]), edges)
        shares = [*(counts / len(v)), 0.0]  # the last edge closes the outline
        facts = {
            "label": label,
            "role": label if label in ROLES[:2] else "unlearned",
            "split": split_name(split),
            "n": len(v),
        }
        rows += [
            {**facts, "loss": float(e), "share": round(float(s), 5)}
            for e, s in zip(edges, shares, strict=True)
        ]
    panels = _distinct(r["split"] for r in rows)
    axis = {"format": "~g", "tickCount": 4}
    encoding = {
        "x": _quantity(
            "loss", title="Loss per example (nats)", axis=axis, scale={"type": kind, "nice": False}
        ),
        "y": _quantity("share", title="Share of examples", axis={"format": "~%"}, stack=None),
        "color": _roles(),
        "tooltip": _tips(
            ("label", "model"), ("loss", "loss from", ".2~g"), ("share", "share", ".1%"), ("n", "values")
        ),
    }
    marks = [{"type": "area", "opacity": 0.14}, {"type": "line", "strokeWidth": 1.6}]
    spec = _chart(
        rows,
        "Loss distributions",
        params=[_dropdown("method", "Method", methods)],
        transform=[{"filter": NOT_OTHERS}],
        facet={"field": "split", "type": "nominal", "sort": panels},
        columns=min(3, len(panels)),
        spec={
            "width": 250,
            "height": 190,
            "layer": [
                {"mark": {**mark, "interpolate": "step-after"}, "encoding": encoding} for mark in marks
            ],
        },
    )
    del spec["width"]  # each panel has its own; the page sets it from the room there is
    return spec


def _edges(pooled: np.ndarray, bins: int) -> tuple[np.ndarray, str]:
    """Bin edges and kind of scale: losses that are never negative get a log scale."""
    low, high = float(pooled.min()), float(pooled.max())
    if low < 0 or high <= 0:
        return np.linspace(low, high if high > low else low + 1.0, bins + 1), "linear"
    floor = max(1e-6, float(np.quantile(pooled, 0.01)))
    return np.geomspace(min(floor, high / 10), high, bins + 1), "log"


def costs(section: ProblemSection) -> Spec | None:
    """Cost of each method divided by that of retraining, from the line where both cost the same."""
    rows = [
        {"cost": column.title, "label": row.label, "role": row.role, "ratio": row.cells[i].value}
        for i, column in enumerate(section.costs.columns)
        if column.metric.endswith("-ratio")
        for row in section.costs.rows
        # A cost of nothing has no place on a logarithmic axis; the table has the zero.
        if row.role == "unlearned" and (row.cells[i].value or 0) > 0
    ]
    if not rows:
        return None
    labels = _distinct(r["label"] for r in rows)
    across = _quantity(
        "ratio",
        title="Times the cost of retraining (log scale)",
        scale={"type": "log"},
        axis={"format": "~g", "tickCount": 6},
    )
    bars = {
        "x": across,
        "x2": {"datum": 1},
        "y": _label(labels),
        "color": {**_roles(), "legend": None},
        "tooltip": _tips(("label", "method"), ("ratio", "times retraining", ".3~g")),
    }
    return _chart(
        rows,
        "Cost against retraining",
        height=26 * len(labels),
        params=[_dropdown("cost", "Cost", _distinct(r["cost"] for r in rows))],
        transform=[{"filter": "datum.cost == cost"}],
        layer=[
            {"mark": {"type": "bar", "height": 12, "cornerRadius": 1}, "encoding": bars},
            _guide(1),
        ],
    )


def membership(section: ProblemSection) -> Spec | None:
    """Attack AUC with its interval; the dashed line is guessing, the band what retrained models reach."""
    rows, bands = [], []
    for i, column in enumerate(section.attacks.columns):
        if "auc" not in f"{column.unit} {column.title}".lower():
            continue
        for row in section.attacks.rows:
            cell = row.cells[i]
            if cell.value is not None:
                low, high = (
                    (cell.interval.low, cell.interval.high) if cell.interval else (cell.value, cell.value)
                )
                facts = {"attack": _name(column), "label": row.label, "role": row.role}
                rows.append({**facts, "auc": cell.value, "low": low, "high": high})
        if (found := section.spread(column.metric, column.split)) is not None:
            bands.append({"attack": _name(column), "low": found.low, "high": found.high})
    if not rows:
        return None
    chosen = [{"filter": "datum.attack == attack"}]
    extent = _quantity("low", title="Attack AUC (0.5 = guessing)", scale={"zero": False, "nice": True})
    span = {"x": extent, "x2": {"field": "high"}}
    labels = _distinct(r["label"] for r in rows)
    who = {"y": _label(labels), "color": _roles()}
    tips = _tips(
        ("label", "model"),
        ("auc", "AUC", ".3f"),
        ("low", "interval from", ".3f"),
        ("high", "interval to", ".3f"),
    )
    dot = {"type": "point", "filled": True, "size": 80, "opacity": 1}
    return _chart(
        rows,
        "Membership inference",
        height=26 * len(labels),
        params=[_dropdown("attack", "Attack", _distinct(r["attack"] for r in rows))],
        layer=[
            {
                "data": {"values": bands},
                "transform": chosen,
                "mark": {"type": "rect", "style": "reference"},
                "encoding": span,
            },
            _guide(0.5),
            {"transform": chosen, "mark": {"type": "rule", "strokeWidth": 2}, "encoding": {**span, **who}},
            {"transform": chosen, "mark": dot, "encoding": {"x": _quantity("auc"), **who, "tooltip": tips}},
        ],
    )


def similarity_by_layer(section: ProblemSection) -> Spec | None:
    """Lines of CKA over the layers, one per method."""
    rows = [
        {"pair": _name(column), "label": row.label, "layer": layer, "cka": value}
        for i, column in enumerate(section.further.columns)
        if _by_layer(column)
        for row in section.further.rows
        for layer, value in row.cells[i].groups.items()
    ]
    if not rows:
        return None
    layers = sorted({r["layer"] for r in rows}, key=natural)
    line = {
        "params": [_legend_click()],
        "mark": {"type": "line", "point": {"filled": True, "size": 45}, "strokeWidth": 1.8},
        "encoding": {
            "x": {
                "field": "layer",
                "type": "ordinal",
                "title": "Layer, by name",
                "sort": layers,
                "axis": {"labelAngle": 0},
            },
            "y": _quantity(
                "cka", title="Linear CKA (1 = same up to rotation and scale)", scale={"domain": [0, 1]}
            ),
            **_series([row for row in section.further.rows if any(r["label"] == row.label for r in rows)]),
            "opacity": _faded(),
            "tooltip": _tips(("label", "model"), ("layer",), ("cka", "CKA", ".3f")),
        },
    }
    return _chart(
        rows,
        "Similarity of representations by layer",
        height=260,
        params=[_dropdown("pair", "Compared", _distinct(r["pair"] for r in rows))],
        transform=[{"filter": "datum.pair == pair"}],
        layer=[line],
    )


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key in which ``layer2`` comes before ``layer10``."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def _chart(values: Sequence[Spec], title: str, **parts: Any) -> Spec:
    data = {"name": "rows", "values": list(values)}
    return {"$schema": SCHEMA, "description": title, "width": "container", "data": data, **parts}


def _distinct(items: Any) -> list[str]:
    return list(dict.fromkeys(items))


def _by_layer(column: Column) -> bool:
    return column.metric.startswith("cka")


def _name(column: Column) -> str:
    return f"{column.title}, {split_name(column.split)}"


def _measured(column: Column) -> Spec:
    """Title, format and scale of an axis that shows a metric."""
    glyph, words = DIRECTIONS[column.direction]
    unit = "" if column.unit == "share" else f" in {column.unit}"
    axis = {"format": "~%"} if column.unit == "share" else {}
    return {"title": f"{_name(column)}{unit} ({glyph} {words})", "axis": axis, "scale": {"zero": False}}


def _format(column: Column) -> str:
    return ".1%" if column.unit == "share" else ".4~r"


def _quantity(field: str, **more: Any) -> Spec:
    return {"field": field, "type": "quantitative", **more}


def _label(order: Sequence[str]) -> Spec:
    return {"field": "label", "type": "nominal", "title": None, "sort": list(order)}


def _roles() -> Spec:
    return {"field": "role", "type": "nominal", "scale": {"domain": ROLES, "range": "ordinal"}}


def _series(rows: Sequence[Row]) -> Spec:
    """Color and shape of the methods: both, so that neither is needed to tell them apart."""
    label = {"field": "label", "type": "nominal", "scale": {"domain": [row.label for row in rows]}}
    return {"color": label, "shape": label}


def _tips(*fields: tuple[str, ...]) -> list[Spec]:
    """Tooltip rows from (field, title, format); title and format may be left out."""
    keys = ("field", "title", "format")
    return [dict(zip(keys, given, strict=False)) for given in fields]


def _guide(at: float) -> Spec:
    """A dashed line across the chart; one row of data, or it would be drawn once per row."""
    mark = {"type": "rule", "style": "guide"}
    return {"data": {"values": [{}]}, "mark": mark, "encoding": {"x": {"datum": at, "type": "quantitative"}}}


def _dropdown(name: str, label: str, options: Sequence[str], first: str | None = None) -> Spec:
    bind = {"input": "select", "options": list(options), "name": f"{label} "}
    return {"name": name, "value": first or options[0], "bind": bind}


def _legend_click() -> Spec:
    return {"name": "picked", "select": {"type": "point", "fields": ["label"]}, "bind": "legend"}


def _faded(full: float = 1.0) -> Spec:
    return {"condition": {"param": "picked", "value": full}, "value": 0.08}
