import math
from typing import Any

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from expunge.families import Batch, Outputs
from expunge.methods.gradient_ascent import GradientAscent
from expunge.methods.kl_minimization import KLMinimization


def test_divergence_of_a_worked_example(classification):
    """p_ref = (.5, .5), p = (.75, .25): KL = .5 ln(.5/.75) + .5 ln(.5/.25) = 0.1438; gradient p - p_ref."""
    logits = torch.tensor([[[math.log(3.0), 0.0]]], requires_grad=True)
    batch = Batch(["one"], {}, torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool))
    value = classification.family.divergence(Outputs(torch.zeros(1, 1, 2)), Outputs(logits), batch)
    assert value.item() == pytest.approx(0.1438, abs=5e-5)
    value.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[[0.25, -0.25]]]))


def test_the_first_step_is_gradient_ascent(classification, step_gradient):
    """The model is its own reference, so that the divergence and its gradient are zero."""
    held = step_gradient(classification, "kl-minimization", alpha=5.0)
    ascent = step_gradient(classification, "gradient-ascent")
    for name in ascent:
        torch.testing.assert_close(held[name], ascent[name], rtol=0, atol=1e-6)


def test_without_weight_it_is_gradient_ascent_throughout(classification):
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 4}
    held = KLMinimization(alpha=0.0, **settings).forget(classification).model.state_dict()
    ascent = GradientAscent(**settings).forget(classification).model.state_dict()
    assert all(torch.equal(held[k], ascent[k]) for k in ascent)


def test_the_logged_divergence_is_that_from_the_target(classification, tensors):
    settings: dict[str, Any] = {"alpha": 2.0, "lr": 0.3, "batch_size": 1000, "momentum": 0.0}
    after_one_step = KLMinimization(epochs=1, **settings).forget(classification).model
    log = KLMinimization(epochs=2, **settings).forget(classification).log
    x, _ = tensors(classification, "retain")
    with torch.no_grad():
        p, q = (Categorical(logits=m(x)) for m in (classification.target, after_one_step))
        expected = 2.0 * kl_divergence(p, q).mean().item()
    assert expected > 1e-3
    assert log[1]["divergence"] == pytest.approx(expected, rel=1e-4)
