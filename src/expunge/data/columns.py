"""From a user's columns to what a family reads: labels as class numbers, and which columns are inputs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Array2D, Array3D, ClassLabel, Dataset, Image, Value

from expunge.errors import BadInput, did_you_mean

_GENERIC = re.compile(r"LABEL_\d+")
_NUMERIC = re.compile(r"u?int\d+|float\d+|bool")


def model_classes(config: Any) -> list[str]:
    """Class names of a `transformers` configuration, by number; ``LABEL_0`` and the like are no names."""
    names = [str(config.id2label[i]) for i in sorted(config.id2label)]
    return [] if all(_GENERIC.fullmatch(n) for n in names) else names


def data_classes(dataset: Dataset, column: str) -> list[str]:
    """Class names that the data itself gives, by number.

    Declared names of a class-label column; False and True; the sorted words of a text column (numbers in
    numeric order); ``0`` to the largest number otherwise.
    """
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    values = {v for v in dataset[column] if v is not None and v == v}
    if all(isinstance(v, bool) for v in values):
        return ["False", "True"]
    if all(isinstance(v, (int, float)) for v in values):
        return [str(i) for i in range(int(max(values, default=-1)) + 1)]
    words = {str(v) for v in values}
    return sorted(words, key=int) if all(w.isdecimal() for w in words) else sorted(words)


def encode_labels(dataset: Dataset, column: str, classes: Sequence[str], name: str) -> Dataset:
    """The data set with `column` as class numbers in the order of `classes`; unlabeled rows are refused."""
    require(dataset, column, name)
    values, feature = list(dataset[column]), dataset.features[column]
    unlabeled = [i for i, v in enumerate(values) if v is None or v != v or v == "" or v == -1]
    if unlabeled:
        raise BadInput(
            f"{name} has {len(unlabeled)} rows without a label in '{column}' "
            f"(first: id '{dataset['id'][unlabeled[0]]}'); drop them or label them"
        )
    if isinstance(feature, ClassLabel):
        values = [feature.names[v] for v in values]
    numbers = {c: i for i, c in enumerate(classes)}
    if len(numbers) < len(classes):
        raise BadInput(f"the class names {', '.join(classes)} are not distinct; give each class its own name")
    encoded = []
    for row, value in enumerate(values):
        if isinstance(value, str):
            number = numbers.get(value, -1)
        else:
            number = int(value) if float(value).is_integer() and 0 <= value < len(classes) else -1
        if number < 0:
            known = f"{', '.join(classes[:20])}{', ...' if len(classes) > 20 else ''}"
            raise BadInput(
                f"{name}: label {value!r} of id '{dataset['id'][row]}' is none of the {len(classes)} classes "
                f"({known}); name the data's classes in the order of the model's outputs with 'classes'"
            )
        encoded.append(number)
    return dataset.remove_columns(column).add_column(column, encoded, feature=ClassLabel(names=list(classes)))  # pyright: ignore


def require(dataset: Dataset, column: str, name: str) -> None:
    """Refuse data without `column`."""
    if column not in dataset.column_names:
        raise BadInput(f"{name} has no column '{column}'{did_you_mean(column, dataset.column_names)}")


def image_column(dataset: Dataset) -> str | None:
    """The first column of pictures or arrays, or None."""
    kinds = (Image, Array2D, Array3D)
    return next((c for c, f in dataset.features.items() if isinstance(f, kinds)), None)


def image_channels(dataset: Dataset, column: str) -> int:
    """1 for grey images and 3 for color, by the first row."""
    value = dataset[0][column]
    if hasattr(value, "getbands"):
        return 1 if len(value.getbands()) == 1 and value.mode != "P" else 3
    array = np.asarray(value)
    return 3 if array.ndim == 3 and 3 in (array.shape[0], array.shape[-1]) else 1


def is_bytes(dataset: Dataset, column: str) -> bool:
    """Whether the images are pictures or uint8 arrays, whose values end at 255."""
    feature: Any = dataset.features[column]
    return isinstance(feature, Image) or feature.dtype == "uint8"


def numeric_columns(dataset: Dataset, leave_out: Sequence[str]) -> list[str]:
    """Columns of plain numbers, in the data's order."""
    return [
        c
        for c, f in dataset.features.items()
        if c not in leave_out and isinstance(f, Value) and _NUMERIC.fullmatch(f.dtype)
    ]
