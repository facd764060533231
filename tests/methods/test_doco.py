"""DoCo: its surgery worked by hand, its discriminator against torch's own, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.errors import BadInput
from expunge.evidence import collect
from expunge.families.noise import NoiseSchedule
from expunge.methods import Workplace
from expunge.methods.denoiser_parts import trainable_part
from expunge.methods.discriminator import Discriminator
from expunge.methods.doco import DoCo, without_conflict
from expunge.problem import Problem
from expunge.testing.problems import tiny_problem

FEW: dict[str, Any] = {"epochs": 2, "batch_size": 20, "n_images": 8, "discriminator_steps": 4, "width": 8}
H = torch.tensor([-1.0, 1.0]) / 2**0.5


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny_problem("diffusion")


@pytest.mark.parametrize(("g", "exact", "published"), [
    ([1.0, 0.0], [0.5, 0.5], [0.5, 0.5]),
    ([2.0, 0.0], [1.0, 1.0], [1.5, 0.5]),
    ([0.5, 0.0], [0.25, 0.25], [0.0, 0.5]),
    ([-1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]),
])  # fmt: skip
@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_surgery_worked_by_hand(
    g: list[float], exact: list[float], published: list[float], scale: float
) -> None:
    """How long h is does not matter; the published form is a projection of unit vectors alone."""
    for wanted, form in ((exact, True), (published, False)):
        made = without_conflict(torch.tensor(g), scale * H, 1.0, exact=form)
        torch.testing.assert_close(made, torch.tensor(wanted), atol=1e-6, rtol=0)
        assert torch.equal(without_conflict(torch.tensor(g), scale * H, 0.0, exact=form), torch.tensor(g))


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_clean_latents_are_those_that_the_wanted_answer_means(kind: str) -> None:
    schedule = NoiseSchedule({"num_train_timesteps": 100, "prediction_type": kind})
    random = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(3, 2, 5, generator=random) for _ in range(2))
    timesteps = torch.tensor([[0, 50], [99, 10], [30, 70]])
    noisy = schedule.noisy(clean, noise, timesteps)
    back = schedule.clean(schedule.wanted(clean, noisy, timesteps), noisy, timesteps)
    torch.testing.assert_close(back, clean, atol=1e-4, rtol=0)


def discriminator(shape: tuple[int, ...] = (3, 8, 8)) -> Discriminator:
    made = Discriminator({}, "d")
    made.draw(shape, 8, torch.Generator().manual_seed(1), "cpu")
    return made


def test_the_discriminator_learns_as_torch_would_teach_it() -> None:
    """Two steps of two micro-batches against binary cross-entropy and Adam of torch."""
    made = discriminator()
    random = torch.Generator().manual_seed(2)
    first, second = (torch.randn(4, 3, 8, 8, generator=random) for _ in range(2))
    weights = {k: v.clone().requires_grad_(True) for k, v in made._parts("value").items()}
    optimizer = torch.optim.Adam(list(weights.values()), lr=1e-2, betas=(0.5, 0.999))
    for _ in range(2):
        for rows in (slice(0, 3), slice(3, 4)):
            made.learn(first[rows], second[rows], torch.full((rows.stop - rows.start,), 0.25))
        made.step(1e-2, "cpu")
        a, b = made(first, weights), made(second, weights)
        loss = F.binary_cross_entropy_with_logits(
            a, torch.zeros_like(a)
        ) + F.binary_cross_entropy_with_logits(b, torch.ones_like(b))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in made._parts("value").items():
        torch.testing.assert_close(value, weights[name].detach(), atol=2e-4, rtol=0)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 8, 16, 64])
def test_latents_of_any_size_have_patches(side: int) -> None:
    logits = discriminator((3, side, side))(torch.zeros(2, 3, side, side))
    assert logits.shape[:2] == (2, 1) and logits.shape[2] == (3 if side == 64 else 1)


def test_what_cannot_be_told_apart_costs_two_ln_2() -> None:
    """The same latents on both sides: at best all logits are 0."""
    made, same = discriminator(), torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    for _ in range(60):
        made.learn(same, same, torch.full((16,), 1 / 16))
        made.step(3e-3, "cpu")
    made.learn(same, same, torch.full((16,), 1 / 16))
    assert float(made.loss) == pytest.approx(2 * torch.log(torch.tensor(2.0)).item(), abs=2e-3)


def test_no_step_against_the_anchor(problem: Problem) -> None:
    """After exact surgery the gradient does not oppose that of the usual loss, in any parameter tensor."""
    seen: list[tuple[Tensor, Tensor]] = []

    class Watched(DoCo):
        def combine(self, gradients: Any, lr: float, state: Any, terms: Any) -> list[Tensor]:
            made = super().combine(gradients, lr, state, terms)
            seen.extend(zip(made, gradients["prior"], strict=True))
            return made

    made = Watched(**FEW, lr=1e-2).forget(problem, Workplace(seed=1))
    assert any(entry["opposed"] > 0 for entry in made.log)
    assert all(float((g * h).sum()) >= -1e-5 * float(g.norm() * h.norm()) for g, h in seen) and seen


def test_only_its_part_moves_and_not_before_the_discriminator_is_ready(problem: Problem) -> None:
    made = DoCo(**FEW, lr=1e-2).forget(problem, Workplace(seed=1))
    before = dict(problem.target.named_parameters())
    moved = {name for name, p in made.model.named_parameters() if not torch.equal(before[name], p)}
    assert moved == trainable_part(problem.target, "x-strict")
    still = DoCo(**{**FEW, "epochs": 1, "lr": 0.0, "discriminator_steps": 30}).forget(
        problem, Workplace(seed=1)
    )
    assert all(torch.equal(before[n], p) for n, p in still.model.named_parameters())
    assert "the discriminator was right on" in still.notes[0]


def test_it_erases(problem: Problem) -> None:
    settings = {**FEW, "epochs": 20, "lr": 1e-2, "discriminator_steps": 30, "n_images": 24}
    made = DoCo(**settings).forget(problem, Workplace(seed=1))
    shares = {s: collect(problem.family, made.model, problem.splits[s], ["concept_correct"])["concept_correct"].mean()
              for s in ("concept", "test")}  # fmt: skip
    assert shares["concept"] < 0.5 and shares["test"] > 0.9


def test_micro_batches_see_the_same_draws(problem: Problem) -> None:
    settings = {**FEW, "epochs": 1, "optimizer": "sgd", "lr": 0.05, "batch_size": 16}
    whole, pieces = (
        DoCo(**settings, micro_batch_size=m).forget(problem, Workplace(seed=2)) for m in (None, 3)
    )
    pairs = list(
        zip(whole.model.parameters(), problem.target.parameters(), pieces.model.parameters(), strict=True)
    )
    moved, apart = (
        max(float((a - b).detach().abs().max()) for a, b, _ in pairs),
        max(float((a - c).detach().abs().max()) for a, _, c in pairs),
    )
    assert moved > 1e-3 and apart < 1e-3 * moved
    assert whole.log[-1]["discriminator"] == pytest.approx(pieces.log[-1]["discriminator"], rel=1e-3)


def test_anchors_that_say_the_same_are_refused(problem: Problem) -> None:
    assert problem.concept is not None
    concept = replace(problem.concept, name="lion", prompts=("lion",), anchors=("tiger",))
    with pytest.raises(BadInput, match="to this tokenizer the anchor 'tiger' is the same as 'lion'"):
        DoCo(**FEW).forget(replace(problem, concept=concept))
    rows = problem.train.remove_columns(["latents", "anchor_latents"])
    with pytest.raises(BadInput, match="has no images of anchors; leave 'images' at 'drawn'"):
        DoCo(**FEW, images="data").forget(replace(problem, train=rows, holdout=None, probes={}))
