"""From rows to model inputs: the interface, tables and text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from expunge.errors import BadInput, did_you_mean
from expunge.families.base import Rows
from expunge.families.tokenizers import describe_tokenizer, load_tokenizer, require_fast, restore_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset


class Inputs(ABC):
    """Turns columns of a data set into the tensors a model is called with."""

    kind: ClassVar[str]

    @abstractmethod
    def encode(self, rows: Rows) -> dict[str, Tensor]:
        """Tensors by argument name, each `[B, ...]`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Plain JSON, `kind` included, from which `restore_inputs` makes an equal object."""

    @classmethod
    def restore(cls, description: dict[str, Any]) -> Inputs:
        """The inverse of `describe`, without `kind`."""
        return cls(**description)

    @property
    @abstractmethod
    def columns(self) -> Sequence[str]:
        """The columns it reads."""

    def check(self, dataset: Dataset, name: str) -> None:
        """Refuse missing columns and values that are not numbers."""
        missing = [c for c in self.columns if c not in dataset.column_names]
        if missing:
            raise BadInput(f"{name} has no column '{missing[0]}'; it has {', '.join(dataset.column_names)}")

    def trim(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Drop what is padding in all rows."""
        return inputs


def refuse_nan(values: np.ndarray, dataset: Dataset, name: str, column: str) -> None:
    """Refuse NaN and infinity in `values` (`[n, ...]`, row by row), naming the first such row."""
    flat = np.asarray(values, dtype=np.float64).reshape(len(dataset), -1)
    bad = ~np.isfinite(flat).all(axis=1)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise BadInput(
            f"{name} has {int(bad.sum())} rows with NaN or infinity in '{column}' "
            f"(first: id '{dataset['id'][first]}'); drop or impute them before training or forgetting"
        )


class Table(Inputs):
    """Numeric columns, standardized as ``(x - mean) / scale``."""

    kind = "table"

    def __init__(
        self,
        columns: Sequence[str],
        mean: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        argument: str = "features",
    ) -> None:
        self._columns = list(columns)
        self.mean = np.zeros(len(self._columns)) if mean is None else np.asarray(mean, dtype=np.float64)
        self.scale = np.ones(len(self._columns)) if scale is None else np.asarray(scale, dtype=np.float64)
        self.argument = argument

    @classmethod
    def fit(cls, dataset: Dataset, columns: Sequence[str]) -> Table:
        """Standardize by the mean and standard deviation of `dataset` (constant columns keep scale 1)."""
        values = _matrix(dataset.select_columns(list(columns)).with_format("numpy")[:], columns)
        scale = values.std(axis=0)
        return cls(columns, values.mean(axis=0).tolist(), np.where(scale > 0, scale, 1.0).tolist())

    @property
    def columns(self) -> Sequence[str]:  # noqa: D102
        return self._columns

    def encode(self, rows: Rows) -> dict[str, Tensor]:  # noqa: D102
        values = (_matrix(rows, self._columns) - self.mean) / self.scale
        return {self.argument: torch.from_numpy(values.astype(np.float32))}

    def check(self, dataset: Dataset, name: str) -> None:  # noqa: D102
        super().check(dataset, name)
        columns = dataset.select_columns(self._columns).with_format("numpy")[:]
        for column in self._columns:
            values = np.asarray(columns[column])
            if values.dtype == object or values.dtype.kind in "US":
                try:
                    values = np.asarray(
                        [np.nan if v is None else v for v in values.tolist()], dtype=np.float64
                    )
                except ValueError:
                    raise BadInput(
                        f"{name}: column '{column}' is not numeric; encode it or leave it out of the inputs"
                    ) from None
            refuse_nan(values, dataset, name, column)

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {
            "kind": self.kind,
            "columns": self._columns,
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "argument": self.argument,
        }


def _matrix(rows: Rows, columns: Sequence[str]) -> np.ndarray:
    return np.column_stack([np.asarray(rows[c], dtype=np.float64) for c in columns])


class Text(Inputs):
    """One text column, or a pair, through a `transformers` tokenizer; padded to the longest of the batch."""

    kind = "text"

    def __init__(self, columns: Sequence[str], tokenizer: Any, max_length: int) -> None:
        self._columns, self.tokenizer, self.max_length = list(columns), tokenizer, max_length
        if not 1 <= len(self._columns) <= 2:
            given = ", ".join(self._columns)
            raise BadInput(f"a text model reads one column or a pair, got {len(self._columns)}: {given}")
        require_fast(tokenizer)

    @classmethod
    def from_pretrained(cls, folder: Path | str, columns: Sequence[str], max_length: int = 512) -> Text:
        """Load the tokenizer of a local folder or hub id; code that comes with it is never run.

        Texts are cut after `max_length` tokens, or earlier where the tokenizer says so.
        """
        tokenizer = load_tokenizer(folder)
        return cls(columns, tokenizer, min(int(tokenizer.model_max_length), max_length))

    @property
    def columns(self) -> Sequence[str]:  # noqa: D102
        return self._columns

    def encode(self, rows: Rows) -> dict[str, Tensor]:  # noqa: D102
        texts = [[str(value) for value in rows[c]] for c in self._columns]
        encoded = self.tokenizer(
            *texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return {k: encoded[k] for k in ("input_ids", "attention_mask", "token_type_ids") if k in encoded}

    def trim(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:  # noqa: D102
        longest = int(inputs["attention_mask"].sum(-1).max().clamp(min=1))
        if self.tokenizer.padding_side != "right" or longest == inputs["attention_mask"].shape[1]:
            return inputs
        return {k: v[:, :longest] for k, v in inputs.items()}

    def check(self, dataset: Dataset, name: str) -> None:  # noqa: D102
        super().check(dataset, name)
        for column in self._columns:
            empty = [i for i, v in enumerate(dataset[column]) if v is None or not str(v).strip()]
            if empty:
                raise BadInput(
                    f"{name} has {len(empty)} empty texts in '{column}' "
                    f"(first: id '{dataset['id'][empty[0]]}'); drop them"
                )

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {
            "kind": self.kind,
            "columns": self._columns,
            "max_length": self.max_length,
            **describe_tokenizer(self.tokenizer),
        }

    @classmethod
    def restore(cls, description: dict[str, Any]) -> Text:  # noqa: D102
        length = description["max_length"]
        return cls(description["columns"], restore_tokenizer(description, length), length)


def restore_inputs(description: dict[str, Any]) -> Inputs:
    """The inverse of `Inputs.describe`."""
    kinds = {cls.kind: cls for cls in Inputs.__subclasses__()}
    kind = description["kind"]
    if kind not in kinds:
        raise BadInput(f"unknown kind of inputs '{kind}'{did_you_mean(kind, kinds)}")
    return kinds[kind].restore({k: v for k, v in description.items() if k != "kind"})
