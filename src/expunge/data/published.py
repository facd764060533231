"""Published image sets on disk: the official training and test part, in the formats they are distributed in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Image, concatenate_datasets

from expunge.data.cifar import read_cifar
from expunge.data.columns import encode_labels, image_column
from expunge.data.idx import is_images
from expunge.data.sources import read_table
from expunge.errors import BadInput, Missing
from expunge.problem import with_ids

FORMATS = (
    "IDX files, CIFAR-10's binary version, Parquet files as on the hub, or folders train and test of pictures"
)


def read_published(title: str, data_dir: str | None, hub: str, classes: list[str]) -> tuple[Dataset, Dataset]:
    """The official training and test rows; columns id, image, label.

    Args:
        title: the set's name, for messages.
        data_dir: folder that holds both parts in one of the `FORMATS`; None reads from the hub.
        hub: id on the Hugging Face hub.
        classes: class names, by number.

    Ids number the rows of a part (``train-000000``), except in folders of pictures, where they are paths.

    Raises:
        BadInput: the folder is absent, holds neither format, or holds the Python version of CIFAR-10.
        Missing: no folder was given and the hub cannot be reached.
    """
    if data_dir is None:
        parts = [_from_hub(title, f"{hub}:{part}") for part in ("train", "test")]
    else:
        folder = Path(data_dir).expanduser()
        if not folder.is_dir():
            raise BadInput(f"no folder '{folder}' to read {title} from; check data_dir")
        parts = [_read(folder, part, title) for part in ("train", "test")]
    train, test = (
        _tidy(part, name, classes, title) for part, name in zip(parts, ("train", "test"), strict=True)
    )
    return train, test


def _from_hub(title: str, source: str) -> Dataset:
    try:
        return read_table(source)
    except Missing:
        raise Missing(
            f"{title} is not part of expunge and the Hugging Face hub cannot be reached; connect, or give the folder "
            "of a copy as the option data_dir (options: {data_dir: FOLDER} in a --problem file or a study)"
        ) from None


def _read(folder: Path, part: str, title: str) -> Dataset:
    """One part of whatever format `folder` has."""
    stem = {"train": "train-images", "test": "t10k-images"}[part]
    for images in sorted(folder.rglob(f"{stem}*")):
        if is_images(images):
            return read_table(images)
    pattern = {"train": "data_batch_*.bin", "test": "test_batch.bin"}[part]
    if batches := sorted(folder.rglob(pattern)):
        return read_cifar(batches)
    if tables := sorted(folder.rglob(f"{part}*.parquet")):
        return concatenate_datasets([read_table(t) for t in tables])
    if (folder / part).is_dir():
        return read_table(folder / part)
    pickles = [f for f in folder.rglob("*_batch*") if f.suffix == "" and f.is_file()]
    if pickles:
        raise BadInput(
            f"'{folder}' holds the Python version of CIFAR-10, pickle files, which can run code when they are "
            "read; download cifar-10-binary.tar.gz instead"
        )
    raise BadInput(f"'{folder}' holds no {part} rows of {title}; give a folder with {FORMATS}")


def _tidy(part: Dataset, name: str, classes: list[str], title: str) -> Dataset:
    """Columns id, image and label, with the class names in the official order."""
    column = image_column(part) or next((c for c in ("image", "img") if c in part.column_names), None)
    if column is None or "label" not in part.column_names:
        raise BadInput(
            f"the {name} rows of {title} have the columns {', '.join(part.column_names)}; "
            "they need a column of images and one called 'label'"
        )
    part = with_ids(part, None, name).select_columns(["id", column, "label"])
    if column != "image":
        part = part.rename_column(column, "image")
    if not isinstance(part.features["image"], Image) and image_column(part) is None:
        part = part.cast_column("image", Image())  # Parquet that was not written by `datasets`
    feature: Any = part.features["label"]
    if isinstance(feature, ClassLabel):
        # Sources number the classes, or spell their names with other spaces and signs.
        official = {_letters(c): c for c in classes} | {str(i): c for i, c in enumerate(classes)}
        names = [official.get(_letters(n), n) for n in feature.names]
        numbers = part["label"][:]
        if names == classes and min(numbers) >= 0:
            return part
        words = [names[v] if v >= 0 else "" for v in numbers]
        part = part.remove_columns("label").add_column("label", words)  # pyright: ignore
    return encode_labels(part, "label", classes, f"the {name} rows of {title}")


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())
