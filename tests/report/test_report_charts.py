"""Charts: valid Vega-Lite, and the data in them is the data of the report."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from html import unescape
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vl_convert
from factory import report_input, scores
from scipy.stats import t as student

from expunge.record import mean_of
from expunge.report import breakdowns, charts, compose
from expunge.report.content import ProblemSection
from expunge.report.densities import bin_edges
from expunge.report.palette import DARK, LIGHT, SERIES, SHAPES, VARIABLES, css, theme
from expunge.report.vega import ROLES, Spec, band_of, rounded

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
def specs(section: ProblemSection) -> dict[str, Spec | None]:
    return {
        "utility": charts.forgetting_against_utility(section),
        "classes": breakdowns.by_class(section),
        "losses": breakdowns.loss_distributions(report_input().losses["digits"]),
        "layers": breakdowns.similarity_by_layer(section),
        "membership": charts.membership(section),
        "costs": charts.costs(section),
    }


KINDS = ("utility", "classes", "losses", "layers", "membership", "costs")


def rows(spec: Spec | None) -> list[dict[str, Any]]:
    assert spec is not None
    return spec["data"]["values"]


def parameter(spec: Spec | None, name: str) -> Any:
    return next(p["value"] for p in (spec or {})["params"] if p["name"] == name)


def drawn(spec: Spec | None) -> list[dict[str, str]]:
    """The marks that Vega draws, as {field or title: value}, from the descriptions it gives them."""
    fitted = {**(spec or {}), "config": theme()}
    if fitted.get("width") == "container":
        fitted["width"] = 400
    svg = vl_convert.vegalite_to_svg(fitted, "6.1")
    said = [unescape(text) for text in re.findall(r'<[^>]*aria-label="([^"]*)"', svg)]
    return [dict(part.split(": ", 1) for part in text.split("; ")) for text in said if "; " in text]


def found(metric: str, split: str, label: str) -> list[float]:
    scores_found = [
        m.score(metric, split) for m in scores().judged if (m.problem, m.label) == ("digits", label)
    ]
    return [s.value for s in scores_found if s is not None and s.value is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_specifications_are_valid(kind: str, specs: dict[str, Spec | None], validator: Any) -> None:
    for colors in (LIGHT, DARK, VARIABLES):
        spec = {**(specs[kind] or {}), "config": theme(colors)}
        faults = [f"{list(e.absolute_path)}: {e.message[:200]}" for e in validator.iter_errors(spec)]
        assert not faults


def test_the_validator_can_refuse(specs: dict[str, Spec | None], validator: Any) -> None:
    assert not validator.is_valid({**(specs["classes"] or {}), "mark": "no-such-mark"})


def test_points_are_the_models(specs: dict[str, Spec | None]) -> None:
    layers = (specs["utility"] or {})["layer"]
    outer, box, _, points = (layer["data"]["values"] for layer in layers[:4])
    expected = [
        (m.label, m.seed, test.value, forget.value)
        for m in scores().judged
        if m.problem == "digits"
        and (test := m.score("accuracy", "test"))
        and (forget := m.score("accuracy", "forget"))
    ]
    key = itemgetter("label", "seed")
    for point, (label, seed, x, y) in zip(sorted(points, key=key), sorted(expected), strict=True):
        assert (point["label"], point["seed"]) == (label, seed)
        assert (point["x"], point["y"]) == pytest.approx((x, y), rel=5e-4, abs=0)
    retrained = [(x, y) for label, _, x, y in expected if label == "retrain"]
    across, down = zip(*retrained, strict=True)
    corners = {"lowx": min(across), "highx": max(across), "lowy": min(down), "highy": max(down)}
    assert box == outer and {k: box[0][k] for k in corners} == pytest.approx(corners, rel=5e-4)
    # The pale box is where one more retrained model would lie, as far as the chart goes.
    for c, values in (("x", across), ("y", down)):
        low, high = t_band(values)
        ends = (layers[3]["encoding"][c]["scale"]["domain"]) if "scale" in layers[3]["encoding"][c] else None
        assert ends is not None and ends[0] < min(values) and max(values) < ends[1]
        assert box[0][f"least{c}"] == pytest.approx(max(low, ends[0], 0.0), rel=5e-4, abs=1e-9)
        assert box[0][f"most{c}"] == pytest.approx(min(high, ends[1], 1.0), rel=5e-4)


def t_band(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % prediction interval of one more normal value, by the definition."""
    n, mean = len(values), sum(values) / len(values)
    deviation = (sum((v - mean) ** 2 for v in values) / (n - 1)) ** 0.5
    half = float(student.ppf(0.975, n - 1)) * deviation * (1 + 1 / n) ** 0.5
    return mean - half, mean + half


def test_bands_of_few_models_are_as_wide_as_they_are_unsure():
    # Two models say next to nothing: t(1) = 12.706, so the band reaches 15.56 standard deviations to either side.
    band = band_of([0.4, 0.6], 0.0, 1.0)
    assert band is not None and (band.low, band.high, band.least, band.most) == (0.4, 0.6, 0.0, 1.0)
    free = band_of([0.4, 0.6])
    assert free is not None and free.most == pytest.approx(0.5 + 15.56 * 0.1 * 2**0.5, rel=1e-3)
    assert free.within(0.3, 0.7)[2:] == (0.3, 0.7) and free.within(0.45, 0.5)[2:] == (0.4, 0.6)
    assert band_of([0.5, 0.5]) == (0.5, 0.5, 0.5, 0.5) and band_of([0.5]) == (0.5, 0.5, 0.5, 0.5)
    assert band_of([]) is None


def test_layers_have_a_band_of_their_own(specs: dict[str, Spec | None]) -> None:
    layers = (specs["layers"] or {})["layer"]
    band = {(b["pair"], b["layer"]): b for b in layers[0]["data"]["values"]}
    models = [m for m in scores().judged if (m.problem, m.label) == ("digits", "retrain")]
    for layer in ("layer1", "layer2", "layer10"):
        values = [s.groups[layer] for m in models if (s := m.score("cka-to-retrained", "test"))]
        found = band["Representation similarity to retrained (CKA), test", layer]
        low, high = t_band(values)
        assert (found["low"], found["high"]) == pytest.approx((min(values), max(values)), rel=5e-4)
        assert found["least"] == pytest.approx(max(0.0, low), rel=5e-4)
        assert found["most"] == pytest.approx(min(1.0, high), rel=5e-4)


@pytest.mark.parametrize(
    ("value", "expected"), [(0.123456, 0.1235), (-1234567.0, -1235000), (3.0, 3), (2.5e-7, 2.5e-7), (0.0, 0)]
)
def test_charts_hold_four_significant_digits(value: float, expected: float) -> None:
    assert rounded(value) == expected


def test_membership_marks_are_the_mean_over_seeds(specs: dict[str, Spec | None]) -> None:
    dots = {d["label"]: d for d in drawn(specs["membership"]) if "AUC" in d}
    labels = {m.label for m in scores().judged if m.problem == "digits"} - {"blindspot"}
    assert set(dots) == labels
    for label, dot in dots.items():
        mean = mean_of(found("mia-loss-logistic", "forget", label))
        assert float(dot["AUC"]) == pytest.approx(mean, rel=5e-4)
        assert float(dot["interval from"]) < mean < float(dot["interval to"])
    assert dots["retrain"]["role"] == "retrained" and dots["ssd"]["role"] == "unlearned"


def test_class_bars_are_three_models_by_class(specs: dict[str, Spec | None]) -> None:
    marks = drawn(specs["classes"])
    bars, bands = [m for m in marks if "model" in m], [m for m in marks if "one more of them, from" in m]
    method = parameter(specs["classes"], "method")
    assert {(b["model"], b["class"]) for b in bars} == {
        (label, str(c)) for label in ("target", "retrain", method) for c in range(10)
    }
    assert len(bars) == 30
    for bar in bars:
        models = [m for m in scores().judged if (m.problem, m.label) == ("digits", bar["model"])]
        by_seed = [s.groups[bar["class"]] for m in models if (s := m.score("accuracy", "test"))]
        assert float(bar["value"]) == pytest.approx(mean_of(by_seed), rel=6e-4)
    assert [b["class"] for b in bands] == [
        str(c) for c in range(10)
    ] * 2  # the pale part, and the models themselves
    for band in bands:
        models = [m for m in scores().judged if (m.problem, m.label) == ("digits", "retrain")]
        values = [s.groups[band["class"]] for m in models if (s := m.score("accuracy", "test"))]
        low, high = t_band(values)
        ends = float(band["retrained models, from"]), float(band["to"])
        assert (
            ends[0] == pytest.approx(min(values), rel=6e-4)
            and low - 1e-4 <= float(band["one more of them, from"]) <= min(values) + 1e-4
        )
        assert max(values) - 1e-4 <= ends[1] <= high + 1e-4


@pytest.mark.parametrize("kept", [0, 1])
def test_few_retrained_models_draw_no_band(kept: int, validator: Any) -> None:
    judged = [m for m in scores().judged if m.method != "retrain" or m.seed < kept]
    bare = [
        m.model_copy(update={"scores": [s.model_copy(update={"reference": None}) for s in m.scores]})
        for m in judged
    ]
    section = compose(report_input(scores().model_copy(update={"judged": bare}))).problems[0]
    classes = breakdowns.by_class(section)
    assert validator.is_valid({**(classes or {}), "config": theme()})
    said = [m for m in drawn(classes) if "one more of them, from" in m]
    assert len(said) == 20 * kept  # of a single model, as high as nothing
    assert all(m["retrained models, from"] == m["one more of them, from"] for m in said)
    for spec in (
        charts.forgetting_against_utility(section),
        charts.membership(section),
        charts.costs(section),
    ):
        assert validator.is_valid({**(spec or {}), "config": theme()}) and drawn(spec)


def test_layer_lines_are_every_model_by_layer(specs: dict[str, Spec | None]) -> None:
    points = {(d["model"], d["layer"]): float(d["CKA"]) for d in drawn(specs["layers"]) if "CKA" in d}
    for (label, layer), value in points.items():
        models = [m for m in scores().judged if (m.problem, m.label) == ("digits", label)]
        by_seed = [s.groups[layer] for m in models if (s := m.score("cka-to-retrained", "test"))]
        assert value == pytest.approx(mean_of(by_seed), abs=1e-3)
    # A line is described by its first point, so every model is there in each of three layers.
    assert {layer for _, layer in points} == {"layer1", "layer2", "layer10"}
    assert len(points) == 7 * 3


def test_losses_are_binned_to_shares() -> None:
    losses = {"target": {"forget": [0.0, 0.001, 0.1]}, "ssd": {"forget": [10.0, float("nan"), 0.5, 0.5, 0.5]}}
    spec = breakdowns.loss_distributions(losses, bins=8)
    (panel,) = rows(spec)
    assert parameter(spec, "models") == ["target", "ssd"] and parameter(spec, "roles") == [
        "target",
        "unlearned",
    ]
    assert panel["n"] == [3, 4]
    for shares in panel["share"]:
        assert sum(shares) == pytest.approx(1.0, abs=1e-3)  # rounded to four digits
        assert len(shares) == 9 and shares[-1] == 0  # eight bins and the closing edge
    assert panel["share"][1][-2] == 0.25  # 10.0 alone is in the last bin
    edges = parameter(spec, "edges")
    assert len(edges) == 9
    assert edges == sorted(edges) and edges[-1] == pytest.approx(10.0)
    # Vega unfolds them into an outline per model; each is described by its first point.
    outlines = {(d["model"], d["values"]) for d in drawn(spec)}
    assert outlines == {("target", "3"), ("ssd", "4")}


def test_data_that_a_model_lacks_are_left_out() -> None:
    losses = {"target": {"forget": [1.0, 2.0]}, "ssd": {"forget": [1.0], "retain": [2.0]}}
    spec = breakdowns.loss_distributions(losses, bins=2)
    retain = next(row for row in rows(spec) if row["split"] == "retain set")
    assert retain["share"][0] is None and retain["n"] == [0, 1]
    assert {d["model"] for d in drawn(spec) if d["values"] == "1"} == {"ssd"}


@pytest.mark.parametrize("more", [0, 1, 3])
def test_retrained_losses_are_a_band(more: int, validator: Any) -> None:
    noise = np.random.default_rng(3)
    retrained = [noise.lognormal(1.0, 1.0, 200) for _ in range(1 + more)]
    losses: dict[str, Any] = {"target": {"forget": [0.01]}, "ssd": {"forget": [0.5, 20.0]}}
    losses |= {
        "retrained" if k == 0 else f"retrained {k + 1}": {"forget": list(values)}
        for k, values in enumerate(retrained)
    }
    spec = breakdowns.loss_distributions(losses, bins=6)
    assert spec is not None and validator.is_valid({**spec, "config": theme()})
    assert parameter(spec, "models") == ["target", "ssd", "retrained"]
    (panel,) = rows(spec)
    edges = np.array(parameter(spec, "edges"), dtype=float)
    assert panel["n"] == [1, 2, 200 * len(retrained)]
    own = {name: panel[name][2] for name in ("low", "high", "least", "most")}
    assert all(panel[name][:2] == [[], []] for name in own)
    highest = max(max(shares) for shares in (*panel["share"], own["high"]))
    for k in range(6):
        # What lies outside of the axis is in its first or last bin.
        ends = (-np.inf if k == 0 else edges[k]), (np.inf if k == 5 else edges[k + 1])
        inside = [sum(ends[0] <= v < ends[1] for v in values) / len(values) for values in retrained]
        assert panel["share"][2][k] == pytest.approx(mean_of(inside), abs=0.006)  # edges have four digits
        assert (own["low"][k], own["high"][k]) == pytest.approx((min(inside), max(inside)), abs=0.006)
        if more and min(inside) < max(inside):
            low, high = t_band(inside)
            assert own["least"][k] == pytest.approx(max(0.0, low), abs=0.02)
            assert own["most"][k] == pytest.approx(min(1.05 * highest, high), abs=0.02)
        else:
            assert (own["least"][k], own["most"][k]) == (own["low"][k], own["high"][k])
    assert {d["model"] for d in drawn(spec) if "model" in d} == {"target", "ssd", "retrained"}


def test_without_a_retrained_model_there_is_no_band_of_losses() -> None:
    spec = breakdowns.loss_distributions({"ssd": {"forget": [1.0, 2.0, 300.0]}})
    assert spec is not None
    assert [layer["mark"]["type"] for layer in spec["spec"]["layer"]] == ["area", "line"]


def test_narrow_losses_get_a_linear_axis() -> None:
    # A factor of fifty or less is read on a linear axis; beyond that most of the chart would be empty.
    for most, kind in ((49.0, "linear"), (51.0, "log")):
        edges, found = bin_edges(np.array([1.0] * 200 + [most]), 4)
        assert found == kind and len(edges) == 5 and edges[-1] == pytest.approx(most)


def test_negative_losses_get_a_linear_axis() -> None:
    spec = breakdowns.loss_distributions({"ssd": {"forget": [-1.0, 0.0, 2.0]}}, bins=3)
    edges = parameter(spec, "edges")
    assert np.diff(edges) == pytest.approx([1.0, 1.0, 1.0])
    assert spec is not None and spec["spec"]["layer"][-1]["encoding"]["x"]["scale"]["type"] == "linear"


def test_costs_leave_out_what_a_logarithm_cannot_show(section: ProblemSection) -> None:
    bars = rows(charts.costs(section))
    passes = {r["label"] for r in bars if r["cost"] == "Passes over the data"}
    assert "ssd" not in passes and "salun (rho=0.5)" in passes
    assert all(r["ratio"] > 0 for r in bars)


def test_costs_lie_over_the_band_of_retraining(section: ProblemSection) -> None:
    spec = charts.costs(section) or {}
    outer, inner, bars, _ = spec["layer"]
    assert outer["data"] == inner["data"] and bars["mark"]["type"] == "bar"
    (band,) = inner["data"]["values"]  # retraining makes as many passes with every seed
    spent = found("seconds", "run", "retrain")
    times = [v / mean_of(spent) for v in spent]
    low, high = t_band(times)
    assert band["cost"] == "Wall time" and low > 0
    assert (band["low"], band["high"]) == pytest.approx((min(times), max(times)), rel=5e-4)
    assert (band["least"], band["most"]) == pytest.approx((low, high), rel=5e-4)


def test_the_band_of_costs_stays_on_a_logarithmic_axis(validator: Any) -> None:
    # Seeds that took 1, 1 and 10 seconds: their band reaches far below 0, where no logarithm is.
    def costly(spent: Sequence[float]) -> ProblemSection:
        judged = []
        for model in scores().judged:
            if model.method != "retrain":
                judged.append(model)
            elif model.seed < len(spent):
                cost = {"value": spent[model.seed]}
                changed = [s.model_copy(update=cost) if s.metric == "seconds" else s for s in model.scores]
                judged.append(model.model_copy(update={"scores": changed}))
        return compose(report_input(scores().model_copy(update={"judged": judged}))).problems[0]

    spec = charts.costs(costly([1.0, 1.0, 10.0])) or {}
    (band,) = spec["layer"][0]["data"]["values"]
    assert t_band([0.25, 0.25, 2.5])[0] < 0
    ratios = [r["ratio"] for r in rows(spec) if r["cost"] == "Wall time"]
    shown = (min(0.25, *ratios), max(2.5, *ratios))
    assert 0.8 * shown[0] < band["least"] < shown[0] and shown[1] < band["most"] < 1.25 * shown[1]
    assert validator.is_valid({**spec, "config": theme()})
    for single in ([2.0], [2.0, 2.0]):
        layers = (charts.costs(costly(single)) or {})["layer"]
        assert [layer["mark"]["type"] for layer in layers] == ["bar", "rule"]


def test_layers_are_in_natural_order(specs: dict[str, Spec | None]) -> None:
    spec = specs["layers"] or {}
    assert spec["layer"][0]["encoding"]["x"]["sort"] == ["layer1", "layer2", "layer10"]


def test_nothing_to_draw_gives_no_chart() -> None:
    regression = compose(report_input()).problems[1]
    assert breakdowns.by_class(regression) is None
    assert charts.membership(regression) is None
    assert charts.costs(regression) is None
    assert breakdowns.similarity_by_layer(regression) is None
    assert breakdowns.loss_distributions({}) is None
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
    for one, other in itertools.combinations(ROLES, 2):
        assert np.linalg.norm(seen_with(kind, colors[one]) - seen_with(kind, colors[other])) > 0.15


def test_every_variable_is_defined_in_both_modes() -> None:
    text = css()
    assert all(text.count(f"--{name}:") == 2 for name in VARIABLES)
    assert set(LIGHT) == set(DARK)


def test_methods_never_wear_the_marks_of_target_and_retraining() -> None:
    ranges = theme()["range"]
    worn = list(zip(ranges["category"], ranges["symbol"], strict=True))
    assert len(worn) == len(set(worn)) >= 30
    assert not {LIGHT["target"], LIGHT["retrained"]} & {color for color, _ in worn[2:]}
    assert not set(SHAPES[:2]) & {shape for _, shape in worn[2:]}
