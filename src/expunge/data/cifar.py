"""The binary version of CIFAR-10.

Records of 3,073 bytes: the label, then 32x32 red, 32x32 green and 32x32 blue values in row-major order
(Krizhevsky, "Learning multiple layers of features from tiny images", 2009).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datasets import Array3D, ClassLabel, Dataset, Features

from expunge.errors import BadInput

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_RECORD = 1 + 3 * 32 * 32


def read_cifar(files: list[Path]) -> Dataset:
    """Columns image (uint8, `[3, 32, 32]`) and label, of the rows of all `files` in order."""
    parts = [_records(file) for file in files]
    records = np.concatenate(parts)
    features = Features({"image": Array3D((3, 32, 32), "uint8"), "label": ClassLabel(names=list(CLASSES))})
    return Dataset.from_dict(
        {"image": records[:, 1:].reshape(-1, 3, 32, 32), "label": records[:, 0].astype(np.int64)},
        features=features,
    )


def _records(file: Path) -> np.ndarray:
    """`[n, 3073]` uint8."""
    content = file.read_bytes()
    if not content or len(content) % _RECORD:
        raise BadInput(
            f"'{file}' has {len(content)} bytes, not a multiple of {_RECORD} as in the binary version of "
            "CIFAR-10; download cifar-10-binary.tar.gz again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    if records[:, 0].max() >= len(CLASSES):
        raise BadInput(
            f"'{file}' has label {records[:, 0].max()}, but CIFAR-10 has 10 classes; "
            "is it the binary version of CIFAR-10?"
        )
    return records
