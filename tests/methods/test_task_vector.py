from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from expunge.families import Regressor, Table
from expunge.methods.gradient_ascent import GradientAscent
from expunge.methods.task_vector import TaskVector
from expunge.problem import Problem

SETTINGS: dict[str, Any] = {"epochs": 3, "lr": 0.05, "batch_size": 8}


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_alpha_zero_leaves_the_weights_alone(classification):
    assert TaskVector(alpha=0.0, **SETTINGS).forget(classification).cost.changed == 0


def test_linear_in_alpha(classification):
    before = parameters(classification.target)
    quarter, one = (
        parameters(TaskVector(alpha=a, **SETTINGS).forget(classification).model) for a in (0.25, 1.0)
    )
    assert (one - before).norm() > 1e-2
    torch.testing.assert_close(4 * (quarter - before), one - before, rtol=1e-3, atol=1e-6)


def test_one_step_of_fine_tuning_makes_one_step_of_ascent(classification):
    step = {"epochs": 1, "lr": 0.1, "batch_size": 1000, "momentum": 0.0, "weight_decay": 0.0}
    edited = TaskVector(alpha=1.0, **step).forget(classification)
    climbed = GradientAscent(**step).forget(classification)
    torch.testing.assert_close(parameters(edited.model), parameters(climbed.model), rtol=0, atol=1e-6)


def test_forget_loss_is_quadratic_in_alpha_for_a_linear_model():
    """After a converged fine-tune: L(alpha) = L(w_ft) + (1 + alpha)^2 tau' H tau / 2, H the Hessian."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 2))
    train = Dataset.from_dict(
        {
            "id": [str(i) for i in range(12)],
            "a": x[:, 0],
            "b": x[:, 1],
            "y": x @ [1.0, -2.0] + rng.normal(size=12),
        }
    )
    torch.manual_seed(0)
    model = nn.Linear(2, 1, bias=False)
    forget = tuple(train["id"][:6])
    problem = Problem("line", Regressor(Table(["a", "b"]), "y"), train, forget, model=model)
    xf = torch.tensor(x[:6], dtype=torch.float32)
    yf = torch.tensor(train["y"][:6], dtype=torch.float32)
    hessian = xf.T @ xf / 6
    best = torch.linalg.solve(hessian, xf.T @ yf / 6)
    tau = best - model.weight.detach()[0]

    def loss(w):
        return 0.5 * (xf @ w - yf).square().mean()

    for alpha in (0.5, 1.0):
        made = TaskVector(alpha=alpha, epochs=250, lr=0.3, batch_size=6, momentum=0.5).forget(problem)
        expected = loss(best) + (1 + alpha) ** 2 * (tau @ hessian @ tau) / 2
        torch.testing.assert_close(loss(parameters(made.model)), expected, rtol=1e-3, atol=1e-5)


def test_batch_norm_statistics_are_those_of_the_edited_model_on_the_retain_set(normalized):
    made = TaskVector(alpha=0.5, **{**SETTINGS, "batch_size": 1000}).forget(normalized)
    model: Any = made.model
    x = torch.tensor(normalized.retain["image"])
    with torch.no_grad():
        activation = model.convs[0][0](x)
    norm = model.convs[0][1]
    torch.testing.assert_close(norm.running_mean, activation.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, activation.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1
    assert not model.training


def test_batch_norm_statistics_stay_without_a_retain_set(normalized):
    from dataclasses import replace

    forget_only = replace(normalized, forget_ids=tuple(normalized.train["id"]))
    made = TaskVector(alpha=0.5, **SETTINGS).forget(forget_only)
    for name, before in normalized.target.named_buffers():
        assert torch.equal(made.model.get_buffer(name), before)
    assert "without a retain set" in made.notes[-1]


def test_the_note_says_how_far_the_weights_moved(classification):
    made = TaskVector(alpha=0.5, **SETTINGS).forget(classification)
    before, after = parameters(classification.target), parameters(made.model)
    assert made.notes[0].startswith(f"the edit is {float((after - before).norm() / before.norm()):.3g} of")
