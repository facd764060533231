"""Batches of one data set: collated once where they fit in memory, row by row where they do not."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from expunge.families.base import Batch, Family

if TYPE_CHECKING:
    from datasets import Dataset

RESIDENT_BYTES = 1 << 30
"""Data sets that collate to less than this stay in memory as one batch."""


class Batches:
    """Random access to the examples of `dataset` as batches of `family`, on `device`."""

    def __init__(self, family: Family, dataset: Dataset, device: torch.device | str = "cpu") -> None:
        self.family, self.device = family, torch.device(device)
        # numpy format: columns arrive as arrays, not as Python lists of lists.
        self.dataset = dataset.with_format("numpy")
        self._resident: Batch | None = None
        if len(dataset) and self._bytes_per_row() * len(dataset) < RESIDENT_BYTES:
            self._resident = family.collate(self.dataset[:]).to(self.device)

    def _bytes_per_row(self) -> int:
        first = self.family.collate(self.dataset[:1])
        return sum(t.element_size() * t.numel() for t in (*first.inputs.values(), first.targets, first.mask))

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def ids(self) -> list[str]:
        """Example ids, in row order."""
        return [str(i) for i in self.dataset["id"][:]]

    @cached_property
    def groups(self) -> np.ndarray | None:
        """`[n]` group of each example, or None where the family has none."""
        return self.family.groups(self.dataset)

    def take(self, rows: Tensor) -> Batch:
        """The examples numbered `rows` (`[b]`, long, CPU)."""
        if self._resident is not None:
            on_device = rows if self.device.type == "cpu" else rows.to(self.device)
            return self.family.trim(self._resident.select(on_device))
        return self.family.collate(self.dataset[rows.tolist()]).to(self.device)

    def sequential(self, batch_size: int) -> Iterator[tuple[Tensor, Batch]]:
        """All examples in order, as (row numbers, batch), not more than the family takes at once."""
        for rows in torch.arange(len(self)).split(batch_size):
            batch = self.take(rows)
            most = self.family.at_once(self.family.positions(batch) or 1) or len(rows)
            if most >= len(rows):
                yield rows, batch
                continue
            for part in torch.arange(len(rows)).split(most):
                yield rows[part], self.family.trim(batch.select(part.to(self.device)))
