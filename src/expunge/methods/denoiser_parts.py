"""Which weights of a denoiser a method trains, under the names that the literature gives them."""

from __future__ import annotations

from typing import Literal

from torch import nn

from expunge.errors import BadInput
from expunge.families.models import innermost

DenoiserPart = Literal["x", "x-strict", "u", "self", "all"]


def trainable_part(model: nn.Module, part: DenoiserPart) -> set[str]:
    """Names of the weights of linear and convolution layers in `part` of the denoiser.

    ``x``: cross-attention; ``x-strict``: its key and value projections; ``u``: everything outside cross-attention;
    ``self``: self-attention; ``all``: every linear and convolution layer. Norms and embeddings stay as they are.
    """
    names = set()
    for name, module in innermost(model).named_modules():
        if not name.startswith("unet.") or not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        cross = ".attn2." in name
        inside = {
            "x": cross,
            "x-strict": cross and name.endswith(("to_k", "to_v")),
            "u": not cross,
            "self": ".attn1." in name,
            "all": True,
        }[part]
        if inside:
            names |= {f"{name}.{p}" for p, _ in module.named_parameters(recurse=False)}
    if not names:
        raise BadInput(f"the denoiser has no weights in part '{part}'; choose another part")
    return names
