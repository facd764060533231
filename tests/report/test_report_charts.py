"""Charts: valid Vega-Lite, and the data in them is the data of the report."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factory import report_input, scores

from expunge.report import charts, compose
from expunge.report.content import ProblemSection
from expunge.report.palette import DARK, LIGHT, SERIES, VARIABLES, css, theme

altair = pytest.importorskip("altair")
jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def validator() -> Any:
    file = Path(altair.__file__).parent / "vegalite" / "v6" / "schema" / "vega-lite-schema.json"
    return jsonschema.Draft7Validator(json.loads(file.read_text()))


@pytest.fixture(scope="module")
def section() -> ProblemSection:
    return compose(report_input()).problems[0]


@pytest.fixture(scope="module")
def specs(section: ProblemSection) -> dict[str, charts.Spec | None]:
    return {
        "utility": charts.forgetting_against_utility(section),
        "classes": charts.by_class(section),
        "losses": charts.loss_distributions(report_input().losses["digits"]),
        "layers": charts.similarity_by_layer(section),
        "membership": charts.membership(section),
        "costs": charts.costs(section),
    }


KINDS = ("utility", "classes", "losses", "layers", "membership", "costs")


def rows(spec: charts.Spec | None) -> list[dict[str, Any]]:
    assert spec is not None
    return spec["data"]["values"]


@pytest.mark.parametrize("kind", KINDS)
def test_specifications_are_valid(kind: str, specs: dict[str, charts.Spec | None], validator: Any) -> None:
    for colors in (LIGHT, DARK, VARIABLES):
        spec = {**(specs[kind] or {}), "config": theme(colors)}
        faults = [f"{list(e.absolute_path)}: {e.message[:200]}" for e in validator.iter_errors(spec)]
        assert not faults


def test_the_validator_can_refuse(specs: dict[str, charts.Spec | None], validator: Any) -> None:
    assert not validator.is_valid({**(specs["classes"] or {}), "mark": "no-such-mark"})


def test_points_are_the_models(specs: dict[str, charts.Spec | None]) -> None:
    layers = (specs["utility"] or {})["layer"]
    box, points = layers[0]["data"]["values"], layers[1]["data"]["values"]
    expected = [
        (m.label, m.seed, test.value, forget.value)
        for m in scores().judged
        if m.problem == "digits"
        and (test := m.score("accuracy", "test"))
        and (forget := m.score("accuracy", "forget"))
    ]
    assert sorted((p["label"], p["seed"], p["x"], p["y"]) for p in points) == sorted(expected)
    retrained = [(x, y) for label, _, x, y in expected if label == "retrain"]
    across, down = zip(*retrained, strict=True)
    assert box == [{"x": min(across), "x2": max(across), "y": min(down), "y2": max(down)}]


def test_losses_are_binned_to_shares() -> None:
    losses = {"target": {"forget": [0.0, 0.001, 0.1]}, "ssd": {"forget": [10.0, float("nan"), 0.5, 0.5, 0.5]}}
    found = rows(charts.loss_distributions(losses, bins=8))
    for label, n in (("target", 3), ("ssd", 4)):
        mine = [r for r in found if r["label"] == label]
        assert sum(r["share"] for r in mine) == pytest.approx(
            1.0, abs=1e-3
        )  # shares are rounded to five decimals
        assert {r["n"] for r in mine} == {n}
        assert len(mine) == 9  # eight bins and the closing edge
    edges = [r["loss"] for r in found if r["label"] == "ssd"]
    assert edges == sorted(edges) and edges[-1] == pytest.approx(10.0)


def test_negative_losses_get_a_linear_axis() -> None:
    spec = charts.loss_distributions({"ssd": {"forget": [-1.0, 0.0, 2.0]}}, bins=3)
    edges = [r["loss"] for r in rows(spec)]
    assert np.diff(edges) == pytest.approx([1.0, 1.0, 1.0])
    assert spec is not None and spec["spec"]["layer"][0]["encoding"]["x"]["scale"]["type"] == "linear"


def test_costs_leave_out_what_a_logarithm_cannot_show(section: ProblemSection) -> None:
    found = rows(charts.costs(section))
    passes = {r["label"] for r in found if r["cost"] == "Passes over the data"}
    assert "ssd" not in passes and "salun (rho=0.5)" in passes
    assert all(r["ratio"] > 0 for r in found)


def test_layers_are_in_natural_order(specs: dict[str, charts.Spec | None]) -> None:
    spec = specs["layers"] or {}
    assert spec["layer"][0]["encoding"]["x"]["sort"] == ["layer1", "layer2", "layer10"]


def test_nothing_to_draw_gives_no_chart() -> None:
    regression = compose(report_input()).problems[1]
    assert charts.by_class(regression) is None
    assert charts.membership(regression) is None
    assert charts.costs(regression) is None
    assert charts.similarity_by_layer(regression) is None
    assert charts.loss_distributions({}) is None
    assert charts.forgetting_against_utility(regression) is not None  # mae instead of accuracy


def linear(color: str) -> np.ndarray:
    """Linear RGB of an sRGB color (IEC 61966-2-1)."""
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def luminance(color: str) -> float:
    """Relative luminance of WCAG 2."""
    return float(np.array([0.2126, 0.7152, 0.0722]) @ linear(color))


@pytest.mark.parametrize("colors", [LIGHT, DARK])
def test_contrast(colors: dict[str, str]) -> None:
    def contrast(a: str, b: str) -> float:
        lighter, darker = sorted((luminance(colors[a]), luminance(colors[b])), reverse=True)
        return (lighter + 0.05) / (darker + 0.05)

    assert all(contrast(name, "paper") >= 3 for name in SERIES)
    assert all(contrast(name, "paper") >= 4.5 for name in ("ink", "muted", "agree", "target", "unlearned"))


def seen_with(kind: str, color: str) -> np.ndarray:
    """sRGB (gamma 2.2) as seen with a full deficiency (Machado, Oliveira & Fernandes 2009, severity 1)."""
    matrices = {
        "protan": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        "deutan": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
    }
    return np.clip(np.asarray(matrices[kind]) @ linear(color), 0, 1) ** (1 / 2.2)


@pytest.mark.parametrize("kind", ["protan", "deutan"])
@pytest.mark.parametrize("colors", [LIGHT, DARK])
def test_roles_stay_apart_for_color_blind_readers(kind: str, colors: dict[str, str]) -> None:
    for one, other in itertools.combinations(charts.ROLES, 2):
        assert np.linalg.norm(seen_with(kind, colors[one]) - seen_with(kind, colors[other])) > 0.15


def test_every_variable_is_defined_in_both_modes() -> None:
    text = css()
    assert all(text.count(f"--{name}:") == 2 for name in VARIABLES)
    assert set(LIGHT) == set(DARK)
