"""Vectors in the place of a prompt's tokens: what searched inputs are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from expunge.attacks.asking import Asked
from expunge.attacks.base import Scene
from expunge.families.models import innermost
from expunge.metrics.base import Undefined


def embedding_of(model: nn.Module) -> nn.Module:
    """What makes vectors of token ids; of a composed model its base's, whose answers the others change.

    Raises:
        Undefined: the model does not say.
    """
    inner: Any = innermost(getattr(model, "module", model))
    found = getattr(inner, "get_input_embeddings", lambda: None)()
    if found is None:
        raise Undefined(f"{type(inner).__name__} does not say which of its modules embeds tokens")
    return found


@contextmanager
def placed(embedding: nn.Module, vectors: Tensor, starts: Sequence[int]) -> Iterator[None]:
    """Put `vectors` (`[k, d]`, or `[B, k, d]` for each row its own) in the place of k tokens, from position `starts[row]` on.

    Gradients reach `vectors`, summed over rows that share them.
    """
    begins = torch.tensor(starts)

    def put(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        rows = torch.arange(len(output), device=output.device)[:, None]
        columns = begins.to(output.device)[:, None] + torch.arange(vectors.shape[-2], device=output.device)
        return output.index_put((rows, columns), vectors.to(output.dtype).expand(len(output), -1, -1))

    handle = embedding.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def with_room(asked: Asked, at: int, ids: Sequence[int]) -> Asked:
    """The question with `ids` put in before token number `at` of its prompt."""
    return replace(asked, prompt=[*asked.prompt[:at], *ids, *asked.prompt[at:]])


def divided(scene: Scene, n: int, most: int, purpose: int) -> tuple[list[int], list[int]]:
    """Numbers of the rows that an attacker searches on, at most `most` and half of `n`, and those that are left.

    Raises:
        Undefined: there are fewer than two.
    """
    if n < 2:
        raise Undefined(
            f"an input can only be searched on some rows and measured on others, and there are {n}"
        )
    order = torch.randperm(n, generator=scene.workplace.generator(purpose)).tolist()
    count = min(most, n // 2)
    return sorted(order[:count]), sorted(order[count:])
