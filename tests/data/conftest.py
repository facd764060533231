"""Fixtures of the data tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers

from expunge.testing.pictures import tokenizer

PROMPT_TOKENS = 8


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written to the user's cache."""
    cache = tmp_path_factory.mktemp("datasets")
    package: Any = datasets
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", cache)


@pytest.fixture(autouse=True, scope="session")
def no_bars() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as diffusers saves it, with every part of Stable Diffusion in small and random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16, attention_head_dim=2,
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4, sample_size=8)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=PROMPT_TOKENS, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer(PROMPT_TOKENS), unet=unet, safety_checker=None, feature_extractor=None,
        scheduler=DDIMScheduler(num_train_timesteps=100, clip_sample=False, steps_offset=1), image_encoder=None,
        requires_safety_checker=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    pipe.save_pretrained(folder)
    return folder
