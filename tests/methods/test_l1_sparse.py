import pytest
import torch
import torch.nn.functional as F

from expunge.methods.fine_tune import FineTune
from expunge.methods.l1_sparse import L1Sparse


def test_schedule():
    method = L1Sparse(gamma=1.0, epochs=10, free_epochs=2)
    expected = [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0, 0]
    assert [method.penalty_weight(e) for e in range(10)] == pytest.approx(expected)


def test_more_free_epochs_than_epochs_never_reward_large_weights():
    method = L1Sparse(gamma=1.0, epochs=2, free_epochs=5)
    assert [method.penalty_weight(e) for e in range(2)] == [0, 0]


def test_gradient_adds_the_sign_of_every_parameter(classification, tensors, gradient, step_gradient):
    x, y = tensors(classification, "retain")
    model = classification.target
    data = gradient(model, F.cross_entropy(model(x), y))
    found = step_gradient(classification, "l1-sparse", gamma=0.3)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], data[name] + 0.3 * parameter.sign(), rtol=1e-4, atol=2e-6)


def test_without_penalty_it_is_fine_tuning(classification):
    settings = {"epochs": 3, "lr": 0.05, "batch_size": 8}
    sparse = L1Sparse(gamma=0.0, **settings).forget(classification).model.state_dict()
    tuned = FineTune(**settings).forget(classification).model.state_dict()
    assert all(torch.equal(sparse[k], tuned[k]) for k in tuned)


def test_the_penalty_shrinks_the_weights(classification):
    settings = {"epochs": 20, "lr": 0.05, "batch_size": 8, "weight_decay": 0.0}
    norms = [
        sum(
            p.abs().sum().item()
            for p in L1Sparse(gamma=g, **settings).forget(classification).model.parameters()
        )
        for g in (0.0, 0.003, 0.03)
    ]
    assert norms[0] > norms[1] > norms[2]
