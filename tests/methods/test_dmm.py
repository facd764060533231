"""Datamodel matching: the targets in convex worlds, the fit to them, and the refusal to match bad predictions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expunge.errors import BadInput, ExpungeError
from expunge.families.models import clone
from expunge.methods import Workplace
from expunge.methods.dmm import DMM, Predicted
from expunge.methods.objective import State
from expunge.oracles import LogisticWorld, RidgeWorld
from expunge.problem import Problem


def predicted(method: DMM, problem: Problem) -> tuple[np.ndarray, str]:
    """`[n, K]` outputs to be matched on all training rows, and the note about the fit."""
    workplace = Workplace(seed=0)
    state = State(problem, {"train": workplace.batches(problem, "train")}, workplace)
    method.prepare(problem, clone(problem.target), state)
    rows = torch.arange(len(problem.train))
    batch = problem.batches("train").take(rows)
    return state.frozen["predicted"].outputs("train", rows, batch).prediction.flatten(
        1
    ).numpy(), workplace.notes[-1]


def test_one_deleted_row_of_ridge_regression_is_predicted_exactly() -> None:
    world = RidgeWorld(n_forget=1, noise=1.0)
    features = np.column_stack(
        [world.problem.batches("train").take(torch.arange(60)).inputs["features"], np.ones(60)]
    )
    wanted, note = predicted(DMM(), world.problem)
    np.testing.assert_allclose(wanted[:, 0], features @ world.retrained, atol=1e-5)
    assert "10 random deletions of 1 rows: multiplier 1, R^2 1.00, rank correlation 1.00" in note


@pytest.mark.parametrize(
    "method", [DMM(), DMM(attribution="trak", dim=200, damping=0.001)], ids=["influence", "trak"]
)
def test_predictions_are_nearer_to_the_retrained_classifier_than_the_target(method: DMM) -> None:
    """Twelve mislabeled ones of 300 rows."""
    world = LogisticWorld(n=300, n_forget=12)
    truth, before = world.logits(world.retrained), world.logits(world.solution())
    wanted, _ = predicted(method, world.problem)
    left = np.linalg.norm(wanted - truth) / np.linalg.norm(before - truth)
    assert left < (0.4 if method.attribution == "influence" else 0.85)


def test_all_weights_of_a_linear_model_are_its_head() -> None:
    world = LogisticWorld()
    head, _ = predicted(DMM(), world.problem)
    everything, _ = predicted(DMM(weights="all"), world.problem)
    assert np.abs(head - world.logits(world.solution())).max() > 0.1
    np.testing.assert_allclose(head, everything, atol=1e-4)


def test_matching_reaches_the_retrained_solution() -> None:
    """A linear model can have the predicted outputs exactly, so that matching ends at them."""
    world = RidgeWorld(n=300, n_forget=5)
    made = DMM(epochs=150, lr=0.02, lr_decay=0.97, retain_ratio=30).forget(world.problem).model
    left = np.linalg.norm(world.weights(made) - world.retrained)
    assert left < 0.05 * np.linalg.norm(world.solution() - world.retrained)


def test_calibration_by_retraining_agrees_where_training_is_convex() -> None:
    world = LogisticWorld(n=60, n_forget=4)
    short = replace(world.problem, recipe=world.problem.recipe.replace(epochs=150))  # pyright: ignore
    solved, _ = predicted(DMM(deletions=3), short)
    trained, note = predicted(DMM(deletions=3, calibration="retrain"), short)
    assert note.endswith("(influence against retrain)")
    np.testing.assert_allclose(solved, trained, atol=1e-3)


@pytest.mark.parametrize("matching", ["squared", "divergence"])
def test_loss_by_hand(matching: str, classification: Problem, gradient: Any, step_gradient: Any) -> None:
    """All rows in one batch: mean over rows and logits of the squared distance; or the mean divergence."""
    everything = {"retain_ratio": 1000.0, "least_r_squared": -9.0}
    wanted = torch.from_numpy(predicted(DMM(**everything), classification)[0])
    batch = classification.batches("train").take(torch.arange(36))
    logits = classification.target(batch.inputs["features"])
    by_hand = {
        "squared": (logits - wanted).square().sum() / (36 * 3),
        "divergence": F.kl_div(logits.log_softmax(-1), wanted.softmax(-1), reduction="batchmean"),
    }
    expected = gradient(classification.target, by_hand[matching])
    found = step_gradient(classification, "dmm", matching=matching, **everything)
    for name, made in found.items():
        torch.testing.assert_close(made, expected[name], rtol=1e-3, atol=2e-5)


class Still(DMM):
    """Matching to what the target says itself."""

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:
        batch = problem.batches("train").take(torch.arange(len(problem.train)))
        state.frozen["predicted"] = Predicted(problem.family.forward(model, batch).prediction.detach())


def test_a_target_that_has_the_predicted_outputs_stays(classification: Problem) -> None:
    workplace = Workplace(seed=0)
    made = Still(epochs=3, optimizer="sgd", lr=0.1).produce(
        classification, clone(classification.target), workplace
    )
    assert max(entry["matching"] for entry in workplace.log) < 1e-11
    for a, b in zip(made.parameters(), classification.target.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_visits_some_retain_rows_per_forget_row(classification: Problem) -> None:
    made = DMM(retain_ratio=1.5, batch_size=5, epochs=1, least_r_squared=-9.0).forget(classification)
    assert len(made.log) == 5  # 10 forget rows and 15 of 26 retain rows
    assert (
        len(DMM(retain_ratio=9, batch_size=5, epochs=1, least_r_squared=-9.0).forget(classification).log) == 8
    )


def test_learning_rate_decays_by_epoch() -> None:
    assert DMM(lr=1.0, lr_decay=0.5).learning_rate(3, 0.9) == 0.125


def test_predictions_that_do_not_hold_are_refused(classification: Problem) -> None:
    """One random direction cannot attribute."""
    with pytest.raises(
        ExpungeError,
        match=r"'dmm' refuses to match .* R\^2 = -?0\.\d\d of what 10 real deletions .* below 0\.9",
    ):
        DMM(attribution="trak", dim=1, least_r_squared=0.9).forget(classification)
    with pytest.raises(BadInput, match="needs a recipe and an architecture; set calibration to 'head'"):
        DMM(calibration="retrain").forget(replace(classification, recipe=None))
