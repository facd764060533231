import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import nn

from expunge.data.benchmarks.digits import Digits
from expunge.evidence.collect import collect
from expunge.methods import Workplace
from expunge.methods.loop import fit
from expunge.methods.objective import State
from expunge.methods.saflex import Saflex, alignments


@pytest.fixture
def wide(classification):
    """The target in double precision, with 12 clean rows and 10 to train on."""

    def rows(split, n):
        batch = classification.batches(split).take(torch.arange(n))
        inputs = {name: value.double() for name, value in batch.inputs.items()}
        return type(batch)(batch.ids, inputs, batch.targets, batch.mask)

    model = classification.fresh_model(0).double()
    model.load_state_dict(classification.target.state_dict())
    return classification.family, model, rows("retain", 12), rows("forget", 10)


def flat(loss, parameters):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(parameters))])


def moved(model, direction, by):
    """Log-probabilities of `model` with its weights moved along a flat direction."""
    weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach()

    def run(x):
        torch.nn.utils.vector_to_parameters(weights + by * direction, model.parameters())
        with torch.no_grad():
            made = model(x).log_softmax(-1)
        torch.nn.utils.vector_to_parameters(weights, model.parameters())
        return made

    return run


def test_alignment_is_the_inner_product_row_by_row(wide):
    family, model, clean, batch = wide
    (x,), (v,) = batch.inputs.values(), clean.inputs.values()
    g_v = flat(F.cross_entropy(model(v), clean.targets[:, 0]), model.parameters())
    expected = torch.stack(
        [
            torch.stack(
                [
                    g_v @ flat(F.cross_entropy(model(x[i : i + 1]), torch.tensor([k])), model.parameters())
                    for k in range(3)
                ]
            )
            for i in range(10)
        ]
    )
    torch.testing.assert_close(alignments(family, model, clean, batch), expected)
    # Over the last layer alone: the same inner product of its part of the gradients.
    g_h = flat(F.cross_entropy(model(v), clean.targets[:, 0]), model.head.parameters())
    one = g_h @ flat(F.cross_entropy(model(x[:1]), torch.tensor([2])), model.head.parameters())
    torch.testing.assert_close(alignments(family, model, clean, batch, "head")[0, 2], one)


def test_alignment_matches_central_differences(wide):
    family, model, clean, batch = wide
    (x,), (v,) = batch.inputs.values(), clean.inputs.values()
    g_v = flat(F.cross_entropy(model(v), clean.targets[:, 0]), model.parameters())
    numeric = (moved(model, g_v, 1e-5)(x) - moved(model, g_v, -1e-5)(x)) / 2e-5
    torch.testing.assert_close(alignments(family, model, clean, batch), -numeric, rtol=0, atol=1e-8)


def test_score_identity(wide):
    """The expected derivative of the log-probability is 0 in every row."""
    family, model, clean, batch = wide
    (x,) = batch.inputs.values()
    with torch.no_grad():
        p = model(x).softmax(-1)
    found = alignments(family, model, clean, batch)
    assert found.abs().max() > 1e-3
    torch.testing.assert_close((p * found).sum(1), torch.zeros(10, dtype=torch.float64), rtol=0, atol=1e-12)


def test_rows_help_themselves(wide):
    """Over the clean rows under their own labels the mean alignment is the squared norm of their gradient."""
    family, model, clean, _ = wide
    (v,) = clean.inputs.values()
    g_v = flat(F.cross_entropy(model(v), clean.targets[:, 0]), model.parameters())
    own = alignments(family, model, clean, clean).gather(1, clean.targets)
    torch.testing.assert_close(own.mean(), g_v @ g_v)


def test_a_small_step_lowers_the_clean_loss_as_predicted(wide):
    """By lr mean_i w_i sum_k Y_ik A_ik, up to an error that shrinks with the square of lr."""
    family, model, clean, batch = wide
    (x,), (v,) = batch.inputs.values(), clean.inputs.values()
    found = alignments(family, model, clean, batch)
    labels, weights = Saflex().extrapolate(found, batch.targets[:, 0], torch.ones(10, dtype=torch.bool))
    step = flat(-(weights * (labels * model(x).log_softmax(-1)).sum(1)).mean(), model.parameters())
    predicted = (weights * (labels * found).sum(1)).mean()
    assert predicted > 0

    def clean_loss(lr):
        return F.nll_loss(moved(model, -step, lr)(v), clean.targets[:, 0])

    errors = [float((clean_loss(0.0) - clean_loss(lr)) - lr * predicted) for lr in (1e-2, 1e-3)]
    assert abs(errors[0]) < 0.2 * 1e-2 * predicted
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)


def test_labels_and_weights_by_hand():
    """Alignments (3, 0, -3) have standard deviation sqrt(6): a = (1.2247, 0, -1.2247)."""
    alignment, own = torch.tensor([[3.0, 0.0, -3.0]] * 2), torch.tensor([2, 2])
    trusted = torch.tensor([True, False])
    labels, weights = Saflex(tau=1.0, beta=2.0, exclude_own=False).extrapolate(alignment, own, trusted)
    a = 1.5**0.5
    expected = np.exp([[a, 0, 2 - a], [a, 0, -a]])
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(labels.numpy(), expected, rtol=1e-5)
    assert weights.tolist() == [1.0, 1.0]  # (3.403 - 2.171) / 6.574 * a and more, both above 0
    labels, _ = Saflex(tau=1.0, beta=2.0).extrapolate(alignment, own, trusted)
    assert labels[1].tolist() == pytest.approx(
        [np.exp(a) / (1 + np.exp(a)), 1 / (1 + np.exp(a)), 0.0], rel=1e-5
    )
    assert labels[0, 2] > 0.3


def test_limits_of_labels():
    torch.manual_seed(0)
    alignment, own = torch.randn(40, 5), torch.randint(5, (40,))
    trusted = torch.ones(40, dtype=torch.bool)
    labels, weights = Saflex(beta=1e6).extrapolate(alignment, own, trusted)
    assert torch.equal(labels, F.one_hot(own, 5).float())
    assert torch.equal(weights, (alignment.gather(1, own[:, None])[:, 0] >= 0).float())
    labels, weights = Saflex(beta=0.0, tau=1e-6).extrapolate(alignment, own, trusted)
    assert torch.equal(labels, F.one_hot(alignment.argmax(1), 5).float())
    assert torch.equal(weights, (alignment.max(1).values >= 0).float())


def test_flipped_labels_lose_weight(classification):
    """Half of the rows with a wrong label, half with the right one, at the trained target."""
    batch, clean = (
        classification.batches(s).take(torch.arange(n)) for s, n in (("forget", 10), ("retain", 26))
    )
    wrong = (batch.targets[:, 0] + 1) % 3
    trusted = torch.ones(10, dtype=torch.bool)
    found = alignments(classification.family, classification.target, clean, batch)
    method = Saflex(beta=1e6)
    kept = [method.extrapolate(found, own, trusted)[1] for own in (wrong, batch.targets[:, 0])]
    assert kept[0].mean() < kept[1].mean() - 0.3
    own = torch.cat([found.gather(1, y[:, None])[:, 0] for y in (wrong, batch.targets[:, 0])])
    assert roc_auc_score([0] * 10 + [1] * 10, own.numpy()) > 0.7


@pytest.mark.parametrize("exclude", [True, False])
def test_the_first_step_follows_the_definition(classification, tensors, gradient, step_gradient, exclude):
    settings = {"beta": 1.0, "tau": 0.3, "validation_rows": 9, "exclude_own": exclude}
    state = State(classification, {}, Workplace())
    Saflex(**settings).prepare(classification, classification.target, state)
    chosen = state.kept["validation"]
    assert len(chosen) == 9
    (xf, yf), (xr, yr), model = (
        *(tensors(classification, s) for s in ("forget", "retain")),
        classification.target,
    )
    x, y = torch.cat([xf, xr]), torch.cat([yf, yr])
    g_v = flat(F.cross_entropy(model(xr[chosen]), yr[chosen]), model.parameters())
    loss = x.new_zeros(())
    for i in range(36):
        if i >= 10 and i - 10 in chosen.tolist():
            continue
        logp = model(x[i : i + 1]).log_softmax(-1)[0]
        a = torch.stack(
            [
                g_v @ flat(F.cross_entropy(model(x[i : i + 1]), torch.tensor([k])), model.parameters())
                for k in range(3)
            ]
        )
        a = a / a.std(correction=0)
        score = a.clone()
        if i >= 10:
            score[y[i]] += 1.0
        elif exclude:
            score[y[i]] = -torch.inf
        soft = (score / 0.3).softmax(-1)
        if (soft * a).sum() >= 0:
            loss = loss - (soft * logp).sum() / 36
    made = step_gradient(classification, "saflex", **settings)
    for name, value in gradient(model, loss).items():
        torch.testing.assert_close(made[name], value, rtol=1e-3, atol=1e-5)


def test_where_no_row_helps_nothing_moves(classification):
    made = Saflex(margin=1e3, momentum=0.0, weight_decay=0.0).forget(classification)
    assert made.cost.changed == 0


def test_modes_and_statistics_of_batch_norm_stay(normalized):
    model = normalized.fresh_model(0).train()
    model.convs[0].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    batch = normalized.batches("forget").take(torch.arange(4))
    alignments(normalized.family, model, batch, batch)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_attention_can_be_differentiated_twice(classification):
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(1, 8), nn.Linear(8, 3)

        def forward(self, features):
            x = self.embed(features.unsqueeze(-1))  # [B, 3, 8]
            return self.head(F.scaled_dot_product_attention(x, x, x).mean(1))

    torch.manual_seed(0)
    batch = classification.batches("retain").take(torch.arange(6))
    found = alignments(classification.family, Attending(), batch, batch)
    assert torch.isfinite(found).all()
    assert found.gather(1, batch.targets).mean() > 0


def test_a_class_is_forgotten_and_the_others_are_kept():
    problem = Digits(model="mlp").problem()
    target = fit(problem, problem.fresh_model(0), "train", problem.recipe, Workplace())
    made = Saflex(lr=0.03).forget(problem.with_model(target)).model

    def accuracy(model, split):
        return collect(problem.family, model, problem.splits[split], ["correct"])["correct"].mean()

    assert accuracy(target, "forget") > 0.95
    assert accuracy(made, "forget") < 0.05
    assert accuracy(made, "retain") > accuracy(target, "retain") - 0.02
