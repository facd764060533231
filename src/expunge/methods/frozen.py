"""Models that do not change during a run: references and teachers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.errors import ExpungeError
from expunge.families.base import Batch, Family, Outputs
from expunge.families.batches import Batches
from expunge.families.models import clone

Split = Literal["forget", "retain", "train"]


class Frozen:
    """Outputs of a model that does not change, by split and row.

    Precomputed, the outputs of every row are stored and the model is let go; live, it is kept and called in each step.
    Both give the same numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        sources: dict[Split, Batches],
        splits: Sequence[Split],
        hidden: Sequence[str] = (),
        *,
        precompute: bool,
        batch_size: int = 256,
    ) -> None:
        self._family, self._hidden = family, tuple(hidden)
        self._stored: dict[Split, Outputs] = {}
        self._model: nn.Module | None = None
        if not precompute:
            self._model = clone(model).eval()
            for parameter in self._model.parameters():
                parameter.requires_grad_(False)
            return
        was_training = model.training
        model.eval()
        with torch.no_grad():
            for split in splits:
                self._stored[split] = self._collect(model, sources[split], batch_size)
        model.train(was_training)

    def _collect(self, model: nn.Module, batches: Batches, batch_size: int) -> Outputs:
        # Filled in place: concatenating at the end would hold every output twice.
        stored: Outputs | None = None
        for rows, batch in batches.sequential(batch_size):
            made = self._family.forward(model, batch, self._hidden)
            if stored is None:
                n = len(batches)
                stored = Outputs(
                    made.prediction.new_empty((n, *made.prediction.shape[1:])),
                    {k: v.new_empty((n, *v.shape[1:])) for k, v in made.hidden.items()},
                )
            stored.prediction[rows] = made.prediction
            for layer, value in made.hidden.items():
                stored.hidden[layer][rows] = value
        if stored is None:
            raise ExpungeError("a frozen model was asked for the outputs of an empty data set")
        return stored

    def outputs(self, split: Split, rows: Tensor, batch: Batch) -> Outputs:
        """Outputs for the given rows of `split`; `batch` holds the same rows."""
        if self._model is None:
            return self._stored[split].select(rows)
        with torch.no_grad():
            return self._family.forward(self._model, batch, self._hidden)
