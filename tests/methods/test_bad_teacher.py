import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from expunge.methods.bad_teacher import BadTeacher
from expunge.problem import Problem


@pytest.fixture
def teacher(classification, monkeypatch):
    made = classification.fresh_model(77).eval()
    monkeypatch.setattr(Problem, "fresh_model", lambda self, seed: made)
    return made


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_first_gradient(classification, teacher, tensors, gradient, step_gradient, temperature):
    """Retain rows pull nowhere at first; forget rows towards the incompetent teacher."""
    x, _ = tensors(classification, "forget")
    model = classification.target
    bad = Categorical(logits=teacher(x).detach() / temperature)
    visited = 10 + round(0.3 * 26)
    loss = kl_divergence(bad, Categorical(logits=model(x) / temperature)).sum() / visited
    found = step_gradient(classification, "bad-teacher", temperature=temperature)
    for name, value in gradient(model, loss).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-6)


def test_element_mean_divides_by_the_classes(classification, step_gradient):
    whole = step_gradient(classification, "bad-teacher")
    element = step_gradient(classification, "bad-teacher", reduction="elementmean")
    for name, value in whole.items():
        torch.testing.assert_close(element[name], value / 3, rtol=1e-3, atol=1e-6)


def test_forgets_towards_the_teacher_and_keeps_the_rest(classification, teacher, tensors):
    made = BadTeacher(epochs=30, lr=0.01, batch_size=16, retain_fraction=1.0).forget(classification)
    with torch.no_grad():
        xf, xr = tensors(classification, "forget")[0], tensors(classification, "retain")[0]
        bad, good = Categorical(logits=teacher(xf)), Categorical(logits=classification.target(xr))
        before = kl_divergence(bad, Categorical(logits=classification.target(xf))).mean()
        after = kl_divergence(bad, Categorical(logits=made.model(xf))).mean()
        kept = kl_divergence(good, Categorical(logits=made.model(xr))).mean()
    assert after < 0.8 * before
    assert kept < after


def test_only_the_asked_share_of_the_retain_set_is_visited(classification):
    made = BadTeacher(epochs=3, retain_fraction=0.5, batch_size=1).forget(classification)
    assert len(made.log) == 3 * (10 + 13)


def test_regressors_are_pulled_by_half_the_squared_distance(
    regression, tensors, gradient, step_gradient, monkeypatch
):
    teacher = regression.fresh_model(77).eval()
    monkeypatch.setattr(Problem, "fresh_model", lambda self, seed: teacher)
    x, _ = tensors(regression, "forget")
    model = regression.target
    loss = 0.5 * (teacher(x).detach() - model(x)).square().sum() / (10 + 8)
    found = step_gradient(regression, "bad-teacher")
    for name, value in gradient(model, loss).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-6)
