"""Small files of every kind, and tiny models saved as `transformers` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from expunge.families import Architecture


def pixels(n: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    shape = (n, 8, 8) if channels == 1 else (n, 8, 8, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_picture_folder(folder: Path, per_class: int, seed: int) -> Path:
    for c, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for i, array in enumerate(pixels(per_class, seed + c, channels=3)):
            Image.fromarray(array).save(folder / name / f"{i}.png")
    return folder


def write_idx(path: Path, array: np.ndarray) -> None:
    kinds = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}
    header = bytes([0, 0, kinds[array.dtype.name], array.ndim])
    header += b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.astype(array.dtype.newbyteorder(">")).tobytes())


def save_transformer(folder: Path, model_type: str, **changes: object) -> nn.Module:
    """A tiny model with random weights, saved as a user would have it."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    options: dict[str, object] = {
        "vit": {**sizes, "image_size": 8, "patch_size": 4, "num_channels": 3},
        "resnet": {
            "num_channels": 3, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
        },
        "bert": {**sizes, "vocab_size": 200, "max_position_embeddings": 16},
    }[model_type]  # fmt: skip
    task = "sequence-classification" if model_type == "bert" else "image-classification"
    model = Architecture(
        kind="transformers",
        name=task,
        options={"model_type": model_type, "num_labels": 2, **options, **changes},
    ).build(3)
    model.save_pretrained(folder)  # pyright: ignore
    return model.eval()


FACTORY = """
import torch

def linear(inputs, outputs):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(inputs, outputs))

def number():
    return 3
"""
