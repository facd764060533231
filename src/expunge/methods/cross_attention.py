"""Where text enters a denoiser: projections and probabilities of cross-attention, and the embeddings that it reads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families import Diffusion
from expunge.families.pipelines import DiffusionModel, cross_attention
from expunge.methods.concept_words import last_word, require_words

Rows = Literal["last", "all"]


def projections(model: DiffusionModel) -> list[nn.Linear]:
    """Key and value projections of all cross-attention modules, in order; under an adapter, the layers below it.

    Raises:
        BadInput: there are none, or keys and values are fused into one matrix.
    """
    fused = [
        name for name, m in cross_attention(model.unet).items() if getattr(m, "fused_projections", False)
    ]
    if fused:
        raise BadInput(
            f"'{fused[0]}' has its projections fused; call unfuse_qkv_projections on the model first"
        )
    parts = cross_attention(model.unet, "to_k", "to_v").values()
    found = [cast(nn.Linear, getattr(m, "base_layer", m)) for m in parts]
    if not found:
        raise BadInput("the denoiser has no cross-attention, so text cannot be edited where it enters")
    return found


def prompt_rows(
    family: Diffusion, model: DiffusionModel, prompts: Sequence[str], anchors: Sequence[str], which: Rows
) -> tuple[Tensor, Tensor]:
    """`[n, d]` embeddings of `prompts` and of their `anchors`, position by position, float64.

    ``last`` takes of each prompt its last word, the position before the end token (the start token of an empty prompt);
    ``all`` takes every position, padding included.
    """
    if not prompts:
        width = projections(model)[0].in_features
        return torch.zeros(0, width, dtype=torch.float64), torch.zeros(0, width, dtype=torch.float64)
    return _rows(family, model, prompts, which), _rows(family, model, anchors, which)


@torch.no_grad()
def _rows(family: Diffusion, model: DiffusionModel, prompts: Sequence[str], which: Rows) -> Tensor:
    device = next(model.parameters()).device
    ids = family.tokens(prompts).to(device)
    embedded = model.positions(model.encode(ids)).double()
    if which == "all":
        return embedded.flatten(0, 1)
    require_words(family, [p for p in prompts if p.strip()])
    last = last_word(family, ids)
    return embedded[torch.arange(len(ids), device=device), last]


def phrase_positions(family: Diffusion, phrase: str, input_ids: Tensor) -> Tensor:
    """`[B, L]` bool: the tokens of `phrase` in each prompt of `input_ids`, as often as it occurs.

    Raises:
        BadInput: the phrase has no token of its own in this tokenizer.
    """
    wanted = family.tokenizer(phrase, add_special_tokens=False)["input_ids"]
    if not wanted:
        raise BadInput(
            f"'{phrase}' has no token of its own in this tokenizer; name the concept in other words"
        )
    found = torch.zeros_like(input_ids, dtype=torch.bool)
    if len(wanted) > input_ids.shape[1]:
        return found
    starts = (input_ids.unfold(1, len(wanted), 1) == input_ids.new_tensor(wanted)).all(-1)
    for offset in range(len(wanted)):
        found[:, offset : offset + starts.shape[1]] |= starts
    return found


@contextlib.contextmanager
def attention_probabilities(unet: nn.Module) -> Iterator[list[Tensor]]:
    """Inside the block every call of `unet` appends its cross-attention probabilities, `[B, heads, pixels, tokens]` each.

    The usual processors compute attention in one fused operation, in which probabilities never exist; here the plain one
    is used, and the usual one put back. Both give the same up to rounding. Gradients flow.
    """
    from diffusers.models.attention_processor import AttnProcessor

    caught: list[Tensor] = []
    replaced: list[tuple[Any, Any]] = []

    def recording(module: Any) -> Any:
        usual = type(module).get_attention_scores

        def scores(*args: Any, **more: Any) -> Tensor:
            made = usual(module, *args, **more)
            caught.append(made.unflatten(0, (-1, module.heads)))
            return made

        return scores

    try:
        for module in cast("dict[str, Any]", cross_attention(unet)).values():
            replaced.append((module, module.processor))
            module.set_processor(AttnProcessor())
            module.get_attention_scores = recording(module)
        yield caught
    finally:
        for module, processor in replaced:
            vars(module).pop("get_attention_scores", None)
            module.set_processor(processor)
