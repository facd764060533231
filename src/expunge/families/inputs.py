"""From rows to model inputs: tables, images, text."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from expunge.errors import BadInput
from expunge.families.base import Rows

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
        """Plain JSON from which `restore_inputs` makes an equal object."""

    @property
    @abstractmethod
    def columns(self) -> Sequence[str]:
        """The columns it reads."""

    def check(self, dataset: Dataset, name: str) -> None:
        """Refuse missing columns and values that are not numbers."""
        missing = [c for c in self.columns if c not in dataset.column_names]
        if missing:
            raise BadInput(
                f"{name} has no column '{missing[0]}'; it has {', '.join(dataset.column_names)}"
            )

    def trim(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Drop what is padding in all rows."""
        return inputs


def _refuse_nan(values: np.ndarray, dataset: Dataset, name: str, column: str) -> None:
    flat = np.asarray(values, dtype=np.float64).reshape(len(dataset), -1)
    bad = ~np.isfinite(flat).all(axis=1)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise BadInput(
            f"{name} has {int(bad.sum())} rows with NaN or infinity in '{column}' (first: id '{dataset['id'][first]}'); "
            "drop or impute them before training or forgetting"
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
        values = _matrix(dataset.with_format("numpy")[:], columns)
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
        columns = dataset.with_format("numpy")[:]
        for column in self._columns:
            values = np.asarray(columns[column])
            if values.dtype == object or values.dtype.kind in "US":
                try:
                    values = np.asarray([np.nan if v is None else v for v in values.tolist()], dtype=np.float64)
                except ValueError:
                    raise BadInput(
                        f"{name}: column '{column}' is not numeric; encode it or leave it out of the inputs"
                    ) from None
            _refuse_nan(values, dataset, name, column)

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


class Images(Inputs):
    """One column of images: arrays `[H, W]` or `[C, H, W]` as they are, or pictures that are resized and scaled to [0, 1].

    ``(pixel * rescale - mean) / std`` per channel; the defaults leave arrays untouched.
    """

    kind = "images"

    def __init__(
        self,
        column: str = "image",
        size: tuple[int, int] | None = None,
        channels: int = 1,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        rescale: float = 1.0,
        argument: str = "pixel_values",
    ) -> None:
        self.column, self.size, self.channels = column, size, channels
        self.mean, self.std, self.rescale, self.argument = list(mean), list(std), rescale, argument

    @classmethod
    def from_processor(cls, folder: Path | str, column: str, channels: int) -> Images:
        """Read size, mean and scale from a `transformers` ``preprocessor_config.json`` (folder or hub id)."""
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(folder)
        size = processor.size
        height = size.get("height") or size.get("shortest_edge")
        width = size.get("width") or size.get("shortest_edge")
        normalize = bool(processor.do_normalize)
        return cls(
            column,
            (int(height), int(width)),
            channels,
            list(processor.image_mean)[:channels] if normalize else [0.0],
            list(processor.image_std)[:channels] if normalize else [1.0],
            float(processor.rescale_factor) if processor.do_rescale else 1.0,
        )

    @property
    def columns(self) -> Sequence[str]:  # noqa: D102
        return [self.column]

    def encode(self, rows: Rows) -> dict[str, Tensor]:  # noqa: D102
        array = np.stack([self._pixels(value) for value in rows[self.column]])
        mean = np.asarray(self.mean, dtype=np.float32).reshape(1, -1, 1, 1)
        std = np.asarray(self.std, dtype=np.float32).reshape(1, -1, 1, 1)
        scaled = (array.astype(np.float32) * np.float32(self.rescale) - mean) / std
        return {self.argument: torch.from_numpy(np.ascontiguousarray(scaled))}

    def _pixels(self, value: Any) -> np.ndarray:
        """One image as `[C, H, W]`."""
        from PIL import Image

        if isinstance(value, dict) and ("bytes" in value or "path" in value):
            import io

            value = Image.open(io.BytesIO(value["bytes"]) if value.get("bytes") else value["path"])
        if isinstance(value, Image.Image):
            return self._picture(value)
        array = np.asarray(value)
        if self.size is not None and array.dtype == np.uint8 and self._spatial(array) != self.size:
            return self._picture(Image.fromarray(array))
        if array.ndim == 2:
            array = np.repeat(array[None], self.channels, axis=0)
        elif array.ndim == 3 and array.shape[-1] in (1, 3) and array.shape[0] not in (1, 3):
            array = array.transpose(2, 0, 1)
        return array

    @staticmethod
    def _spatial(array: np.ndarray) -> tuple[int, int]:
        last = array.ndim == 3 and array.shape[-1] in (1, 3)
        shape = array.shape[:2] if last else array.shape[-2:]
        return int(shape[0]), int(shape[1])

    def _picture(self, picture: Any) -> np.ndarray:
        picture = picture.convert("L" if self.channels == 1 else "RGB")
        if self.size is not None:
            picture = picture.resize((self.size[1], self.size[0]))
        array = np.asarray(picture)
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)

    def check(self, dataset: Dataset, name: str) -> None:  # noqa: D102
        super().check(dataset, name)
        if "Image" in type(dataset.features[self.column]).__name__:
            return
        values = np.asarray(dataset.with_format("numpy")[self.column][:], dtype=np.float64)
        _refuse_nan(values, dataset, name, self.column)

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {
            "kind": self.kind,
            "column": self.column,
            "size": list(self.size) if self.size else None,
            "channels": self.channels,
            "mean": self.mean,
            "std": self.std,
            "rescale": self.rescale,
            "argument": self.argument,
        }


class Text(Inputs):
    """One text column, or a pair of them, through a `transformers` tokenizer; padded to the longest of the batch."""

    kind = "text"

    def __init__(self, columns: Sequence[str], tokenizer: Any, max_length: int) -> None:
        self._columns, self.tokenizer, self.max_length = list(columns), tokenizer, max_length

    @classmethod
    def from_pretrained(cls, folder: Path | str, columns: Sequence[str], max_length: int | None = None) -> Text:
        """Load the tokenizer of a local folder or hub id."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(columns, tokenizer, max_length or min(int(tokenizer.model_max_length), 512))

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
                    f"{name} has {len(empty)} empty texts in '{column}' (first: id '{dataset['id'][empty[0]]}'); drop them"
                )

    def describe(self) -> dict[str, Any]:  # noqa: D102
        # The whole tokenizer, because a name alone does not fix what it does.
        return {
            "kind": self.kind,
            "columns": self._columns,
            "max_length": self.max_length,
            "tokenizer": json.loads(self.tokenizer.backend_tokenizer.to_str()),
            "special": {k: str(v) for k, v in self.tokenizer.special_tokens_map.items()},
        }


def restore_inputs(description: dict[str, Any]) -> Inputs:
    """The inverse of `Inputs.describe`."""
    values = {k: v for k, v in description.items() if k != "kind"}
    kind = description["kind"]
    if kind == "table":
        return Table(**values)
    if kind == "images":
        return Images(**{**values, "size": tuple(values["size"]) if values["size"] else None})
    if kind == "text":
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(values["tokenizer"])),
            model_max_length=values["max_length"],
            **values["special"],
        )
        return Text(values["columns"], tokenizer, values["max_length"])
    raise BadInput(f"unknown kind of inputs '{kind}'; known: table, images, text")
