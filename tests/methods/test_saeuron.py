"""SAeUron: the autoencoder, the scores, and what is changed while images are drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from expunge.attacks.drawing import denoised
from expunge.errors import BadInput
from expunge.evidence import collect
from expunge.families import Diffusion
from expunge.families.base import captured
from expunge.families.denoising import sample, starting_noise
from expunge.families.models import innermost
from expunge.families.sparse_features import Ablated, SparseAutoencoder
from expunge.families.weights import load_folder, save_model
from expunge.methods.base import FILTERED, Forgotten, Workplace
from expunge.methods.saeuron import SAeUron, highest, last_attention, scores
from expunge.methods.sparse_training import SparseRecipe, fit_autoencoder, largest
from expunge.problem import Concept, Problem
from expunge.testing.problems import tiny_problem

SMALL: dict[str, Any] = {"expansion": 8, "k": 4, "images": 48, "epochs": 30, "lr": 3e-3, "batch_size": 512}


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny_problem("diffusion")


@pytest.fixture(scope="module")
def forgotten(problem: Problem) -> Forgotten:
    return SAeUron(**SMALL, chosen=4, multiplier=-10.0).forget(problem, Workplace(seed=3))


def pictures(problem: Problem, model: torch.nn.Module) -> torch.Tensor:
    family = cast(Diffusion, problem.family)
    prompts = ["red left", "green right", "blue left", ""]
    return sample(family, model, prompts, starting_noise(family, prompts))


def by_hand() -> tuple[SparseAutoencoder, torch.Tensor]:
    """Three features of two dimensions, of which one is active; an x that is (3, 1)."""
    made = SparseAutoencoder(2, 3, 1)
    with torch.no_grad():
        made.encoder.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
        made.encoder.bias.zero_()
        made.decoder.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
        made.center.copy_(torch.tensor([0.5, 0.0]))
        made.scale.fill_(2.0)
    return made, torch.tensor([[[3.0, 1.0]]])


def ablated(factor: list[float], threshold: list[float], base: Any = None) -> Ablated:
    return Ablated(
        base or torch.nn.Identity(), "", by_hand()[0], torch.tensor([10, 90]),
        torch.tensor([[1.0] * 3, factor]), torch.tensor([[0.0] * 3, threshold]),
    )  # fmt: skip


def test_one_position_worked_by_hand() -> None:
    autoencoder, x = by_hand()
    # x / 2 - b = (1, 0.5): features 1, 0.5 and 0, of which the first is kept; decoded 2 * ((1, 0) + (0.5, 0)).
    assert autoencoder.encode(x).tolist() == [[[1.0, 0.0, 0.0]]]
    assert autoencoder.decode(autoencoder.encode(x)).tolist() == [[[3.0, 0.0]]]
    # z = 1 becomes -2: x moves by 2 * (-3, 0). What the autoencoder cannot say, (0, 1), stays.
    edit = ablated([-2.0, 1.0, 1.0], [0.9, 0.0, 0.0])
    assert edit.edited(x, torch.tensor([80])).tolist() == [[[-3.0, 1.0]]]
    # A threshold that is not passed, and a step at which nothing is chosen, leave x bitwise.
    assert torch.equal(ablated([-2.0, 1.0, 1.0], [1.0, 0.0, 0.0]).edited(x, torch.tensor([80])), x)
    assert torch.equal(edit.edited(x, torch.tensor([49])), x)
    # Rows of one batch at different timesteps.
    both = edit.edited(x.expand(2, 1, 2), torch.tensor([0, 99]))
    assert both.tolist() == [[[3.0, 1.0]], [[-3.0, 1.0]]]


def test_scores_worked_by_hand() -> None:
    found = scores(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.0, 2.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.0, -0.5]]))
    assert highest(found, 1).tolist() == [[True, False, False]]
    assert highest(found, 3).tolist() == [[True, False, False]]  # no feature that is not the concept's own
    random = torch.rand(4, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scores(random, random.flip(1)).sum(1), torch.zeros(4), atol=1e-6, rtol=0)
    assert largest(torch.tensor([[1.0, 3.0], [2.0, 0.0]]), 2).tolist() == [[0.0, 3.0], [2.0, 0.0]]


def test_the_autoencoder_finds_sparse_directions() -> None:
    """Sums of two of twelve directions in eight dimensions, far from 0 and in large units."""
    random = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(12, 8, generator=random), dim=-1)
    codes = torch.zeros(4000, 12)
    codes.scatter_(
        1, torch.rand(4000, 12, generator=random).argsort(1)[:, :2], 1 + torch.rand(4000, 2, generator=random)
    )
    x = 100 * (codes @ directions + 1)
    recipe = SparseRecipe(features=24, k=2, epochs=40, lr=1e-2, batch_size=256, auxiliary=1 / 32)
    made, log = fit_autoencoder(x, recipe, torch.Generator().manual_seed(2))
    with torch.no_grad():
        z = made.encode(x)
        left = (x - made.decode(z)).square().sum() / (x - x.mean(0)).square().sum()
        assert int((z > 0).sum(1).max()) <= 2 and float(left) < 0.15
        torch.testing.assert_close(made.decoder.norm(dim=-1), torch.ones(24))
        # The best of two principal components, which are not sparse, explains less.
        values = torch.linalg.svdvals(x - x.mean(0)).square()
        assert float(left) < 0.5 * float(1 - values[:2].sum() / values.sum())
        found = (torch.nn.functional.normalize(made.decoder, dim=-1) @ directions.T).amax(0)
    assert float(found.median()) > 0.9 and log[-1]["unexplained"] < 0.5 * log[0]["unexplained"]


def test_the_concept_is_gone_and_no_weight_has_changed(problem: Problem, forgotten: Forgotten) -> None:
    def seen(model: Any, split: str) -> float:
        return float(
            collect(problem.family, model, problem.splits[split], ["concept_correct"])[
                "concept_correct"
            ].mean()
        )

    assert seen(problem.target, "concept") == 1 and seen(forgotten.model, "concept") < 0.5
    assert seen(forgotten.model, "test") > 0.8
    before, after = problem.target.state_dict(), innermost(forgotten.model).state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert FILTERED in forgotten.notes and "are ablated, 4 at a step" in forgotten.notes[0]


def test_saved_and_read_again_it_draws_the_same(
    problem: Problem, forgotten: Forgotten, tmp_path: Path
) -> None:
    save_model(forgotten.model, tmp_path, problem.architecture, problem.family.describe(), {})
    read, _, record = load_folder(tmp_path)
    again = replace(problem, family=Diffusion.restore(record["family"]))
    images = pictures(problem, forgotten.model)
    assert torch.equal(pictures(again, read.eval()), images)
    assert not torch.equal(pictures(problem, problem.target), images)


def test_with_nothing_to_change_images_are_bitwise_the_targets(
    problem: Problem, forgotten: Forgotten
) -> None:
    images = pictures(problem, problem.target)
    none = SAeUron(**{**SMALL, "epochs": 1}, chosen=0).forget(problem, Workplace(seed=3))
    assert torch.equal(pictures(problem, none.model), images)
    made = cast(Ablated, forgotten.model)
    ones = torch.ones_like(made.factor)
    same = Ablated(problem.target, made.layer, made.autoencoder, made.timesteps, ones, made.threshold)
    assert torch.equal(pictures(problem, same), images)


def test_the_edit_follows_the_timestep(problem: Problem, forgotten: Forgotten) -> None:
    """Chosen at the last step only, features change nothing at the others, whatever was asked before."""
    made = cast(Ablated, forgotten.model)
    factor = made.factor.clone()
    factor[:-1] = 1.0
    late = Ablated(problem.target, made.layer, made.autoencoder, made.timesteps, factor, made.threshold * 0)
    batch = problem.batches("forget").take(torch.arange(4))
    for t, same in ((made.timesteps[0], True), (made.timesteps[-1], False), (made.timesteps[0], True)):
        asked = replace(
            batch, inputs={**batch.inputs, "timesteps": torch.full_like(batch.inputs["timesteps"], int(t))}
        )
        with torch.no_grad():
            said = [problem.family.forward(m, asked).prediction for m in (late, problem.target)]
        assert torch.equal(*said) is same


def test_attacks_that_differentiate_see_the_edit(problem: Problem, forgotten: Forgotten) -> None:
    family, batch = cast(Diffusion, problem.family), problem.batches("forget").take(torch.arange(4))
    conditions = cast(Ablated, forgotten.model).encode(batch.inputs["input_ids"]).requires_grad_(True)
    said = denoised(
        family,
        forgotten.model,
        batch.inputs["clean"],
        batch.inputs["timesteps"],
        batch.inputs["noise"],
        conditions,
    )[0].prediction
    with torch.no_grad():
        torch.testing.assert_close(said, family.forward(forgotten.model, batch).prediction)
    assert float(torch.autograd.grad(said.sum(), conditions)[0].abs().max()) > 0


def test_its_layer_is_the_first_attention_on_the_way_up(problem: Problem) -> None:
    assert last_attention(problem.target) == "unet.up_blocks.0.attentions.1"
    family = cast(Diffusion, problem.family)
    method = SAeUron(images=6, positions=5)
    seen = method.drawn(family, problem.target, "unet.up_blocks.0.attentions.1", ["red"], torch.Generator())
    assert seen.shape == (6, family.steps, 5, 8)
    # The first step, asked without sampling.
    noise = torch.randn(6, *family.shape, generator=torch.Generator())
    inner: Any = problem.target
    with torch.no_grad(), captured(inner, ["unet.up_blocks.0.attentions.1"]) as caught:
        inner.denoise(
            noise,
            family.noise.sampler(family.steps).timesteps[:1].expand(6),
            inner.encode(family.tokens(["red"] * 6)),
        )
    whole = caught["unet.up_blocks.0.attentions.1"]
    assert float(torch.cdist(seen[:, 0], whole).amin(-1).max()) < 1e-4


def test_what_it_cannot_work_on_is_refused(problem: Problem) -> None:
    alone = replace(problem, concept=Concept("red", ("red",), ("green",))).with_model(problem.target)
    with pytest.raises(BadInput, match="prompts to preserve, and there are none"):
        SAeUron().forget(alone)
    with pytest.raises(BadInput, match=r"no layer 'unet\.nowhere'"):
        SAeUron(layer="unet.nowhere").forget(problem)
    with pytest.raises(BadInput, match="5 features cannot be active of 4"):
        SparseAutoencoder(2, 4, 5)
