"""The palette and the chart theme of the report, as the app's pages read them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from expunge.report.palette import DARK, LIGHT, VARIABLES, theme


def palette_css() -> str:
    """Colors as custom properties: by the system's scheme, unless the page has chosen one; paper is always light."""

    def block(selector: str, colors: Mapping[str, str]) -> str:
        return f"{selector}{{" + "".join(f"--{name}:{color};" for name, color in colors.items()) + "}"

    return "\n".join(
        (
            block(":root", LIGHT),
            ":root{color-scheme:light}",
            "@media screen{",
            block(":root[data-theme=dark]", DARK),
            ":root[data-theme=dark]{color-scheme:dark}",
            "}",
            "@media screen and (prefers-color-scheme:dark){",
            block(":root:not([data-theme=light])", DARK),
            ":root:not([data-theme=light]){color-scheme:dark}",
            "}",
        )
    )


def theme_json() -> str:
    """Vega-Lite configuration whose colors are the page's custom properties."""
    return json.dumps(theme(VARIABLES))
