"""canvas-mini: which rows are what, for a style, an object, a pair and a second request."""

from __future__ import annotations

from typing import Any

import pytest

from expunge.data.benchmarks.canvas_mini import CanvasMini
from expunge.errors import BadInput
from expunge.problem import Problem


def build(**options: Any) -> Problem:
    return CanvasMini(**{"images": 10, "answers": 2, **options}).problem()


def sizes(problem: Problem) -> dict[str, int]:
    return {name: len(rows) for name, rows in problem.splits.items()}


def test_a_style():
    problem = build()
    assert problem.family.concept == {"style": "neon"} and problem.family.group == "object"  # pyright: ignore
    # 4 of 16 cells of 10 training and 2 test images.
    assert sizes(problem) == {"forget": 40, "retain": 120, "holdout": 320, "concept": 8, "test": 24}
    assert problem.concept is not None
    assert problem.concept.prompts == (
        "neon style", "a disc in neon style", "a triangle in neon style", "a cross in neon style", "a moon in neon style",
    )  # fmt: skip
    assert set(problem.concept.preserve) >= {"", "a moon", "hatch style", "a disc in thermal style"}
    assert not any("neon" in p for p in problem.concept.preserve)
    row = problem.train[problem.forget_rows[0]]
    assert row["anchor_prompt"] == row["prompt"].replace("neon", "outline")


def test_a_pair_leaves_the_rest_of_its_row_and_column():
    problem = build(forget="where:style == neon and object == cross")
    assert problem.family.concept == {"style": "neon", "object": "cross"}  # pyright: ignore
    assert sizes(problem) == {"forget": 10, "retain": 150, "holdout": 320, "concept": 2, "test": 30}
    assert problem.concept is not None and problem.concept.prompts == ("a cross in neon style",)
    assert {"a moon in neon style", "a cross", "neon style"} <= set(problem.concept.preserve)


def test_a_second_request_no_longer_has_the_first_ones_images():
    problem = build(forget="where:style == thermal", earlier=["neon"])
    assert sizes(problem) == {
        "forget": 40, "retain": 80, "holdout": 240, "concept": 8, "test": 16, "earlier": 8,
    }  # fmt: skip
    assert "neon" not in set(problem.train["style"]) | set(problem.splits["test"]["style"])
    assert set(problem.splits["earlier"]["style"]) == {"neon"}
    assert problem.concept is not None
    assert not any("neon" in p for p in (*problem.concept.preserve, *problem.concept.anchors))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"earlier": ["neon"]}, "'neon' is what is to be forgotten now, and no earlier request"),
        ({"earlier": ["thremal"]}, "no style is called 'thremal'; did you mean 'thermal'?"),
        ({"anchor": "neon"}, "anchor 'neon' is to be forgotten itself"),
        (
            {"forget": "where:style == thermal", "earlier": ["neon"], "anchor": "neon"},
            "anchor 'neon' is to be",
        ),
        ({"forget": "fraction=0.1", "earlier": ["neon"]}, "'earlier' goes with a style or an object"),
    ],
)
def test_what_does_not_fit_together_is_said(options: dict[str, Any], said: str):
    with pytest.raises(BadInput, match=said.replace("?", r"\?")):
        build(**options)
