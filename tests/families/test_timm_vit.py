"""A vision transformer saved by timm says the same as a `transformers` model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.errors import BadInput
from expunge.families.timm_vit import read_timm_vit

WIDTH, PATCH, SIDE, CLASSES, DEPTH = 128, 4, 12, 5, 2


def weights() -> dict[str, Tensor]:
    """What timm calls the parameters of a vision transformer, with random values."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH), "pos_embed": (1, (SIDE // PATCH) ** 2 + 1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,), "norm.bias": (WIDTH,), "head.weight": (CLASSES, WIDTH), "head.bias": (CLASSES,),
    }  # fmt: skip
    for i in range(DEPTH):
        linear = {
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "mlp.fc1": (96, WIDTH),
            "mlp.fc2": (WIDTH, 96),
        }
        for name, (out, into) in linear.items():
            shapes |= {f"blocks.{i}.{name}.weight": (out, into), f"blocks.{i}.{name}.bias": (out,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.weight": (WIDTH,), f"blocks.{i}.{name}.bias": (WIDTH,)}
    random = torch.Generator().manual_seed(0)
    return {name: 0.2 * torch.randn(shape, generator=random) for name, shape in shapes.items()}


def plain(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The forward pass of timm's `VisionTransformer`, written out: heads of 64, layer norms with 1e-6."""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = (
        F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH)
        .flatten(2)
        .transpose(1, 2)
    )
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w["pos_embed"]
    for i in range(DEPTH):
        heads = linear(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", x)).unflatten(
            -1, (3, WIDTH // 64, 64)
        )
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        attended = torch.softmax(q @ k.transpose(-1, -2) / 8, -1) @ v
        x = x + linear(f"blocks.{i}.attn.proj", attended.transpose(1, 2).flatten(2))
        x = x + linear(
            f"blocks.{i}.mlp.fc2", F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(f"blocks.{i}.norm2", x)))
        )
    return linear("head", norm("norm", x)[:, 0])


def test_logits_agree_with_the_plain_forward_pass(tmp_path: Path):
    w = weights()
    torch.save({"model_state_dict": w, "epoch": 3}, tmp_path / "style.pth")
    model = read_timm_vit(tmp_path / "style.pth", allow_pickle=True)
    x = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(model(x).logits, plain(w, x), atol=1e-5)


def test_pickles_need_to_be_allowed_and_hold_nothing_but_tensors(tmp_path: Path):
    torch.save(weights(), tmp_path / "w.pth")
    with pytest.raises(BadInput, match="allow_pickle=true"):
        read_timm_vit(tmp_path / "w.pth")
    torch.save({"model_state_dict": weights(), "code": Path}, tmp_path / "evil.pth")
    with pytest.raises(BadInput, match="cannot be read as weights"):
        read_timm_vit(tmp_path / "evil.pth", allow_pickle=True)
    torch.save({"model_state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(BadInput, match="has no 'cls_token'"):
        read_timm_vit(tmp_path / "other.pth", allow_pickle=True)
