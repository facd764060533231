"""A probe finds what an edited head hides and a last block turns away; in models that never saw it there is nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from expunge.attacks import Scene
from expunge.attacks.knowledge import knowledge
from expunge.attacks.linear_probe import STRENGTHS, LinearProbe, _success
from expunge.attacks.states import BEFORE_HEAD, States, answers, hidden_states
from expunge.problem import Problem
from expunge.testing.problems import tiny_problem

from .conftest import value


def test_features_under_an_edited_head_are_found(
    wide: Problem, clean: list[Scene], new_head: nn.Module
) -> None:
    assert (
        knowledge(wide, new_head, "forget").mean() < 0.1 and knowledge(wide, new_head, "retain").mean() > 0.9
    )
    found = LinearProbe().attack(Scene(wide, new_head))
    assert value(found, "linear-probe-accuracy") > 0.8
    assert value(found, "linear-probe-selectivity") > 0.25
    assert value(found, "linear-probe-p-value") == pytest.approx(1 / 21)
    one, two = (LinearProbe().attack(scene) for scene in clean)
    for theirs in (one, two):
        assert value(theirs, "linear-probe-accuracy") < 0.7
        assert value(theirs, "linear-probe-selectivity") < 0.15
    assert abs(value(one, "linear-probe-accuracy") - value(two, "linear-probe-accuracy")) < 0.15


def test_an_edited_head_changes_nothing_for_the_probe(wide: Problem, new_head: nn.Module) -> None:
    assert LinearProbe().attack(Scene(wide, new_head)) == LinearProbe().attack(Scene(wide, wide.target))


def test_a_silenced_language_model_is_found(
    facts: Problem, silenced: nn.Module, never_told: list[Scene]
) -> None:
    """Three places of each person: the probe reads those of people it was not trained on."""
    found = LinearProbe().attack(Scene(facts, silenced))
    assert value(found, "linear-probe-accuracy") > 0.8
    curve = found[0].curve
    assert curve is not None and max(curve.values[:3]) > 0.8 > 0.5 > curve.values[-1]  # type: ignore
    for scene in never_told:
        theirs = LinearProbe().attack(scene)
        assert value(theirs, "linear-probe-accuracy") < 0.45
        assert abs(value(theirs, "linear-probe-selectivity")) < 0.15


def test_regressors_are_probed_by_their_error() -> None:
    problem = tiny_problem("regressor")
    found = LinearProbe().attack(Scene(problem, problem.target))
    assert 0.7 < value(found, "linear-probe-accuracy") < 1
    assert value(found, "linear-probe-selectivity") > 0.1


def test_only_what_the_prompt_does_not_say_is_read() -> None:
    """Names stand in the question; of the answer "Ada Bo is from Rome." they are left out."""
    problem = tiny_problem("causal_lm")
    rows = problem.batches("forget")
    batch = rows.take(torch.arange(len(rows)))
    read = LinearProbe()._read(problem.family, batch)
    words = problem.family.tokenizer.convert_ids_to_tokens(batch.targets[read].tolist())  # pyright: ignore
    assert set(words) <= {"Rome", "Oslo", "Lima", "Bern", "in", "born", "was", ".", "<eos>", "is", "from"}
    assert "Rome" in words and "<eos>" not in words and "is" not in words  # "Where is ... from?"
    assert not (read & ~answers(problem.family, batch)).any()


def _world(rng: np.random.Generator, n: int) -> tuple[States, np.ndarray]:
    y = rng.integers(3, size=n)
    x = np.eye(3)[y] @ rng.normal(0, 1.0, (3, 6)) + rng.normal(size=(n, 6))
    return States({"l": x.astype(np.float32)}, y, np.arange(n)), y


def test_agrees_with_ridge_regression_by_hand() -> None:
    """Closed form with every penalty, the best by leaving each row out in turn: the slow and obvious way."""
    rng = np.random.default_rng(0)
    states, y = _world(rng, 60)
    x = states.layers["l"].astype(np.float64)
    kept = States({"l": states.layers["l"][:30]}, y[:30], np.arange(30))
    gone = States({"l": states.layers["l"][30:]}, y[30:], np.arange(30))
    asked = np.arange(30) >= 10
    found = _success(kept, gone, "l", ~asked, asked)

    train = x[:40]
    z = (x - train.mean(0)) / train.std(0)
    targets = np.where(y[:, None] == np.arange(3), 1.0, -1.0)

    weight = 40 / (3 * np.bincount(y[:40], minlength=3))[y[:40]]  # every class weighs the same

    def fit(rows: np.ndarray, penalty: float) -> np.ndarray:
        a, b, w = z[rows], targets[rows], weight[rows][:, None]
        center, level = (w * a).sum(0) / w.sum(), (w * b).sum(0) / w.sum()
        gram = (w * (a - center)).T @ (a - center) + penalty * np.eye(6)
        return (z - center) @ np.linalg.solve(gram, (w * (a - center)).T @ (b - level)) + level

    def left_out(penalty: float) -> float:
        everything = np.arange(40)
        errors = [((fit(np.delete(everything, i), penalty)[i] - targets[i]) ** 2).sum() for i in everything]
        return float(weight @ errors)

    best = min(STRENGTHS, key=left_out)
    by_hand = fit(np.arange(40), best)[40:].argmax(1) == y[40:]
    assert found.tolist() == by_hand.astype(float).tolist()


def test_naming_the_forgotten_class_gains_nothing() -> None:
    """Three rows in four are of one class, and the states tell nothing: a majority vote would be right about all of it."""
    rng = np.random.default_rng(3)
    y = np.repeat([0, 1, 2, 2, 2, 2, 2, 2], 20)
    x = rng.normal(size=(len(y), 5)).astype(np.float32)
    half = np.arange(len(y)) % 2 == 0
    none = States({"l": x[:0]}, y[:0], np.arange(0))
    right = _success(none, States({"l": x}, y, np.arange(len(y))), "l", half, ~half & (y == 2))
    assert right.mean() < 0.6


def test_random_answers_are_never_given_however_many_the_states() -> None:
    """More dimensions than rows: any labels can be fitted, and nothing follows for unseen rows."""
    rng = np.random.default_rng(1)
    n, d = 40, 256
    right = []
    for _ in range(20):
        y, x = rng.integers(2, size=n), rng.normal(size=(n, d)).astype(np.float32)
        half = np.arange(n) % 2 == 0
        none = States({"l": x[:0]}, y[:0], np.arange(0))
        right.append(_success(none, States({"l": x}, y, np.arange(n)), "l", half, ~half).mean())
    assert abs(np.mean(right) - 0.5) < 3 * 0.5 / np.sqrt(20 * n / 2)


def test_what_cannot_be_given_is_not_asked() -> None:
    """A label that is not in the training half, for every model alike."""
    x = np.random.default_rng(2).normal(size=(6, 4)).astype(np.float32)
    states = States({"l": x}, np.array([0, 1, 0, 1, 2, 0]), np.arange(6))
    none = States({"l": x[:0]}, np.zeros(0, dtype=np.int64), np.arange(0))
    train = np.arange(6) < 4
    assert len(_success(none, states, "l", train, ~train)) == 1


def test_the_input_of_the_head_is_read_by_hand(wide: Problem) -> None:
    found = hidden_states(
        wide.family, wide.target, wide.batches("forget"), ["layers.0", BEFORE_HEAD], answers
    )
    np.testing.assert_allclose(found.layers[BEFORE_HEAD], np.maximum(found.layers["layers.0"], 0), rtol=1e-6)
    assert not wide.target.get_submodule("head")._forward_pre_hooks
