"""What methods for GANs share: samples, what the guide sees in them, and the weights that draw them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Array3D, Dataset, Features, Value
from torch import Tensor, nn

from expunge.families import Gan, Images
from expunge.problem import Problem


def generator_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Everything that turns a latent into an image, by name: generator and mapping."""
    return {n: p for n, p in model.named_parameters() if n.partition(".")[0] in ("generator", "mapping")}


def has_mapping(model: nn.Module) -> bool:
    """Whether the generator reads another latent than z."""
    return getattr(model, "mapping", None) is not None


def unguided(family: Gan) -> list[str]:
    """Why nothing can say which samples are undesired; empty where the guide can."""
    if family.concept is None:
        return ["it needs something to forget that a classifier can name, such as a class"]
    if family.guide is None or family.guide.column != family.concept[0]:
        return [
            f"it needs a guide, a classifier of '{family.concept[0]}' that says which samples are undesired"
        ]
    return []


def shows(family: Gan, images: Tensor, *, guide: bool) -> np.ndarray:
    """`[n]` bool: in which images the guide, or the judge, sees what is to be forgotten."""
    assert family.concept is not None
    column, value = family.concept
    asked = family.guide if guide else family.judges[column]
    assert asked is not None
    return asked.judge(images).logp.argmax(1) == asked.number(value)


def sample_rows(family: Gan, n: int, name: str) -> dict[str, Any]:
    """Rows of `n` new samples, of a conditional GAN of all classes in turn."""
    rows: dict[str, Any] = {"id": [f"{name}-{i}" for i in range(n)]}
    return (
        {**rows, family.target: [i % len(family.classes) for i in range(n)]} if family.conditional else rows
    )


def pictured(problem: Problem, rows: Mapping[str, Any], images: Tensor) -> Problem:
    """A problem of the same family whose training images, all to be visited as forget rows, are `images`."""
    family = copy.copy(problem.family)
    assert isinstance(family, Gan)
    family.images = Images("image", channels=family.shape[0])  # as they are: -1 to 1
    features = {"id": Value("string"), "image": Array3D(family.shape, "float32")}
    columns = {"id": [str(i) for i in rows["id"]], "image": images.cpu().numpy()}
    if family.conditional:
        features[family.target], columns[family.target] = Value("int64"), np.asarray(rows[family.target])
    data = Dataset.from_dict(columns, features=Features(features))
    return Problem(problem.name, family, data, tuple(data["id"][:]), model=problem.model)
