"""Evidence made by hand, without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch

from expunge.evidence import Evidence
from expunge.families import Batch, Classifier, Outputs, Table

Build = Callable[..., Evidence]


def table(
    ids: Sequence[str] | None = None, groups: Sequence[str] | None = None, **columns: object
) -> Evidence:
    """Evidence with the given columns, each `[n]` or `[n, d]`; '__' in a column's name stands for ':'."""
    arrays = {name.replace("__", ":"): np.asarray(values) for name, values in columns.items()}
    n = len(next(iter(arrays.values())))
    made: dict[str, pa.Array] = {"id": pa.array([f"row-{i}" for i in range(n)] if ids is None else list(ids))}
    if groups is not None:
        made["group"] = pa.array([str(g) for g in groups])
    for name, array in arrays.items():
        flat = pa.array(array.reshape(-1))
        made[name] = flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    return Evidence(pa.table(made))


def of_logits(
    logits: np.ndarray,
    labels: np.ndarray,
    ids: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    wanted: Sequence[str] = (
        "loss",
        "correct",
        "confidence",
        "entropy",
        "modified_entropy",
        "predicted",
        "target",
        "logp",
    ),
) -> Evidence:
    """What a classifier with these logits `[n, C]` and labels `[n]` would yield."""
    family = Classifier(Table(["x"]), logits.shape[1])
    targets = torch.as_tensor(np.asarray(labels, dtype=np.int64))[:, None]
    ids = [f"row-{i}" for i in range(len(labels))] if ids is None else list(ids)
    batch = Batch(ids, {}, targets, torch.ones_like(targets, dtype=torch.bool))
    made = family.observe(Outputs(torch.as_tensor(logits)[:, None]), batch, wanted)
    return table(ids, groups, **{name: value.numpy() for name, value in made.items()})


@pytest.fixture(scope="session")
def evidence() -> Build:
    """Build evidence from columns."""
    return table


@pytest.fixture(scope="session")
def from_logits() -> Build:
    """Build a classifier's evidence from logits and labels."""
    return of_logits


@pytest.fixture
def rng() -> np.random.Generator:
    """The same stream for every test."""
    return np.random.default_rng(20)
