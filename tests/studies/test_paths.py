"""Path dependence: two stages of linear regression whose answer is known, and the statistics by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from expunge.errors import BadInput
from expunge.families import Architecture, Regressor, Table
from expunge.families.models import fingerprint
from expunge.methods.base import METHODS
from expunge.methods.gradient_ascent import GradientAscent
from expunge.problem import Problem, Training
from expunge.studies.paths import (
    PathEffect,
    PathSpec,
    _StageTrainer,
    path_dependence,
    path_effect,
    split_into_stages,
)
from expunge.testing import tiny_problem

CONSTANT = 0.5 * math.log(2 * math.pi)
"""Of the Gaussian likelihood of unit variance."""
MODULE = """
import torch

def zero():
    linear = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(linear.weight)
    return linear
"""


def two_rows(folder: Path, correlation: float) -> Problem:
    """A row to forget and one to keep: unit vectors with this inner product, both with the target 1.

    A stage of gradient descent to convergence projects the weights onto {a.theta = 1}.
    """
    (folder / "zero.py").write_text(MODULE)
    rows = Dataset.from_dict(
        {
            "id": ["a", "c"],
            "u": [1.0, correlation],
            "v": [0.0, math.sqrt(1 - correlation**2)],
            "y": [1.0, 1.0],
        }
    )
    return Problem(
        "two rows", Regressor(Table(["u", "v"]), ["y"]), rows, ("a",),
        architecture=Architecture(kind="module", name=f"{folder / 'zero.py'}:zero"),
        recipe=Training(epochs=150, lr=0.1, momentum=0.0, weight_decay=0.0),
    )  # fmt: skip


def by_key(effects: list[PathEffect]) -> dict[tuple[str, str], PathEffect]:
    return {(e.model, e.split): e for e in effects if e.quantity == "loss"}


def test_the_toy_in_closed_form(tmp_path: Path) -> None:
    """With correlation 1/2: residual 1/4 on the forgotten row if it was learned first, 0 if last; ascent with
    step eta multiplies it by (1 + eta) per step, and 0 stays 0. Both retrained models have the residual -1/2."""
    problem = two_rows(tmp_path, 0.5)
    eta, steps = 0.3, 6
    ascent = GradientAscent(epochs=steps, lr=eta, momentum=0.0, weight_decay=0.0)
    found = by_key(path_dependence(problem, {"ascent": ascent}, PathSpec(parts=1, seeds=[0])))
    first, last = "forget > part-1", "part-1 > forget"

    def loss(residual: float) -> float:
        return CONSTANT + residual**2 / 2

    target, after = found["target", "forget"].by_path, found["ascent", "forget"].by_path
    assert target[first] == pytest.approx([loss(0.25)], abs=1e-5)
    assert target[last] == pytest.approx([loss(0.0)], abs=1e-5)
    assert found["target", "part-1"].by_path[last] == pytest.approx([loss(0.25)], abs=1e-5)
    assert after[first] == pytest.approx([loss(0.25 * (1 + eta) ** steps)], abs=1e-4)
    assert after[last] == pytest.approx([loss(0.0)], abs=1e-5)
    assert found["retrained", "forget"].by_path == {"part-1": pytest.approx([loss(-0.5)], abs=1e-5)}
    assert found["ascent", "forget"].delta == pytest.approx(((0.25 * (1 + eta) ** steps) ** 2) / 2, abs=1e-4)
    # 1/4 * 1.3^3 = 0.549 is the first residual beyond 1/2; from the other order none ever is.
    matched = found["ascent (matched)", "forget"]
    assert matched.by_path[first] == pytest.approx([loss(0.25 * (1 + eta) ** 3)], abs=1e-4)
    assert matched.unmatched == 1
    assert matched.seed_sd is None and matched.p_value is None  # one seed says nothing about noise


def test_orthogonal_stages_have_no_path_effect(tmp_path: Path) -> None:
    ascent = GradientAscent(epochs=3, lr=0.3, momentum=0.0, weight_decay=0.0)
    effects = path_dependence(two_rows(tmp_path, 0.0), {"ascent": ascent}, PathSpec(parts=1, seeds=[0]))
    assert all(e.delta == pytest.approx(0.0, abs=1e-5) for e in effects)


def test_statistics_by_hand() -> None:
    effect = path_effect("m", "loss", "forget", {"a > b": [1.0, 2.0], "b > a": [3.0, 6.0]})
    assert (effect.lowest, effect.highest, effect.delta) == (1.5, 4.5, 3.0)
    # Within paths: variances 1/2 and 9/2. Without the seeds' means 2 and 4: -1, -2 and 1, 2.
    assert effect.seed_sd == pytest.approx(math.sqrt(2.5))
    assert effect.path_share == pytest.approx((2 * (1.5**2 + 1.5**2)) / (1 + 4 + 1 + 4))
    # Of the four ways to swap paths within seeds, the observed one and its mirror image are the largest.
    assert effect.p_value == pytest.approx(0.5, abs=0.06)


def test_permutations_find_an_effect_and_nothing_in_noise() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 5))
    shift = np.asarray([0.0, 0.0, 3.0, 6.0])[:, None]
    seeds = 10 * rng.normal(size=(1, 5))  # differences between seeds must not drown those between paths

    def p_value(values: np.ndarray) -> float:
        found = path_effect(
            "m", "loss", "forget", {str(i): list(row) for i, row in enumerate(values)}
        ).p_value
        assert found is not None
        return found

    assert p_value(noise + shift + seeds) == pytest.approx(0.001)
    null = [p_value(rng.normal(size=(4, 5)) + seeds) for _ in range(40)]
    assert np.mean(np.asarray(null) <= 0.1) < 0.25 and 0.3 < np.mean(null) < 0.7


def test_a_diverged_model_leaves_the_effect_undefined() -> None:
    effect = path_effect("m", "loss", "forget", {"a": [1.0, math.nan], "b": [1.0, 2.0]})
    assert effect.by_path == {"a": [1.0, None], "b": [1.0, 2.0]}
    assert effect.delta is effect.p_value is effect.path_share is None


def test_stages_are_a_partition_and_training_follows_the_order() -> None:
    problem = tiny_problem("classifier")
    stages = split_into_stages(problem, 3)
    assert [len(rows) for rows in stages.values()] == [16, 27, 27, 26]
    assert sorted(np.concatenate(list(stages.values())).tolist()) == list(range(96))
    trainer = _StageTrainer(problem, stages, "cpu")
    one, again = (_StageTrainer(problem, stages, "cpu").train(("part-1", "part-2"), 0) for _ in range(2))
    other = trainer.train(("part-2", "part-1"), 0)
    assert fingerprint(one) == fingerprint(again) != fingerprint(other)

    # A stage that was never learned leaves no trace: other labels in it change nothing.
    labels = np.asarray(problem.train["label"])
    labels[stages["part-3"]] = 0
    changed = problem.train.remove_columns("label").add_column("label", labels)  # pyright: ignore
    altered = _StageTrainer(replace(problem, train=changed), stages, "cpu").train(("part-1", "part-2"), 0)
    assert fingerprint(altered) == fingerprint(one)


def test_refusals() -> None:
    problem = tiny_problem("classifier")
    with pytest.raises(BadInput, match="path-dependence: b: it fits regressor, not classifier"):
        path_dependence(problem, {"b": METHODS["blindspot"]()})
    with pytest.raises(BadInput, match="cannot be trained in another order"):
        path_dependence(replace(problem, recipe=None), {"ascent": GradientAscent()})
