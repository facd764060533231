"""Charts that compare all models at once: forgetting against utility, membership inference, cost.

Every function returns None where there is nothing to draw. No specification holds a color: `palette.theme`
gives the configuration. Clicking an entry of a legend keeps that entry and fades the others; a double click
brings all back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from expunge.report.content import CurveLine, ProblemSection
from expunge.report.notation import scale
from expunge.report.vega import (
    BANDS,
    Band,
    Spec,
    band_of,
    boxes,
    chart,
    column_band,
    distinct,
    dropdown,
    extent,
    faded,
    guide,
    label_axis,
    legend,
    legend_click,
    measured,
    models,
    name_of,
    number_format,
    per_model,
    quantity,
    roles,
    rounded,
    series,
    tips,
)

AXES = (
    *(
        ((metric, split), (metric, "forget"))
        for split in ("test", "retain")
        for metric in ("accuracy", "mae")
    ),
    (("in-domain-retain-accuracy", "test"), ("unlearning-accuracy", "concept")),
    (("coverage", "test"), ("undesired-rate", "samples")),
)
"""Utility and forgetting, the axes of the first chart: the first pair that was measured."""
LINE = 22
"""Pixels per model where models stand below one another."""


def forgetting_against_utility(section: ProblemSection) -> Spec | None:
    """A point per model and a larger one per method's mean; the box holds the retrained models."""
    table = section.results
    utility, forgetting = next(
        (pair for pair in AXES if table.find(*pair[0]) is not None), (("", ""), ("", ""))
    )
    i, j = table.find(*utility), table.find(*forgetting)
    if i is None or j is None:
        return None
    points, means = [], []
    for row in table.rows:
        x, y = row.cells[i], row.cells[j]
        at_y = dict(zip(y.seeds, y.values, strict=True))
        points += [
            {"label": row.label, "seed": seed, "x": rounded(value), "y": rounded(at_y[seed])}
            for seed, value in zip(x.seeds, x.values, strict=True)
            if seed in at_y
        ]
        if x.value is not None and y.value is not None:
            mean = {"x": rounded(x.value), "y": rounded(y.value)}
            means.append({"label": row.label, **mean, "seeds": len(y.values)})
    if not means:
        return None
    columns = table.columns[i], table.columns[j]
    bands = [column_band(column) for column in columns]
    ends = [
        extent([*(p[c] for p in (*points, *means)), *(() if band is None else (band.low, band.high))])
        for c, band in zip("xy", bands, strict=True)
    ]
    position = {
        c: quantity(
            c,
            **measured(column)
            | {"scale": {"domain": [rounded(v) for v in end], "zero": False, "nice": False}},
        )
        for c, column, end in zip("xy", columns, ends, strict=True)
    }
    drawn = series([row for row in table.rows if any(m["label"] == row.label for m in means)])
    shown = [
        ("label", "model"),
        ("x", name_of(columns[0]), number_format(columns[0])),
        ("y", name_of(columns[1]), number_format(columns[1])),
    ]
    layers: list[Spec] = [
        {
            "data": {"values": points},
            "mark": {"type": "point", "filled": True, "size": 34},
            "encoding": {**position, **drawn, "opacity": faded(0.5), "tooltip": tips(*shown, ("seed",))},
        },
        {
            "params": [legend_click()],
            "mark": {"type": "point", "filled": False, "size": 170, "strokeWidth": 2.5},
            "encoding": {**position, **drawn, "opacity": faded(), "tooltip": tips(*shown, ("seeds",))},
        },
    ]
    if bands[0] is not None and bands[1] is not None:
        x, y = (band.within(*end) for band, end in zip(bands, ends, strict=True) if band is not None)
        layers = [*boxes(x, y), *layers]
    return chart(means, "Forgetting against utility", height=300, layer=layers)


def membership(section: ProblemSection) -> Spec | None:
    """Attack AUC with its interval; the dashed line is guessing, the band what retrained models reach."""
    table, data = section.attacks, []
    for i, column in enumerate(table.columns):
        if "auc" not in f"{column.unit} {column.title}".lower():
            continue
        cells = [row.cells[i] for row in table.rows]
        ends = [
            (c.interval.low, c.interval.high) if c.interval else (c.value, c.value)
            for c in cells
        ]  # fmt: skip
        band = column_band(column)
        if band is not None:
            seen = extent([*(v for pair in ends for v in pair), band.low, band.high, 0.5])
            band = band.within(*seen)
        data.append(
            {
                "attack": name_of(column),
                "auc": [None if c.value is None else rounded(c.value) for c in cells],
                "low": [None if low is None else rounded(low) for low, _ in ends],
                "high": [None if high is None else rounded(high) for _, high in ends],
                **({} if band is None else {f"retrained-{k}": v for k, v in band.fields().items()}),
            }
        )
    if not data:
        return None
    judged = {(v.metric, v.split) for v in section.verdicts}
    first = next((name_of(c) for c in table.columns if c.key in judged), data[0]["attack"])
    labels = [row.label for row in table.rows]
    interval = quantity("low", title="Attack AUC (0.5 = guessing)", scale={"zero": False, "nice": True})
    span = {"x": interval, "x2": {"field": "high"}}
    who = {"y": label_axis(labels), "color": {**roles(), "legend": None}}
    shown = tips(
        ("label", "model"),
        ("auc", "AUC", ".4~r"),
        ("low", "interval from", ".4~r"),
        ("high", "interval to", ".4~r"),
    )
    dot = {"type": "point", "filled": True, "size": 70, "opacity": 1}
    unfold = per_model("auc", "low", "high")
    return chart(
        data,
        "Membership inference",
        height=LINE * len(labels),
        params=[
            *models(labels, [row.role for row in table.rows]),
            dropdown("attack", "Attack", [row["attack"] for row in data], first),
        ],
        transform=[{"filter": "datum.attack == attack"}],
        layer=[
            *(
                {
                    "transform": [{"filter": "isValid(datum['retrained-low'])"}],
                    "mark": {"type": "rect", "style": style},
                    "encoding": {
                        "x": quantity(f"retrained-{low}"),
                        "x2": {"field": f"retrained-{high}"},
                    },
                }
                for style, low, high in BANDS
            ),
            guide(0.5),
            {"transform": unfold, "mark": {"type": "rule", "strokeWidth": 2}, "encoding": {**span, **who}},
            {"transform": unfold, "mark": dot, "encoding": {"x": quantity("auc"), **who, "tooltip": shown}},
        ],
    )


def costs(section: ProblemSection) -> Spec | None:
    """Cost of each method divided by that of retraining, from the line where both cost the same.

    The band is what retraining costs from seed to seed, divided by its mean.
    """
    table, rows, bands = section.costs, [], []
    for i, column in enumerate(table.columns):
        if not column.metric.endswith("-ratio"):
            continue
        mine = [
            {"cost": column.title, "label": row.label, "role": row.role, "ratio": rounded(ratio)}
            for row in table.rows
            # A cost of nothing has no place on a logarithmic axis; the table has the zero.
            if row.role == "unlearned" and (ratio := row.cells[i].value)
        ]
        rows += mine
        place = table.find(column.metric.removesuffix("-ratio"), column.split)
        spent = [
            v
            for row in table.rows
            if row.role == "retrained" and place is not None
            for v in row.cells[place].values
        ]
        band = _relative_band(spent) if mine else None
        if band is not None:
            logs = [math.log(v) for v in (band.low, band.high, 1.0, *(r["ratio"] for r in mine))]
            bands.append({"cost": column.title, **band.within(*map(math.exp, extent(logs, 0.04))).fields()})
    if not rows:
        return None
    labels = distinct(r["label"] for r in rows)
    across = quantity(
        "ratio",
        title="× retraining (log)",
        scale={"type": "log"},
        axis={"format": "~g", "tickCount": 6},
    )
    bars = {
        "x": across,
        "x2": {"datum": 1},
        "y": {**label_axis(labels), "axis": {"labelLimit": 150}},
        "color": {**roles(), "legend": None},
        "tooltip": tips(("label", "method"), ("ratio", "times retraining", ".4~r")),
    }
    behind = [
        {
            "data": {"values": bands},
            "transform": [{"filter": "datum.cost == cost"}],
            "mark": {"type": "rect", "style": style},
            "encoding": {"x": quantity(low, scale={"type": "log"}), "x2": {"field": high}},
        }
        for style, low, high in BANDS if bands
    ]  # fmt: skip
    return chart(
        rows,
        "Cost against retraining",
        height=LINE * len(labels),
        params=[dropdown("cost", "Cost", distinct(r["cost"] for r in rows))],
        transform=[{"filter": "datum.cost == cost"}],
        layer=[
            *behind,
            {"mark": {"type": "bar", "height": 11, "cornerRadius": 1}, "encoding": bars},
            guide(1),
        ],
    )


def _relative_band(spent: Sequence[float]) -> Band | None:
    """The band of what retraining cost, in times its mean; None where that does not differ from seed to seed."""
    mean = sum(spent) / max(1, len(spent))
    return band_of([v / mean for v in spent], 0.0) if spent and 0 < min(spent) < max(spent) else None


def attack_curves(section: ProblemSection) -> list[Spec]:
    """A chart per attack that was followed: its success by what it spent, over the band of the retrained models."""
    drawn = []
    for metric in distinct(line.metric for line in section.curves):
        lines = [line for line in section.curves if line.metric == metric]
        if any(len(line.at) > 1 for line in lines):
            drawn.append(_attack_curve(lines))
    return drawn


def _attack_curve(lines: Sequence[CurveLine]) -> Spec:
    first, labels = lines[0], [line.label for line in lines if line.role != "retrained"]
    share = first.unit == "share"
    axis = {
        "title": f"{first.title} ({scale(first.unit).symbol})",
        **({"axis": {"format": "~%"}} if share else {}),
    }
    x = quantity("at", title=first.over, scale={"zero": False, "nice": False})
    y = quantity("value", scale={"zero": True}, **axis)
    names = ["target", "retrained", *[n for n in labels if n != "target"]]
    color = {"field": "label", "type": "nominal", "scale": {"domain": names}, "legend": legend(names)}
    points = [
        {"label": line.label, "at": rounded(at), "value": rounded(value)}
        for line in lines if line.role != "retrained"
        for at, value in zip(line.at, line.values, strict=True) if value is not None
    ]  # fmt: skip
    retrained = [line for line in lines if line.role == "retrained"]
    seen = [v for line in lines for v in (*line.values, *line.lows, *line.highs)]
    low, high = extent([*seen, 0.0])
    limits = (0.0, 1.0) if share else (None, None)
    band = [
        {"at": rounded(at), "value": rounded(mean), **band.within(low, high).fields()}
        for line in retrained
        for at, mean, points in zip(line.at, line.values, line.points, strict=True)
        if mean is not None and (band := band_of(points, *limits)) is not None
    ]
    shown = tips(
        ("label", "model"), ("at", first.over, ".4~r"), ("value", first.title, ".2%" if share else ".4~r")
    )
    layers: list[Spec] = []
    if band:
        layers = [
            *(
                {
                    "data": {"values": band}, "mark": {"type": "area", "style": style, "line": False},
                    "encoding": {"x": x, "y": quantity(least, **axis), "y2": {"field": most}},
                }
                for style, least, most in BANDS
            ),
            {
                "data": {"values": [{**row, "label": "retrained"} for row in band]},
                "mark": {"type": "line", "strokeDash": [4, 3]}, "encoding": {"x": x, "y": y, "color": color, "tooltip": shown},
            },
        ]  # fmt: skip
    layers.append(
        {
            "mark": {"type": "line", "point": {"size": 36}, "strokeWidth": 2},
            "encoding": {"x": x, "y": y, "color": color, "tooltip": shown},
        }
    )
    return chart(points, first.title, height=220, layer=layers)
