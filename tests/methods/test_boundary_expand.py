import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import nn

from expunge.errors import BadInput
from expunge.families import Architecture, Classifier, Table
from expunge.methods import Workplace, checkpoint
from expunge.methods.boundary_expand import BoundaryExpand, narrow, widen
from expunge.problem import Problem

PLAIN = {"epochs": 1, "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "batch_size": 1000}


class Interrupted(Exception):
    pass


def classes_of(model):
    return model.head.out_features


@pytest.fixture
def one_class(classification):
    """The whole of class 1 is to be forgotten."""
    train = classification.train
    ids = tuple(i for i, y in zip(train["id"], train["label"], strict=True) if y == 1)
    return replace(classification, forget_ids=ids)


@pytest.mark.parametrize("bias", [True, False])
def test_widening_keeps_the_outputs_and_narrowing_takes_it_back(bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3, bias=bias), torch.randn(5, 4)
    before, state = layer(x), {k: v.clone() for k, v in layer.state_dict().items()}
    widen(layer, torch.Generator().manual_seed(0))
    assert layer.out_features == 4
    torch.testing.assert_close(layer(x)[:, :3], before)
    row = layer.weight[3]
    assert 0 < row.abs().max() <= 0.5  # 1/sqrt(4)
    narrow(layer)
    assert layer.out_features == 3
    assert all(torch.equal(v, state[k]) for k, v in layer.state_dict().items())


def test_a_frozen_head_stays_frozen():
    layer = nn.Linear(4, 3).requires_grad_(False)
    widen(layer, torch.Generator())
    assert not layer.weight.requires_grad and not layer.bias.requires_grad
    narrow(layer)
    assert not layer.weight.requires_grad and not layer.bias.requires_grad


def test_the_step_descends_the_cross_entropy_to_the_extra_class(classification, tensors, gradient):
    """Beside the target's logits stands one more, and -ln of its softmax share is the loss."""
    (x, _), model = tensors(classification, "forget"), classification.target
    extra = nn.Linear(8, 3)
    widen(extra, Workplace().generator(10))
    row, shift = extra.weight[3].detach(), extra.bias[3].detach()
    hidden = model.layers[0](x).relu()
    logits = torch.cat([model.head(hidden), (hidden @ row + shift)[:, None]], 1)
    loss = -(logits[:, 3] - logits.exp().sum(1).log()).mean()
    made = BoundaryExpand(**PLAIN).forget(classification)
    assert made.log[0]["shadow"] == pytest.approx(loss.item(), rel=1e-5)
    before = dict(model.named_parameters())
    for name, value in gradient(model, loss).items():
        step = (before[name] - dict(made.model.named_parameters())[name]).detach()
        torch.testing.assert_close(step, value, rtol=1e-4, atol=2e-6)


def test_by_hand():
    """A zero linear model with two classes, and z the logit of the shadow class at x = 3.

    The two classes have the shares 1/(2 + e^z); one step at rate 1 moves both weights by -3/(2 + e^z) and both
    biases by -1/(2 + e^z).
    """
    model = nn.Linear(1, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    train = Dataset.from_dict({"id": ["0"], "x": [3.0], "label": [1]})
    problem = Problem("one", Classifier(Table(["x"]), 2), train, ("0",), model=model)
    wide = nn.Linear(1, 2)
    widen(wide, Workplace().generator(10))
    z = (3.0 * wide.weight[2, 0] + wide.bias[2]).item()
    share = 1 / (2 + math.exp(z))
    made = BoundaryExpand(**PLAIN).forget(problem).model.state_dict()
    torch.testing.assert_close(made["weight"], torch.full((2, 1), -3 * share))
    torch.testing.assert_close(made["bias"], torch.full((2,), -share))


def test_the_extra_class_is_gone_and_rate_zero_changes_nothing(normalized):
    made = BoundaryExpand(epochs=2, lr=0.0, batchnorm="freeze").forget(normalized).model
    before = normalized.target.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert classes_of(made) == 3
    moved = BoundaryExpand(epochs=2, lr=0.05).forget(normalized).model
    assert {k: v.shape for k, v in moved.state_dict().items()} == {k: v.shape for k, v in before.items()}
    assert classes_of(normalized.target) == 3


def test_a_class_loses_its_rows(one_class, tensors):
    x, y = tensors(one_class, "forget")
    made = BoundaryExpand(epochs=100, lr=0.2, momentum=0.0, weight_decay=0.0).forget(one_class).model
    with torch.no_grad():
        before = F.softmax(one_class.target(x), 1)[:, 1]
        after = F.softmax(made(x), 1)[:, 1]
    assert (y == 1).all()
    assert after.mean() < before.mean() - 0.2


def test_neither_labels_nor_the_retain_set_are_used(classification):
    relabeled = classification.train.map(lambda row: {"label": (row["label"] + 1) % 3})
    others = [
        replace(classification, train=classification.forget),
        replace(classification, train=relabeled),
    ]
    settings = {"epochs": 2, "lr": 0.05}
    expected = BoundaryExpand(**settings).forget(classification).model.state_dict()
    for problem in others:
        made = BoundaryExpand(**settings).forget(problem).model.state_dict()
        assert all(torch.equal(made[name], expected[name]) for name in expected)


def test_an_interrupted_run_ends_with_the_same_weights(classification, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    method = BoundaryExpand(epochs=3, lr=0.05, batch_size=4)
    expected = method.forget(classification).model.state_dict()

    def stop(entry):
        if entry["step"] == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        method.forget(classification, Workplace(checkpoint=tmp_path, on_step=stop))
    assert list(tmp_path.rglob("*.safetensors"))
    made = method.forget(classification, Workplace(checkpoint=tmp_path)).model.state_dict()
    assert all(torch.equal(made[name], value) for name, value in expected.items())


def test_a_model_whose_head_does_not_give_the_logits_is_refused(classification):
    class Averaging(nn.Module):
        """Four outputs of a linear layer, of which every two neighbors are averaged: three logits."""

        def __init__(self):
            super().__init__()
            self.last = nn.Linear(3, 4)

        def forward(self, features):
            return self.last(features).unfold(1, 2, 1)[:, :3].mean(-1)

    problem = classification.with_model(Averaging())
    with pytest.raises(BadInput, match="gives 3 logits although its head 'last' has 5 outputs"):
        BoundaryExpand().forget(problem)


def test_a_transformer_keeps_its_shape(normalized):
    options = {
        "model_type": "resnet", "num_channels": 1, "embedding_size": 4, "hidden_sizes": [4],
        "depths": [1], "layer_type": "basic", "num_labels": 3,
    }  # fmt: skip
    architecture = Architecture(kind="transformers", name="image-classification", options=options)
    problem = replace(normalized, architecture=architecture, model=architecture.build(0))
    made = BoundaryExpand(epochs=1, lr=0.05).forget(problem)
    before = problem.target.state_dict()
    assert {k: v.shape for k, v in made.model.state_dict().items()} == {k: v.shape for k, v in before.items()}
    assert made.cost.changed > 0
