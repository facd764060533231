"""The comparison's page: valid charts of its numbers, and nothing that could break out of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from expunge.record import Interval
from expunge.report.comparison import critical_differences, pareto, rank_intervals, render_comparison
from expunge.studies.comparison import Ballot, Comparison, Without
from expunge.studies.fronts import Front
from expunge.studies.standings import Ranking, Standing

EVIL = "</script><script>alert(1)</script>"


def ranking(*, interval: bool = True, critical: float | None = 1.2) -> Ranking:
    ends = Interval(low=1, high=2, method="bootstrap over seeds") if interval else None
    standings = [
        Standing(
            label=label, reference=label == "retrain", rank=rank, interval=ends, first=0.5 if interval else None,
            share=0.5, ballots=4, kemeny_best=rank, kemeny_worst=rank, strength=-rank, average_rank=float(rank),
        )
        for rank, label in enumerate(["npo", "retrain", EVIL], 1)
    ]  # fmt: skip
    return Ranking(
        level="task", ballots=4, resampled="seeds (3 at most)" if interval else "", standings=standings, kemeny_exact=True,
        kemeny_optima=2, kemeny_disagreements=3, agreement={"borda | kemeny": 0.33, "kemeny | plackett-luce": None},
        wins=[[0, 2, 3], [2, 0, 2], [1, 2, 0]], critical_difference=critical, friedman_p=0.2 if critical else None,
        complete=4 if critical else None, pairs={"npo | retrain": 0.5, f"npo | {EVIL}": None}, notes=["a note"],
    )  # fmt: skip


def comparison() -> Comparison:
    front = Front(
        problem="digits", objectives=["gap of accuracy@forget", "accuracy@test"], units=["share", "share"],
        directions=["lower", "higher"], points={"npo": [0.1, 0.9], EVIL: [0.2, 0.8]}, front=["npo"],
        probability={"npo": 0.97, EVIL: 0.1},
    )  # fmt: skip
    ballot = Ballot(
        problem="digits", metric="accuracy", split="test", unit="share", direction="higher", values={"npo": 0.9}, last=[EVIL]
    )  # fmt: skip
    return Comparison(
        methods=["npo", "retrain", EVIL], excluded={"ascent": "accuracy@test is 0.1"}, ballots=[ballot], task=ranking(),
        fronts=[front], without=[Without(metric="accuracy@test", tau=None, leaders=["npo"], moved={"npo": -0.5})],
    )  # fmt: skip


def test_charts_are_valid_and_hold_the_numbers():
    jsonschema = pytest.importorskip("jsonschema")
    altair = pytest.importorskip("altair")
    schema = json.loads(
        (Path(altair.__file__).parent / "vegalite/v6/schema/vega-lite-schema.json").read_text()
    )
    specs = [rank_intervals(ranking()), critical_differences(ranking()), pareto(comparison().fronts[0])]
    for spec in specs:
        assert spec is not None
        jsonschema.Draft7Validator(schema).validate(spec)
    assert [layer["mark"]["type"] for layer in (specs[2] or {})["layer"]] == [
        "point"
    ]  # nothing was retrained
    forest, critical, front = (spec["data"]["values"] for spec in specs if spec is not None)
    assert [(r["label"], r["rank"], r["low"], r["high"]) for r in forest[:2]] == [
        ("npo", 1, 1, 2),
        ("retrain", 2, 1, 2),
    ]
    assert [r["reach"] for r in critical] == [2.2, 3, 3]  # no rank is beyond the last
    assert [(r["x"], r["y"], r["front"], r["share"]) for r in front] == [
        (0.9, 0.1, True, 0.97),
        (0.8, 0.2, False, 0.1),
    ]


def test_the_front_lies_over_the_box_of_the_retrained_models():
    front = (
        comparison()
        .fronts[0]
        .model_copy(
            update={
                "retrained": [[0.01, 0.95], [0.03, 0.97]],
                "bands": [Interval(low=0.0, high=0.2, method="x"), Interval(low=0.6, high=1.3, method="x")],
            }
        )
    )
    outer, inner, name, points = pareto(front)["layer"]
    (box,) = inner["data"]["values"]
    assert outer["data"] == inner["data"] and name["mark"]["text"] == "retrained"
    assert points["mark"]["type"] == "point"
    assert (box["lowx"], box["highx"], box["lowy"], box["highy"]) == (0.95, 0.97, 0.01, 0.03)
    # No farther than the points and the models themselves, with 8 % of their range as room: 0.8 to 0.97 and 0.01 to 0.2.
    assert (box["leastx"], box["mostx"]) == pytest.approx((0.7864, 0.9836), abs=1e-3)
    assert (box["leasty"], box["mosty"]) == pytest.approx((0.0, 0.2), abs=1e-3)
    page = render_comparison("x", comparison().model_copy(update={"fronts": [front]}))
    assert "The gray box spans the retrained models" in page
    assert "The gray box" not in render_comparison("x", comparison())
    same = front.model_copy(update={"retrained": [[0.01, 0.95], [0.01, 0.95]], "bands": [None, None]})
    outer, *_ = pareto(same)["layer"]  # as wide as the inner box, which is visible where all models agree
    assert {"xOffset", "yOffset"} <= set(outer["mark"])
    single = front.model_copy(update={"retrained": [[0.01, 0.95]], "bands": [None, None]})
    assert len(pareto(single)["layer"]) == 1


def test_there_is_no_chart_of_what_is_not_known():
    assert rank_intervals(ranking(interval=False)) is None
    assert critical_differences(ranking(critical=None)) is None
    page = render_comparison(
        "x", Comparison(methods=[], ballots=[], notes=["nothing to rank: 0 methods on 0 ballots"])
    )
    assert "nothing to rank" in page and '<script type="module">' not in page


def test_nothing_breaks_out_and_every_part_is_there():
    page = render_comparison(EVIL, comparison())
    assert "alert(1)</script>" not in re.sub(
        r"<script type=\"module\">.*?</script>", "", page, flags=re.DOTALL
    )
    for part in ("Ranks by metric", "Critical differences by metric", "Pareto front, digits", "Sensitivity", "2 orders",
                 "undefined: one of them is all tied", "Not ranked: accuracy@test is 0.1", "failed", "A note."):  # fmt: skip
        assert part in page, part
