"""The tiny problem of the family `diffusion`: colored halves of 8x8 pixels, and a denoiser of a few thousand weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from expunge.families import Architecture, Classifier, Diffusion, Images
from expunge.families.judges import Judge
from expunge.families.pipelines import LinearCodec, diffusers
from expunge.families.weights import save_model, save_weights
from expunge.methods.base import Workplace
from expunge.methods.loop import fit
from expunge.problem import Concept, Problem, Training

COLORS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}
HALVES = ("left", "right")
SIDE, PATCH, KEEP, LENGTH = 8, 2, 6, 4

SCHEDULE = {
    "num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample", "clip_sample": False,
    "timestep_spacing": "trailing",
}  # fmt: skip


def picture(color: str, half: str, random: np.random.Generator) -> np.ndarray:
    """`[3, 8, 8]` in -1 to 1: one half in the color, the other dark, with noise."""
    image = np.full((3, SIDE, SIDE), -0.8)
    part = slice(0, SIDE // 2) if half == "left" else slice(SIDE // 2, SIDE)
    image[:, :, part] = 2 * np.asarray(COLORS[color])[:, None, None] - 1
    return np.clip(image + random.normal(0, 0.05, image.shape), -1, 1).astype(np.float32)


def tokenizer(length: int = LENGTH) -> object:
    """One token per word; words of no picture are one unknown token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = ["<start>", "<end>", *COLORS, *HALVES, "<unknown>"]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    backend.pre_tokenizer = Whitespace()  # pyright: ignore
    backend.post_processor = TemplateProcessing(  # pyright: ignore
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<end>",
        eos_token="<end>",
        unk_token="<unknown>",
        model_max_length=length,
    )


def _rows(n: int, seed: int, coder: LinearCodec, *, anchored: bool = False) -> Dataset:
    random = np.random.default_rng(seed)
    made = []
    for i in range(n):
        color, half = list(COLORS)[i % 3], HALVES[i // 3 % 2]
        shown = {"latents": picture(color, half, random)}
        if anchored:
            shown["anchor_latents"] = picture("green", half, random) if color == "red" else shown["latents"]
        latents = {k: coder.encode(torch.from_numpy(v[None])).flatten().tolist() for k, v in shown.items()}
        row = {"id": f"d{seed}-{i}", "color": color, "half": half, "prompt": f"{color} {half}", **latents}
        if anchored:
            # Guidance needs to know what no prompt means.
            row["prompt"] = "" if random.random() < 0.2 else row["prompt"]
            row["anchor_prompt"] = row["prompt"].replace("red", "green")
        made.append(row)
    return Dataset.from_list(made)


_KEPT = tempfile.TemporaryDirectory(prefix="expunge-tiny-")
"""Goes with the process."""


def _folder() -> Path:
    return Path(_KEPT.name)


def _judge(column: str, classes: list[str]) -> Judge:
    random = np.random.default_rng(9)
    shown = [(c, h) for c in COLORS for h in HALVES for _ in range(16)]
    train = Dataset.from_dict(
        {
            "id": [str(i) for i in range(len(shown))],
            "image": [((picture(c, h, random) + 1) / 2).tolist() for c, h in shown],
            "label": [classes.index(c if column == "color" else h) for c, h in shown],
        }
    )
    options = {"channels": 3, "size": SIDE, "outputs": len(classes), "widths": [4], "hidden": 8}
    architecture, recipe = (
        Architecture(kind="builtin", name="cnn", options=options),
        Training(epochs=8, batch_size=16),
    )
    problem = Problem(
        "judge", Classifier(Images("image", channels=3), classes), train, ("0",), architecture=architecture
    )
    model = fit(problem, problem.fresh_model(0), "train", recipe, Workplace())
    save_model(model, _folder() / column, architecture, problem.family.describe(), {})
    return Judge(column, str(_folder() / column), classes)


def tiny_diffusion() -> Problem:
    """Red is to be forgotten and drawn green instead; the target is not trained yet."""
    random = np.random.default_rng(0)
    images = np.stack([picture(c, h, random) for c in COLORS for h in HALVES for _ in range(8)])
    coder, weights = (
        LinearCodec(PATCH, 3, KEEP).fit(torch.from_numpy(images)),
        _folder() / "codec.safetensors",
    )
    save_weights(coder, weights)
    train = _rows(48, 0, coder, anchored=True)
    test = _rows(24, 2, coder)
    red = [c == "red" for c in test["color"]]
    judges = [_judge("color", list(COLORS)), _judge("half", list(HALVES))]
    family = Diffusion(
        tokenizer(), SCHEDULE, (KEEP, SIDE // PATCH, SIDE // PATCH), LENGTH, timesteps=2, timestep_power=0.5, snr_cap=5.0,
        guidance=1.5, steps=4, judges=judges, concept={"color": "red"}, group="half",
    )  # fmt: skip
    unet = {
        "sample_size": SIDE // PATCH, "in_channels": KEEP, "out_channels": KEEP, "block_out_channels": [8],
        "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"], "layers_per_block": 1,
        "mid_block_type": None, "cross_attention_dim": 16, "attention_head_dim": 2, "norm_num_groups": 4,
    }  # fmt: skip
    text = {
        "vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": LENGTH, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
    codec = {"patch": PATCH, "channels": 3, "keep": KEEP, "weights": str(weights)}
    prompts = ("red", "red left", "red right")
    kept = ("", *(f"{c} {h}" for c in ("green", "blue") for h in HALVES), "green", "blue", *HALVES)
    return Problem(
        "tiny-diffusion", family, train, tuple(i for i, c in zip(train["id"], train["color"], strict=True) if c == "red"),
        _rows(24, 1, coder),
        {"test": test.select(np.flatnonzero(~np.asarray(red))), "concept": test.select(np.flatnonzero(red))},
        architecture=Architecture(
            kind="diffusers", name="text-to-image",
            options={"unet": unet, "text_encoder": text, "codec": codec, "embedding_scale": 8.0},
        ),
        recipe=Training(epochs=20, batch_size=16, lr=5e-3, optimizer="adamw", weight_decay=0.0), scope="everything red",
        concept=Concept("red", prompts, tuple(p.replace("red", "green") for p in prompts), kept),
    )  # fmt: skip


def save_tiny_pipeline(folder: Path, length: int = 8) -> Path:
    """A Stable Diffusion folder as diffusers saves it: every part in small, random weights, prompts of `length` tokens."""
    from transformers import CLIPTextConfig, CLIPTextModel

    library = diffusers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = library.UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16, attention_head_dim=2,
        )  # fmt: skip
        vae = library.AutoencoderKL(
            block_out_channels=(8,), latent_channels=4, norm_num_groups=4, sample_size=8
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                max_position_embeddings=length, bos_token_id=0, eos_token_id=1, pad_token_id=1,
            )
        )  # fmt: skip
    pipe = library.StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer(length), unet=unet, safety_checker=None, feature_extractor=None,
        scheduler=library.DDIMScheduler(num_train_timesteps=100, clip_sample=False, steps_offset=1), image_encoder=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder
