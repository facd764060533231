"""AdvUnlearn: the tokens it puts in, its attack, and what it trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import nn

from expunge.errors import BadInput
from expunge.evidence import collect
from expunge.families import Diffusion
from expunge.families.inserted_tokens import encode_with, make_room, token_embeddings
from expunge.families.models import clone
from expunge.families.pipelines import DiffusionModel
from expunge.methods import Forgotten, Workplace
from expunge.methods.advunlearn import AdvUnlearn, encoder_blocks
from expunge.problem import Problem
from expunge.testing.problems import tiny_problem

FEW: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 100,
    "clean": 0.0,
    "attack_steps": 3,
    "latents": "once",
    "start": "data",
}


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny_problem("diffusion")


def family_of(problem: Problem) -> Diffusion:
    return cast(Diffusion, problem.family)


def first(problem: Problem, **parameters: Any) -> dict[str, Any]:
    """Terms of the first step, over all rows to forget, in which nothing moves."""
    return AdvUnlearn(**{**FEW, "lr": 0.0, **parameters}).forget(problem, Workplace(seed=1)).log[0]


def test_where_tokens_are_put_in(problem: Problem) -> None:
    """``[start, *, words, end, padding]``: the end moves along, and words that do not fit are cut."""
    ids = torch.tensor([[0, 2, 1, 1, 1, 1], [0, 2, 5, 6, 1, 1], [0, 2, 5, 6, 3, 1]])
    made, places = make_room(family_of(problem), ids, 2, "prefix")
    assert made.tolist() == [[0, 1, 1, 2, 1, 1], [0, 1, 1, 2, 5, 1], [0, 1, 1, 2, 5, 1]]
    assert places.tolist() == [[1, 2]] * 3
    made, places = make_room(family_of(problem), ids, 1, "suffix")
    assert made.tolist() == [[0, 2, 1, 1, 1, 1], [0, 2, 5, 6, 1, 1], [0, 2, 5, 6, 1, 1]]
    assert places.tolist() == [[2], [4], [4]]
    with pytest.raises(BadInput, match="5 further tokens do not fit into prompts of 6"):
        make_room(family_of(problem), ids, 5, "prefix")


def test_put_in_as_a_vector_a_word_is_itself(problem: Problem) -> None:
    model, family = cast(DiffusionModel, problem.target), family_of(problem)
    ids, places = make_room(family, family.tokens(["red"]), 1, "suffix")
    left = family.tokens(["left"])[0, 1]
    vector = token_embeddings(model.text_encoder).weight.detach()[left][None, None].requires_grad_(True)  # pyright: ignore
    made = encode_with(model.text_encoder, ids, places, vector)
    torch.testing.assert_close(made, model.encode(family.tokens(["red left"])))
    assert torch.autograd.grad(made.square().sum(), vector)[0].any()
    # The hook is gone.
    torch.testing.assert_close(model.encode(family.tokens(["red"])), model.encode(family.tokens(["red"])))
    assert not token_embeddings(model.text_encoder)._forward_hooks


def test_at_the_target_it_is_the_guidance_gap(problem: Problem) -> None:
    """Nothing put in: U is (1 + eta)^2 times the gap between prompt and none, R is 0 and has no gradient."""
    losses = {eta: first(problem, eta=eta, tokens=0) for eta in (-1.0, 0.0, 1.0)}
    assert losses[-1.0]["erase"] == pytest.approx(0, abs=1e-10) and losses[0.0]["retain"] == pytest.approx(
        0, abs=1e-10
    )
    assert losses[1.0]["erase"] / losses[0.0]["erase"] == pytest.approx(4, rel=1e-4)
    # A run that is clean to its end is one without tokens.
    assert first(problem, clean=1.0)["erase"] == losses[1.0]["erase"]
    kept = AdvUnlearn(**{**FEW, "tokens": 0, "eta": -1.0, "optimizer": "sgd", "lr": 1.0}).forget(
        problem, Workplace(seed=1)
    )
    pairs = zip(kept.model.parameters(), problem.target.parameters(), strict=True)
    assert max(float((a - b).detach().abs().max()) for a, b in pairs) < 1e-4


@pytest.mark.parametrize("more", [{}, {"fast": True}, {"gradient": "added"}], ids=str)
def test_the_attack_comes_nearer_to_what_the_target_says(problem: Problem, more: dict[str, Any]) -> None:
    """With eta -1 the erased answer is the target's own, so that U is what the attack brings down, at one x_t."""
    far, near = (first(problem, eta=-1.0, attack_lr=0.05, attack_steps=n, **more)["erase"] for n in (0, 20))
    assert near < 0.9 * far


def test_fresh_latents_are_others(problem: Problem) -> None:
    same, other = (
        first(problem, latents=latents, attack_lr=0.05, eta=-1.0)["erase"] for latents in ("once", "fresh")
    )
    assert same != other


@pytest.fixture(scope="module")
def made(problem: Problem) -> Forgotten:
    settings = {
        **FEW,
        "epochs": 12,
        "batch_size": 8,
        "lr": 3e-3,
        "attack_lr": 0.05,
        "surrogate": "anchor",
        "gamma": 3.0,
    }
    return AdvUnlearn(**settings).forget(problem, Workplace(seed=1))


def test_only_the_encoder_moves_and_its_tables_stay(problem: Problem, made: Forgotten) -> None:
    before = dict(problem.target.named_parameters())
    moved = {name for name, p in made.model.named_parameters() if not torch.equal(before[name], p)}
    assert moved == encoder_blocks(cast(DiffusionModel, problem.target), None)
    assert moved and all(name.startswith("text_encoder.") and "embedding" not in name for name in moved)


def test_it_erases_also_in_another_denoiser_that_shares_the_encoder(
    problem: Problem, made: Forgotten
) -> None:
    def seen(model: nn.Module, split: str) -> float:
        found = collect(problem.family, model, problem.splits[split], ["concept_correct"])
        return float(found["concept_correct"].mean())

    assert seen(made.model, "concept") < 0.5 and seen(made.model, "test") > 0.9
    other = clone(problem.target)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in cast(DiffusionModel, other).unet.parameters():
            parameter *= 1 + 0.02 * torch.randn(parameter.shape, generator=random)
    assert seen(other, "concept") > 0.9
    cast(DiffusionModel, other).text_encoder = cast(DiffusionModel, made.model).text_encoder
    assert seen(other, "concept") < 0.5 and seen(other, "test") > 0.9


def test_a_frozen_encoder_is_opened_for_the_run_alone(problem: Problem) -> None:
    frozen = clone(problem.target)
    cast(DiffusionModel, frozen).text_encoder.requires_grad_(False)
    run = AdvUnlearn(**FEW, lr=1e-2).forget(problem.with_model(frozen), Workplace(seed=1))
    assert run.cost.changed > 0
    assert not any(p.requires_grad for p in cast(DiffusionModel, run.model).text_encoder.parameters())
    assert all(p.requires_grad for p in cast(DiffusionModel, run.model).unet.parameters())


def test_other_parts(problem: Problem) -> None:
    model = cast(DiffusionModel, problem.target)
    assert encoder_blocks(model, 1) < encoder_blocks(model, None)
    run = AdvUnlearn(**FEW, lr=1e-2, part="x-strict").forget(problem, Workplace(seed=1))
    before = dict(problem.target.named_parameters())
    moved = {name for name, p in run.model.named_parameters() if not torch.equal(before[name], p)}
    assert moved and all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in moved)


@pytest.mark.parametrize("start", ["data", "sample"])
def test_micro_batches_see_the_same_draws(problem: Problem, start: str) -> None:
    settings = {**FEW, "optimizer": "sgd", "lr": 0.05, "batch_size": 16, "start": start}
    whole, pieces = (
        AdvUnlearn(**settings, micro_batch_size=m).forget(problem, Workplace(seed=2)) for m in (None, 3)
    )
    pairs = list(
        zip(whole.model.parameters(), problem.target.parameters(), pieces.model.parameters(), strict=True)
    )
    moved, apart = (
        max(float((a - b).detach().abs().max()) for a, b, _ in pairs),
        max(float((a - c).detach().abs().max()) for a, _, c in pairs),
    )
    assert moved > 1e-3 and apart < 1e-2 * moved


def test_what_it_cannot_work_on_is_refused(problem: Problem) -> None:
    with pytest.raises(BadInput, match="9 further tokens do not fit"):
        AdvUnlearn(tokens=9).forget(problem)
    with pytest.raises(BadInput, match="no text encoder with a table"):
        token_embeddings(nn.Linear(1, 1))
    with pytest.raises(BadInput, match="it needs a concept named by prompts"):
        AdvUnlearn().forget(replace(problem, concept=None))
