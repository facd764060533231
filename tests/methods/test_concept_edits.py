"""UCE, RECE, ESD and concept ablation: closed forms against gradients and small systems worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from expunge.errors import BadInput
from expunge.evidence import collect
from expunge.families import Diffusion
from expunge.families.pipelines import DiffusionModel, cross_attention
from expunge.methods import METHODS
from expunge.methods.base import Workplace
from expunge.methods.cross_attention import projections, prompt_rows
from expunge.methods.denoiser_parts import trainable_part
from expunge.methods.esd import ESD
from expunge.methods.rece import recovering, unrecoverable
from expunge.methods.uce import UCE, RidgeEdit
from expunge.problem import Concept, Problem
from expunge.testing.problems import tiny_problem

E1, NOTHING = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.zeros(0, 2, dtype=torch.float64)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny_problem("diffusion")


def seen(problem: Problem, model: Any, split: str) -> float:
    evidence = collect(problem.family, model, problem.splits[split], ["concept_correct"])
    return float(evidence["concept_correct"].mean())


def test_ridge_edit_worked_by_hand() -> None:
    eye, wanted = torch.eye(2, dtype=torch.float64), torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    one = RidgeEdit(E1, NOTHING, 0.5, 1.0, 1.0)(eye, wanted)
    torch.testing.assert_close(one, torch.tensor([[1 / 3, 0], [2 / 3, 1]], dtype=torch.float64))
    kept = torch.tensor([[1.0, 1.0]], dtype=torch.float64) / 2**0.5
    two = RidgeEdit(E1, kept, 0.5, 1.0, 1.0)(eye, wanted)
    expected = torch.tensor([[0.75, 0.5], [1.0, 1.25]], dtype=torch.float64) / 1.75
    torch.testing.assert_close(two, expected)
    torch.testing.assert_close(
        two @ kept[0], torch.tensor([0.5051, 0.9091], dtype=torch.float64), atol=1e-4, rtol=0
    )


def test_ridge_edit_is_the_minimum_of_its_objective() -> None:
    random = torch.Generator().manual_seed(0)
    original, concept, kept, wanted = (
        torch.randn(*shape, generator=random, dtype=torch.float64)
        for shape in ((5, 4), (3, 4), (6, 4), (3, 5))
    )
    weight = RidgeEdit(concept, kept, 0.3, 0.7, 1.9)(original, wanted).requires_grad_(True)
    objective = (
        0.7 * (concept @ weight.T - wanted).square().sum()
        + 1.9 * (kept @ weight.T - kept @ original.T).square().sum()
        + 0.3 * (weight - original).square().sum()
    )
    (gradient,) = torch.autograd.grad(objective, weight)
    assert float(gradient.abs().max()) < 1e-10
    # The same by stacking everything into one least-squares system.
    rows = torch.cat([0.7**0.5 * concept, 1.9**0.5 * kept, 0.3**0.5 * torch.eye(4, dtype=torch.float64)])
    sides = torch.cat([0.7**0.5 * wanted, 1.9**0.5 * kept @ original.T, 0.3**0.5 * original.T])
    torch.testing.assert_close(torch.linalg.lstsq(rows, sides).solution.T, weight.detach(), atol=1e-9, rtol=0)


def test_one_edit_has_rank_one_and_spares_what_is_orthogonal() -> None:
    random = torch.Generator().manual_seed(1)
    original = torch.randn(3, 4, generator=random, dtype=torch.float64)
    concept = torch.randn(1, 4, generator=random, dtype=torch.float64)
    edited = RidgeEdit(concept, NOTHING.new_zeros(0, 4), 0.5, 1.0, 1.0)(
        original, torch.zeros(1, 3, dtype=torch.float64)
    )
    assert int(torch.linalg.matrix_rank(edited - original, tol=1e-9)) == 1
    length = float(concept.square().sum())
    torch.testing.assert_close(edited @ concept[0], 0.5 / (0.5 + length) * (original @ concept[0]))


def test_uce_maps_the_concept_and_keeps_the_others(problem: Problem) -> None:
    made = UCE(tokens="all", ridge=0.1).forget(problem)
    assert seen(problem, problem.target, "concept") == 1 and seen(problem, made.model, "concept") == 0
    assert seen(problem, made.model, "test") == seen(problem, problem.target, "test")
    before, after = dict(problem.target.named_parameters()), dict(made.model.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    assert "6 projections" in made.notes[0]


@pytest.mark.parametrize(("ridge", "preserve_scale"), [(0.1, 1.0), (0.1, 100.0), (10.0, 1.0)])
def test_other_prompts_move_no_further_than_is_said(
    problem: Problem, ridge: float, preserve_scale: float
) -> None:
    concept, family, target = problem.concept, problem.family, problem.target
    assert concept is not None and isinstance(family, Diffusion) and isinstance(target, DiffusionModel)
    model = UCE(tokens="all", ridge=ridge, preserve_scale=preserve_scale).forget(problem).model
    assert isinstance(model, DiffusionModel)
    asked, anchors = prompt_rows(family, target, concept.prompts, concept.anchors, "all")
    kept, unrelated = prompt_rows(
        family, target, concept.preserve, ["left right blue"] * len(concept.preserve), "all"
    )
    for before, after in zip(projections(target), projections(model), strict=True):
        original = before.weight.detach().double()
        moved = after.weight.detach().double() - original
        edit = float(((asked - anchors) @ original.T).square().sum())
        assert float((kept @ moved.T).square().sum()) <= edit / preserve_scale
        lengths = unrelated.square().sum(1)
        assert bool(((unrelated @ moved.T).square().sum(1) <= edit / ridge * lengths).all())


def test_a_stiff_ridge_changes_nothing_much(problem: Problem) -> None:
    def moved(ridge: float) -> float:
        model = UCE(ridge=ridge).forget(problem).model
        pairs = zip(model.parameters(), problem.target.parameters(), strict=True)
        return sum(float((a - b).detach().square().sum()) for a, b in pairs) ** 0.5

    far, near, still = moved(0.1), moved(10.0), moved(1e9)
    assert far > near > still and still < 1e-4


def test_the_tensor_target_has_no_part_along_the_old_value() -> None:
    random = torch.Generator().manual_seed(2)
    original = torch.randn(5, 4, generator=random, dtype=torch.float64)
    concept, anchor = (torch.randn(3, 4, generator=random, dtype=torch.float64) for _ in range(2))
    wanted = UCE(target="tensor").wanted(original, concept, anchor)
    assert float((wanted * (concept @ original.T)).sum(-1).abs().max()) < 1e-12


def test_the_last_word_stands_before_the_end(problem: Problem) -> None:
    model, family = problem.target, problem.family
    assert isinstance(model, DiffusionModel)
    rows, _ = prompt_rows(family, model, ["red left", ""], ["red left", ""], "last")  # pyright: ignore
    with torch.no_grad():
        whole = model.encode(family.tokens(["red left", ""])).double()  # pyright: ignore
    torch.testing.assert_close(rows, torch.stack([whole[0, 2], whole[1, 0]]))


def test_recovering_worked_by_hand() -> None:
    eye, halved = (
        torch.eye(2, dtype=torch.float64),
        torch.diag(torch.tensor([1 / 3, 1.0], dtype=torch.float64)),
    )
    found = recovering([halved], [eye], E1, 0.1)
    torch.testing.assert_close(found, torch.tensor([[(1 / 3) / (1 / 9 + 0.1), 0.0]], dtype=torch.float64))
    # What is left of e1: 1 - a^2 / (a^2 + reg) of its value, squared.
    expected = (1 - (1 / 9) / (1 / 9 + 0.1)) ** 2
    assert unrecoverable([halved], [eye], E1, found) == pytest.approx(expected)
    torch.testing.assert_close(recovering([eye], [eye], E1, 1e-12), E1)


def test_rece_without_rounds_is_uce_and_finds_a_minimum(problem: Problem) -> None:
    same = {"tokens": "all", "ridge": 0.1, "preserve_scale": 0.1}
    zero, uce = METHODS["rece"](rounds=0, **same).forget(problem), UCE(**same).forget(problem)
    pairs = zip(zero.model.parameters(), uce.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    made = METHODS["rece"](rounds=2, **same).forget(problem)
    assert [entry["round"] for entry in made.log] == [0, 1] and seen(problem, made.model, "concept") == 0
    assert isinstance(uce.model, DiffusionModel) and isinstance(problem.target, DiffusionModel)
    current, old = ([p.weight.detach().double() for p in projections(m)] for m in (uce.model, problem.target))
    concept, _ = prompt_rows(problem.family, problem.target, ["red left"], ["red left"], "all")  # pyright: ignore
    found = recovering(current, old, concept, 0.01).requires_grad_(True)
    objective = 0.01 * found.square().sum() + sum(
        (found @ w.T - concept @ o.T).square().sum() for w, o in zip(current, old, strict=True)
    )
    assert float(torch.autograd.grad(objective, found)[0].abs().max()) < 1e-8  # pyright: ignore


def first_loss(problem: Problem, term: str, method: str, **parameters: Any) -> float:
    made = METHODS[method](epochs=1, lr=0.0, batch_size=100, **parameters).forget(problem, Workplace(seed=1))
    return made.log[0][term]


def test_esd_starts_at_the_guidance_gap(problem: Problem) -> None:
    """At the target itself the loss is (1 + eta)^2 times the gap between prompt and no prompt."""
    losses = {eta: first_loss(problem, "erase", "esd", eta=eta) for eta in (-1.0, 0.0, 1.0)}
    assert losses[-1.0] == pytest.approx(0, abs=1e-10)
    assert losses[1.0] / losses[0.0] == pytest.approx(4, rel=1e-4)


def test_esd_of_the_empty_prompt_has_nothing_to_do(problem: Problem) -> None:
    rows = problem.train.map(lambda row: {"prompt": ""})
    assert first_loss(replace(problem, train=rows), "erase", "esd", start="data") == pytest.approx(
        0, abs=1e-10
    )


def test_esd_erases_and_changes_only_its_part(problem: Problem) -> None:
    made = ESD(lr=3e-3, epochs=30).forget(problem, Workplace(seed=3))
    assert seen(problem, made.model, "concept") < 0.5 and seen(problem, made.model, "test") > 0.8
    before, after = dict(problem.target.named_parameters()), dict(made.model.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == trainable_part(problem.target, "x") and all(".attn2." in name for name in changed)


def test_parts_of_a_denoiser(problem: Problem) -> None:
    x, strict, u, everything = (trainable_part(problem.target, p) for p in ("x", "x-strict", "u", "all"))  # pyright: ignore
    assert strict < x and x | u == everything and not x & u
    with pytest.raises(BadInput, match="no weights in part"):
        trainable_part(torch.nn.Linear(1, 1), "x")


def test_concept_ablation_matches_the_anchor(problem: Problem) -> None:
    start = first_loss(problem, "ablate", "concept-ablation")
    made = METHODS["concept-ablation"](epochs=30, lr=1e-2).forget(problem, Workplace(seed=1))
    assert made.log[-1]["ablate"] < 0.5 * start and seen(problem, made.model, "concept") < 0.5
    same = problem.train.map(lambda row: {"anchor_prompt": row["prompt"]})
    assert first_loss(replace(problem, train=same), "ablate", "concept-ablation") == 0


def test_concepts_that_say_nothing_are_refused(problem: Problem) -> None:
    with pytest.raises(BadInput, match="'red' is its own anchor"):
        Concept("red", ("red",), ("red",))
    with pytest.raises(BadInput, match="a prompt is empty"):
        Concept("red", (" ",), ("green",))
    with pytest.raises(BadInput, match="2 prompts need as many anchors, got 1"):
        Concept("red", ("red", "red left"), ("green",))
    with pytest.raises(BadInput, match="to be forgotten and to be kept"):
        Concept("red", ("red",), ("green",), ("red",))
    with pytest.raises(BadInput, match="it needs a concept named by prompts"):
        UCE().forget(replace(problem, concept=None))


def test_a_denoiser_without_cross_attention_is_refused() -> None:
    bare = DiffusionModel(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    assert not cross_attention(bare.unet)
    with pytest.raises(BadInput, match="no cross-attention"):
        projections(bare)
