"""Look once: everything that the chosen metrics need of one model on one data set, in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from torch import Tensor, nn

from expunge.errors import BadInput, did_you_mean
from expunge.families import Batch, Batches, Family, Outputs
from expunge.files import write_atomic


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything measured of one model on one data set: a row per example."""

    table: pa.Table
    """Columns `id`, `group` where the family has groups, and one per quantity; token-level quantities are lists."""

    def __len__(self) -> int:
        return self.table.num_rows

    @cached_property
    def ids(self) -> list[str]:
        """Example ids, in row order."""
        return self.table["id"].to_pylist()

    @cached_property
    def groups(self) -> np.ndarray | None:
        """`[n]` group names, or None."""
        return np.asarray(self.table["group"].to_pylist()) if "group" in self.table.column_names else None

    def __getitem__(self, quantity: str) -> np.ndarray:
        """One quantity: `[n]`, `[n, d]` for vectors, or `[n]` of arrays or texts (dtype object)."""
        if quantity not in self.table.column_names:
            raise BadInput(
                f"the evidence has no '{quantity}'{did_you_mean(quantity, self.table.column_names)}"
            )
        column = self.table[quantity].combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
        if pa.types.is_list(column.type):
            ragged = np.empty(len(column), dtype=object)
            ragged[:] = np.split(
                column.flatten().to_numpy(zero_copy_only=False), column.offsets.to_numpy()[1:-1]
            )
            return ragged
        return column.to_numpy(zero_copy_only=False)

    def select(self, rows: np.ndarray) -> Evidence:
        """The examples numbered (or masked by) `rows`."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Evidence(self.table.take(pa.array(rows)))

    def write(self, path: Path) -> None:
        """Write as Parquet, atomically."""
        sink = pa.BufferOutputStream()
        pq.write_table(self.table, sink)
        write_atomic(path, sink.getvalue().to_pybytes())

    @classmethod
    def read(cls, path: Path) -> Evidence:
        """Read what `write` wrote."""
        if not path.exists():
            raise BadInput(f"no evidence at '{path}'")
        return cls(pq.read_table(path))


def collect(
    family: Family,
    model: nn.Module,
    dataset: Dataset,
    quantities: Sequence[str],
    *,
    batch_size: int = 256,
    device: str = "cpu",
    batches: Batches | None = None,
) -> Evidence:
    """One forward pass of `model` over `dataset`, in eval mode, for the union of `quantities`.

    Beside it, where texts or images are among them, one generation pass.

    `batches` are the data set's, where they exist already: several models are then measured on one collated copy.
    """
    texts = [q for q in quantities if q in family.generated]
    seen = [q for q in quantities if q not in family.generated]
    hidden = [q.removeprefix("features:") for q in seen if q.startswith("features:")]
    view = family.view(dataset, seen)
    if batches is None or type(batches.family) is not type(view):
        batches = Batches(view, dataset, device)
    model.to(device)
    was_training = model.training
    model.eval()
    # Filled in place by row: concatenating at the end would hold everything twice.
    arrays: dict[str, Tensor] = {}
    tokens: dict[str, list[np.ndarray]] = {}
    said = family.generate(model, dataset, texts, batch_size) if texts else {}
    with torch.inference_mode():
        for rows, batch in batches.sequential(batch_size) if seen else ():
            made = view.observe(view.forward(model, batch, hidden), batch, seen)
            for name, value in made.items():
                if name.startswith("token_"):
                    # Per token: what counts of each row, however long the batch was.
                    pairs = zip(value.cpu().numpy(), batch.mask.cpu().numpy(), strict=True)
                    tokens.setdefault(name, []).extend(row[mask] for row, mask in pairs)
                    continue
                if name not in arrays:
                    arrays[name] = torch.empty((len(batches), *value.shape[1:]), dtype=value.dtype)
                elif (
                    arrays[name].dtype != value.dtype
                ):  # NaN among what was whole numbers so far, or the reverse
                    arrays[name] = arrays[name].to(torch.promote_types(arrays[name].dtype, value.dtype))
                arrays[name][rows] = value.cpu().to(arrays[name].dtype)
    model.train(was_training)
    columns: dict[str, pa.Array] = {"id": pa.array(batches.ids)}
    if batches.groups is not None:
        columns["group"] = pa.array(batches.groups)
    for name, value in arrays.items():
        columns[name] = _arrow(value.numpy())
    for name, ragged in tokens.items():
        columns[name] = _ragged(ragged)
    for name, found in said.items():
        several = isinstance(found, list) and bool(found) and isinstance(found[0], list)
        kind = pa.list_(pa.string()) if several else pa.string()
        columns[name] = _arrow(found) if isinstance(found, np.ndarray) else pa.array(found, kind)
    return Evidence(pa.table(columns))


def observed(family: Family, outputs: Outputs, batch: Batch, quantities: Sequence[str]) -> Evidence:
    """Evidence of one batch from outputs that exist already, as of a model whose activations were altered."""
    columns: dict[str, pa.Array] = {"id": pa.array(batch.ids)}
    for name, value in family.observe(outputs.detach(), batch, quantities).items():
        if name.startswith("token_"):
            pairs = zip(value.cpu().numpy(), batch.mask.cpu().numpy(), strict=True)
            columns[name] = _ragged([row[mask] for row, mask in pairs])
        else:
            columns[name] = _arrow(value.cpu().numpy())
    return Evidence(pa.table(columns))


def _ragged(rows: list[np.ndarray]) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows)))


def _arrow(array: np.ndarray) -> pa.Array:
    if array.ndim == 1:
        return pa.array(array)
    flat = array.reshape(len(array), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
