"""The family of GANs: its game against the two players differentiated by hand, samples, coverage, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import nn

import expunge
from expunge.attacks import ATTACKS, Scene
from expunge.errors import BadInput
from expunge.evidence import collect
from expunge.families import Batches, Gan, Images
from expunge.families.coverage import near_real
from expunge.families.generators import GAN
from expunge.families.models import clone
from expunge.families.weights import load_folder, save_model
from expunge.methods.base import METHODS
from expunge.problem import Problem
from expunge.testing import check_family
from expunge.testing.problems import tiny_problem
from expunge.testing.shades import tiny_gan


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny_problem("gan")


def gan(problem: Problem) -> tuple[Gan, GAN]:
    assert isinstance(problem.family, Gan) and isinstance(problem.target, GAN)
    return problem.family, problem.target


@pytest.mark.parametrize("check", list(check_family(tiny_problem("gan"))), ids=str)
def test_contract(check) -> None:
    check()


def test_each_player_moves_as_if_the_other_stood_still(problem: Problem) -> None:
    family, model = gan(problem)
    batch = Batches(family, problem.train).take(torch.arange(8))
    found = torch.autograd.grad(
        torch.stack([v.mean() for v in family.losses(model, batch).values()]).sum(), list(model.parameters())
    )
    ours = dict(zip((n for n, _ in model.named_parameters()), found, strict=True))

    z, real = batch.inputs["latent"], batch.inputs["image"].unflatten(1, family.shape).requires_grad_()
    score = model.discriminator(real)
    (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
    loss = -F.logsigmoid(score).mean() - torch.log(1 - torch.sigmoid(model.discriminator(model(z)))).mean()
    loss = loss + family.penalty / 2 * sum(s.square().sum() for s in slope) / 8
    critic = dict(model.discriminator.named_parameters())
    for (name, _), theirs in zip(
        critic.items(), torch.autograd.grad(loss, list(critic.values())), strict=True
    ):
        torch.testing.assert_close(ours[f"discriminator.{name}"], theirs, atol=1e-6, rtol=1e-4)
    drawing = {n: p for n, p in model.named_parameters() if not n.startswith("discriminator")}
    fooling = -torch.log(torch.sigmoid(model.discriminator(model(z)))).mean()
    for name, theirs in zip(drawing, torch.autograd.grad(fooling, list(drawing.values())), strict=True):
        torch.testing.assert_close(ours[name], theirs, atol=1e-6, rtol=1e-4)


def test_the_penalty_of_a_linear_discriminator_is_its_squared_length() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator, self.discriminator = nn.Linear(2, 4), nn.Sequential(nn.Flatten(), nn.Linear(4, 1))

    family = Gan(Images("image", mean=[0.5], std=[0.5]), (1, 2, 2), 2, penalty=3.0)
    free = Gan(Images("image", mean=[0.5], std=[0.5]), (1, 2, 2), 2, penalty=0.0)
    model = Pair()
    batch = family.collate(
        {"id": ["a", "b"], "image": list(np.random.default_rng(0).random((2, 2, 2)).astype(np.float32))}
    )
    with_penalty, without = (f.losses(model, batch)["discriminator"] for f in (family, free))
    length = model.discriminator[1].weight.square().sum()  # pyright: ignore
    torch.testing.assert_close(with_penalty - without, (1.5 * length).expand(2))


def test_samples_follow_the_rows_own_latents_whatever_the_batch(problem: Problem) -> None:
    family, model = gan(problem)
    batch = family.collate({"id": ["a", "b", "c"]})
    whole = family.sampled(model, batch, 3)
    torch.testing.assert_close(family.sampled(model, batch, 1), whole, atol=1e-6, rtol=0)
    alone = family.collate({"id": ["c"]})
    torch.testing.assert_close(family.sampled(model, alone), whole[2:], atol=1e-6, rtol=0)
    torch.testing.assert_close(family.latents(["c"]), alone.inputs["latent"])
    latents = family.latents([str(i) for i in range(2000)])
    assert abs(float(latents.mean())) < 0.05 and abs(float(latents.var()) - 1) < 0.05
    again = family.redraw(batch, torch.Generator().manual_seed(0)).inputs["latent"]
    assert not torch.allclose(again, batch.inputs["latent"])


def test_a_retrained_gan_does_not_draw_what_it_never_saw(problem: Problem) -> None:
    family, model = gan(problem)
    rate = float(collect(family, model, problem.splits["samples"], ["undesired"])["undesired"].mean())
    retrained = expunge.forget(problem, "retrain", seed=3).model
    after = float(collect(family, retrained, problem.splits["samples"], ["undesired"])["undesired"].mean())
    assert rate > 0.15 and after < 0.05
    covered = collect(family, retrained, problem.splits["concept"], ["covered"])["covered"].mean()
    assert covered < collect(family, model, problem.splits["concept"], ["covered"])["covered"].mean()


def test_a_conditional_gan_is_asked_for_the_rows_class() -> None:
    problem = tiny_gan(conditional=True)
    model = problem.fresh_model(0)
    family = problem.family
    assert isinstance(family, Gan) and isinstance(model, GAN)
    batch = family.collate({"id": ["a", "a"], "label": [0, 2]})
    assert batch.inputs["condition"].tolist() == [[1, 0, 0], [0, 0, 1]]
    one, two = family.sampled(model, batch)
    assert not torch.allclose(one, two)
    torch.testing.assert_close(model(batch.inputs["latent"], batch.inputs["condition"]).detach()[0], one)
    groups = family.groups(problem.splits["samples"])
    assert groups is not None and set(groups) == {"dark", "middle", "bright"}
    with pytest.raises(
        BadInput, match="has no column 'label', the class that a conditional GAN is asked for"
    ):
        family.check(Dataset.from_dict({"id": ["a"]}), "rows")
    with pytest.raises(BadInput, match="must be 0 to 2, got 1 to 7"):
        family.check(Dataset.from_dict({"id": ["a", "b"], "label": [1, 7]}), "rows")


def test_balls_by_hand_and_by_definition() -> None:
    # On a line: the second nearest others of 0, 1, 3, 7 are at 3, 2, 3, 6; borders are outside.
    real, drawn = np.array([[0.0], [1.0], [3.0], [7.0]]), np.array([[2.9], [3.0], [12.5], [20.0]])
    assert near_real(real, drawn, 2).tolist() == [1.0, 1.0, 2.0, 3.0]
    random = np.random.default_rng(0)
    real, drawn = random.normal(size=(40, 3)), random.normal(size=(30, 3))
    expected = []
    for x in real:
        radius = sorted(float(np.sqrt(((x - y) ** 2).sum())) for y in real)[5]  # the first is x itself
        expected.append(sum(float(np.sqrt(((x - y) ** 2).sum())) < radius for y in drawn))
    assert near_real(real, drawn).tolist() == expected
    assert np.isnan(near_real(real[:5], drawn)).all()
    # The package of the paper's authors, prdc 0.2, says coverage 0.716667 and density 0.751 of these.
    random = np.random.default_rng(0)
    counts = near_real(random.normal(size=(300, 8)), random.normal(0.5, 1, size=(200, 8)))
    assert np.mean(counts > 0) == pytest.approx(0.716667, abs=1e-6)
    assert np.mean(counts) * 300 / (5 * 200) == pytest.approx(0.751)


def test_coverage_of_the_same_distribution_is_what_naeem_et_al_derive() -> None:
    """With as many samples as rows the expected coverage is near 1 - 2^-k, and density 1."""
    random = np.random.default_rng(0)
    counts = near_real(random.normal(size=(2000, 2)), random.normal(size=(2000, 2)), 5)
    assert np.mean(counts > 0) == pytest.approx(1 - 2**-5, abs=0.01)
    assert np.mean(counts) / 5 == pytest.approx(1, abs=0.05)


def test_what_needs_a_likelihood_is_refused(problem: Problem) -> None:
    for name in ("gradient-ascent", "npo", "ssd", "fine-tune"):
        with pytest.raises(
            BadInput, match=f"'{name}' cannot run on tiny-gan: it needs a likelihood, which gan has not"
        ):
            METHODS[name]().forget(problem)
    with pytest.raises(BadInput, match="population-mia.*it needs a likelihood, which gan has not"):
        ATTACKS["population-mia"]().attack(Scene(problem, clone(problem.target)))


def test_faults_are_named(problem: Problem) -> None:
    family, model = gan(problem)
    wrong = Dataset.from_dict({"id": ["a"], "image": np.zeros((1, 8, 8), dtype=np.float32).tolist()})
    with pytest.raises(BadInput, match="images have 64 values; the GAN draws 16"):
        family.check(wrong, "rows")
    with pytest.raises(BadInput, match="without a column 'image' have no 'covered'"):
        collect(family, model, problem.splits["samples"].select_columns(["id"]), ["covered"])
    described = family.describe()
    with pytest.raises(BadInput, match="no judge knows 'stroke'"):
        Gan.restore({**described, "concept": ["stroke", "heavy"]})
    with pytest.raises(BadInput, match="does not know 'red'"):
        Gan.restore({**described, "concept": ["label", "red"]})
    with pytest.raises(BadInput, match="no judge of generated images is known"):
        collect(
            Gan.restore({**described, "judges": [], "concept": None}),
            model,
            problem.splits["samples"],
            ["judged"],
        )
    with pytest.raises(BadInput, match="images of 6 pixels cannot be halved twice"):
        GAN(size=6)


def test_a_saved_gan_draws_the_same(problem: Problem, tmp_path: Path) -> None:
    family, model = gan(problem)
    save_model(model, tmp_path, problem.architecture, family.describe(), {})
    again = load_folder(tmp_path)[0]
    batch = family.collate({"id": ["a", "b"]})
    assert torch.equal(family.sampled(again, batch), family.sampled(model, batch))


def test_the_judge_looks_as_it_judges(problem: Problem) -> None:
    """Differentiable and not, and as the classifier itself reads images of 0 to 1."""
    family, _ = gan(problem)
    judge = family.judges["label"]
    images = torch.rand(3, 1, 4, 4) * 2 - 1
    logits, features = judge.look(images.requires_grad_())
    (slope,) = torch.autograd.grad(logits.sum(), images)
    assert slope.abs().sum() > 0
    said = judge.judge(images.detach())
    np.testing.assert_allclose(said.logp, torch.log_softmax(logits, -1).detach(), atol=1e-6)
    np.testing.assert_allclose(said.features, features.detach(), atol=1e-6)
    network, reader = judge._loaded
    pixels = reader.inputs.encode({"image": list(((images.detach() + 1) / 2)[:, 0].numpy())})
    torch.testing.assert_close(network(*pixels.values()), logits, atol=1e-5, rtol=1e-5)
