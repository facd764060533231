"""Hidden states at the positions where something is to be answered, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from expunge.families import Batch, Batches, CausalLM, Family
from expunge.families.base import as_positions
from expunge.metrics.base import Undefined

PER_BATCH = 64
"""Rows of a pass; a family takes fewer at once where they are long."""

BEFORE_HEAD = "(input of the head)"
"""What the head reads, where it is no layer's output: a network may apply a function without weights in between."""

Where = Callable[[Family, Batch], Tensor]
"""Which positions of a batch are meant: `[B, T]` bool."""


@dataclass(frozen=True)
class States:
    """States at m positions, several of which may belong to one row."""

    layers: dict[str, np.ndarray]
    """By layer `[m, d]`, float32."""
    targets: np.ndarray
    """`[m]` classes or tokens, or `[m, C]` standardized values: what the model should answer there."""
    rows: np.ndarray
    """`[m]` row numbers."""


def hidden_layers(family: Family, model: nn.Module) -> list[str]:
    """Layers in forward order whose activations are states, not yet answers: all but the head."""
    head = family.head(model)
    layers = [name for name in family.compared_layers(model) if name != head]
    if not layers:
        raise Undefined("the model has no layer before its head")
    return layers


def hidden_states(
    family: Family, model: nn.Module, rows: Batches, layers: Sequence[str], where: Where
) -> States:
    """States of `layers`, `BEFORE_HEAD` perhaps among them, at the positions `where`, in eval mode."""
    model.to(rows.device).eval()
    found: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    targets, numbers, read = [], [], list[Tensor]()
    head = model.get_submodule(family.head(model))
    hook = head.register_forward_pre_hook(lambda _module, inputs: read.append(as_positions(inputs[0])))
    named = [layer for layer in layers if layer != BEFORE_HEAD]
    try:
        with torch.inference_mode():
            for some, batch in rows.sequential(PER_BATCH):
                mask = where(family, batch)
                hidden = family.forward(model, batch, named).hidden
                for layer in layers:
                    states = aligned(family, hidden.get(layer, read[-1]), batch)
                    found[layer].append(states[mask].float().cpu().numpy())
                read.clear()
                targets.append(batch.targets[mask].cpu().numpy())
                numbers.append(some.numpy()[mask.nonzero()[:, 0].cpu().numpy()])
    finally:
        hook.remove()
    return States(
        {layer: np.concatenate(parts) for layer, parts in found.items()},
        np.concatenate(targets),
        np.concatenate(numbers),
    )


def aligned(family: Family, hidden: Tensor, batch: Batch) -> Tensor:
    """`[B, T, d]` the states that the T targets are predicted from.

    Activations of sequences cover all tokens, and the one before a token predicts it; elsewhere positions are averaged.
    """
    if len(hidden) != len(batch):
        hidden = hidden.expand(len(batch), -1, -1)  # what says positions is the same for every row
    return hidden[:, -batch.targets.shape[1] - 1 : -1] if family.sequences else hidden.mean(1, keepdim=True)


def answers(family: Family, batch: Batch) -> Tensor:
    """Every position that counts, the end-of-sequence token left out."""
    return cast(CausalLM, family).without_ends(batch).mask if family.sequences else batch.mask


def beginnings(family: Family, batch: Batch) -> Tensor:
    """The first position that counts of each row: the state there is that of the prompt's last token."""
    return batch.mask & (batch.mask.cumsum(1) == 1)
