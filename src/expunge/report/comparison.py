"""The page of `expunge compare --out`: rankings with intervals, Pareto fronts, critical differences, sensitivity."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from expunge.report.charts import LINE
from expunge.report.html import Figure, asset, environment, json_for_html, policy, vega_bundle
from expunge.report.palette import VARIABLES, css, theme
from expunge.report.vega import Band, Spec, boxes, chart, extent, label_axis, quantity, roles, rounded, tips
from expunge.studies.comparison import Comparison
from expunge.studies.fronts import Front
from expunge.studies.spread import Variance
from expunge.studies.standings import Ranking, Standing

CAPTIONS = {
    "ranks": "Rank by the Borda count, and its 95 % interval over {over}. Methods whose intervals overlap are not in order.",
    "critical": "Average ranks on the {complete} ballots that have every method. A bar is as long as the critical difference: "
    "methods whose dots it reaches are not told apart from the one that it starts at (Nemenyi, 95 %).",
    "front": "Filled: no other method is better in everything. The larger a mark, the more resamples have it on the front.",
    "box": " The gray box spans the retrained models, the pale one is where one more of them would lie (95 %).",
}


def render_comparison(name: str, comparison: Comparison) -> str:
    """The page as text; it needs no network."""
    figures: dict[str, Figure] = {}
    specs: dict[str, Spec] = {}

    def add(key: str, spec: Spec | None, caption: str) -> None:
        if spec is not None:
            figures[key] = Figure(f"chart-{key}", spec["description"], caption)
            specs[f"chart-{key}"] = spec

    rankings = [r for r in (comparison.task, comparison.instance) if r is not None]
    for ranking in rankings:
        add(
            f"ranks-{ranking.level}",
            rank_intervals(ranking),
            CAPTIONS["ranks"].format(over=ranking.resampled),
        )
        words = CAPTIONS["critical"].format(complete=ranking.complete)
        add(f"critical-{ranking.level}", critical_differences(ranking), words)
    for number, front in enumerate(comparison.fronts):
        spec = pareto(front)
        add(f"front-{number}", spec, CAPTIONS["front"] + CAPTIONS["box"] * (len(spec["layer"]) > 1))
    scripts = [vega_bundle(), asset("report.js")] if specs else []
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            name=name,
            comparison=comparison,
            rankings=rankings,
            figures=figures,
            css=Markup(css() + asset("report.css")),
            scripts=[Markup(s) for s in scripts],
            policy=policy(scripts),
            charts=json_for_html({"config": theme(VARIABLES), "specs": specs}),
            undefined_parts=_undefined,
        )
    )


def _undefined(found: Sequence[Variance]) -> list[tuple[str, str]]:
    """Factors that the runs do not tell, each reason once."""
    return list(dict.fromkeys((p.factor, p.reason) for v in found for p in v.parts if p.reason))


def rank_intervals(ranking: Ranking) -> Spec | None:
    """A forest plot: a method per line, its rank and the interval of it; None where ranks have no interval."""
    if not any(s.interval for s in ranking.standings):
        return None
    rows = [
        {
            **_who(s), "rank": rounded(s.rank), "first": rounded(s.first or 0.0),
            "low": rounded(s.interval.low if s.interval else s.rank),
            "high": rounded(s.interval.high if s.interval else s.rank),
        }
        for s in ranking.standings
    ]  # fmt: skip
    shown = tips(
        ("label", "method"), ("rank",), ("low", "from"), ("high", "to"), ("first", "P(first)", ".0%")
    )
    along = {
        "scale": {"domain": [0.5, len(rows) + 0.5], "nice": False},
        "axis": {"tickMinStep": 1, "format": "d"},
    }
    rule = {
        "x": quantity("low", title="Rank (1 is best)", **along),
        "x2": {"field": "high"},
        **_lines(ranking.standings),
    }
    dot = {"x": quantity("rank"), **_lines(ranking.standings), "tooltip": shown}
    return chart(
        rows,
        f"Ranks by {'metric' if ranking.level == 'task' else 'example'}",
        height=LINE * len(rows),
        layer=[
            {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": rule},
            {"mark": {"type": "point", "filled": True, "size": 70, "opacity": 1}, "encoding": dot},
        ],
    )


def critical_differences(ranking: Ranking) -> Spec | None:
    """Average ranks, each with a bar of the critical difference; None where there is no such difference."""
    if ranking.critical_difference is None:
        return None
    ordered = sorted(ranking.standings, key=lambda s: s.average_rank or 0.0)
    rows = [
        {
            **_who(s), "rank": rounded(s.average_rank),
            "reach": rounded(min(s.average_rank + ranking.critical_difference, len(ordered))),
        }
        for s in ordered
        if s.average_rank is not None
    ]  # fmt: skip
    along = {"scale": {"domain": [0.9, len(ordered) + 0.1], "nice": False, "zero": False}}
    dot = {
        "x": quantity("rank", title="Average rank (1 is best)", **along),
        **_lines(ordered),
        "tooltip": tips(
            ("label", "method"), ("rank", "average rank", ".3~r"), ("reach", "reaches to", ".3~r")
        ),
    }
    bar = {"x": quantity("rank"), "x2": {"field": "reach"}, **_lines(ordered)}
    return chart(
        rows,
        f"Critical differences by {'metric' if ranking.level == 'task' else 'example'}",
        height=LINE * len(rows),
        layer=[
            {"mark": {"type": "rule", "strokeWidth": 7, "opacity": 0.25}, "encoding": bar},
            {"mark": {"type": "point", "filled": True, "size": 70, "opacity": 1}, "encoding": dot},
        ],
    )


def pareto(front: Front, reference: str = "retrain") -> Spec:
    """The first two objectives against each other; who is on the front of all objectives is filled."""
    rows = [
        {
            "label": label, "y": rounded(point[0]), "x": rounded(point[1]), "front": label in front.front,
            "share": rounded(front.probability.get(label, float(label in front.front))),
        }
        for label, point in front.points.items()
    ]  # fmt: skip
    room = {"scale": {"zero": False, "nice": False, "padding": 16}}
    titles = [
        f"{name} ({'↑ higher' if better == 'higher' else '↓ lower'} is better)"
        for name, better in zip(front.objectives, front.directions, strict=True)
    ]
    place = {"x": quantity("x", title=titles[1], **room), "y": quantity("y", title=titles[0], **room)}
    labels = [r["label"] for r in rows]
    # The first two colors are the target's and the retrained models' own.
    domain = ["target", reference, *(name for name in labels if name != reference)]
    label = {"field": "label", "type": "nominal", "scale": {"domain": domain}, "legend": {"values": labels}}
    size = quantity("share", legend=None, scale={"domain": [0, 1], "range": [40, 220]})
    filled = {"condition": {"test": "datum.front", "value": 0.85}, "value": 0}
    shown = tips(
        ("label", "method"),
        ("x", front.objectives[1]),
        ("y", front.objectives[0]),
        ("share", "P(front)", ".0%"),
    )
    points = {
        "mark": {"type": "point", "strokeWidth": 2},
        "encoding": {
            **place, "color": label, "shape": label, "fill": label, "size": size, "fillOpacity": filled, "tooltip": shown,
        },
    }  # fmt: skip
    across, up = _objective_band(front, 1), _objective_band(front, 0)
    behind: list[Spec] = []
    if across is not None and up is not None:
        ends = [
            extent([*(r[c] for r in rows), band.low, band.high]) for c, band in (("x", across), ("y", up))
        ]
        behind = boxes(across.within(*ends[0]), up.within(*ends[1]))
    return chart(rows, f"Pareto front, {front.problem}", height=280, layer=[*behind, points])


def _objective_band(front: Front, objective: int) -> Band | None:
    """Where the retrained models lie in an objective; None of fewer than two, for one is a point of the chart itself."""
    values = [point[objective] for point in front.retrained]
    if len(values) < 2:
        return None
    null = front.bands[objective]
    low, high = min(values), max(values)
    if null is None:
        return Band(low, high, low, high)
    least = 0.0 if front.units[objective] == "share" else -math.inf
    most = 1.0 if front.units[objective] == "share" else math.inf
    return Band(low, high, max(least, min(low, null.low)), min(most, max(high, null.high)))


def _who(standing: Standing) -> Spec:
    return {"label": standing.label, "role": "retrained" if standing.reference else "unlearned"}


def _lines(standings: Sequence[Standing]) -> Spec:
    """One line of the chart per method, colored by what it is."""
    return {"y": label_axis([s.label for s in standings]), "color": {**roles(), "legend": None}}
