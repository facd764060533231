from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.attacks import Scene
from expunge.attacks.detach_guard import DetachGuard, detached
from expunge.attacks.knowledge import knowledge
from expunge.families.combined import Combined, Difference, Mean
from expunge.methods.base import Workplace
from expunge.methods.loop import fit
from expunge.methods.lora import Adapters, LoRA
from expunge.problem import Problem
from expunge.testing.problems import tiny_problem


class Silenced(nn.Module):
    """An output filter: whatever the model would say, the end of the sequence is likelier."""

    def __init__(self, model: nn.Module, end: int) -> None:
        super().__init__()
        self.model, self.end = model, end

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits.clone()
        logits[..., self.end] += 50
        return logits


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny_problem("causal_lm")


def scores(problem: Problem, model: nn.Module, **more: Any) -> dict[str, float]:
    found = DetachGuard().attack(Scene(problem, model, Workplace(), **more))
    assert {s.status for s in found} == {"ok"}
    return {s.metric.removeprefix("detach-guard-"): float(s.value or 0.0) for s in found}


def known(problem: Problem, model: nn.Module) -> float:
    return float(knowledge(problem, model, "forget").mean())


def refusing(problem: Problem) -> nn.Module:
    """The target with adapters that were trained to answer the forgotten questions with another person's answer."""
    model = copy.deepcopy(problem.target)
    adapters = Adapters(model, LoRA(r=8), problem.family.head(model))
    adapters.merge  # noqa: B018 (left apart, as a model is served with adapters)
    rows = problem.forget.remove_columns("answer").add_column("answer", ["Bern."] * len(problem.forget))  # pyright: ignore
    taught = Problem("refusal", problem.family, rows, (rows["id"][0],), recipe=problem.recipe)
    assert problem.recipe is not None
    recipe = problem.recipe.replace(epochs=60)
    return fit(taught, model, "train", recipe, Workplace()).eval()


def test_refusing_adapters_are_taken_off(problem: Problem) -> None:
    pytest.importorskip("peft")
    model = refusing(problem)
    before = known(problem, model)
    full = known(problem, problem.target)
    assert before < 0.5 * full
    found = scores(problem, model)
    assert found == {"knowledge": pytest.approx(full), "gain": pytest.approx(full - before), "parts": 1.0}


def test_adapters_handed_over_apart_are_left_out(memorized: Problem) -> None:
    one, other = (expunge.forget(memorized, "retrain", seed=seed).model for seed in (0, 1))
    found = scores(memorized, one, underneath=memorized.target)
    assert found["knowledge"] == known(memorized, memorized.target) == 1.0
    # A base that never knew gives nothing.
    clean = scores(memorized, one, underneath=other)
    assert clean["knowledge"] == max(known(memorized, one), known(memorized, other)) < 0.8


def test_an_output_filter_is_taken_off(problem: Problem) -> None:
    model = Silenced(copy.deepcopy(problem.target), problem.family.end)  # pyright: ignore
    assert known(problem, model) == 0
    found = scores(problem, model)
    assert found["knowledge"] == found["gain"] == pytest.approx(known(problem, problem.target))


def test_steering_hooks_are_taken_off(problem: Problem) -> None:
    model = copy.deepcopy(problem.target)
    model.model.norm.register_forward_hook(lambda _module, _inputs, output: -output)  # pyright: ignore
    found = scores(problem, model)
    assert found["knowledge"] == pytest.approx(known(problem, problem.target))
    assert found["gain"] > 0.3
    assert len(model.model.norm._forward_hooks) == 1  # pyright: ignore


def test_composed_models_show_their_parts(problem: Problem) -> None:
    """Offset by an assistant that knows: each part is tried, and guards upon guards are taken off one by one."""
    assistant = copy.deepcopy(problem.target)
    offset = Combined([copy.deepcopy(problem.target), assistant], Difference(weight=-1.0, rho=0.0))
    assert known(problem, offset) < 0.2
    found, full = scores(problem, offset), known(problem, problem.target)
    assert found["knowledge"] == pytest.approx(full)
    assert found["gain"] == pytest.approx(full - known(problem, offset)) and found["parts"] == 2
    twice = Combined([offset, copy.deepcopy(offset)], Mean())
    assert len(list(detached(twice))) == 6


def test_a_retrained_model_has_nothing_to_detach(problem: Problem) -> None:
    retrained = expunge.forget(problem, "retrain").model
    found = scores(problem, retrained)
    assert found == {"knowledge": pytest.approx(known(problem, retrained)), "gain": 0.0, "parts": 0.0}
    # An honest ensemble has parts, but none that knows more.
    parts = [expunge.forget(problem, "retrain", seed=seed).model for seed in (0, 1)]
    ensemble = scores(problem, Combined(parts, Mean()))
    assert ensemble["parts"] == 2 and ensemble["gain"] < 0.15


def test_networks_are_not_taken_apart() -> None:
    for family in ("classifier", "regressor", "causal_lm"):
        assert not list(detached(tiny_problem(family).target))
    assert not list(detached(nn.Sequential(nn.Linear(2, 2))))
    wrapped = nn.Sequential(copy.deepcopy(tiny_problem("classifier").target))
    assert torch.equal(next(detached(wrapped)).head.bias, wrapped[0].head.bias)  # pyright: ignore
