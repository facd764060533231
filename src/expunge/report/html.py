"""The report as one HTML file that needs no network, and as JSON."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from expunge.files import write_atomic
from expunge.record import Verdict
from expunge.report import breakdowns, charts
from expunge.report.content import Images, Losses, ProblemSection, Report, ReportInput, compose
from expunge.report.findings import matrix
from expunge.report.matrices import attack_matrices, cost_matrix
from expunge.report.notation import scale, shown, shown_interval
from expunge.report.palette import VARIABLES, css, theme
from expunge.report.statements import (
    DIRECTIONS,
    FINDINGS,
    JUDGEMENTS,
    counted,
    listed,
    split_name,
    split_rank,
)
from expunge.report.tables import Role, title_of
from expunge.report.vega import Spec

CAPTIONS = {
    "utility": (
        "Small marks are single models, outlined marks means over seeds. The gray box spans the retrained "
        "models, the pale one is where one more of them would lie (95 %): forgetting should arrive there."
    ),
    "membership": (
        "Mean and 95 % interval per method. The dashed line is guessing, the gray band the retrained models, the pale one "
        "where one more of them would lie (95 %)."
    ),
    "classes": (
        "The target, the retrained models and one method. The gray band spans the retrained models, the pale one is where one "
        "more of them would lie (95 %): a good method's bars end there."
    ),
    "losses": (
        "Share of examples by loss; what lies outside the axis is counted in its first or last bin. The gray band spans the "
        "retrained models, the line is their mean, and in the pale one one more of them would lie (95 %, bin by bin): after "
        "forgetting, the forget set should look as it does to them."
    ),
    "layers": "How alike the hidden representations of two models are, layer by layer, as linear CKA. The gray "
    "band spans the retrained models, the pale one is where one more of them would lie (95 %).",
    "curve": (
        "Mean over models by what the attacker spends. The gray band spans what the same attack gets from retrained models "
        "at the same price, the pale one is where one more of them would lie (95 %): only what lies above was left by forgetting."
    ),
    "costs": (
        "Bars to the left of the dashed line are cheaper than retraining from scratch. The gray band spans what retraining costs "
        "from seed to seed, the pale one is where one more seed would lie (95 %)."
    ),
}
"""One sentence under each chart that says how to read it."""
MARKS = {"no larger difference": "≡", "different": "≠", "undecided": "?"}
"""The sign of each judgement; its words stand beside it for readers who do not see it."""
STRIP = 66
"""Width of the strip that shows an interval against its margin, in pixels; it spans three margins either way."""


@dataclass(frozen=True)
class Figure:
    """A chart with its place on the page."""

    id: str
    title: str
    caption: str


def write_report(given: ReportInput, folder: Path) -> Path:
    """Write ``report.html`` and ``report.json`` into `folder`, each whole or not at all; return the page."""
    report = compose(given)
    page = folder / "report.html"
    write_atomic(folder / "report.json", report.model_dump_json(exclude_none=True))
    write_atomic(page, render(report, given.losses, given.images))
    return page


def render(
    report: Report, losses: Mapping[str, Losses] | None = None, images: Mapping[str, Images] | None = None
) -> str:
    """The page as text; `losses` and `images` are those of `ReportInput`; without them their parts are left out."""
    figures: list[dict[str, Figure]] = []
    specs: dict[str, Spec] = {}
    for number, section in enumerate(report.problems):
        found: dict[str, Figure] = {}
        for kind, spec in chart_specs(section, (losses or {}).get(section.name, {})).items():
            caption = CAPTIONS["curve" if kind.startswith("curve-") else kind]
            figure = Figure(f"chart-{number}-{kind}", spec["description"], caption)
            specs[figure.id] = spec
            found[kind] = figure
        figures.append(found)
    scripts = [vega_bundle(), asset("report.js")] if specs else []
    template = environment().get_template("report.html.j2")
    return template.render(
        report=report,
        measures={measure.name: measure for measure in report.measures},
        figures=figures,
        samples=[sample_grids(section, (images or {}).get(section.name, {})) for section in report.problems],
        css=Markup(css() + asset("report.css")),
        scripts=[Markup(s) for s in scripts],
        policy=policy(scripts),
        charts=json_for_html({"config": theme(VARIABLES), "specs": specs}),
    )


def chart_specs(section: ProblemSection, losses: Losses) -> dict[str, Spec]:
    """The charts that a problem has data for, by kind, in the order of the page."""
    in_order = {label: losses[label] for label, _ in section.labels if label in losses}
    drawn = {
        "utility": charts.forgetting_against_utility(section),
        "membership": charts.membership(section),
        "losses": breakdowns.loss_distributions({**in_order, **losses}),
        "classes": breakdowns.by_class(section),
        "layers": breakdowns.similarity_by_layer(section),
        "costs": charts.costs(section),
    }
    drawn |= {f"curve-{i}": spec for i, spec in enumerate(charts.attack_curves(section))}
    return {kind: spec for kind, spec in drawn.items() if spec is not None}


@dataclass(frozen=True)
class SampleGrid:
    """Images that each model made of the same prompts and starting noise."""

    split: str
    asked: list[str]
    rows: list[tuple[str, Role, list[str]]]
    """Label, role and a PNG for each prompt."""


def sample_grids(section: ProblemSection, images: Images) -> list[SampleGrid]:
    """One grid per data set, in the order of the page: target and retrained models first, as in the tables."""
    grids = []
    for split in sorted(images, key=split_rank):
        found = images[split]
        rows: list[tuple[str, Role, list[str]]] = []
        for label, role in section.labels:
            name = "retrained" if role == "retrained" else label
            if name in found:
                rows.append((name, role, [png for _, png in found[name]]))
        if rows:
            grids.append(SampleGrid(split, [asked for asked, _ in found[rows[0][0]]], rows))
    return grids


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that sets `window.vegaEmbed`."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", "6.1")
    return bundle.replace("</script", "<\\/script")


def json_for_html(value: Any) -> Markup:
    """JSON that can stand inside a script element: nothing in it can end that element or open another."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def policy(scripts: list[str]) -> str:
    """Content security policy: nothing is fetched, and only our own scripts run, named by their hashes."""
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{h}'" for h in hashes) or "'none'"
    # Styles stay open for the tooltip that Vega inserts.
    rest = "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {rest}"


def asset(name: str) -> str:
    """A file of the templates folder."""
    return (files("expunge.report") / "templates" / name).read_text(encoding="utf-8")


def environment() -> Environment:
    """The templates, and the words that they use."""
    environment = Environment(
        loader=PackageLoader("expunge.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words: dict[str, Callable[..., Any]] = {
        "scale": scale,
        "shown": shown,
        "shown_interval": shown_interval,
        "counted": counted,
        "split_name": split_name,
        "listed": listed,
        "matrix": matrix,
        "attack_matrices": attack_matrices,
        "cost_matrix": cost_matrix,
        "strip": strip,
        "step": tint_step,
        "parameters": parameters,
    }
    environment.globals.update(words)
    environment.globals.update(directions=DIRECTIONS, judgements=JUDGEMENTS, marks=MARKS, strip_width=STRIP)
    environment.globals.update(findings_in_words=FINDINGS, title_of=title_of)
    return environment


def tint_step(distance: float) -> int:
    """Shade of a cell: 0 (as retrained) to 5 (the farthest of its column)."""
    return min(5, round(5 * distance))


def parameters(values: Mapping[str, Any]) -> str:
    """Parameters on one line, such as ``alpha=10, lam=1``."""
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in values.items())


def strip(verdict: Verdict) -> dict[str, float] | None:
    """Where an interval of a difference is drawn, in pixels from the left; the margin ends at 1/3 and 2/3.

    The scale is the same for every verdict, so that strips can be compared. What lies outside is drawn up to
    the edge; `beyond` is then -1 or 1 where the estimate itself lies outside, else 0.
    """
    if verdict.difference is None or not verdict.margin:
        return None
    reach = 3 * verdict.margin

    def place(value: float) -> float:
        return round(STRIP / 2 * (1 + min(1.0, max(-1.0, value / reach))), 1)

    ends = verdict.interval
    return {
        "low": place(ends.low if ends else verdict.difference),
        "high": place(ends.high if ends else verdict.difference),
        "difference": place(verdict.difference),
        "beyond": (verdict.difference > reach) - (verdict.difference < -reach),
    }
