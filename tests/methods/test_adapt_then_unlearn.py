"""Adapt-then-Unlearn: repulsion worked out by hand, the Fisher penalty by definition, and what it does to a tiny GAN."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import expunge
from expunge.errors import BadInput
from expunge.evidence import collect
from expunge.families import Gan
from expunge.families.generators import GAN
from expunge.families.models import clone
from expunge.methods.adapt_then_unlearn import (
    AdaptThenUnlearn,
    Repulsion,
    _Adapt,
    consolidation,
    diagonal_fisher,
    distance,
    repulsion,
)
from expunge.methods.base import Workplace
from expunge.methods.gan_samples import generator_weights, shows
from expunge.methods.loop import Loop, fit
from expunge.problem import Problem, Training
from expunge.testing.problems import tiny_problem

FEW = {"copies": 1, "adapting_steps": 20, "steps": 30, "samples": 400}


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny_problem("gan")


def gan(problem: Problem) -> tuple[Gan, GAN]:
    assert isinstance(problem.family, Gan) and isinstance(problem.target, GAN)
    return problem.family, problem.target


def rate(problem: Problem, model: torch.nn.Module) -> float:
    found = collect(problem.family, model, problem.splits["samples"], ["undesired"])
    return float(found["undesired"].mean())


@pytest.mark.parametrize(
    ("how", "value", "slope"),
    [("exp", 100 / math.e, -200 / math.e), ("reci", 1.0, -2.0), ("l2", -1.0, -2.0)],
)
def test_repulsion_of_one_weight_by_hand(how: Repulsion, value: float, slope: float) -> None:
    """theta 1, theta_N 0, gamma 1: d = 1."""
    theta = torch.tensor([1.0], requires_grad=True)
    d = distance({"w": theta}, [{"w": torch.zeros(1)}])
    found = repulsion(d, how, 1.0, 100.0)
    assert float(d) == 1 and float(found) == pytest.approx(value, rel=1e-5)
    (gradient,) = torch.autograd.grad(found, theta)
    assert float(gradient) == pytest.approx(slope, rel=1e-5)
    further = [float(repulsion(torch.tensor(x), how, 1.0, 100.0)) for x in (0.5, 1.0, 2.0, 4.0)]
    assert further == sorted(further, reverse=True)


def test_the_exponential_begins_at_alpha_and_has_no_direction_there() -> None:
    theta = torch.zeros(3, requires_grad=True)
    found = repulsion(distance({"w": theta}, [{"w": torch.zeros(3)}]), "exp", 2.0, 100.0)
    assert float(found) == 100
    assert torch.autograd.grad(found, theta)[0].abs().sum() == 0


def test_distance_counts_every_weight_alike() -> None:
    weights = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([5.0])}
    copies = [
        {"a": torch.zeros(2, 2), "b": torch.zeros(1)},
        {"a": torch.ones(2, 2), "b": torch.tensor([5.0])},
    ]
    # 1 + 4 + 9 + 16 + 25 = 55 and 0 + 1 + 4 + 9 + 0 = 14, over 5 weights and 2 copies.
    assert float(distance(weights, copies)) == pytest.approx((55 + 14) / 10)


def test_the_fisher_penalty_by_definition(problem: Problem) -> None:
    family, model = gan(problem)
    fisher = diagonal_fisher(family, model, 6, Workplace(seed=4).generator(0))
    weights = generator_weights(model)
    assert {n: f.shape for n, f in fisher.items()} == {n: w.shape for n, w in weights.items()}
    assert all(bool((f >= 0).all()) for f in fisher.values())
    name = str(int(torch.randint(2**62, (), generator=Workplace(seed=4).generator(0))))
    slow = {n: torch.zeros_like(w) for n, w in weights.items()}
    for i in range(6):
        model.zero_grad()
        model.discriminator(model(family.latents([f"{name}-{i}"]))).sum().backward()
        for n, w in weights.items():
            if w.grad is not None:
                slow[n] += w.grad**2 / 6
    model.zero_grad()
    for n in weights:
        torch.testing.assert_close(fisher[n], slow[n], atol=1e-7, rtol=1e-4)
    start = {n: w.detach().clone() for n, w in weights.items()}
    held = consolidation(weights, start, fisher)
    assert float(held) == 0
    slopes = torch.autograd.grad(held, list(weights.values()))
    assert all(float(s.abs().sum()) == 0 for s in slopes)
    moved = {n: w + 2 for n, w in start.items()}
    assert float(consolidation(moved, start, fisher)) == pytest.approx(
        2 * sum(float(f.sum()) for f in fisher.values()), rel=1e-4
    )


def test_copies_draw_what_is_not_wanted_and_a_strong_penalty_holds_them(problem: Problem) -> None:
    family, model = gan(problem)
    method = AdaptThenUnlearn(adapting_steps=60)
    start = {n: w.detach().clone() for n, w in generator_weights(model).items()}
    fisher = diagonal_fisher(family, model, 16, Workplace().generator(0))
    undesired = method.screen(problem, model, Workplace(), 1, 400, undesired=True)
    assert len(undesired.train) == pytest.approx(400 * rate(problem, model), abs=60)

    def adapted(ewc: float) -> GAN:
        settings = method._settings(len(undesired.train), method.adapting_steps)
        made = Loop(
            _Adapt(ewc=ewc, **settings).about(start, fisher), undesired, clone(model), Workplace(seed=1)
        ).run()
        assert isinstance(made, GAN)
        return made

    free, held = adapted(0.0), adapted(1e9)
    assert rate(problem, free) > rate(problem, model) + 0.3

    def moved(made: GAN) -> float:
        """Where F is large, weights must stay."""
        important = {n: f > f.median() for n, f in fisher.items()}
        return sum(
            float(((w - start[n]) * important[n]).square().sum()) for n, w in generator_weights(made).items()
        )

    assert moved(held) < 0.3 * moved(free)


def test_it_stops_drawing_what_is_not_wanted(problem: Problem) -> None:
    made = expunge.forget(problem, "adapt-then-unlearn", seed=3)
    assert rate(problem, made.model) < 0.05 < rate(problem, problem.target)
    assert "in 0.0% of these the judge sees" in made.notes[0]


def test_without_repulsion_it_is_plain_training_on_the_other_samples(problem: Problem) -> None:
    method = AdaptThenUnlearn(gamma=0.0, **FEW)
    found = method.forget(problem, Workplace(seed=3)).model.state_dict()
    others = method.screen(problem, problem.target, Workplace(seed=3), 99, method.samples, undesired=False)
    assert isinstance(problem.family, Gan)
    shown = torch.stack([torch.tensor(v) for v in others.train["image"][:]])
    assert not shows(problem.family, shown, guide=True).any()
    recipe = Training(**method._settings(len(others.train), method.steps))
    plain = fit(others, clone(problem.target), "forget", recipe, Workplace(seed=3)).state_dict()
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)


def test_an_unbounded_repulsion_ends_and_copies_that_are_the_gan_are_noted(problem: Problem) -> None:
    ended = AdaptThenUnlearn(repulsion="l2", gamma=1e4, reach=2.0, lr=0.02, **FEW).forget(problem)
    assert any("2 times as far from the adapted copies as they were" in note for note in ended.notes)
    none = AdaptThenUnlearn(**{**FEW, "adapting_steps": 0}).forget(problem)
    assert any("nothing says where to move to" in note for note in none.notes)


def test_faults_are_named(problem: Problem) -> None:
    family, _ = gan(problem)
    blind = Gan.restore({**family.describe(), "guide": None})
    with pytest.raises(BadInput, match="it needs a guide, a classifier of 'label'"):
        AdaptThenUnlearn().forget(replace(problem, family=blind))
    nameless = Gan.restore({**family.describe(), "concept": None})
    with pytest.raises(BadInput, match="something to forget that a classifier can name"):
        AdaptThenUnlearn().forget(replace(problem, family=nameless))
    middle = clone(problem.target)
    for parameter in middle.generator.image.parameters():  # pyright: ignore
        parameter.data.zero_()
    gone = problem.with_model(middle)
    with pytest.raises(BadInput, match="of 400 samples of the GAN the guide finds none undesired"):
        AdaptThenUnlearn().forget(gone)
