from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expunge.families import Classifier, Table
from expunge.methods.ssd import SSD, dampening

F_, D_ = torch.tensor([4, 1, 0.5, 0, 20.0]), torch.tensor([0.1, 0.2, 1, 0, 1.0])


def test_worked_example():
    factor, selected = dampening(F_, D_, alpha=10, lam=1)
    assert selected.tolist() == [True, False, False, False, True]
    weights = torch.tensor([1, -2, 3, 4, 5.0]) * factor
    torch.testing.assert_close(weights, torch.tensor([0.025, -2, 3, 4, 0.25]))


def test_limits():
    assert not dampening(F_, D_, float("inf"), 1.0)[1].any()
    assert not dampening(F_, F_, 1.0, 1.0)[1].any()  # forget is everything
    factor, selected = dampening(F_, D_, 1.0, 0.0)
    assert (factor[selected] == 0).all()
    assert (factor[~selected] == 1).all()


def test_weights_without_importance_anywhere_stay_finite():
    factor, selected = dampening(torch.zeros(3), torch.zeros(3), 0.1, 1.0)
    assert factor.tolist() == [1, 1, 1]
    assert not selected.any()


def test_never_grows_and_selects_less_with_larger_alpha():
    torch.manual_seed(0)
    f, d = torch.rand(200), torch.rand(200)
    before = torch.ones(200, dtype=torch.bool)
    for alpha in (0.1, 0.5, 1, 2, 10):
        factor, selected = dampening(f, d, alpha, 5.0)
        assert factor.max() <= 1
        assert not (selected & ~before).any()
        before = selected


def test_a_constant_factor_of_the_loss_changes_nothing(classification):
    class Scaled(SSD):
        def sensitivity(self, family, outputs, batch):
            return 7 * super().sensitivity(family, outputs, batch)

    plain = SSD(alpha=1.2).forget(classification)
    scaled = Scaled(alpha=1.2).forget(classification)
    assert plain.cost.changed > 0
    for a, b in zip(plain.model.parameters(), scaled.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.fixture
def linear(classification):
    torch.manual_seed(1)
    forget = tuple(
        i for i, y in zip(classification.train["id"], classification.train["label"], strict=True) if y == 2
    )
    family = Classifier(Table(["a", "b", "c"]), 3)
    return replace(classification, family=family, model=nn.Linear(3, 3, bias=False), forget_ids=forget)


@pytest.mark.parametrize("mode", ["sample", "batch"])
def test_linear_softmax_in_closed_form(linear, tensors, mode):
    """The gradient of row c is (p_c - 1{c = y}) x; mean before the square (batch) or after it (sample)."""
    (xf, yf), (xr, yr) = tensors(linear, "forget"), tensors(linear, "retain")
    weight = linear.target.weight.detach()

    def importance(x, y):
        residual = (x @ weight.T).softmax(-1) - F.one_hot(y, 3)
        gradients = residual[:, :, None] * x[:, None, :]
        return gradients.square().mean(0) if mode == "sample" else gradients.mean(0).square()

    f, d = importance(xf, yf), importance(torch.cat([xf, xr]), torch.cat([yf, yr]))
    alpha = 1.01 * float((f / d).median())
    expected = weight * torch.where(f > alpha * d, (0.5 * d / f).clamp(max=1), torch.ones(3, 3))
    made = SSD(alpha=alpha, lam=0.5, importance=mode, batch_size=1000).forget(linear)
    torch.testing.assert_close(made.model.weight, expected, rtol=1e-4, atol=1e-6)
    assert 0 < made.cost.changed < 9
    assert made.notes == [f"{made.cost.changed} of 9 weights selected ({made.cost.changed / 9:.3%})"]


def test_sample_mode_cannot_select_beyond_its_bound(linear):
    """The mean over all rows is at least the forget rows' share of it, so that f / d <= n / n_forget."""
    ratio = len(linear.train) / len(linear.forget_rows)
    made = SSD(alpha=ratio, importance="sample").forget(linear)
    assert made.cost.changed == 0
    assert made.notes == [
        f"no weight is {ratio:g} times more important for the forget set than for all data, so that "
        f"the model is unchanged; none can be with {ratio:.3g} training rows per forget row; lower alpha"
    ]
    assert SSD(alpha=ratio / 4, importance="sample").forget(linear).cost.changed > 0


def test_tied_weights_are_edited_once(classification):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, features):
            return self.second(self.first(features).relu())

    torch.manual_seed(0)
    problem = replace(classification, model=Tied())
    before: Any = problem.target
    half: Any = SSD(alpha=1.0, lam=0.5).forget(problem).model
    whole: Any = SSD(alpha=1.0, lam=1.0).forget(problem).model
    assert half.first.weight is half.second.weight
    ratio = half.first.weight / before.first.weight
    edited = ratio < 1
    assert edited.any()
    # Edited twice, both ratios would be squares.
    torch.testing.assert_close(2 * ratio[edited], (whole.first.weight / before.first.weight)[edited])


def test_frozen_weights_and_statistics_stay(normalized):
    from expunge.families.models import clone

    model: Any = clone(normalized.target)
    model.hidden.weight.requires_grad_(False)
    made: Any = SSD(alpha=0.1, lam=0.05).forget(normalized.with_model(model)).model
    assert torch.equal(made.hidden.weight, model.hidden.weight)
    assert not torch.equal(made.head.weight, model.head.weight)
    for name, before in model.named_buffers():
        assert torch.equal(made.get_buffer(name), before)
