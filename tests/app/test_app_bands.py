"""The bands of retrained models in the app's answers, worked out from the records and by the definition."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from scipy.stats import t as student
from sklearn.metrics import roc_curve

from expunge.app.attack import RATES, true_positive_rates
from expunge.app.runs import Runs
from expunge.app.views import Bands

SEEDS = (0, 1)
MODEL = {"problem": "digits", "model": "gradient-ascent@0", "statistic": "loss"}


def _get(client: TestClient, path: str, **params: Any) -> Any:
    answer = client.get(f"/api/runs/small{path}", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def retrained(runs: Path) -> list[dict[tuple[str, str], dict[str, Any]]]:
    """By seed, the scores of the retrained models of digits by metric and split."""
    judged = json.loads((runs / "small" / "scores.json").read_text())["judged"]
    mine = [
        j
        for seed in SEEDS
        for j in judged
        if (j["problem"], j["label"], j["seed"]) == ("digits", "retrain", seed)
    ]
    return [{(s["metric"], s["split"]): s for s in j["scores"]} for j in mine]


def t_band(values: Sequence[float], low: float = -math.inf, high: float = math.inf) -> tuple[float, float]:
    """The 95 % prediction interval of one more normal value, by the definition."""
    half = (
        float(student.ppf(0.975, len(values) - 1)) * np.std(values, ddof=1) * math.sqrt(1 + 1 / len(values))
    )
    return max(low, np.mean(values) - half), min(high, np.mean(values) + half)


def check(band: dict[str, Any], i: int, values: Sequence[float]) -> None:
    """One position of a band of shares."""
    assert (band["low"][i], band["high"][i]) == pytest.approx((min(values), max(values)), abs=1e-12)
    assert band["mean"][i] == pytest.approx(np.mean(values), abs=1e-12)
    expected = t_band(values, 0.0, 1.0) if min(values) < max(values) else (values[0], values[0])
    assert (band["least"][i], band["most"][i]) == pytest.approx(expected, abs=1e-9)


def test_ends_of_few_models() -> None:
    made = Bands(**Bands.ends([[0.2, 0.4, 0.5], [0.3], [], [0.6, math.nan, 0.6]], 0.0, 1.0)).model_dump()
    assert made["models"] == 3
    check(made, 0, [0.2, 0.4, 0.5])
    for i, value in ((1, 0.3), (3, 0.6)):  # one model, and models that agree, have no wider band
        assert [made[k][i] for k in ("mean", "low", "high", "least", "most")] == pytest.approx([value] * 5)
    assert [made[k][2] for k in ("mean", "low", "high", "least", "most")] == [None] * 5
    free = Bands(**Bands.ends([[1.0, 5.0]]))
    assert (free.least[0], free.most[0]) == pytest.approx(t_band([1.0, 5.0]))
    assert free.least[0] is not None and free.least[0] < 0
    assert Bands(**Bands.ends([])).models == 0


def test_columns_have_both_parts_of_the_band(client: TestClient, retrained: list[dict[Any, Any]]) -> None:
    problem = next(p for p in _get(client, "")["problems"] if p["name"] == "digits")
    columns = {(c["metric"], c["split"]): c["retrained"] for c in problem["columns"]}
    for split in ("forget", "test"):
        values = [r["accuracy", split]["value"] for r in retrained]
        check({k: [v] for k, v in {**columns["accuracy", split], "mean": np.mean(values)}.items()}, 0, values)
    assert columns["seconds", "run"] is None  # a method is not meant to cost what retraining costs


def test_attack_curves_lie_over_the_band(client: TestClient, retrained: list[dict[Any, Any]]) -> None:
    problem = next(p for p in _get(client, "")["problems"] if p["name"] == "digits")
    by_model = {(c["label"], c["seed"], c["metric"]): c for c in problem["curves"]}
    theirs = [r["pruning-knowledge", "forget"]["curve"] for r in retrained]
    band = by_model["gradient-ascent", 0, "pruning-knowledge"]["retrained"]
    assert band["models"] == 2 and set(band["at"]) == {x for c in theirs for x in c["at"]}
    for i, at in enumerate(band["at"]):
        values = [
            v for c in theirs for x, v in zip(c["at"], c["values"], strict=True) if x == at and v is not None
        ]
        if values:
            check(band, i, values)
        else:
            assert band["low"][i] is None
    # A retrained model is held against the others: here a single one, whose band is its line.
    other = by_model["retrain", 0, "pruning-knowledge"]["retrained"]
    assert other["models"] == 1 and other["mean"] == other["least"] == other["most"] == theirs[1]["values"]


def test_groups_and_layers_have_a_band(client: TestClient, retrained: list[dict[Any, Any]]) -> None:
    found = _get(client, "/contrast", problem="digits", a="gradient-ascent@0", b="retrain@0", split="test")
    bars = found["bars"][0]
    assert bars["metric"] == "accuracy" and len(found["bars"]) > 1  # what the report shows first
    for i, group in enumerate(bars["groups"]):
        check(bars["retrained"], i, [r["accuracy", "test"]["groups"][group] for r in retrained])
    bands = {b["name"]: b for b in found["layer_bands"]}
    assert set(bands) == {"retrained to target", "retrained to retrained"}
    for name, metric in (
        ("retrained to target", "cka-to-target"),
        ("retrained to retrained", "cka-to-retrained"),
    ):
        for i, layer in enumerate(bands[name]["layers"]):
            check(bands[name], i, [r[metric, "test"]["groups"][layer] for r in retrained])


def test_distributions_lie_over_the_band(client: TestClient, runs: Path) -> None:
    found = _get(client, "/separation", **MODEL)
    rows = json.loads((runs / "small" / "jobs.json").read_text())["rows"]
    losses = []
    for seed in SEEDS:
        row = next(r for r in rows if (r["problem"], r["label"], r["seed"]) == ("digits", "retrain", seed))
        table = pq.read_table(runs / "store" / "jobs" / row["observe"] / "forget.parquet", columns=["loss"])
        losses.append(np.asarray(table["loss"], dtype=float))
    edges = np.array(found["edges"])
    assert found["log"] and len(edges) == 49 and np.ptp(np.diff(np.log(edges))) < 1e-9
    everything = np.concatenate([s["values"] for s in found["samples"]])
    assert edges[-1] == pytest.approx(everything.max())
    assert np.mean(everything < edges[0]) == pytest.approx(0.01, abs=2e-3)
    for i in range(48):
        inside = (edges[i] if i else -np.inf), (edges[i + 1] if i < 47 else np.inf)
        check(found["density"], i, [float(np.mean((inside[0] <= v) & (v < inside[1]))) for v in losses])


def test_roc_curves_lie_over_the_band(client: TestClient) -> None:
    found = _get(client, "/separation", **MODEL)
    expected: dict[str, list[list[float]]] = {}
    for seed in SEEDS:
        theirs = _get(client, "/separation", **{**MODEL, "model": f"retrain@{seed}"})
        for attacker in theirs["attackers"]:
            assert attacker["retrained"]["models"] == 1  # the other one
            asked, matched = (np.array(attacker[k]["values"]) for k in ("asked", "matched"))
            sign = -1 if attacker["members_below"] else 1
            fpr, tpr, _ = roc_curve(
                np.repeat([1, 0], [len(asked), len(matched)]),
                sign * np.concatenate([asked, matched]),
                drop_intermediate=False,
            )
            best = [float(tpr[fpr <= rate + 1e-9].max()) for rate in RATES]
            expected.setdefault(attacker["kind"], []).append(best)
    assert set(expected) == {"logistic", "svm"}
    for attacker in found["attackers"]:
        assert attacker["retrained"]["at"] == RATES.tolist() and RATES[0] == 0 and RATES[-1] == 1
        for i, values in enumerate(zip(*expected[attacker["kind"]], strict=True)):
            check(attacker["retrained"], i, values)


def test_true_positive_rates_with_ties() -> None:
    members, nonmembers = np.array([3.0, 2.0, 2.0, 0.0]), np.array([2.0, 2.0, 1.0, 1.0, -1.0])
    rates = np.array([0.0, 0.2, 0.39, 0.4, 0.6, 0.8, 1.0])
    thresholds = np.concatenate([[-np.inf], members, nonmembers])
    slow = [
        max(float(np.mean(members > t)) for t in thresholds if np.mean(nonmembers > t) <= rate + 1e-9)
        for rate in rates
    ]
    assert true_positive_rates(members, nonmembers, rates) == pytest.approx(slow)
    assert slow == [0.25, 0.25, 0.25, 0.75, 0.75, 1.0, 1.0]


def test_without_retrained_models_nothing_is_drawn(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runs, "retrained", lambda *_: [])
    found = _get(client, "/separation", **MODEL)
    assert found["density"]["models"] == 0 and found["density"]["low"] == []
    assert all(a["retrained"]["models"] == 0 and a["retrained"]["at"] == [] for a in found["attackers"])
    assert found["attackers"] and found["edges"]
