"""Charts that look inside one number: by class, by example and by layer.

As in `charts`, None where there is nothing to draw, and no colors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from expunge.report.content import Losses, ProblemSection
from expunge.report.densities import bin_edges, density_band, shares
from expunge.report.statements import split_name, split_rank
from expunge.report.tables import Column, Row
from expunge.report.vega import (
    BANDS,
    NOT_OTHERS,
    ROLES,
    Band,
    Spec,
    along,
    band_of,
    by_layer,
    by_position,
    chart,
    distinct,
    dropdown,
    extent,
    faded,
    legend_click,
    models,
    name_of,
    natural,
    per_model,
    quantity,
    roles,
    rounded,
    series,
    tips,
)
from expunge.studies.samples import is_retrained


def by_class(section: ProblemSection) -> Spec | None:
    """Bars per class or group over the band of the retrained models: target, retrained models, one method.

    Of the metrics of the main table.
    """
    table = section.results
    groups = sorted({g for row in table.rows for cell in row.cells for g in cell.groups}, key=natural)
    methods = [r.label for r in table.rows if r.role == "unlearned" and any(c.groups for c in r.cells)]
    if not methods:
        return None
    rows = [
        {"measure": name_of(column), "value": values, **_bands(column, groups, table.rows, values)}
        for i, column in enumerate(table.columns)
        if not by_layer(column) and any(values := [by_position(row.cells[i], groups) for row in table.rows])
    ]
    measures = [row["measure"] for row in rows]
    first = next((m for m in measures if m.endswith("test")), measures[0])
    x: Spec = {
        "field": "group",
        "type": "nominal",
        "title": "Class",
        "sort": groups,
        "axis": {"labelAngle": 0},
    }
    x["scale"] = {"paddingInner": 0.2, "paddingOuter": 0.1}
    named = ("label", "model"), ("group", "class"), ("value", "value", ".4~r")
    # Room between the bars and around them, for the band to be seen.
    beside = {"field": "role", "sort": ROLES, "scale": {"paddingInner": 0.35, "paddingOuter": 0.3}}
    bars = {
        "mark": {"type": "bar", "cornerRadiusEnd": 1},
        "encoding": {
            "x": x,
            "xOffset": beside,
            "y": quantity("value", title=None),
            "color": roles(),
            "tooltip": tips(*named),
        },
    }
    spread = ("group", "class"), ("low", "retrained models, from", ".4~r"), ("high", "to", ".4~r")
    further = ("least", "one more of them, from", ".4~r"), ("most", "to", ".4~r")
    behind = [
        {
            "transform": [{"filter": f"isValid(datum.{low})"}],
            "mark": {"type": "rect", "style": style},
            "encoding": {
                "x": x, "y": quantity(low, title=None), "y2": {"field": high}, "tooltip": tips(*spread, *further),
            },
        }
        for style, low, high in BANDS
    ]  # fmt: skip
    return chart(
        rows,
        "Values by class",
        height=240,
        params=[
            *models([row.label for row in table.rows], [row.role for row in table.rows]),
            {"name": "groups", "value": groups},
            dropdown("method", "Method", methods),
            dropdown("measure", "Measure", measures, first),
        ],
        transform=[
            {"filter": "datum.measure == measure"},
            *per_model("value", *Band._fields),
            {"filter": NOT_OTHERS},
            *along("groups", "group", "value", *Band._fields),
        ],
        layer=[*behind, bars],
    )


def _bands(column: Column, groups: Sequence[str], rows: Sequence[Row], values: Sequence[Any]) -> Spec:
    """By model and group, the ends of the band of the retrained models; once, whatever their rows are, and none of others."""
    seen = extent([v for by_group in values for v in by_group or ()])
    own = {} if column.retrained is None else column.retrained.groups
    found = [band_of(own.get(g, ()), column.low, column.high) for g in groups]
    bands = [None if b is None else b.within(*seen).fields() for b in found]
    first = next((i for i, row in enumerate(rows) if row.role == "retrained" and values[i]), None)
    return {
        end: [[b and b[end] for b in bands] if i == first else [] for i in range(len(rows))]
        for end in Band._fields
    }


def loss_distributions(losses: Losses, bins: int = 40) -> Spec | None:
    """Histograms of per-example loss, a panel per data set: target, retrained models, one method at a time.

    The retrained models are one line, their mean, over the band of their histograms. Values are binned here: the page holds
    shares of examples, never single examples.
    """
    given = {
        (label, split): np.asarray(v, dtype=float) for label, by in losses.items() for split, v in by.items()
    }
    values = {key: finite for key, v in given.items() if len(finite := v[np.isfinite(v)])}
    models_of: dict[str, list[str]] = {}
    for label in distinct(label for label, _ in values):
        models_of.setdefault("retrained" if is_retrained(label) else label, []).append(label)
    labels = list(models_of)
    methods = [label for label in labels if label not in ROLES[:2]]
    if not methods:
        return None
    edges, kind = bin_edges(np.concatenate(list(values.values())), bins)
    splits = sorted({split for _, split in values}, key=split_rank)
    found = {
        (label, split): [values[name, split] for name in models_of[label] if (name, split) in values]
        for label in labels for split in splits
    }  # fmt: skip
    means = {
        key: np.mean([shares(v, edges) for v in models], 0).tolist()
        for key, models in found.items() if models
    }  # fmt: skip
    bands = {split: density_band(found.get(("retrained", split), []), edges) for split in splits}
    highest = max(
        [v for mean in means.values() for v in mean] + [b.high for by in bands.values() for b in by]
    )
    rows = [
        {
            "split": split_name(split),
            "share": [_outline(means.get((label, split))) for label in labels],
            "n": [sum(map(len, found[label, split])) for label in labels],
            **_ends([b.within(0.0, 1.05 * highest) for b in bands[split]], labels),
        }
        for split in splits
    ]
    axis = {"format": "~g", "tickCount": 4}
    scale = {"type": "log", "nice": False} if kind == "log" else {"type": kind, "nice": False, "zero": False}
    x = quantity("loss", title="Loss per example (nats)", axis=axis, scale=scale)
    upward: Spec = {"title": "Share of examples", "axis": {"format": "~%"}}
    encoding = {
        "x": x,
        "y": quantity("share", **upward, stack=None),
        "color": roles(),
        "tooltip": tips(
            ("label", "model"), ("loss", "loss from", ".2~g"), ("share", "share", ".1%"), ("n", "values")
        ),
    }  # fmt: skip
    steps = {"interpolate": "step-after"}
    behind = [
        {
            "transform": [{"filter": f"isValid(datum.{low})"}],
            "mark": {"type": "area", "style": style, "line": False, **steps},
            "encoding": {"x": x, "y": quantity(low, **upward, stack=None), "y2": {"field": high}},
        }
        for style, low, high in BANDS if any(bands.values())
    ]  # fmt: skip
    # What is gray and filled is the band.
    filled = {
        "transform": [{"filter": "datum.role != 'retrained'"}],
        "mark": {"type": "area", "opacity": 0.14, **steps},
        "encoding": encoding,
    }
    spec = chart(
        rows,
        "Loss distributions",
        params=[
            *models(labels, [label if label in ROLES[:2] else "unlearned" for label in labels]),
            {"name": "edges", "value": [rounded(e) for e in edges]},
            dropdown("method", "Method", methods),
        ],
        transform=[
            *per_model("share", "n", *Band._fields),
            {"filter": NOT_OTHERS},
            *along("edges", "loss", "share", *Band._fields),
        ],
        facet={"field": "split", "type": "nominal", "sort": [row["split"] for row in rows]},
        columns=min(4, len(rows)),
        spec={
            "width": 250,
            "height": 170,
            "layer": [
                *behind, filled, {"mark": {"type": "line", "strokeWidth": 1.6, **steps}, "encoding": encoding}
            ],
        },
    )  # fmt: skip
    del spec["width"]  # each panel has its own; the page sets it from the room there is
    return spec


def _outline(by_bin: Sequence[float] | None) -> list[float | int] | None:
    """A value per edge: the last one closes the outline."""
    return None if by_bin is None else [*map(rounded, by_bin), 0]


def _ends(band: Sequence[Band], labels: Sequence[str]) -> Spec:
    """The ends of the band by model and edge; of all but the retrained models there are none."""
    outline = {
        name: [*(rounded(b._asdict()[name]) for b in band), 0] if band else [] for name in Band._fields
    }
    return {
        name: [by_edge if label == "retrained" else [] for label in labels]
        for name, by_edge in outline.items()
    }


def similarity_by_layer(section: ProblemSection) -> Spec | None:
    """Lines of CKA over the layers, one per method."""
    table = section.further
    columns = [(i, column) for i, column in enumerate(table.columns) if by_layer(column)]
    drawn = [row for row in table.rows if any(row.cells[i].groups for i, _ in columns)]
    if not drawn:
        return None
    layers = sorted({g for row in drawn for i, _ in columns for g in row.cells[i].groups}, key=natural)
    rows = [
        {"pair": name_of(column), "cka": [by_position(row.cells[i], layers) for row in drawn]}
        for i, column in columns
    ]
    axis = {
        "field": "layer",
        "type": "ordinal",
        "title": "Layer, by name",
        "sort": layers,
        "axis": {"labelAngle": 0},
    }
    band = [
        {"pair": name_of(column), "layer": layer, **found.within(0.0, 1.0).fields()}
        for _, column in columns
        for layer in layers
        if column.retrained is not None
        and (found := band_of(column.retrained.groups.get(layer, ()), column.low, column.high)) is not None
    ]
    behind = [
        {
            "data": {"values": band},
            "transform": [{"filter": "datum.pair == pair"}],
            "mark": {"type": "area", "style": style, "line": False, "clip": True},
            "encoding": {"x": axis, "y": quantity(low), "y2": {"field": high}},
        }
        for style, low, high in BANDS
        if band
    ]
    line = {
        "params": [legend_click()],
        "mark": {"type": "line", "point": {"filled": True, "size": 45}, "strokeWidth": 1.8},
        "encoding": {
            "x": axis,
            "y": quantity(
                "cka", title="Linear CKA (1 = same up to rotation and scale)", scale={"domain": [0, 1]}
            ),
            **series(drawn),
            "opacity": faded(),
            "tooltip": tips(("label", "model"), ("layer",), ("cka", "CKA", ".4~r")),
        },
    }
    return chart(
        rows,
        "Similarity of representations by layer",
        height=240,
        params=[
            *models([row.label for row in drawn], [row.role for row in drawn]),
            {"name": "layers", "value": layers},
            dropdown("pair", "Compared", [row["pair"] for row in rows]),
        ],
        transform=[{"filter": "datum.pair == pair"}, *per_model("cka"), *along("layers", "layer", "cka")],
        layer=[*behind, line],
    )
