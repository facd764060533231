from typing import Any

import torch
import torch.nn.functional as F

from expunge.methods.gradient_ascent import GradientAscent


def close(found, expected):
    assert set(found) == set(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=2e-6)


def test_the_step_climbs_the_cross_entropy_of_the_forget_set(
    classification, tensors, gradient, step_gradient
):
    x, y = tensors(classification, "forget")
    model = classification.target
    close(step_gradient(classification, "gradient-ascent"), gradient(model, -F.cross_entropy(model(x), y)))


def test_for_regressors_the_step_climbs_half_the_squared_error(regression, tensors, gradient, step_gradient):
    x, y = tensors(regression, "forget")
    model = regression.target
    expected = gradient(model, -0.5 * (model(x) - y).square().mean())
    close(step_gradient(regression, "gradient-ascent"), expected)


def test_batch_norm_statistics_are_frozen_unless_asked_for(normalized):
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 4}
    frozen = GradientAscent(**settings).forget(normalized).model.state_dict()
    updated = GradientAscent(batchnorm="update", **settings).forget(normalized).model.state_dict()
    for name, before in normalized.target.state_dict().items():
        if "running" in name:
            assert torch.equal(frozen[name], before)
            assert not torch.equal(updated[name], before)


def test_many_steps_raise_the_loss_of_the_forget_set(classification, tensors):
    x, y = tensors(classification, "forget")
    made = GradientAscent(epochs=10, batch_size=5).forget(classification)
    with torch.no_grad():
        before, after = (F.cross_entropy(m(x), y) for m in (classification.target, made.model))
    assert after > before + 1
