"""Models whose linear layers run in few bits for real, by the kernels of bitsandbytes."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from expunge.attacks.tampering import weight_matrices
from expunge.errors import Missing
from expunge.extras import load_extra
from expunge.families import Family
from expunge.families.models import clone

BITS = (8, 4)
"""Of which there are kernels: LLM.int8 and NF4."""
OUTLIER = 6.0
"""Inputs above this are multiplied in full precision by LLM.int8 (Dettmers et al., NeurIPS 2022)."""
BLOCK = 64
"""Weights that share one scale in NF4."""


def library(device: str) -> Any:
    """The package, where it is installed and has kernels for the device.

    Raises:
        Missing: it is not, or has none.
    """
    found = load_extra("bitsandbytes", "bitsandbytes", "quantization by real kernels")
    kind = torch.device(device).type
    if kind not in getattr(found, "supported_torch_devices", {"cuda"}):
        raise Missing(
            f"bitsandbytes {found.__version__} has no kernels for the device '{kind}'; run on cuda, "
            "or leave `backend` at emulated"
        )
    # It says in every layer and batch that it computes in half precision.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return found


def in_few_bits(
    family: Family, model: nn.Module, bits: int, device: str, *, head: bool = True
) -> tuple[nn.Module, int]:
    """A copy of `model` whose linear layers hold weights of 8 or 4 `bits`, and how many there are.

    Convolutions, experts stored as stacks, embeddings, and an output layer that shares its weights with them stay.
    """
    kernels, made = library(device), clone(model)
    chosen = {id(module) for module, _ in weight_matrices(family, made, head=head)}
    names = {
        name: module for name, module in made.named_modules() if id(module) in chosen and _linear(module)
    }
    for name, module in names.items():
        made.set_submodule(name, _replacement(kernels, module, bits, device))
    # Moving eight-bit layers there is what quantizes them.
    return made.to(device), len(names)


def _linear(module: nn.Module) -> bool:
    # GPT-2 and its kin store linear layers as [in, out], in a class of their own.
    return type(module) is nn.Linear or type(module).__name__ == "Conv1D"


def _replacement(kernels: Any, module: nn.Module, bits: int, device: str) -> nn.Module:
    weight = module.get_parameter("weight").detach()
    if not isinstance(module, nn.Linear):
        weight = weight.T.contiguous()
    bias = getattr(module, "bias", None)
    state = {"weight": weight} | ({} if bias is None else {"bias": bias.detach()})
    if bits == 8:
        # In its forward pass inputs are rounded too, but for the columns with outliers.
        made = kernels.nn.Linear8bitLt(
            weight.shape[1], weight.shape[0], bias=bias is not None, has_fp16_weights=False, threshold=OUTLIER
        )
    else:
        # Its forward pass is a product with the unpacked weights: those are kept, for every shape and device.
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
        packed = kernels.functional.quantize_4bit(weight.to(device), blocksize=BLOCK, quant_type="nf4")
        state["weight"] = kernels.functional.dequantize_4bit(*packed).reshape(weight.shape)
    made.load_state_dict(state)
    return made
