import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expunge.data.benchmarks.biased import Biased
from expunge.data.benchmarks.digits import Digits
from expunge.evidence.collect import collect
from expunge.families import Batches, Regressor, Table
from expunge.methods import METHODS, Workplace
from expunge.methods.cupid import (
    Cupid,
    disentangled,
    hessian_diagonal,
    mean_gradient,
    rank_correlation,
    sharpness,
)
from expunge.methods.loop import fit
from expunge.methods.objective import State
from expunge.methods.salun import largest


class Slope(nn.Module):
    """Predicts sqrt(h) (theta - c) whatever the input, so that half its square is h (theta - c)^2 / 2."""

    def __init__(self, h: float, c: float, start: float) -> None:
        super().__init__()
        self.theta, self.h, self.c = nn.Parameter(torch.tensor([start])), h, c

    def forward(self, features):
        return (math.sqrt(self.h) * (self.theta - self.c)).expand(len(features), 1)


class Half(Regressor):
    """Loss: half the square of the prediction."""

    def nll(self, outputs, batch):
        return outputs.prediction.flatten(1).square().sum(-1) / 2


@pytest.fixture
def quadratic(regression):
    """Quadratic loss with h = 2, c = 1, at theta = 3: gradient 4, curvature 2."""
    family = Half(Table(["a"]), "y")
    return family, Slope(2.0, 1.0, 3.0), Batches(family, regression.train.select(range(3)))


def test_sharpness_of_a_quadratic_loss_by_hand(quadratic):
    """|g| eta + h eta^2 / 2 = 4 * 0.1 + 2 * 0.01 / 2 = 0.41."""
    sharp, loss, norm = sharpness(*quadratic, eta=0.1)
    torch.testing.assert_close(sharp, torch.full((3,), 0.41), rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, torch.full((3,), 4.0))
    torch.testing.assert_close(norm, torch.full((3,), 4.0))


def test_curvature_of_a_quadratic_loss_is_exact(quadratic):
    family, model, batches = quadratic
    found = hessian_diagonal(
        family, model, batches.take(torch.arange(3)), 1, torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(found["theta"], torch.tensor([2.0]))


def test_the_diagonal_approaches_that_of_the_full_hessian(classification, tensors):
    """Against the Hessian of a softmax regression, computed entry by entry."""
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    x, y = tensors(classification, "forget")
    weights = torch.cat([model.weight.flatten(), model.bias]).detach()

    def loss(w):
        return F.cross_entropy(x @ w[:9].reshape(3, 3).T + w[9:], y)

    exact = torch.autograd.functional.hessian(loss, weights).diagonal()
    batch = classification.batches("forget").take(torch.arange(10))
    found = hessian_diagonal(classification.family, model, batch, 4000, torch.Generator().manual_seed(0))
    made = torch.cat([found["weight"].flatten(), found["bias"]])
    torch.testing.assert_close(made, exact, rtol=0, atol=0.05 * exact.max().item())


def test_weights_are_restored_bitwise(normalized):
    before = {k: v.clone() for k, v in normalized.target.state_dict().items()}
    sharpness(normalized.family, normalized.target, normalized.batches("forget"), 0.37)
    assert all(torch.equal(v, before[k]) for k, v in normalized.target.state_dict().items())
    assert all(p.grad is None for p in normalized.target.parameters())


def vector(*values):
    return {"w": torch.tensor(values)}


def test_projection_by_hand():
    g_f, g_c = vector(3.0, 4.0), vector(1.0, 0.0)
    everywhere, nowhere = vector(1.0, 1.0), vector(0.0, 0.0)
    assert disentangled(g_f, vector(6.0, 8.0), g_c, everywhere)["w"].tolist() == [6.0, 0.0]
    assert disentangled(g_f, g_f, g_c, everywhere)["w"].tolist() == [3.0, 0.0]
    assert disentangled(g_f, g_f, g_c, nowhere)["w"].tolist() == [0.0, 4.0]
    # The mask comes after the projection, so that one entry can come from each part.
    half = disentangled(vector(3.0, 4.0), vector(3.0, 4.0), vector(1.0, 1.0), vector(1.0, 0.0))
    assert half["w"].tolist() == [3.5, 0.5]


def test_parallel_gradients_leave_no_bias_part():
    made = disentangled(vector(3.0, 4.0), vector(3.0, 4.0), vector(6.0, 8.0), vector(0.0, 0.0))
    torch.testing.assert_close(made["w"], torch.zeros(2))


def test_the_bias_part_is_orthogonal_to_the_causal_gradient():
    torch.manual_seed(0)
    for _ in range(5):
        g_f, g_c = ({"a": torch.randn(4, 3), "b": torch.randn(5)} for _ in range(2))
        rest = disentangled(g_f, g_f, g_c, {k: torch.zeros_like(v) for k, v in g_f.items()})
        assert abs(sum(float((rest[k] * g_c[k]).sum()) for k in rest)) < 1e-5


def plain_step(problem, x, y, gradient, weighting):
    """One step by the definition, on flattened vectors."""
    model = problem.target
    state = State(problem, {}, Workplace())
    Cupid(k=0.5, weighting=weighting, eta=0.2).prepare(problem, model, state)
    sharp, causal = state.kept["sharpness"], state.kept["causal"]
    flat = lambda loss: torch.cat([g.flatten() for g in gradient(model, loss).values()])  # noqa: E731
    each = lambda: F.cross_entropy(model(x), y, reduction="none")  # noqa: E731
    s = sharp / sharp.mean() if weighting == "sample" else sharp.mean().expand(len(sharp))
    g_f, g_w, g_c = flat(each().mean()), flat((each() * s).mean()), flat(each()[causal].mean())
    mask = torch.cat([state.kept[f"mask/{n}"].flatten() for n, _ in model.named_parameters()]).float()
    projected, own = (torch.dot(g, g_c) / torch.dot(g_c, g_c) * g_c for g in (g_w, g_f))
    return projected * mask + (g_f - own) * (1 - mask)


@pytest.mark.parametrize("weighting", ["sample", "mean"])
def test_the_first_step_follows_the_definition(classification, tensors, gradient, step_gradient, weighting):
    x, y = tensors(classification, "forget")
    expected = plain_step(classification, x, y, gradient, weighting)
    made = step_gradient(classification, "cupid", k=0.5, weighting=weighting, eta=0.2)
    torch.testing.assert_close(
        torch.cat([-g.flatten() for g in made.values()]), expected, rtol=1e-4, atol=1e-6
    )


def test_with_one_part_and_no_mask_it_is_ascent(classification, step_gradient):
    """k = 1 and p = 1: nothing is shared out, and the step is s_bar times that of gradient ascent."""
    state = State(classification, {}, Workplace())
    Cupid(k=1.0).prepare(classification, classification.target, state)
    mean = float(state.kept["sharpness"].mean())
    made = step_gradient(classification, "cupid", k=1.0, p=1.0, weighting="mean")
    ascent = step_gradient(classification, "gradient-ascent")
    for name, value in ascent.items():
        torch.testing.assert_close(made[name], mean * value, rtol=1e-3, atol=1e-6)


def test_the_sharpest_rows_are_causal_and_the_mask_has_its_share(classification):
    state = State(classification, {}, Workplace())
    Cupid(k=0.85, p=0.3).prepare(classification, classification.target, state)
    sharp, causal = state.kept["sharpness"], state.kept["causal"]
    assert len(causal) == 9  # ceil(0.85 * 10)
    assert sharp[causal].min() >= sharp[torch.isin(torch.arange(10), causal).logical_not()].max()
    n = sum(p.numel() for p in classification.target.parameters())
    assert sum(int(v.sum()) for k, v in state.kept.items() if k.startswith("mask/")) == int(0.3 * n)
    Cupid(k=0.01).prepare(classification, classification.target, state)
    assert len(state.kept["causal"]) == 8  # never fewer


def test_negative_curvature_ranks_last():
    saliency = {"a": torch.tensor([-3.0, 0.0, 2.0, -0.1])}
    assert largest(saliency, 0.75)["a"].tolist() == [False, True, True, True]


def test_a_row_beyond_the_cap_is_let_go(classification, tensors):
    """One row to forget: it rises past the cap, and from then on nothing moves."""
    problem = replace(classification, forget_ids=classification.forget_ids[:1])
    settings = {"cap": 0.5, "lr": 0.1, "k": 1.0, "p": 1.0}
    short, long = (Cupid(epochs=n, **settings).forget(problem).model for n in (400, 500))
    x, y = tensors(problem, "forget")
    with torch.no_grad():
        before, after = (F.cross_entropy(model(x), y) for model in (problem.target, short))
    assert 0.5 < after - before < 0.7
    assert all(torch.equal(v, long.state_dict()[k]) for k, v in short.state_dict().items())


def test_causal_gradient_is_that_of_the_mean(classification, tensors, gradient):
    x, y = tensors(classification, "forget")
    rows = torch.tensor([7, 2, 3, 9, 0])
    model = classification.target
    found = mean_gradient(classification.family, model, classification.batches("forget"), rows, 2)
    for name, value in gradient(model, F.cross_entropy(model(x[rows]), y[rows])).items():
        torch.testing.assert_close(found[name], value)


def test_agreement_of_ranks_by_hand():
    """Ranks 1 2 3 4 against 1 2 4 3: 1 - 6 * 2 / (4 * 15) = 0.8."""
    one, two = torch.tensor([0.1, 0.2, 3.0, 40.0]), torch.tensor([1.0, 2.0, 9.0, 8.0])
    assert rank_correlation(one, two) == pytest.approx(0.8)
    assert math.isnan(rank_correlation(one, torch.ones(4)))


def test_the_note_says_what_the_partition_is_worth(classification):
    (note,) = Cupid(epochs=1).forget(classification).notes
    assert note.startswith("8 of 10 forget rows are causal; ranks of sharpness agree")


def test_attention_can_be_differentiated_twice():
    problem = Digits(model="vit").problem()
    model = problem.fresh_model(0).eval()
    batch = Batches(problem.family, problem.train.select(range(4))).take(torch.arange(4))
    found = hessian_diagonal(problem.family, model, batch, 1, torch.Generator().manual_seed(0))
    assert all(torch.isfinite(v).all() for v in found.values())
    assert sum(bool(v.any()) for k, v in found.items() if "attention" in k) > 4


@pytest.fixture(scope="module")
def biased():
    problem = Biased().problem()
    return problem.with_model(
        fit(problem, problem.fresh_model(0), "train", problem.recipe, Workplace()).eval()
    )


def accuracies(problem, model):
    """Accuracy on test rows of class 3 with its own spot, of class 3 with another's, and of other classes."""
    evidence = collect(problem.family, model, problem.splits["test"], ["correct"])
    groups = np.asarray(evidence.groups)
    masks = [
        groups == "3 aligned",
        groups == "3 conflicting",
        np.char.endswith(groups.astype(str), " aligned"),
    ]
    masks[2] &= ~masks[0]
    return [float(evidence["correct"][mask].mean()) for mask in masks]


def test_both_groups_of_a_biased_class_are_forgotten(biased):
    """Ascent has forgotten the rows with another spot when it has hardly begun with the others, or wrecks the model."""
    ascent = METHODS["gradient-ascent"](lr=0.1, epochs=5, momentum=0.0, weight_decay=0.0).forget(biased)
    before, negated, made = (
        accuracies(biased, model) for model in (biased.target, ascent.model, Cupid().forget(biased).model)
    )
    assert min(before) > 0.7
    assert abs(negated[0] - negated[1]) > 0.3
    assert abs(made[0] - made[1]) < 0.1
    assert max(made[:2]) < 0.1
    assert made[2] > 0.9
