"""The shared loop: what must not change a trajectory, interruptions, masks, pairs against a slow loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expunge.methods import METHODS, Workplace, checkpoint
from expunge.methods.gradient_ascent import GradientAscent
from expunge.methods.gradient_difference import GradientDifference
from expunge.methods.objective import Objective, State
from expunge.methods.salun import SalUn
from expunge.problem import Problem

OBJECTIVES = sorted(n for n, m in METHODS.items() if issubclass(m, Objective) and m.families is None)
FAST = {"epochs": 2, "lr": 0.01, "batch_size": 8, "optimizer": "sgd"}


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def run(problem: Problem, name: str, workplace: Workplace | None = None, **settings: object) -> Tensor:
    method = METHODS[name](**{**FAST, **settings})
    return weights(method.forget(problem, workplace or Workplace(seed=5)).model)


@pytest.mark.parametrize("family", ["classification", "regression"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_do_not_change_the_trajectory(
    name: str, family: str, request: pytest.FixtureRequest
) -> None:
    problem = request.getfixturevalue(family)
    whole, pieces = run(problem, name), run(problem, name, micro_batch_size=1)
    assert not torch.equal(whole, weights(problem.target))
    torch.testing.assert_close(whole, pieces, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["kl-minimization", "npo", "scrub", "bad-teacher"])
def test_precomputed_reference_equals_live_reference(name: str, classification: Problem) -> None:
    stored = run(classification, name, Workplace(seed=5, reference="precompute"))
    live = run(classification, name, Workplace(seed=5, reference="live"))
    torch.testing.assert_close(stored, live, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_same_seed_same_weights(name: str, dropout: Problem) -> None:
    first, second = run(dropout, name), run(dropout, name)
    assert torch.equal(first, second)
    assert not torch.equal(first, run(dropout, name, Workplace(seed=6)))


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("settings", [
    ("gradient-difference", {"optimizer": "adam"}),
    ("salun", {"optimizer": "adam", "mix": "mixed"}),
    ("scrub", {"optimizer": "sgd", "rewind": True, "msteps": 1}),
], ids=lambda s: s[0])  # fmt: skip
def test_an_interrupted_run_ends_with_the_same_weights(
    settings: tuple[str, dict[str, object]], dropout: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    name, more = settings
    whole = Workplace(seed=5)
    expected = run(dropout, name, whole, **more)
    n_steps = len(whole.log)
    assert n_steps >= 8
    for interrupted_at in (1, 2, n_steps // 2, n_steps // 2 + 1, n_steps):

        def stop(entry: object, at: int = interrupted_at) -> None:
            if entry["step"] == at:  # pyright: ignore
                raise Interrupted

        folder = tmp_path / str(interrupted_at)
        with pytest.raises(Interrupted):
            run(dropout, name, Workplace(seed=5, checkpoint=folder, on_step=stop), **more)
        resumed = Workplace(seed=5, checkpoint=folder)
        assert torch.equal(run(dropout, name, resumed, **more), expected)
        # What was done before the interruption is not done again.
        assert len(resumed.log) == n_steps - interrupted_at + 1
        assert not folder.exists()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_masked_weights_stay_bitwise_the_same(optimizer: Any, classification: Problem) -> None:
    method = SalUn(
        rho=0.3, epochs=20, lr=0.01, batch_size=8, optimizer=optimizer, momentum=0.9, weight_decay=0.1
    )
    mask = method.mask(classification, classification.target, State(classification, {}, Workplace()))
    made = method.forget(classification).model
    before = dict(classification.target.named_parameters())
    for name, after in made.named_parameters():
        assert torch.equal(after[~mask[name]], before[name][~mask[name]])
        if mask[name].any():
            assert not torch.equal(after[mask[name]], before[name][mask[name]])


def test_a_paired_pass_equals_a_slow_loop(classification: Problem) -> None:
    """Retain rows once in batches of 8, forget rows alongside, starting again when they run out."""
    alpha, lr, momentum, decay = 0.7, 0.05, 0.9, 0.01
    made = GradientDifference(
        alpha=alpha, epochs=2, lr=lr, momentum=momentum, weight_decay=decay, batch_size=8, shuffle=False
    ).forget(classification)

    rows: Any = classification.train
    x = torch.tensor([[row[c] for c in "abc"] for row in rows], dtype=torch.float32)
    y = torch.tensor(rows["label"])
    forget, retain = torch.arange(10), torch.arange(10, 36)
    layers = dict(classification.target.named_parameters())
    names = ["layers.0.weight", "layers.0.bias", "head.weight", "head.bias"]
    theta = [layers[n].detach().clone().requires_grad_() for n in names]
    velocity = [torch.zeros_like(t) for t in theta]

    def loss(rows: Tensor) -> Tensor:
        hidden = (x[rows] @ theta[0].T + theta[1]).relu()
        logits = hidden @ theta[2].T + theta[3]
        return -(logits.log_softmax(-1)[torch.arange(len(rows)), y[rows]]).mean()

    for _ in range(2):
        for step, start in enumerate(range(0, 26, 8)):
            forget_rows = [forget[:8], forget[8:]][step % 2]
            total = alpha * loss(retain[start : start + 8]) - (1 - alpha) * loss(forget_rows)
            gradients = torch.autograd.grad(total, theta)
            with torch.no_grad():
                for i, gradient in enumerate(gradients):
                    gradient = gradient + decay * theta[i]
                    velocity[i] = momentum * velocity[i] + gradient
                    theta[i] -= lr * velocity[i]
    found = dict(made.model.named_parameters())
    for name, expected in zip(names, theta, strict=True):
        torch.testing.assert_close(found[name], expected, rtol=0, atol=2e-6)


def test_learning_rate_zero_changes_nothing(normalized: Problem) -> None:
    made = GradientAscent(lr=0.0, epochs=2, batch_size=4).forget(normalized)
    assert torch.equal(weights(made.model), weights(normalized.target))
    assert made.cost.changed == 0
