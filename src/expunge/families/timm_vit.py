"""Vision transformers that were saved as a `timm` state dict, as `transformers` models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge.errors import BadInput

HEAD_WIDTH = 64
"""Of an attention head, in all of timm's plain vision transformers."""

_OUTSIDE = {
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "head": "classifier",
}
_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def read_timm_vit(path: Path, *, allow_pickle: bool = False) -> Any:
    """A `ViTForImageClassification` with the weights of a timm ``vit_*_patch*_*`` in a file of ``torch.save``.

    The file is a pickle: only tensors and plain containers in it are read, and only where `allow_pickle`. The state dict
    may stand under ``model_state_dict``. Everything else of the architecture follows from shapes.
    """
    from transformers import ViTConfig, ViTForImageClassification

    if not allow_pickle:
        raise BadInput(
            f"'{path}' is a pickle file, which can run code when it is read; convert it to safetensors, or allow it with "
            "allow_pickle=true if you trust where it comes from"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadInput(f"'{path}' cannot be read as weights: {str(error).splitlines()[0]}") from None
    given: dict[str, Tensor] = content.get("model_state_dict", content)
    needed = {"cls_token", "pos_embed", "patch_embed.proj.weight", "norm.weight", "head.weight"}
    if absent := sorted(needed - set(given)):
        raise BadInput(f"'{path}' is no plain vision transformer of timm: it has no '{absent[0]}'")
    width, channels, patch, _ = given["patch_embed.proj.weight"].shape
    patches = given["pos_embed"].shape[1] - 1
    side = round(patches**0.5)
    if side * side != patches or width % HEAD_WIDTH:
        raise BadInput(f"'{path}' is no plain vision transformer of timm: {patches} patches, width {width}")
    depth = 1 + max(int(name.split(".")[1]) for name in given if name.startswith("blocks."))
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=width, num_hidden_layers=depth, num_attention_heads=width // HEAD_WIDTH,
            intermediate_size=given["blocks.0.mlp.fc1.weight"].shape[0], image_size=side * patch, patch_size=patch,
            num_channels=channels, layer_norm_eps=1e-6,
            num_labels=given["head.weight"].shape[0],  # pyright: ignore[reportCallIssue]
        )
    )  # fmt: skip
    made = {
        "vit.embeddings.cls_token": given["cls_token"],
        "vit.embeddings.position_embeddings": given["pos_embed"],
    }
    for kind in ("weight", "bias"):
        made |= {f"{ours}.{kind}": given[f"{theirs}.{kind}"] for theirs, ours in _OUTSIDE.items()}
        for i in range(depth):
            for theirs, ours in _BLOCK.items():
                made[f"vit.layers.{i}.{ours}.{kind}"] = given[f"blocks.{i}.{theirs}.{kind}"]
            three = given[f"blocks.{i}.attn.qkv.{kind}"].chunk(
                3
            )  # queries, keys and values behind each other
            for name, part in zip("qkv", three, strict=True):
                made[f"vit.layers.{i}.attention.{name}_proj.{kind}"] = part
    model.load_state_dict(made)
    return model.eval()
