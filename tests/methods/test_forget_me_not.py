"""Forget-Me-Not: attention that is seen, and taken down where the concept is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from expunge.errors import BadInput
from expunge.families import Diffusion
from expunge.families.models import clone
from expunge.families.pipelines import DiffusionModel, cross_attention
from expunge.methods.base import Workplace
from expunge.methods.cross_attention import attention_probabilities, phrase_positions
from expunge.methods.denoiser_parts import trainable_part
from expunge.methods.forget_me_not import ForgetMeNot
from expunge.problem import Concept, Problem
from expunge.testing.problems import tiny_problem

NAMED, MODULES, HEADS, PIXELS, TOKENS = 12, 3, 2, 16, 4
"""Of the tiny problem: rows to forget whose prompt says "red"; the denoiser's attention."""


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny_problem("diffusion")


def probabilities(problem: Problem, model: Any) -> list[torch.Tensor]:
    batch = problem.batches("forget").take(torch.arange(len(problem.forget)))
    with torch.no_grad(), attention_probabilities(model.unet) as caught:
        problem.family.forward(model, batch)
    return caught


def test_probabilities_are_seen_and_the_usual_attention_is_put_back(problem: Problem) -> None:
    model = cast(DiffusionModel, clone(problem.target))
    modules = cast("dict[str, Any]", cross_attention(model.unet))
    before = {name: module.processor for name, module in modules.items()}
    batch = problem.batches("forget").take(torch.arange(4))
    with torch.no_grad():
        fused = problem.family.forward(model, batch).prediction
        with attention_probabilities(model.unet) as caught:
            plain = problem.family.forward(model, batch).prediction
    torch.testing.assert_close(plain, fused, atol=1e-5, rtol=0)
    rows = 4 * batch.targets.shape[1]
    assert [tuple(p.shape) for p in caught] == [(rows, HEADS, PIXELS, TOKENS)] * MODULES
    assert all(torch.allclose(p.sum(-1), torch.ones(()), atol=1e-6) for p in caught)
    with pytest.raises(RuntimeError, match="within"), attention_probabilities(model.unet):
        raise RuntimeError("within")
    assert all(module.processor is before[name] for name, module in modules.items())
    assert not any("get_attention_scores" in vars(module) for module in modules.values())


def test_the_phrase_is_found_where_it_stands(problem: Problem) -> None:
    family = cast(Diffusion, problem.family)
    ids = family.tokens(["red left", "left red", "", "blue left"])
    found = [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert phrase_positions(family, "red", ids).int().tolist() == found
    assert phrase_positions(family, "left red", ids).int().tolist() == [
        [0] * 4,
        [0, 1, 1, 0],
        [0] * 4,
        [0] * 4,
    ]
    places = {t: ForgetMeNot(tokens=t).places(family, "red", ids).int().tolist() for t in ("end", "rest")}
    assert places["end"][:2] == [[0, 1, 0, 1], [0, 0, 1, 1]]
    assert places["rest"] == [[0, 1, 1, 1], [0, 0, 1, 1], [0] * 4, [0] * 4]
    short = family.tokens(["red"])  # start, red, and two ends
    assert ForgetMeNot(tokens="end").places(family, "red", short).int().tolist() == [[0, 1, 1, 0]]


def test_uniform_attention_worked_by_hand(problem: Problem) -> None:
    model = cast(DiffusionModel, clone(problem.target))
    with torch.no_grad():
        for query in cross_attention(model.unet, "to_q").values():
            cast(torch.nn.Linear, query).weight.zero_()
    entries = NAMED * MODULES * HEADS * PIXELS  # one token names the concept
    for form, key, value in (
        ("squares", "attention", entries / TOKENS**2),
        ("norm", "norm", entries**0.5 / TOKENS),
    ):
        made = ForgetMeNot(epochs=1, lr=0.0, batch_size=100, form=form).forget(problem.with_model(model))
        assert made.log[0][key] == pytest.approx(value, rel=1e-5)


def test_the_norm_divides_the_step_of_the_squares(problem: Problem) -> None:
    def step(form: str) -> tuple[torch.Tensor, float]:
        chosen = ForgetMeNot(epochs=1, lr=1e-3, batch_size=100, form=form, optimizer="sgd", weight_decay=0.0)
        made = chosen.forget(problem, Workplace(seed=2))
        pairs = zip(made.model.parameters(), problem.target.parameters(), strict=True)
        return torch.cat([(a - b).detach().double().flatten() for a, b in pairs]), made.log[0]["attention"]

    (squares, value), (norm, _) = step("squares"), step("norm")
    torch.testing.assert_close(norm * 2 * value**0.5, squares, atol=1e-5, rtol=1e-3)


def test_attention_leaves_the_concept_and_goes_elsewhere(problem: Problem) -> None:
    made = ForgetMeNot(lr=1e-2, epochs=30).forget(problem, Workplace(seed=3))
    assert "4 of 16 rows to forget do not name the concept" in made.notes[0]
    where = phrase_positions(
        cast(Diffusion, problem.family),
        "red",
        problem.batches("forget").take(torch.arange(16)).inputs["input_ids"],
    ).repeat_interleave(2, 0)

    def paid(model: Any) -> float:
        caught = probabilities(problem, model)
        assert all(torch.allclose(p.sum(-1), torch.ones(()), atol=1e-5) for p in caught)
        return float(
            torch.stack([(p * where[:, None, None]).sum(-1)[where.any(1)].mean() for p in caught]).mean()
        )

    assert paid(made.model) < 0.5 * paid(problem.target)
    before, after = dict(problem.target.named_parameters()), dict(made.model.named_parameters())
    assert {n for n in before if not torch.equal(before[n], after[n])} <= trainable_part(problem.target, "x")


def test_words_alone_are_enough(problem: Problem) -> None:
    words = problem.train.remove_columns(["latents", "anchor_latents"])
    bare = replace(problem, train=words, holdout=None, probes={}).with_model(problem.target)
    made = ForgetMeNot(epochs=10, lr=3e-3).forget(bare, Workplace(seed=1))
    assert made.log[-1]["attention"] < 0.8 * made.log[0]["attention"]


def test_a_concept_that_no_prompt_names_is_refused(problem: Problem) -> None:
    other = replace(problem, concept=Concept("blue right", ("blue",), ("green",))).with_model(problem.target)
    with pytest.raises(BadInput, match="no prompt to forget contains 'blue right'"):
        ForgetMeNot().forget(other)
    with pytest.raises(BadInput, match="it needs a concept named by prompts"):
        ForgetMeNot().forget(replace(problem, concept=None).with_model(problem.target))
