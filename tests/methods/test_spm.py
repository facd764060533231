"""SPM: the adapter, its gate and its anchors, against closed forms and figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families import Diffusion
from expunge.families.denoising import sample_latents
from expunge.families.membranes import Membrane, Permeable, PromptGate
from expunge.families.models import clone
from expunge.families.pipelines import DiffusionModel
from expunge.methods import METHODS, Forgotten, Workplace
from expunge.methods.spm import SPM, latent_anchors, transformer_layers
from expunge.problem import Problem
from expunge.testing.problems import tiny_problem

FEW: dict[str, Any] = {
    "epochs": 2,
    "lr": 0.02,
    "anchors": 1,
    "anchoring": 1.0,
    "surrogate": "anchor",
    "start": "data",
}


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny_problem("diffusion")


@pytest.fixture(scope="module")
def made(problem: Problem) -> Forgotten:
    return SPM(**FEW).forget(problem, Workplace(seed=3))


def gate(phrases: list[str], family: Diffusion, model: nn.Module, **more: Any) -> PromptGate:
    settings = {"likeness": "cosine", "power": 1, **more}
    return PromptGate.fitted(
        cast(DiffusionModel, model), family.tokens(phrases), family.tokens([""])[0], **settings
    )


def family_of(problem: Problem) -> Diffusion:
    return cast(Diffusion, problem.family)


def admitted(problem: Problem, prompts: list[str], **more: Any) -> Tensor:
    family, model = family_of(problem), cast(DiffusionModel, problem.target)
    ids = family.tokens(prompts)
    with torch.no_grad():
        return gate(["red"], family, model, **more)(model.encode(ids), ids)


def test_what_a_prompt_lets_in(problem: Problem) -> None:
    """All of the adapter where the phrase's words are there; else the cosine of all positions as one vector."""
    weights = admitted(problem, ["red", "red left", "blue left", ""])
    family, model = family_of(problem), cast(DiffusionModel, problem.target)
    with torch.no_grad():
        e, b, n = (model.encode(family.tokens([p])).flatten() for p in ("red", "blue left", ""))
    cosine = lambda x, y: float(x @ y / x.norm() / y.norm())  # noqa: E731
    expected = torch.tensor([1.0, 1.0, max(0, cosine(b, e)), max(0, cosine(n, e))])
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(admitted(problem, ["blue left"], power=2), weights[2:3] ** 2)
    centered = admitted(problem, ["blue left", ""], likeness="centered")
    torch.testing.assert_close(centered, torch.tensor([max(0, cosine(b - n, e - n)), 0.0]))


def test_overlap_counts_distinct_words_of_the_phrase(problem: Problem) -> None:
    family = family_of(problem)
    shares = gate(["red left", "red"], family, problem.target).overlap(
        family.tokens(["red right", "left left", ""])
    )
    torch.testing.assert_close(shares, torch.tensor([[0.5, 1.0], [0.5, 0.0], [0.0, 0.0]]))


def tiny_membrane(problem: Problem, seed: int) -> Membrane:
    """Random adapters on a linear layer and on a convolution, fully let in by every prompt that says red."""
    model, random = cast(DiffusionModel, problem.target), torch.Generator().manual_seed(seed)
    down, up = {}, {}
    for name in transformer_layers(model):
        weight = model.get_parameter(f"{name}.weight")
        down[name] = 0.1 * torch.randn(1, *weight.shape[1:], generator=random)
        up[name] = torch.randn(weight.shape[0], 1, *[1] * (weight.dim() - 2), generator=random)
    return Membrane(down, up, gate(["red"], family_of(problem), model))


def answers(problem: Problem, model: nn.Module, prompt: str) -> Tensor:
    batch = problem.batches("forget").take(torch.arange(4))
    ids = family_of(problem).tokens([prompt]).expand_as(batch.inputs["input_ids"])
    with torch.no_grad():
        return (
            family_of(problem)
            .forward(model, replace(batch, inputs={**batch.inputs, "input_ids": ids}))
            .prediction
        )


@torch.no_grad()
def test_adapters_add_up_as_their_products_do(problem: Problem) -> None:
    """Let in fully they are ``W + sum u v^T``, in any order; let in by half, half of each product, not a quarter."""
    first, second = tiny_membrane(problem, 1), tiny_membrane(problem, 2)
    both, turned = (Permeable(clone(problem.target), m) for m in ([first, second], [second, first]))
    torch.testing.assert_close(
        answers(problem, both, "red"), answers(problem, both.merged(), "red"), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(answers(problem, both, "red"), answers(problem, turned, "red"))
    family = family_of(problem)
    weight = float(
        both.admitted(family.tokens(["blue left"]), both.encode(family.tokens(["blue left"])))[0, 0]
    )
    assert 0 < weight < 1
    partly = clone(problem.target)
    for name in first.names:
        change = sum(
            weight * up.flatten(1) @ down.flatten(1)
            for down, up in (m.adapter(name) for m in (first, second))
        )
        with torch.no_grad():
            partly.get_parameter(f"{name}.weight").add_(
                cast(Tensor, change).view_as(partly.get_parameter(f"{name}.weight"))
            )
    torch.testing.assert_close(
        answers(problem, both, "blue left"), answers(problem, partly, "blue left"), atol=1e-5, rtol=1e-5
    )


def test_a_prompt_that_lets_nothing_in_is_answered_by_the_base(problem: Problem) -> None:
    membrane = tiny_membrane(problem, 1)
    closed = replace_gate(membrane, gate(["red"], family_of(problem), problem.target, likeness="centered"))
    model = Permeable(clone(problem.target), [closed])
    assert torch.equal(answers(problem, model, ""), answers(problem, problem.target, ""))
    assert not torch.allclose(
        answers(problem, model, "red"), answers(problem, problem.target, "red"), atol=1e-2
    )


def replace_gate(membrane: Membrane, other: PromptGate) -> Membrane:
    pairs = {name: membrane.adapter(name) for name in membrane.names}
    return Membrane(
        {k: a.data for k, (a, _) in pairs.items()}, {k: b.data for k, (_, b) in pairs.items()}, other
    )


def test_guided_sampling_lets_the_adapter_into_both_halves(problem: Problem) -> None:
    """As a pipeline does that loads the adapter with the prompt's weight; of "red" that is the merged model."""
    family, model = family_of(problem), Permeable(clone(problem.target), [tiny_membrane(problem, 1)])
    noise = torch.randn(2, *family.shape, generator=torch.Generator().manual_seed(0))
    ids = family.tokens(["red left", "red"])
    drawn = [sample_latents(family, m, ids, noise)[0] for m in (model, model.merged())]
    torch.testing.assert_close(*drawn, atol=1e-4, rtol=1e-4)


def test_where_it_starts(problem: Problem) -> None:
    """u = 0: nothing moved yet, anchors are where they were, and the loss is (1 + eta)^2 times that of eta 0."""

    def first(**parameters: Any) -> dict[str, Any]:
        settings = {**FEW, "epochs": 1, "lr": 0.0, "batch_size": 100, "weight_decay": 0.0, **parameters}
        return SPM(**settings).forget(problem, Workplace(seed=1)).log[0]

    by_eta = {eta: first(eta=eta, surrogate="empty") for eta in (0.0, 1.0)}
    assert by_eta[0.0]["anchor"] == 0
    assert by_eta[1.0]["erase"] / by_eta[0.0]["erase"] == pytest.approx(4, rel=1e-4)


def test_only_the_second_factor_has_a_gradient_at_first(problem: Problem) -> None:
    settings = {
        **FEW,
        "epochs": 1,
        "optimizer": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "batch_size": 100,
    }
    still, one = (
        SPM(**{**settings, "lr": lr}).forget(problem, Workplace(seed=1)).adapter for lr in (0.0, 1e-3)
    )
    assert still is not None and one is not None
    for name in still.layers:
        (a0, b0), (a1, b1) = still.pair(name), one.pair(name)
        assert torch.equal(a0, a1) and not b0.any() and b1.any()


def test_what_it_trains_and_what_it_leaves(problem: Problem, made: Forgotten) -> None:
    model = cast(Permeable, made.model)
    assert all(
        torch.equal(a, b) for a, b in zip(model.base.parameters(), problem.target.parameters(), strict=True)
    )
    assert "the weights still hold the knowledge" in made.notes[-1]
    names = transformer_layers(cast(DiffusionModel, problem.target))
    ends = {name.partition("attentions.0.")[2] for name in names}
    assert {"proj_in", "proj_out", "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn2.to_out.0",
            "transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0.ff.net.2"} <= ends  # fmt: skip
    (membrane,) = model.membranes
    weights = [problem.target.get_parameter(f"{name}.weight") for name in names]
    expected = sum(w.shape[0] + w.shape[1] for w in weights)  # kernels are 1 by 1
    assert sum(p.numel() for p in membrane.parameters()) == expected == made.cost.changed


def test_merged_and_gated_are_the_same_adapter(problem: Problem, made: Forgotten) -> None:
    merged = SPM(**FEW, transport="always").forget(problem, Workplace(seed=3))
    assert isinstance(merged.model, DiffusionModel) and merged.adapter is not None
    assert merged.adapter.explains(problem.target, merged.model)
    for name, value in cast(Permeable, made.model).merged().state_dict().items():
        torch.testing.assert_close(value, merged.model.state_dict()[name], atol=1e-6, rtol=1e-5)


def test_micro_batches_see_the_same_draws(problem: Problem) -> None:
    """At a rate at which other anchors or latents would show."""
    settings = {
        **FEW,
        "epochs": 1,
        "optimizer": "sgd",
        "lr": 0.05,
        "start": "sample",
        "batch_size": 16,
        "transport": "always",
    }
    whole, pieces = (
        SPM(**settings, micro_batch_size=m).forget(problem, Workplace(seed=2)) for m in (None, 3)
    )
    moved = max(
        float((a - b).detach().abs().max())
        for a, b in zip(whole.model.parameters(), problem.target.parameters(), strict=True)
    )
    apart = max(
        float((a - b).detach().abs().max())
        for a, b in zip(whole.model.parameters(), pieces.model.parameters(), strict=True)
    )
    assert moved > 1e-3 and apart < 1e-3 * moved


def test_anchors_have_the_length_of_the_concept_and_shun_its_direction() -> None:
    random = torch.Generator().manual_seed(0)
    concept = torch.tensor([[3.0, 4.0]])
    drawn = latent_anchors(concept, 4000, random)
    length = drawn.flatten(1).norm(dim=1) / 5
    assert 0.8 <= float(length.min()) < 0.82 and 1.18 < float(length.max()) <= 1.2
    cosine = torch.nn.functional.cosine_similarity(drawn.flatten(1), concept.flatten()[None], dim=1)
    # In the plane directions have density (1 - cos) / 2 pi for cos > 0 and 1 / 2 pi else, before it is normalized.
    forward = (cosine > 0).float().mean()
    assert float(forward) == pytest.approx((torch.pi - 2) / (2 * torch.pi - 2), abs=0.03)


def test_a_second_concept_joins_the_first(problem: Problem, made: Forgotten) -> None:
    again = SPM(**FEW, phrases=("blue",)).forget(problem.with_model(made.model), Workplace(seed=4))
    model = cast(Permeable, again.model)
    first, second = model.membranes
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            first.parameters(), cast(Permeable, made.model).membranes[0].parameters(), strict=True
        )
    )
    assert not torch.equal(first.gate.phrases, second.gate.phrases)  # pyright: ignore


def test_what_it_cannot_work_on_is_refused(problem: Problem) -> None:
    with pytest.raises(BadInput, match="' ' has no token of its own"):
        SPM(phrases=(" ",)).forget(problem)
    same = replace(problem, train=problem.train.map(lambda row: {"anchor_prompt": row["prompt"]}))
    with pytest.raises(BadInput, match="so none names the concept"):
        SPM().forget(same)
    bare = DiffusionModel(nn.Linear(1, 1), nn.Linear(1, 1))
    with pytest.raises(BadInput, match="no prompt reaches it"):
        transformer_layers(bare)
    assert METHODS["spm"].claims == "suppression"
