from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.neighbors import NearestCentroid

import expunge
from expunge.attacks import Scene
from expunge.attacks.inversion import Evaluator, Inversion, LinearGenerator, flattened, unflattened
from expunge.families import Architecture, Classifier, Table
from expunge.problem import Problem, Training
from expunge.record import Score
from expunge.testing.problems import tiny_problem

COLUMNS = [f"x{j}" for j in range(6)]


@pytest.fixture(scope="module")
def blobs() -> Problem:
    """Four classes on the corners of a tetrahedron, to forget the last; with a target."""
    rng = np.random.default_rng(0)
    label = np.arange(160) % 4
    centers = 3.0 * np.eye(4, 6)
    x = centers[label] + 0.7 * rng.normal(size=(160, 6))
    columns = {name: x[:, j] for j, name in enumerate(COLUMNS)}
    train = Dataset.from_dict({"id": [f"r{i}" for i in range(160)], **columns, "label": label})
    problem = Problem(
        "blobs", Classifier(Table(COLUMNS), 4), train, tuple(f"r{i}" for i in range(160) if i % 4 == 3),
        architecture=Architecture(kind="builtin", name="mlp", options={"inputs": 6, "outputs": 4, "hidden": [32]}),
        recipe=Training(epochs=15, batch_size=32), scope="class 3",
    )  # fmt: skip
    return expunge.train_target(problem)


@pytest.fixture(scope="module")
def retrained(blobs: Problem) -> Scene:
    return Scene(blobs, expunge.forget(blobs, "retrain").model)


def scores(attack: Inversion, scene: Scene) -> dict[str, Score]:
    return {s.metric: s for s in attack.attack(scene)}


def test_the_target_shows_the_class_and_a_retrained_model_does_not(blobs: Problem, retrained: Scene) -> None:
    before, after = scores(Inversion(), Scene(blobs, blobs.target)), scores(Inversion(), retrained)
    for found in (before, after):  # the control: the attack works on both models
        assert (found["inversion-accuracy-retained"].value or 0) > 0.9
    assert (before["inversion-accuracy"].value or 0) - (after["inversion-accuracy"].value or 0) > 0.4
    assert (before["inversion-distance"].value or 9) < (after["inversion-distance"].value or 0)
    assert before["inversion-accuracy"].n == 20
    assert set(before["inversion-accuracy"].groups) == {"3"}


def test_a_model_that_says_nothing_leaves_the_prior(blobs: Problem, retrained: Scene) -> None:
    """With equal logits the loss is ln 4 + prior |g|^2 / 2, whose minimum is the mean of the attacker's rows."""
    mute = copy.deepcopy(blobs.target)
    with torch.no_grad():
        for parameter in mute.parameters():
            parameter.zero_()
    scene = Scene(blobs, mute)
    generator = LinearGenerator.of(scene, np.array([0, 1, 2]), 6)
    made, classes = Inversion(prior=1.0, steps=600, reconstructions=3).reconstruct(
        scene, np.array([3]), generator
    )
    label = np.asarray(blobs.train["label"][:])
    rows = np.column_stack([blobs.train[c][:] for c in COLUMNS])[label < 3]
    assert made == pytest.approx(np.tile(rows.mean(0), (3, 1)), abs=1e-3)
    assert classes.tolist() == [3, 3, 3]


def test_the_generator_has_the_rows_law_and_range(retrained: Scene) -> None:
    blobs = retrained.problem
    label = np.asarray(blobs.train["label"][:])
    rows = np.column_stack([blobs.train[c][:] for c in COLUMNS])[np.isin(label, [0, 2])]
    generator = LinearGenerator.of(retrained, np.array([0, 2]), 6)
    spanned = (generator.directions @ generator.directions.T).numpy()
    assert spanned == pytest.approx(np.cov(rows.T, bias=True), abs=1e-4)
    made = generator(100 * torch.randn(50, 6)).numpy()
    assert (made >= rows.min(0) - 1e-5).all() and (made <= rows.max(0) + 1e-5).all()
    assert LinearGenerator.of(retrained, np.array([0, 2]), 2).directions.shape == (6, 2)


def test_the_evaluator_is_the_nearest_centroid_of_real_rows(blobs: Problem) -> None:
    truth = Evaluator.of(blobs)
    x = np.column_stack([blobs.train[c][:] for c in COLUMNS])
    y = np.asarray(blobs.train["label"][:])
    asked = np.random.default_rng(1).normal(scale=3, size=(200, 6))
    assert (truth.nearest(asked) == NearestCentroid().fit(x, y).predict(asked)).all()
    own = np.concatenate([truth.relative_distance(x[y == c], y[y == c]) for c in range(4)])
    assert own.mean() == pytest.approx(1.0)
    mean = x[y == 2].mean(0)
    away = truth.relative_distance(mean[None] + np.eye(1, 6), np.array([2]))
    assert away == pytest.approx(1 / np.linalg.norm(x[y == 2] - mean, axis=1).mean())


def test_flattening_is_undone(blobs: Problem) -> None:
    batch = blobs.batches("forget").take(torch.arange(5))
    again = unflattened(torch.from_numpy(flattened(batch)), batch)
    assert torch.equal(again.inputs["features"], batch.inputs["features"])


def test_a_loss_that_settles_is_lower_with_more_steps_and_the_model_is_left_alone(retrained: Scene) -> None:
    before = copy.deepcopy(retrained.model.state_dict())
    generator = LinearGenerator.of(retrained, np.array([0, 1, 2]), 6)
    losses = []
    for steps in (1, 30, 300):
        made, _ = Inversion(steps=steps).reconstruct(retrained, np.array([1]), generator)
        with torch.no_grad():
            logits = retrained.model(torch.from_numpy(made).float())
        losses.append(float(-torch.log_softmax(logits, -1)[:, 1].mean()))
    assert losses[0] > losses[1] > losses[2]
    assert all(torch.equal(v, before[k]) for k, v in retrained.model.state_dict().items())
    assert all(p.grad is None for p in retrained.model.parameters())


def test_without_another_class_there_is_no_control() -> None:
    problem = tiny_problem("classifier")  # random rows of all three classes
    found = scores(Inversion(steps=20), Scene(problem, problem.target))
    assert found["inversion-accuracy"].n == 60
    assert found["inversion-accuracy-retained"].reason == (
        "every class has forget rows; there is no other to compare with"
    )


def test_regressors_have_no_classes() -> None:
    assert Inversion.obstacles(tiny_problem("regressor")) == ["it fits classifier, not regressor"]


def test_training_through_a_closed_bottleneck_leaves_nothing_to_find(blobs: Problem) -> None:
    """With and without MID: at beta = 0 classes are found as before; a beta that closes the bottleneck hides them all."""
    found = {
        beta: scores(Inversion(), Scene(blobs, expunge.forget(blobs, "mid", beta=beta, epochs=20).model))
        for beta in (0.0, 20.0)
    }
    rates = {beta: one["inversion-accuracy-retained"].value or 0.0 for beta, one in found.items()}
    assert rates[0.0] > 0.9
    assert rates[20.0] < 0.6
