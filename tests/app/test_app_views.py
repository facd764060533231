"""What the app answers, compared with the records themselves."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from sklearn.metrics import roc_auc_score

from expunge.app import create_app
from expunge.app.compare import embedding
from expunge.app.examples import Evidence, example_page, prediction_matrix
from expunge.app.screen import t_quantile
from expunge.errors import BadInput, Missing
from expunge.record import ScoreFile
from expunge.stats.intervals import t_interval

PAIR = {"problem": "digits", "a": "gradient-ascent@0", "b": "retrain@0"}


def _get(client: TestClient, path: str, **params: Any) -> Any:
    answer = client.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _judged(scores: dict[str, Any], problem: str, label: str, seed: int) -> dict[str, Any]:
    return next(
        j for j in scores["judged"] if (j["problem"], j["label"], j["seed"]) == (problem, label, seed)
    )


@pytest.fixture(scope="session")
def scores(runs: Path) -> dict[str, Any]:
    return json.loads((runs / "small" / "scores.json").read_text())


def _evidence(runs: Path, label: str, split: str, problem: str = "digits", seed: int = 0) -> pa.Table:
    index = json.loads((runs / "small" / "jobs.json").read_text())
    row = next(r for r in index["rows"] if (r["problem"], r["label"], r["seed"]) == (problem, label, seed))
    return pq.read_table(runs / "store" / "jobs" / row["observe"] / f"{split}.parquet")


def test_screen_says_what_the_scores_say(client: TestClient, scores: dict[str, Any]) -> None:
    screen = _get(client, "/api/screen")
    place = next(
        i for i, c in enumerate(screen["columns"]) if (c["metric"], c["split"]) == ("accuracy", "test")
    )
    row = next(r for r in screen["rows"] if (r["problem"], r["label"]) == ("digits", "gradient-ascent"))
    values = [
        s["value"]
        for seed in (0, 1)
        for s in _judged(scores, "digits", "gradient-ascent", seed)["scores"]
        if (s["metric"], s["split"]) == ("accuracy", "test")
    ]
    cell = row["cells"][place]
    assert cell["value"] == pytest.approx(np.mean(values), rel=1e-12)
    interval = t_interval(values)
    assert interval is not None
    assert cell["low"] == pytest.approx(max(0, interval.low)) and cell["high"] == pytest.approx(
        min(1, interval.high)
    )
    gaps = [
        s["reference"]["gap"]
        for seed in (0, 1)
        for s in _judged(scores, "digits", "gradient-ascent", seed)["scores"]
        if (s["metric"], s["split"]) == ("accuracy", "test")
    ]
    assert cell["gap"] == pytest.approx(np.mean(gaps))
    assert t_quantile(1) == pytest.approx(12.7062, abs=1e-3)  # Student's table, one degree of freedom


def test_a_column_of_another_family_is_not_measured_rather_than_zero(client: TestClient) -> None:
    screen = _get(client, "/api/screen")
    place = next(i for i, c in enumerate(screen["columns"]) if (c["metric"], c["split"]) == ("mae", "test"))
    row = next(r for r in screen["rows"] if (r["problem"], r["label"]) == ("digits", "npo (epochs=2)"))
    assert row["cells"][place] is None


def test_undefined_carries_its_reason(client: TestClient, scores: dict[str, Any]) -> None:
    view = _get(client, "/api/runs/small")
    told = [
        cell
        for problem in view["problems"] for row in problem["rows"] for cell in row["cells"]
        if cell is not None and cell["value"] is None and cell["status"] != "not measured"
    ]  # fmt: skip
    assert told and all(cell["reason"] for cell in told)
    unread = [s for j in scores["judged"] for s in j["scores"] if s["status"] != "ok" and s["attack"]]
    shown = [s for p in view["problems"] for s in p["attacks"] if s["status"] != "ok"]
    assert len(shown) == len(unread) and all(s["reason"] and s["value"] is None for s in shown)


def test_broken_scores_are_told_and_harm_no_others(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    (folder / "broken").mkdir(parents=True)
    (folder / "broken" / "scores.json").write_text('{"schema_version": 3}')
    (folder / "small").mkdir()
    (folder / "small" / "scores.json").write_text((runs / "small" / "scores.json").read_text())
    screen = TestClient(create_app(folder, hosts=["testserver"])).get("/api/screen").json()
    assert {r["run"] for r in screen["rows"]} == {"small"}
    assert "cannot be read" in screen["unread"]["broken"]


def test_a_record_without_evidence_says_so(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    (folder / "audit").mkdir(parents=True)
    (folder / "audit" / "scores.json").write_text((runs / "small" / "scores.json").read_text())
    client = TestClient(create_app(folder, hosts=["testserver"]))
    assert "evidence per example" in client.get("/api/runs/audit").json()["evidence"]
    found = client.get("/api/runs/audit/contrast", params={**PAIR, "split": "test"}).json()
    assert found["bars"] and "evidence per example" in found["missing"]["examples"]
    assert (
        client.get(
            "/api/runs/audit/separation", params={"problem": "digits", "model": "npo (epochs=2)@0"}
        ).status_code
        == 404
    )


def test_examples_sort_filter_and_page(client: TestClient, runs: Path) -> None:
    a, b = (_evidence(runs, label, "test") for label in ("gradient-ascent", "retrain"))
    difference = np.asarray(b["loss"]) - np.asarray(a["loss"])
    wanted = [str(i) for i in np.asarray(a["id"].to_pylist())[np.argsort(-difference, kind="stable")]]
    page = _get(
        client,
        "/api/runs/small/examples",
        **PAIR,
        split="test",
        sort="d:loss",
        descending=True,
        offset=5,
        limit=7,
    )
    assert page["ids"] == wanted[5:12] and page["total"] == page["matching"] == 400
    shown = [y - x for x, y in zip(page["a"]["loss"], page["b"]["loss"], strict=True)]
    assert shown == pytest.approx(sorted(shown, reverse=True))
    worse = _get(client, "/api/runs/small/examples", **PAIR, split="test", only="worse", limit=1000)
    right_a, right_b = (np.asarray(t["correct"]).astype(bool) for t in (a, b))
    assert worse["matching"] == int((right_a & ~right_b).sum())
    group = _get(client, "/api/runs/small/examples", **PAIR, split="test", search="digit-00", limit=1000)
    assert group["ids"] and all("digit-00" in i for i in group["ids"])


def test_examples_refuse_what_cannot_be(client: TestClient) -> None:
    for params in ({"sort": "a:nothing"}, {"sort": "x:loss"}, {"only": "sideways"}):
        answer = client.get("/api/runs/small/examples", params={**PAIR, "split": "test", **params})
        assert answer.status_code == 400 and answer.json()["error"]
    assert client.get("/api/runs/small/examples", params={**PAIR, "split": "nowhere"}).status_code == 404
    assert (
        client.get("/api/runs/small/examples", params={**PAIR, "split": "test", "limit": 5000}).status_code
        == 422
    )


def test_values_that_are_not_finite_are_none_and_last(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": ["a", "b", "c", "d"],
            "loss": [2.0, math.nan, 1.0, math.inf],
            "correct": pa.array([1, 0, 1, 0], pa.int8()),
        }
    )
    pq.write_table(table, tmp_path / "e.parquet")
    found = Evidence(tmp_path / "e.parquet")
    for descending, ids in ((False, ["c", "a"]), (True, ["a", "c"])):
        page = example_page(found, None, sort="a:loss", descending=descending)
        assert page.ids[:2] == ids and page.a["loss"][2:] == [None, None]
    assert page.undefined == {"loss": 2}
    with pytest.raises(BadInput, match="two models"):
        example_page(found, None, only="changed")


def test_prediction_matrix_counts_by_hand(tmp_path: Path) -> None:
    logp = np.log([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    table = pa.table(
        {
            "id": list("abcd"), "group": ["cat", "cat", "dog", "dog"],
            "logp": pa.FixedSizeListArray.from_arrays(pa.array(logp.ravel()), 2),
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "e.parquet")
    made = prediction_matrix(Evidence(tmp_path / "e.parquet"), ["cat", "dog"])
    assert made.counts == [[1, 1], [1, 1]]
    assert made.confidence is not None
    assert np.asarray(made.confidence, dtype=float) == pytest.approx(np.asarray([[0.7, 0.8], [0.6, 0.9]]))
    with pytest.raises(Missing, match="true classes"):
        prediction_matrix(Evidence(tmp_path / "e.parquet"), ["horse", "dog"])


def test_rows_whose_outputs_are_not_finite_are_in_no_cell(tmp_path: Path) -> None:
    logp = np.log([[0.7, 0.3], [np.nan, np.nan], [0.6, 0.4]])
    table = pa.table(
        {
            "id": list("abc"), "target": [0, 0, 1], "correct": [1.0, np.nan, 0.0],
            "logp": pa.FixedSizeListArray.from_arrays(pa.array(logp.ravel()), 2),
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "e.parquet")
    found = Evidence(tmp_path / "e.parquet")
    made = prediction_matrix(found, ["cat", "dog"])
    assert made.counts == [[1, 0], [1, 0]]
    assert made.confidence == [[pytest.approx(0.7), None], [pytest.approx(0.6), None]]
    pq.write_table(table.set_column(2, "correct", pa.array([0.0, 1, 1])), tmp_path / "other.parquet")
    other = Evidence(tmp_path / "other.parquet")  # b is neither right nor wrong in the first
    assert example_page(found, other, only="worse").ids == ["a"]
    assert example_page(found, other, only="better").ids == ["c"]


def test_contrast_matches_accuracy(client: TestClient, scores: dict[str, Any]) -> None:
    found = _get(client, "/api/runs/small/contrast", **PAIR, split="test")
    for matrix, label in zip(found["matrices"], ("gradient-ascent", "retrain"), strict=True):
        counts = np.asarray(matrix["counts"])
        score = next(
            s
            for s in _judged(scores, "digits", label, 0)["scores"]
            if (s["metric"], s["split"]) == ("accuracy", "test")
        )
        assert np.trace(counts) / counts.sum() == pytest.approx(score["value"], abs=1e-12)
        bars = next(x for x in found["bars"] if x["metric"] == "accuracy")
        side = bars["a" if label == "gradient-ascent" else "b"]
        assert dict(zip(bars["groups"], side, strict=True)) == pytest.approx(score["groups"])


def test_a_model_against_itself_is_the_same(client: TestClient) -> None:
    same = {**PAIR, "b": PAIR["a"]}
    found = _get(client, "/api/runs/small/contrast", **same, split="test")
    direct = next(line for line in found["layers"] if line["name"] == f"{PAIR['a']} to {PAIR['a']}")
    assert direct["values"] == pytest.approx([1.0] * len(direct["values"]), abs=1e-6)
    assert all(bar["a"] == bar["b"] for bar in found["bars"])
    drawn = _get(client, "/api/runs/small/embedding", **same, split="test", layer="hidden")
    assert all(p["a"] == pytest.approx(p["b"], abs=2e-3) for p in drawn["points"])


def test_embedding_undoes_a_rotation(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 6)) * [5, 3, 1, 0.5, 0.2, 0.1]
    turn, _ = np.linalg.qr(generator.normal(size=(6, 6)))
    pair = []
    for name, values in (("a", features), ("b", features @ turn + 7)):
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 6)
        pq.write_table(
            pa.table({"id": [str(i) for i in range(60)], "features:x": column}), tmp_path / f"{name}.parquet"
        )
        pair.append(Evidence(tmp_path / f"{name}.parquet"))
    aligned = embedding((pair[0], pair[1]), "x")
    assert (
        np.abs(np.asarray([p.a for p in aligned.points]) - np.asarray([p.b for p in aligned.points])).max()
        < 1e-3
    )
    apart = embedding((pair[0], pair[1]), "x", aligned=False)
    assert np.abs(np.asarray([p.a for p in apart.points]) - np.asarray([p.b for p in apart.points])).max() > 1
    assert aligned.similarity == pytest.approx(1.0)
    assert aligned.explained is not None
    # Both clouds are the same one, so the axes carry what they carry in one model alone.
    spectrum = np.square(np.linalg.svd(features - features.mean(0), compute_uv=False))
    assert aligned.explained == pytest.approx((spectrum / spectrum.sum())[:2], rel=1e-6)


def test_residuals_are_those_of_the_evidence(client: TestClient, runs: Path) -> None:
    pair = {"problem": "diabetes", "a": "gradient-ascent@0", "b": "retrain@0"}
    found = _get(client, "/api/runs/small/contrast", **pair, split="test")
    table = _evidence(runs, "gradient-ascent", "test", "diabetes")
    assert found["residuals"][0]["predicted"] == pytest.approx(table["predicted"].to_pylist())
    assert found["matrices"] is None


def test_attack_numbers_are_those_of_the_record(client: TestClient, scores: dict[str, Any]) -> None:
    found = _get(
        client, "/api/runs/small/separation", problem="digits", model="gradient-ascent@0", statistic="loss"
    )
    record = _judged(scores, "digits", "gradient-ascent", 0)["scores"]
    for attacker in found["attackers"]:
        asked, matched = (np.asarray(attacker[k]["values"]) for k in ("asked", "matched"))
        sign = -1 if attacker["members_below"] else 1
        auc = roc_auc_score(
            np.repeat([1, 0], [len(asked), len(matched)]), sign * np.concatenate([asked, matched])
        )
        kind = attacker["kind"]
        recorded = {s["metric"]: s["value"] for s in record if s["split"] == "forget"}
        assert auc == pytest.approx(recorded[f"mia-loss-{kind}"], abs=1e-12)
        called = asked < attacker["threshold"] if attacker["members_below"] else asked > attacker["threshold"]
        assert 1 - called.mean() == pytest.approx(recorded[f"mia-efficacy-loss-{kind}"], abs=1e-12)
    worst = _get(client, "/api/runs/small/worst-case", problem="digits", model="gradient-ascent@0")
    assert worst["comparison"]["advantage"] >= max(
        c["advantage"] for c in found["comparisons"] if not c["null"]
    )
    assert any(c["null"] for c in found["comparisons"])


def test_transcripts_stay_here_until_revealed(client: TestClient) -> None:
    params = {"problem": "digits", "model": "gradient-ascent@0", "attack": "population-mia"}
    hidden = client.get("/api/runs/small/transcripts", params=params)
    assert "secret" not in hidden.text and hidden.json()["total"] == 4
    shown = _get(client, "/api/runs/small/transcripts", **params, reveal=True, offset=1, limit=2)
    assert [r["id"] for r in shown["rows"]] == ["digit-1", "digit-2"]
    assert shown["rows"][0]["said"] == {"asked": "secret question 1", "answered": "secret answer"}
    assert shown["rows"][0]["numbers"] == {"score": 0.25}
    view = _get(client, "/api/runs/small")
    assert view["problems"][0]["transcripts"] == {"gradient-ascent@0": ["population-mia"]}


def test_forget_set_is_redacted_until_revealed(client: TestClient, runs: Path) -> None:
    hidden = _get(client, "/api/runs/small/forget-set", problem="digits", limit=3)
    assert all(r["content"] is None and r["image"] is None for r in hidden["rows"])
    assert all(n["image"] is None for r in hidden["rows"] for n in r["neighbors"])
    shown = _get(client, "/api/runs/small/forget-set", problem="digits", limit=3, reveal=True)
    assert all(r["image"].startswith("data:image/png;base64,") for r in shown["rows"])
    losses = [np.asarray(_evidence(runs, "retrain", "forget", seed=s)["loss"]) for s in (0, 1)]
    assert [r["difficulty"] for r in shown["rows"]] == pytest.approx(np.mean(losses, axis=0)[:3])
    hardest = _get(client, "/api/runs/small/forget-set", problem="digits", limit=3, sort="difficulty")
    assert [r["difficulty"] for r in hardest["rows"]] == pytest.approx(
        np.sort(np.mean(losses, axis=0))[::-1][:3]
    )


def test_contents_of_a_problem_made_by_code_are_not_built(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    (folder / "small").mkdir(parents=True)
    for name in ("scores.json", "jobs.json"):
        (folder / "small" / name).write_text((runs / "small" / name).read_text())
    (folder / "small" / "run.yaml").write_text(
        "base: /\neffective:\n  problems:\n  - {name: digits, model: {factory: 'os:system'}, data: x}\n"
    )
    found = TestClient(create_app(folder, hosts=["testserver"])).get(
        "/api/runs/small/forget-set", params={"problem": "digits"}
    )
    assert "made by code" in found.json()["missing"]["contents"]


def test_export_is_the_whole_split(client: TestClient, runs: Path) -> None:
    text = client.get("/api/runs/small/examples.csv", params={**PAIR, "split": "test"}).text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 400
    assert float(rows[3]["loss · retrain@0"]) == pytest.approx(
        _evidence(runs, "retrain", "test")["loss"][3].as_py(), rel=1e-6
    )
    content = client.get("/api/runs/small/examples.parquet", params={**PAIR, "split": "test"}).content
    assert pq.read_table(io.BytesIO(content)).num_rows == 400


def test_ranking_is_that_of_compare(client: TestClient, runs: Path) -> None:
    from expunge.studies.comparison import compare_scores

    scores = ScoreFile.read(runs / "small" / "scores.json")
    mine = scores.model_copy(
        update={
            "problems": [p for p in scores.problems if p["name"] == "digits"],
            "judged": [j for j in scores.judged if j.problem == "digits"],
        }
    )
    task = compare_scores(mine, resamples=100).task
    assert task is not None
    found = _get(client, "/api/runs/small/ranking", problem="digits")
    assert [(s["label"], s["rank"], s["share"]) for s in found["standings"]] == [
        (s.label, s.rank, s.share) for s in task.standings
    ]
    assert all(s["interval"]["low"] <= s["rank"] <= s["interval"]["high"] for s in found["standings"])
    assert client.get("/api/runs/small/ranking", params={"problem": "none"}).status_code == 404


def test_charts_are_the_reports(client: TestClient) -> None:
    drawn = _get(client, "/api/runs/small/charts")["problems"]["digits"]
    assert {"utility", "membership", "losses", "costs"} <= set(drawn)
    assert drawn["losses"]["$schema"].endswith("vega-lite/v6.json")


def test_records_are_the_files(client: TestClient, runs: Path) -> None:
    assert client.get("/runs/small/scores.json").content == (runs / "small" / "scores.json").read_bytes()
    ScoreFile.model_validate(client.get("/runs/small/scores.json").json())


def test_catalog_has_a_form_for_everything(client: TestClient) -> None:
    found = _get(client, "/api/catalog")
    npo = next(m for m in found["methods"] if m["name"] == "npo")
    assert (
        npo["form"]["properties"]["beta"]["exclusiveMinimum"] == 0
        and npo["form"]["properties"]["beta"]["source"]
    )
    assert {"demo", "demo-text"} <= set(found["embedded"])
    assert all(
        c["summary"] and c["form"]["type"] == "object"
        for k in ("methods", "attacks", "benchmarks")
        for c in found[k]
    )
