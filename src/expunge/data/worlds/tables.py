"""The real data that scikit-learn carries: digits, breast cancer, diabetes."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Array2D, ClassLabel, Dataset, Features, Value


def digits() -> Dataset:
    """1,797 handwritten digits, 8x8, grey values scaled to [0, 1]; columns id, image, label."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    features = Features(
        {
            "id": Value("string"),
            "image": Array2D((8, 8), "float32"),
            "label": ClassLabel(names=[str(i) for i in range(10)]),
        }
    )
    return Dataset.from_dict(
        {
            "id": [f"digit-{i:04d}" for i in range(len(data.target))],
            "image": (data.images / 16).astype(np.float32),
            "label": data.target.astype(np.int64),
        },
        features=features,
    )


def breast_cancer() -> tuple[Dataset, list[str]]:
    """569 tumors, malignant or benign; columns id, 30 measurements, label. And the measurements' names."""
    from sklearn.datasets import load_breast_cancer

    data: Any = load_breast_cancer()
    names = [str(n).replace(" ", "_") for n in data.feature_names]
    columns: dict[str, object] = {"id": [f"tumor-{i:04d}" for i in range(len(data.target))]}
    columns |= {name: data.data[:, j] for j, name in enumerate(names)}
    columns["label"] = data.target.astype(np.int64)
    labels = ClassLabel(names=[str(n) for n in data.target_names])
    features = Features({"id": Value("string"), **{n: Value("float64") for n in names}, "label": labels})
    return Dataset.from_dict(columns, features=features), names


def diabetes() -> tuple[Dataset, list[str]]:
    """442 patients; columns id, 10 baseline measurements, disease progression after a year. And the names.

    The progression is a score from 25 to 346 without a unit.
    """
    from sklearn.datasets import load_diabetes

    data: Any = load_diabetes(scaled=False)
    names = [str(n) for n in data.feature_names]
    columns: dict[str, object] = {"id": [f"patient-{i:04d}" for i in range(len(data.target))]}
    columns |= {name: data.data[:, j] for j, name in enumerate(names)}
    columns["progression"] = data.target.astype(np.float64)
    return Dataset.from_dict(columns), names
