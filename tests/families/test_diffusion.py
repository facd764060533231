"""The family of text-to-image diffusion models, against diffusers' own pipeline, schedulers and computations by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset

from expunge.errors import BadInput
from expunge.families import Batches, Diffusion
from expunge.families.denoising import sample, sample_latents, starting_noise
from expunge.families.models import clone
from expunge.families.noise import NoiseSchedule, draw_timesteps
from expunge.families.pipelines import DiffusionModel, LinearCodec, cross_attention
from expunge.problem import Problem
from expunge.testing import check_family
from expunge.testing.problems import tiny_problem


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny_problem("diffusion")


@pytest.mark.parametrize("check", list(check_family(tiny_problem("diffusion"))), ids=str)
def test_contract(check) -> None:
    check()


def test_sampling_equals_the_pipeline_of_diffusers(problem: Problem) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    family, model = problem.family, problem.target
    assert isinstance(family, Diffusion) and isinstance(model, DiffusionModel)
    pipe = StableDiffusionPipeline(
        vae=None, text_encoder=model.text_encoder, tokenizer=family.tokenizer, unet=model.unet,
        scheduler=DDIMScheduler.from_config(family.noise.config), safety_checker=None, feature_extractor=None,
        image_encoder=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    prompts, noise = ["red left", "blue right"], starting_noise(family, ["a", "b"])
    side = family.shape[1] * pipe.vae_scale_factor
    theirs = pipe(
        prompts, latents=noise.clone(), num_inference_steps=family.steps, guidance_scale=family.guidance, height=side,
        width=side, output_type="latent",
    ).images  # fmt: skip
    ours, last = sample_latents(family, model, family.tokens(prompts), noise)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert int(last) == int(family.noise.sampler(family.steps).timesteps[-1])


def test_images_do_not_depend_on_the_batch_and_follow_the_rows_own_noise(problem: Problem) -> None:
    family, model = problem.family, problem.target
    assert isinstance(family, Diffusion)
    prompts, noise = ["red left"] * 3, starting_noise(family, ["a", "b", "c"])
    whole = sample(family, model, prompts, noise, 3)
    torch.testing.assert_close(sample(family, model, prompts, noise, 1), whole, atol=1e-5, rtol=0)
    assert not torch.allclose(whole[0], whole[1])
    torch.testing.assert_close(starting_noise(family, ["c"])[0], noise[2])


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_noise_by_the_schedulers_own_functions(kind: str) -> None:
    from diffusers import DDPMScheduler

    config = {"num_train_timesteps": 50, "beta_schedule": "squaredcos_cap_v2", "prediction_type": kind}
    schedule, theirs = NoiseSchedule(config), DDPMScheduler(**config)
    random = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(4, 1, 6, generator=random) for _ in range(2))
    t = torch.tensor([[3], [10], [25], [45]])
    noisy = theirs.add_noise(clean[:, 0], noise[:, 0], t[:, 0])  # pyright: ignore
    torch.testing.assert_close(schedule.noisy(clean, noise, t)[:, 0], noisy, atol=1e-5, rtol=1e-4)
    velocity = theirs.get_velocity(clean[:, 0], noise[:, 0], t[:, 0])  # pyright: ignore
    expected = {"epsilon": noise[:, 0], "sample": clean[:, 0], "v_prediction": velocity}[kind]
    wanted = schedule.wanted(clean, schedule.noisy(clean, noise, t), t)
    torch.testing.assert_close(wanted[:, 0], expected, atol=1e-4, rtol=1e-3)


def test_timesteps_lean_to_noise() -> None:
    places = torch.linspace(0, 1, 10_001)
    assert draw_timesteps(places, 1000, 1.0).double().mean() == pytest.approx(499.5, abs=1)
    # The mean of u ** (1 / 2) is 2 / 3.
    assert draw_timesteps(places, 1000, 0.5).double().mean() == pytest.approx(1000 * 2 / 3 - 0.5, abs=1)
    assert int(draw_timesteps(torch.ones(1), 1000, 0.5)) == 999


def test_the_loss_is_the_weighted_error_of_the_clean_image(problem: Problem) -> None:
    family = problem.family
    assert isinstance(family, Diffusion)
    batch = problem.batches("forget").take(torch.arange(3))
    with torch.no_grad():
        outputs = family.forward(problem.target, batch)
    by_hand = torch.zeros(3)
    cumulative = family.noise.sampler(4).alphas_cumprod
    for row in range(3):
        for position in range(family.timesteps):
            a = cumulative[batch.inputs["timesteps"][row, position]]
            error = (outputs.prediction[row, position] - batch.inputs["clean"][row]).square().mean()
            by_hand[row] += error * min(float(a / (1 - a)) + 1, 5.0)
    torch.testing.assert_close(family.nll(outputs, batch), by_hand, rtol=1e-4, atol=1e-5)


def test_fresh_draws_differ_and_fixed_ones_do_not(problem: Problem) -> None:
    family, rows = problem.family, torch.arange(4)
    batch = problem.batches("forget").take(rows)
    again = Batches(family, problem.forget).take(rows)
    assert torch.equal(batch.inputs["noise"], again.inputs["noise"])
    one, two = (family.redraw(batch, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert one.targets.shape[1] == 1 and not torch.equal(one.inputs["noise"], two.inputs["noise"])
    assert torch.equal(one.targets[:, 0], batch.inputs["clean"])


def test_prompts_without_images_are_seen_as_pure_noise(problem: Problem) -> None:
    family = problem.family
    rows = Dataset.from_list([{"id": "x", "prompt": "red", "color": "red", "half": "left"}])
    family.check(rows, "prompts")
    batch = family.collate(rows.with_format("numpy")[:])
    assert not batch.mask.any() and (batch.inputs["timesteps"] == 99).all()
    with torch.no_grad():
        assert family.nll(family.forward(problem.target, batch), batch).tolist() == [0.0]


def test_the_codec_is_principal_components() -> None:
    from sklearn.decomposition import PCA

    images = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    codec = LinearCodec(2, 3, 5).fit(images)
    patches = torch.nn.functional.pixel_unshuffle(images, 2).permute(0, 2, 3, 1).reshape(-1, 12)
    theirs = PCA(5, svd_solver="full").fit(patches.double().numpy())
    rebuilt = theirs.inverse_transform(theirs.transform(patches.double().numpy()))
    ours = codec.decode(codec.encode(images))
    flat = torch.nn.functional.pixel_unshuffle(ours, 2).permute(0, 2, 3, 1).reshape(-1, 12)
    np.testing.assert_allclose(flat.numpy(), rebuilt, atol=1e-3)
    assert codec.encode(images).var(unbiased=False).item() == pytest.approx(1, abs=0.05)


def test_bad_data_is_refused(problem: Problem) -> None:
    row = {"id": "x", "prompt": "red", "color": "red", "half": "left", "latents": [0.0] * 96}
    with pytest.raises(BadInput, match="no column 'prompt'"):
        problem.family.check(Dataset.from_list([{"id": "x", "color": "red", "half": "left"}]), "rows")
    with pytest.raises(BadInput, match="has 3 values a row; the model's latents have 96"):
        problem.family.check(Dataset.from_list([{**row, "latents": [0.0] * 3}]), "rows")
    with pytest.raises(BadInput, match="NaN or infinity in 'latents'"):
        problem.family.check(Dataset.from_list([{**row, "latents": [float("nan")] * 96}]), "rows")
    with pytest.raises(BadInput, match="the judge of 'color' does not know 'pink'"):
        problem.family.generate(
            problem.target, Dataset.from_list([{**row, "color": "pink"}]), ["concept_correct"], 1
        )


def test_cross_attention_is_found_by_name(problem: Problem) -> None:
    model = clone(problem.target)
    assert isinstance(model, DiffusionModel)
    keys, values = cross_attention(model.unet, "to_k"), cross_attention(model.unet, "to_v")
    assert len(keys) == len(values) == len(cross_attention(model.unet)) == 3
    assert all(layer.weight.shape[1] == 16 for layer in (*keys.values(), *values.values()))
