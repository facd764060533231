from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import nn

from expunge.errors import BadInput
from expunge.families import Classifier, Table
from expunge.methods import Workplace
from expunge.methods.boundary_shrink import BoundaryShrink
from expunge.methods.objective import State
from expunge.problem import Problem


def labels(problem, **settings):
    """Labels of the forget rows, as the method sees them."""
    state = State(problem, {}, Workplace())
    BoundaryShrink(**settings).prepare(problem, problem.target, state)
    n = len(problem.forget)
    return state.sources["forget"].take(torch.arange(n)).targets[:, 0], state.workplace.notes[0]


def linear(x, y, weight, bias):
    """A linear classifier of all rows, each to be forgotten."""
    model = nn.Linear(weight.shape[1], len(weight))
    model.load_state_dict({"weight": weight, "bias": bias})
    names = [f"x{j}" for j in range(x.shape[1])]
    columns = {name: x[:, j].tolist() for j, name in enumerate(names)}
    ids = [str(i) for i in range(len(x))]
    train = Dataset.from_dict({"id": ids, **columns, "label": y.tolist()})
    return Problem("linear", Classifier(Table(names), len(weight)), train, tuple(ids), model=model)


@pytest.mark.parametrize("bound", [0.05, 0.2, 0.8])
def test_two_classes_flip_within_the_margin_that_the_bound_can_cross(bound):
    """m = w.x + b flips its sign exactly when |m| < bound * ||w||_1."""
    torch.manual_seed(0)
    x, weight = torch.randn(200, 4), torch.randn(2, 4)
    bias = torch.tensor([0.3, -0.1])
    w, b = weight[1] - weight[0], bias[1] - bias[0]
    margin = x @ w + b
    y = (margin > 0).long()
    flips = margin.abs() < bound * w.abs().sum()
    assert 0 < flips.sum() < 200
    found, note = labels(linear(x, y, weight, bias), bound=bound)
    assert torch.equal(found != y, flips)
    assert note.startswith(f"{int(flips.sum())} of 200 forget rows")


@pytest.mark.parametrize(("bound", "more", "label"), [(0.2, {}, 0), (0.3, {}, 1), (0.3, {"high": 0.45}, 2)])
def test_three_classes_by_hand(bound, more, label):
    """Logits x1, x2, 0.5 at x = (1, 0.5): the gradient is (p_0 - 1, p_1), so x' = (1 - bound, 0.5 + bound).

    Bound 0.2 gives (0.8, 0.7): still class 0. Bound 0.3 gives (0.7, 0.8): class 1; clipped at 0.45 both stay
    below the constant 0.5.
    """
    weight, bias = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), torch.tensor([0.0, 0.0, 0.5])
    problem = linear(torch.tensor([[1.0, 0.5]]), torch.tensor([0]), weight, bias)
    assert labels(problem, bound=bound, **more)[0].tolist() == [label]


def test_rounding_to_pixels_takes_back_steps_below_half_a_level():
    """Logit difference x - 0.5 at 128/255: a step of 0.4/255 changes nothing, one of 0.6/255 crosses."""
    weight, bias = torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 0.0])
    problem = linear(torch.tensor([[128 / 255]]), torch.tensor([1]), weight, bias)
    assert labels(problem, bound=0.55 / 255)[0].tolist() == [0]
    assert labels(problem, bound=0.45 / 255, pixels=True)[0].tolist() == [1]
    assert labels(problem, bound=0.55 / 255, pixels=True)[0].tolist() == [0]


def test_bound_zero_keeps_the_answers_of_the_target(classification, tensors):
    x, _ = tensors(classification, "forget")
    with torch.no_grad():
        answers = classification.target(x).argmax(-1)
    assert torch.equal(labels(classification, bound=0.0)[0], answers)


def test_the_step_descends_the_cross_entropy_of_those_labels(
    classification, tensors, gradient, step_gradient
):
    (x, y), model = tensors(classification, "forget"), classification.target
    found, _ = labels(classification, bound=1.0)
    assert 0 < int((found != y).sum()) < len(y)
    made = step_gradient(classification, "boundary-shrink", bound=1.0)
    for name, value in gradient(model, F.cross_entropy(model(x), found)).items():
        torch.testing.assert_close(made[name], value, rtol=1e-4, atol=2e-6)


def test_labels_come_from_the_target_however_far_the_model_has_moved(classification):
    """Trained to the end, the model gives the labels that the target's boundary gave at the start."""
    found, _ = labels(classification, bound=1.0)
    made = BoundaryShrink(bound=1.0, epochs=400, lr=0.1, weight_decay=0.0).forget(classification)
    forget = classification.batches("forget").take(torch.arange(10))
    with torch.no_grad():
        answers = classification.family.forward(made.model, forget).prediction.argmax(-1)[:, 0]
    assert torch.equal(answers, found)
    assert all(p.grad is None for p in classification.target.parameters())


class Counts(Table):
    def encode(self, rows):
        return {k: v.long() for k, v in super().encode(rows).items()}


def test_inputs_that_are_not_real_numbers_are_refused(classification):
    problem = replace(classification, family=Classifier(Counts(["a", "b", "c"]), 3))
    with pytest.raises(
        BadInput, match="'boundary-shrink' .* it needs real-valued inputs .* 'features' is int64"
    ):
        BoundaryShrink().forget(problem)


def test_an_empty_range_is_refused(classification):
    with pytest.raises(BadInput, match="'low' must be below 'high', got 1 and 0.5"):
        BoundaryShrink(low=1.0, high=0.5).forget(classification)


def test_the_retain_set_is_not_needed(classification):
    alone = replace(classification, train=classification.forget)
    settings = {"epochs": 2, "lr": 0.05, "bound": 1.0}
    made = [BoundaryShrink(**settings).forget(p).model.state_dict() for p in (classification, alone)]
    assert all(np.array_equal(made[0][name], made[1][name]) for name in made[0])
