"""Stable Diffusion XL, in small and with random weights: asked, edited, saved and read as diffusers does it."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge.cli import main
from expunge.data.checkpoints import load_diffusion
from expunge.errors import BadInput
from expunge.families import Diffusion
from expunge.families.denoising import sample, starting_noise
from expunge.families.two_encoders import TwoEncoderModel
from expunge.families.weights import load_folder
from expunge.testing.pictures import tokenizer

TOKENS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    text = {
        "vocab_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": 1, "max_position_embeddings": TOKENS,
    }  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16 + 24, attention_head_dim=2, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 20,
    )  # fmt: skip
    second = copy.deepcopy(tokenizer(TOKENS))
    second.pad_token = "<unknown>"  # pyright: ignore
    pipe = StableDiffusionXLPipeline(
        vae=AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4, sample_size=8),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text, hidden_size=16)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**text, hidden_size=24, projection_dim=20)),
        tokenizer=tokenizer(TOKENS), tokenizer_2=second, unet=unet, add_watermarker=False,
        scheduler=DDIMScheduler(num_train_timesteps=100, clip_sample=False, steps_offset=1),
    )  # fmt: skip
    made = tmp_path_factory.mktemp("xl") / "tiny"
    pipe.save_pretrained(made)
    return made


def drawn(
    folder: Path, prompts: list[str], noise: Tensor, steps: int, guidance: float, adapter: Path | None = None
) -> Tensor:
    """Images that diffusers itself draws."""
    from diffusers import StableDiffusionXLPipeline

    pipe: Any = StableDiffusionXLPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if adapter is not None:
        pipe.load_lora_weights(adapter)
    made = pipe(
        prompts, latents=noise.clone(), num_inference_steps=steps, guidance_scale=guidance, height=8, width=8,
        output_type="pt",
    )  # fmt: skip
    return 2 * made.images - 1


def test_images_are_those_of_the_pipeline(folder: Path):
    checkpoint = load_diffusion(str(folder))
    family, model = checkpoint.family, checkpoint.model
    assert isinstance(family, Diffusion) and isinstance(model, TwoEncoderModel) and model.side == 8
    family.steps, family.guidance = 3, 4.0
    prompts, noise = ["red left", "blue"], starting_noise(family, ["a", "b"])
    ours = sample(family, model, prompts, noise)
    torch.testing.assert_close(ours.clamp(-1, 1), drawn(folder, prompts, noise, 3, 4.0), atol=1e-5, rtol=0)


def test_a_concept_is_erased_and_the_pipeline_reads_it_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = ["forget", "--model", str(folder), "--concept", "red", "--anchor", "green", "--method", "uce", "--set",
                 "ridge=1e-6", "--set", "tokens=all", "--out", str(tmp_path / "out")]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["expunge", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    checkpoint = load_diffusion(str(folder))
    assert isinstance(checkpoint.family, Diffusion) and isinstance(checkpoint.model, TwoEncoderModel)
    noise = starting_noise(checkpoint.family, ["a"])
    pipeline = tmp_path / "out" / "pipeline"
    edited = drawn(pipeline, ["red"], noise, 3, 4.0)
    # Cross-attention answers as to "green"; the summary of the prompt, which goes another way, is not edited.
    with torch.no_grad():
        ids = checkpoint.family.tokens(["red", "green"])
        red, green = checkpoint.model.encode(ids)
        mixed = torch.cat([green[:-1], red[-1:]])
        blank = checkpoint.model.encode(checkpoint.family.tokens([""]))[0]
        assert not blank.any()
        scheduler = checkpoint.family.noise.sampler(3)
        latents = noise
        for t in scheduler.timesteps:
            said = checkpoint.model.denoise(
                latents.repeat(2, 1, 1, 1), t.expand(2), torch.stack([blank, mixed])
            )
            latents = scheduler.step(said[:1] + 4 * (said[1:] - said[:1]), t, latents, return_dict=False)[0]
        wanted = checkpoint.model.decode(latents)
    torch.testing.assert_close(edited, wanted.clamp(-1, 1), atol=2e-2, rtol=0)
    assert not torch.allclose(edited, drawn(folder, ["red"], noise, 3, 4.0), atol=2e-2)
    again, _, _ = load_folder(tmp_path / "out")
    for name, value in load_diffusion(str(pipeline)).model.state_dict().items():  # pyright: ignore
        torch.testing.assert_close(again.state_dict()[name], value)


def test_a_saved_adapter_gives_the_merged_models_images(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = ["forget", "--model", str(folder), "--concept", "red", "--method", "spm", "--set", "epochs=1", "--set",
                 "lr=0.1", "--set", "anchors=1", "--set", "guidance=1", "--out", str(tmp_path / "out")]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["expunge", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    family = load_diffusion(str(folder)).family
    assert isinstance(family, Diffusion)
    noise = starting_noise(family, ["a"])
    merged = drawn(tmp_path / "out" / "pipeline", ["red"], noise, 3, 4.0)
    loaded = drawn(folder, ["red"], noise, 3, 4.0, tmp_path / "out" / "adapter")
    torch.testing.assert_close(loaded, merged, atol=1e-4, rtol=0)
    assert not torch.allclose(merged, drawn(folder, ["red"], noise, 3, 4.0), atol=1e-3)


def test_what_needs_one_encoder_is_refused(folder: Path, tmp_path: Path):
    model = load_diffusion(str(folder)).model
    assert isinstance(model, TwoEncoderModel)
    with pytest.raises(BadInput, match="two text encoders"):
        model.text_encoder.get_input_embeddings()
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "FluxPipeline", "_diffusers_version": "0.30.0"}'
    )
    with pytest.raises(BadInput, match="is a FluxPipeline; expunge reads StableDiffusionPipeline and"):
        load_diffusion(str(tmp_path))
