"""Log-probabilities of tokens under a model's logits, without a copy of all logits in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.families.base import wide

CHUNK_VALUES = 1 << 20
"""Positions times vocabulary that `observe` holds in float32 at a time: 4 MiB, which a processor's cache holds."""


def log_likelihoods(prediction: Tensor, targets: Tensor, where: Tensor) -> Tensor:
    """`[B, T]` ln p of the targets where `where` (bool, `[B, T]`), NaN elsewhere; logits are widened a chunk at a time."""
    found = nowhere(prediction, where)
    if prediction.requires_grad:
        # In one piece: each chunk would cost a gradient as large as the whole.
        found[where] = -F.cross_entropy(wide(prediction[where]), targets[where], reduction="none")
        return found
    for place, logp, target in chunks(prediction, targets, where):
        found[place] = logp.gather(1, target[:, None]).squeeze(1)
    return found.masked_fill_(~where, math.nan)


def chunks(
    prediction: Tensor, targets: Tensor, where: Tensor
) -> Iterator[tuple[tuple[int, slice], Tensor, Tensor]]:
    """Row and columns, log-probabilities `[m, V]` and targets `[m]` of some neighboring positions at a time.

    From the first position of each row that counts to the last one; so no logit is copied.
    """
    size = max(1, CHUNK_VALUES // prediction.shape[-1])
    columns = torch.arange(where.shape[1], device=where.device)
    begins = torch.where(where, columns, where.shape[1]).amin(1).tolist()
    ends = torch.where(where, columns + 1, 0).amax(1).tolist()
    for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        for start in range(begin, end, size):
            some = slice(start, min(start + size, end))
            yield (row, some), F.log_softmax(wide(prediction[row, some]), -1), targets[row, some]


def most_likely(logp: Tensor) -> Tensor:
    """Index of the largest of each row."""
    # On a processor numpy's argmax takes a tenth of the time of torch's, which is as much as the softmax itself.
    if logp.device.type == "cpu":
        return torch.from_numpy(logp.detach().numpy().argmax(-1))
    return logp.argmax(-1)


def nowhere(prediction: Tensor, where: Tensor) -> Tensor:
    """NaN at each position, in a precision that log-probabilities need."""
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return torch.full(where.shape, math.nan, dtype=dtype, device=where.device)
