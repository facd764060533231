"""One restrained palette for tables and charts, in light and dark.

Orange, gray and blue carry the three roles: they stay apart under the common color-vision deficiencies. Each
color has a contrast of at least 3 to 1 with its background.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LIGHT = {
    "paper": "#fcfcfa",
    "panel": "#f4f5f3",
    "ink": "#1b2025",
    "muted": "#5a646e",
    "rule": "#d9dddf",
    "target": "#b9541a",
    "retrained": "#68727d",
    "unlearned": "#2166ac",
    "agree": "#12756a",
    "series-4": "#12806f",
    "series-5": "#7b4fa3",
    "series-6": "#8f6c00",
    "series-7": "#b03a78",
    "series-8": "#6d5136",
}
DARK = {
    "paper": "#15181b",
    "panel": "#1d2125",
    "ink": "#e6e8ea",
    "muted": "#9da7b0",
    "rule": "#343a40",
    "target": "#ee9355",
    "retrained": "#a2acb6",
    "unlearned": "#6fb1ee",
    "agree": "#5bc2b2",
    "series-4": "#5bc2b2",
    "series-5": "#bb96e0",
    "series-6": "#d3b14c",
    "series-7": "#ea86b8",
    "series-8": "#c3a283",
}
SERIES = ("target", "retrained", "unlearned", "series-4", "series-5", "series-6", "series-7", "series-8")
SHAPES = ("diamond", "square", "circle", "triangle-up", "triangle-down", "cross", "triangle-right")
VARIABLES = {name: f"var(--{name})" for name in LIGHT}
"""Colors as CSS custom properties: a chart drawn as SVG then follows the page into dark mode and print."""


def css() -> str:
    """The palette as CSS custom properties; paper is always printed light."""

    def block(colors: Mapping[str, str]) -> str:
        return ":root{" + "".join(f"--{name}:{color};" for name, color in colors.items()) + "}"

    return (
        f"{block(LIGHT)}\n@media screen and (prefers-color-scheme:dark){{{block(DARK)}}}\n"
        ":root{color-scheme:light dark}\n@media print{:root{color-scheme:light}}"
    )


def theme(colors: Mapping[str, str] = LIGHT) -> dict[str, Any]:
    """Vega-Lite configuration for the charts, from `LIGHT`, `DARK`, or `VARIABLES` on a page that has them.

    The range `ordinal` holds the roles (target, retrained, unlearned). In `category` and `symbol` the first two
    are the target's and the retrained models' own; methods share the others, six colors and five shapes, so that
    thirty methods differ in one or the other.
    """
    font = 'system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
    text = {
        "labelColor": colors["muted"],
        "titleColor": colors["ink"],
        "labelFontSize": 12,
        "titleFontSize": 12,
    }
    return {
        "background": "transparent",
        "font": font,
        "view": {"stroke": None},
        "axis": {
            **text,
            "domainColor": colors["rule"],
            "tickColor": colors["rule"],
            "gridColor": colors["rule"],
            "gridOpacity": 0.6,
            "titleFontWeight": 500,
            "titlePadding": 10,
            "labelLimit": 220,
            "tickCount": 6,
        },
        "legend": {
            **text,
            "labelColor": colors["ink"],
            "orient": "bottom",
            "title": None,
            "labelLimit": 240,
            "columns": 4,
            "symbolStrokeWidth": 2,
            "symbolOpacity": 1,
        },
        "header": {**text, "labelColor": colors["ink"], "title": None, "labelFontWeight": 500},
        "text": {"fill": colors["ink"], "fontSize": 12},
        "range": {
            "category": [colors[name] for name in (*SERIES[:2], *SERIES[2:] * 5)],
            "ordinal": [colors[name] for name in SERIES[:3]],
            "symbol": [*SHAPES[:2], *SHAPES[2:] * 6],
        },
        "style": {
            "reference": {"color": colors["retrained"], "opacity": 0.25},
            "null": {"color": colors["retrained"], "opacity": 0.13},
            "guide": {"stroke": colors["muted"], "strokeDash": [4, 3], "strokeWidth": 1},
        },
    }
