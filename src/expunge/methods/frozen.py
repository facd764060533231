"""Models that do not change during a run: references and teachers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from expunge.errors import ExpungeError
from expunge.families.base import Batch, Family, Outputs
from expunge.families.batches import Batches
from expunge.families.models import clone
from expunge.methods.lora import Adapters

Split = str
"""``forget``, ``retain``, ``train``, or a name that an objective gave to further rows (`State.attach`)."""


class Frozen:
    """Outputs of a model that does not change, by split and row.

    Precomputed, the outputs of every row are stored and the model is let go; live, it is kept and called in each step.
    Both give the same numbers. Of sequences what enters the head is stored, and the head is kept: hundreds of values per
    position instead of a whole vocabulary.
    """

    _adapters: Adapters | None = None

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        sources: dict[Split, Batches],
        splits: Sequence[Split],
        hidden: Sequence[str] = (),
        likelihoods: Sequence[Split] = (),
        *,
        precompute: bool,
        batch_size: int = 256,
    ) -> None:
        self._family, self._hidden, self._batch_size = family, tuple(hidden), batch_size
        self._head = family.head(model) if family.sequences else ""
        self._stored: dict[Split, Outputs | _Sequences] = {}
        self._likelihoods: dict[Split, Tensor] = {}
        self._model: nn.Module | None = None
        if not precompute:
            self._model = clone(model).eval()
            for parameter in self._model.parameters():
                parameter.requires_grad_(False)
        self.cover(model, sources, splits, likelihoods)

    @classmethod
    def behind(cls, adapters: Adapters, family: Family, hidden: Sequence[str] = ()) -> Frozen:
        """The model under low-rank adapters: called live with the adapters off, so that it takes no memory of its own."""
        made = cls(adapters.model, family, {}, (), hidden, precompute=True)
        made._adapters = adapters
        return made

    def cover(
        self,
        model: nn.Module,
        sources: dict[Split, Batches],
        splits: Sequence[Split],
        likelihoods: Sequence[Split] = (),
    ) -> None:
        """Store the outputs for `splits`, too, and one number per row for `likelihoods`.

        Nothing to do for a model that is called live.
        """
        if self._model is not None or self._adapters is not None:
            return
        was_training = model.training
        model.eval()
        with torch.no_grad():
            for split in splits:
                self._stored[split] = self._collect(model, sources[split], self._batch_size)
            for split in likelihoods:
                passes = sources[split].sequential(self._batch_size)
                values = [self._family.nll(self._family.forward(model, batch), batch) for _, batch in passes]
                self._likelihoods[split] = torch.cat(values)
        model.train(was_training)

    def _collect(self, model: nn.Module, batches: Batches, batch_size: int) -> Outputs | _Sequences:
        # Filled in place: concatenating at the end would hold every output twice.
        stored: Outputs | None = None
        sequences: _Sequences | None = None
        for rows, batch in batches.sequential(batch_size):
            with _head_inputs(model, self._head) as seen:
                made = self._family.forward(model, batch, self._hidden)
            if self._family.positions(batch) is not None:
                sequences = sequences or _Sequences(model, self._head)
                sequences.add(batch, made, seen)
                continue
            if stored is None:
                n = len(batches)
                stored = Outputs(
                    made.prediction.new_empty((n, *made.prediction.shape[1:])),
                    {k: v.new_empty((n, *v.shape[1:])) for k, v in made.hidden.items()},
                )
            stored.prediction[rows] = made.prediction
            for layer, value in made.hidden.items():
                stored.hidden[layer][rows] = value
        found = stored or sequences
        if found is None:
            raise ExpungeError("a frozen model was asked for the outputs of an empty data set")
        return found

    def nll(self, split: Split, rows: Tensor, batch: Batch) -> Tensor:
        """`[B]` negative log-likelihood of the given rows of `split`, nats; `batch` holds the same rows."""
        if split in self._likelihoods:
            stored = self._likelihoods[split]
            return stored[rows.to(stored.device)]
        with torch.no_grad():
            return self._family.nll(self.outputs(split, rows, batch), batch)

    def ask(self, batch: Batch) -> Outputs:
        """Outputs on rows of no split, such as other questions about the same; the model must be called live."""
        with self.calling() as model:
            return self._family.forward(model, batch, self._hidden)

    @contextlib.contextmanager
    def calling(self) -> Iterator[nn.Module]:
        """The model itself, where it is called live, without gradients; under adapters those are off inside the block."""
        if self._adapters is not None:
            with torch.no_grad(), self._adapters.off() as model:
                yield model
        elif self._model is None:
            raise ExpungeError(
                "a frozen model whose outputs are stored cannot be asked anything else; keep it live"
            )
        else:
            with torch.no_grad():
                yield self._model

    def outputs(self, split: Split, rows: Tensor, batch: Batch) -> Outputs:
        """Outputs for the given rows of `split`; `batch` holds the same rows."""
        if self._adapters is None and self._model is None:
            stored = self._stored[split]
            if isinstance(stored, Outputs):
                return stored.select(rows)
            return stored.outputs(rows, batch, self._family.positions(batch) or 0)
        return self.ask(batch)


@contextlib.contextmanager
def _head_inputs(model: nn.Module, head: str) -> Iterator[list[Tensor]]:
    """Catch what enters the module called `head`; nothing where the name is empty."""
    seen: list[Tensor] = []
    if not head:
        yield seen
        return
    handle = model.get_submodule(head).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()


class _Sequences:
    """Outputs of sequences, of which batches show different parts: valid positions only, end to end."""

    def __init__(self, model: nn.Module, head: str) -> None:
        self._head: nn.Module | None = clone(model.get_submodule(head)).requires_grad_(False)
        self._values: list[Tensor] = []
        self._counts: list[Tensor] = []
        self._hidden: dict[str, list[Tensor]] = {}

    def add(self, batch: Batch, made: Outputs, seen: list[Tensor]) -> None:
        """Take in the next rows; they come in order."""
        values = made.prediction[batch.mask]
        if self._head is not None:
            inputs = self._head_values(batch, made.prediction, seen)
            if inputs is None or not torch.allclose(self._head(inputs), values, atol=1e-5, rtol=1e-5):
                # Some models scale or cap their logits after the head; of these the logits themselves are stored.
                if self._values:
                    self._values = [self._head(part) for part in self._values]
                self._head = None
            else:
                values = inputs
        self._values.append(values)
        self._counts.append(batch.mask.sum(-1))
        for layer, value in made.hidden.items():
            self._hidden.setdefault(layer, []).extend(value)

    @staticmethod
    def _head_values(batch: Batch, prediction: Tensor, seen: list[Tensor]) -> Tensor | None:
        if len(seen) != 1 or seen[0].dim() != 3 or seen[0].shape[1] <= prediction.shape[1]:
            return None
        # The head sees one position more than is predicted from: what follows the sequence.
        return seen[0][:, -prediction.shape[1] - 1 : -1][batch.mask]

    @cached_property
    def _flat(self) -> tuple[Tensor, Tensor, Tensor]:
        counts = torch.cat(self._counts)
        values, self._values = torch.cat(self._values), []
        return values, counts, counts.cumsum(0) - counts

    def outputs(self, rows: Tensor, batch: Batch, positions: int) -> Outputs:
        """What the frozen model says of the rows numbered `rows`, in the layout of `batch`."""
        values, counts, starts = self._flat
        rows = rows.to(counts.device)
        n = counts[rows]
        # Row r owns the stored positions starts[r] .. starts[r] + n[r].
        first = starts[rows] - (n.cumsum(0) - n)
        chosen = values[first.repeat_interleave(n) + torch.arange(int(n.sum()), device=n.device)]
        with torch.no_grad():
            logits = chosen if self._head is None else self._head(chosen)
        prediction = logits.new_zeros((*batch.mask.shape, logits.shape[-1]))
        prediction[batch.mask] = logits
        hidden = {}
        for layer, stored in self._hidden.items():
            hidden[layer] = stored[0].new_zeros((len(rows), positions, stored[0].shape[-1]))
            for place, i in enumerate(rows.tolist()):
                known = stored[i][:positions]
                hidden[layer][place, : len(known)] = known
        return Outputs(prediction, hidden)
