"""Prompts with embeddings among their tokens that belong to no word."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.diffusion import Diffusion

Place = Literal["prefix", "suffix"]


def make_room(family: Diffusion, ids: Tensor, n: int, place: Place) -> tuple[Tensor, Tensor]:
    """`[B, L]` prompts with room for `n` tokens before their first word or behind their last, and its positions `[B, n]`.

    ``[start, *, ..., *, words, end, padding]``: what stands behind moves by n. Words that no longer fit are cut, as a
    tokenizer would, and the end stays.
    """
    end, length = family.tokenizer.eos_token_id, ids.shape[1]
    begins = int(family.tokens([""])[0, 0] != end)  # not every tokenizer begins with a token of its own
    if n > length - 2:
        raise BadInput(f"{n} further tokens do not fit into prompts of {length}; take fewer")
    made, places = [], []
    for row in ids.tolist():
        stop = row.index(end, begins) if end in row[begins:] else length
        at = begins if place == "prefix" else min(stop, length - 1 - n)
        longer = (row[:at] + [end] * n + row[at:])[:length]
        if stop + n >= length:
            longer[-1] = end
        made.append(longer)
        places.append(list(range(at, at + n)))
    return torch.tensor(made, device=ids.device), torch.tensor(places, device=ids.device).reshape(
        len(made), n
    )


def token_embeddings(encoder: nn.Module) -> nn.Module:
    """The table of a text encoder, as a module."""
    found = getattr(encoder, "get_input_embeddings", lambda: None)()
    if not isinstance(found, nn.Module):
        raise BadInput(
            "the model has no text encoder with a table of token embeddings, so no tokens can be put in"
        )
    return found


def encode_with(encoder: nn.Module, ids: Tensor, places: Tensor, vectors: Tensor) -> Tensor:
    """`[B, L, d]` embeddings of prompts whose tokens at `places` (`[B, n]`) have the embeddings `vectors` (`[B, n, d]`).

    Differentiable with respect to the vectors and the encoder.
    """

    def put(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        where = places[..., None].expand_as(vectors)
        return output.scatter(1, where, vectors.to(output))

    handle = token_embeddings(encoder).register_forward_hook(put)
    try:
        return encoder(ids)[0]
    finally:
        handle.remove()
