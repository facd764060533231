import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import nn

from expunge.errors import BadInput
from expunge.find.concepts import Bank, ConceptModel, elastic_net, integrated_gradients, separating


@pytest.mark.parametrize("steps", [1, 7])
def test_attributions_of_a_linear_score_are_exact(steps):
    """(x_j - x'_j) w_j, whatever the number of steps."""
    torch.manual_seed(0)
    w, x, start = torch.randn(5), torch.randn(3, 5), torch.randn(3, 5)
    made, residual, difference = integrated_gradients(lambda at: at["x"] @ w, {"x": x}, {"x": start}, steps)
    torch.testing.assert_close(made["x"], (x - start) * w)
    torch.testing.assert_close(difference, (x - start) @ w)
    assert residual.abs().max() < 1e-5


def test_attributions_of_a_square_by_hand():
    """F = x1^2 + x1 x2 from (0, 0) to (2, 3): midpoints are exact for gradients linear in s, 4 + 3 and 3."""
    made, residual, difference = integrated_gradients(
        lambda at: at["x"][:, 0] ** 2 + at["x"].prod(1),
        {"x": torch.tensor([[2.0, 3.0]])},
        {"x": torch.zeros(1, 2)},
        4,
    )
    torch.testing.assert_close(made["x"], torch.tensor([[7.0, 3.0]]))
    assert (residual.item(), difference.item()) == (pytest.approx(0, abs=1e-5), 10.0)


def test_attributions_add_up_as_steps_grow():
    """A kink leaves an error of order 1 / steps."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1)).double()
    x = 2 * torch.randn(64, 4, dtype=torch.float64)
    error = [
        integrated_gradients(lambda at: net(at["x"])[:, 0], {"x": x}, {"x": 0 * x}, steps)[1]
        .abs()
        .mean()
        .item()
        for steps in (5, 50, 500)
    ]
    assert error[1] < error[0] / 4
    assert error[2] < error[1] / 4
    assert error[2] < 2e-3


@pytest.fixture(scope="module")
def planted():
    """Six independent concepts, mixed into six features; the label is made of the first two."""
    rng = np.random.default_rng(0)
    present = rng.integers(2, size=(300, 6))
    label = present[:, 0] + 2 * present[:, 1]
    mixing = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    return (2 * present - 1 + 0.2 * rng.normal(size=(300, 6))) @ mixing, present, label, mixing


def test_directions_of_labeled_concepts_are_found(planted):
    x, present, _, mixing = planted
    for j in range(6):
        normal, offset = separating(torch.tensor(x), present[:, j].astype(bool))
        assert normal.norm().item() == pytest.approx(1.0)
        assert float(normal @ torch.tensor(mixing[j])) > 0.98
        assert abs(float(offset)) < 0.2


def fitted(planted, labels=None, sparsity=0.3):
    x, present, label, _ = planted
    embedded = torch.tensor(x)
    bank = Bank.labeled(embedded, {f"c{j}": present[:, j] == 1 for j in range(6)}).standardized(embedded)
    return ConceptModel.fit(bank, embedded, torch.tensor(label if labels is None else labels), sparsity, 0.99)


def test_planted_concepts_carry_the_classes(planted):
    """Of six concepts the two that make the label are the top two of every class; shuffled labels have none."""
    model = fitted(planted)
    assert model.bank.names == ["c0", "c1", "c2", "c3", "c4", "c5"]
    assert model.accuracy > 0.95
    for label in range(4):
        assert set(model.top(label, 2).tolist()) == {0, 1}
    # Class 2 has the second concept and lacks the first.
    assert model.weight[2, 1] > 0 > model.weight[2, 0]
    shuffled = fitted(planted, np.random.default_rng(0).permutation(planted[2]))
    assert shuffled.weight.abs().max() < 0.2 * model.weight.abs().max()
    assert shuffled.accuracy < 0.45


def test_a_strong_penalty_leaves_the_majority(planted):
    model = fitted(planted, sparsity=1e4)
    assert not model.weight.any()
    assert model.accuracy == model.majority == pytest.approx(np.bincount(planted[2]).max() / 300)


def test_activations_are_standardized(planted):
    embedded = torch.tensor(planted[0])
    a = fitted(planted).bank.activations(embedded)
    torch.testing.assert_close(a.mean(0), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(a.std(0, correction=0), torch.ones(6, dtype=torch.float64))


def test_elastic_net_against_scikit_learn(planted):
    """Its objective is C * sum CE + l1_ratio |W|_1 + (1 - l1_ratio) / 2 |W|^2."""
    x, _, label, _ = planted
    strength, mix = 0.02, 0.5
    weight, bias = elastic_net(torch.tensor(x), torch.tensor(label), strength, mix)
    total = strength * mix + 2 * strength * (1 - mix)
    theirs = LogisticRegression(
        solver="saga", l1_ratio=strength * mix / total, C=1 / (len(x) * total), max_iter=20_000, tol=1e-9,
    ).fit(x, label)  # fmt: skip

    def objective(w, b):
        w, b = torch.as_tensor(w), torch.as_tensor(b)
        fit = F.cross_entropy(torch.tensor(x) @ w.T + b, torch.tensor(label))
        return float(fit + strength * (mix * w.abs().sum() + (1 - mix) * w.square().sum()))

    ours, reference = objective(weight, bias), objective(theirs.coef_, theirs.intercept_)
    assert ours == pytest.approx(reference, rel=1e-4)
    torch.testing.assert_close(weight, torch.as_tensor(theirs.coef_), rtol=0, atol=5e-3)


def test_principal_directions_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 5)) * [5, 3, 2, 1, 0] + 7
    bank = Bank.principal(torch.tensor(x), 4)
    theirs = PCA(4).fit(x)
    assert bank.names == ["direction 1", "direction 2", "direction 3", "direction 4"]
    cosines = (bank.directions.numpy() * theirs.components_).sum(1)
    np.testing.assert_allclose(np.abs(cosines), 1, rtol=1e-9)
    np.testing.assert_allclose(
        bank.activations(torch.tensor(x)).numpy(), theirs.transform(x) * np.sign(cosines)
    )
    assert len(Bank.principal(torch.tensor(x), 5).names) == 4  # the fifth column is constant


def test_a_concept_twice_is_one(planted):
    """Turned round it is the same concept."""
    x, present, *_ = planted
    columns = {"a": present[:, 0] == 1, "b": present[:, 1] == 1, "not b": present[:, 1] == 0}
    assert Bank.labeled(torch.tensor(x), columns).names == ["a", "b"]


def test_the_confused_class_by_hand():
    """Contributions over the top two concepts of class 0: (3, 4); its cosines with the others are 0.96, -0.6 and 0.9996."""
    rows = [[3.0, 4.0, 0.1], [4.0, 3.0, 9.0], [-1.0, 0.0, 0.0], [6.0, 8.5, 0.0]]
    model = ConceptModel(
        Bank(["a", "b", "c"], torch.eye(3), torch.zeros(3)), torch.eye(4), torch.tensor(rows), 1, 1
    )
    assert model.confused(0, 2, torch.tensor([0, 1, 2, 3])) == 3
    assert model.confused(0, 2, torch.tensor([0, 1, 2])) == 1
    with pytest.raises(BadInput, match="no class can be confused with class 0: there are rows of it only"):
        model.confused(0, 2, torch.tensor([0]))
