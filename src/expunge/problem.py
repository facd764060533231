"""Problem: what is asked. The front door of the library.

A Problem says which model, what to forget, what to keep, what was never trained on (`holdout`), named probes, the
family, and, where known, how the target was trained, so that it can be retrained.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from pydantic import Field
from torch import nn

from expunge.errors import BadInput, Missing
from expunge.families import Architecture, Batches, Family
from expunge.families.models import clone, fingerprint
from expunge.files import dataset_digest, digest
from expunge.parameters import Parameters, param

RESERVED = ("forget", "retain", "holdout", "train")


class Training(Parameters):
    """How a model is trained: the recipe of the target, and of everything retrained to compare with it."""

    epochs: int = param(
        20, "passes over the training data", source="ours: enough for the embedded problems", ge=0
    )
    lr: float = param(0.05, "learning rate", source="ours", ge=0)
    batch_size: int = param(64, "examples per optimizer step", source="ours", ge=1)
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = param("sgd", "update rule", source="ours")
    momentum: float = param(0.9, "momentum of sgd", source="customary", ge=0, lt=1)
    weight_decay: float = param(5e-4, "L2 coefficient (decoupled for adamw)", source="customary", ge=0)
    schedule: Literal["constant", "cosine", "linear"] = param(
        "constant", "learning rate over training; cosine and linear end at 0", source="ours"
    )
    warmup: float = param(
        0.0, "share of training over which the learning rate rises linearly from 0", source="ours", ge=0, lt=1
    )
    clip: float | None = param(None, "largest gradient norm; None means unlimited", source="ours", gt=0)
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="examples per forward pass; None means batch_size. Changes memory, not the trajectory",
    )


@dataclass(frozen=True)
class Concept:
    """What is to be forgotten, named by prompts instead of rows.

    Attributes:
        name: what reports call it.
        prompts: prompts that ask for it.
        anchors: for each of them, the prompt whose answer should come instead.
        preserve: prompts whose answers must stay as they are.
    """

    name: str
    prompts: tuple[str, ...]
    anchors: tuple[str, ...]
    preserve: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompts or any(not p.strip() for p in self.prompts):
            raise BadInput(f"concept '{self.name}': a prompt is empty; say in words what is to be forgotten")
        if len(self.anchors) != len(self.prompts):
            raise BadInput(
                f"concept '{self.name}': {len(self.prompts)} prompts need as many anchors, got {len(self.anchors)}"
            )
        same = [p for p, a in zip(self.prompts, self.anchors, strict=True) if p == a]
        if same:
            raise BadInput(
                f"concept '{self.name}': '{same[0]}' is its own anchor; name something else to show"
            )
        both = set(self.prompts) & set(self.preserve)
        if both:
            raise BadInput(f"concept '{self.name}': '{min(both)}' is to be forgotten and to be kept")


@dataclass(frozen=True)
class Problem:
    """What is asked of a forgetting method, and what its answer is judged on.

    Attributes:
        name: how reports call it.
        family: how models read the data.
        train: all rows the target was trained on, each with a unique string `id`.
        forget_ids: ids of the rows to forget; the others are the retain set.
        holdout: rows of the same distribution that were never trained on (non-members for membership inference).
        probes: further named data sets, `test` among them, on which the model is measured.
        model: the target model, or None before it is trained.
        architecture: how to build a model with fresh weights; needed by retraining and by fresh teachers.
        recipe: how the target was trained; needed by retraining.
        start: the model that training starts from, where it is not fresh weights: a pretrained one that is fine-tuned.
        retrained: a model trained without the forget set, where one is given; retraining then hands it out.
        scope: what the forget set is, in words.
        source: where data and model came from, for records.
        concept: what is to be forgotten as prompts, where it has a name.
    """

    name: str
    family: Family
    train: Dataset
    forget_ids: tuple[str, ...]
    holdout: Dataset | None = None
    probes: Mapping[str, Dataset] = field(default_factory=dict)
    model: nn.Module | None = None
    architecture: Architecture | None = None
    recipe: Training | None = None
    start: nn.Module | None = None
    retrained: nn.Module | None = None
    scope: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)
    concept: Concept | None = None

    def __post_init__(self) -> None:
        ids = self.train["id"][:] if "id" in self.train.column_names else None
        if ids is None:
            raise BadInput(
                f"{self.name}: the training data has no 'id' column; every example needs a stable string id"
            )
        ids = [str(i) for i in ids]
        if len(set(ids)) != len(ids):
            seen: set[str] = set()
            twice = next(i for i in ids if i in seen or seen.add(i))
            raise BadInput(
                f"{self.name}: id '{twice}' occurs more than once in the training data; ids must be unique"
            )
        if not self.forget_ids:
            raise BadInput(f"{self.name}: the forget set is empty; nothing would be forgotten")
        unknown = sorted(set(self.forget_ids) - set(ids))
        if unknown:
            shown = ", ".join(unknown[:20]) + (f" and {len(unknown) - 20} more" if len(unknown) > 20 else "")
            raise BadInput(f"{self.name}: {len(unknown)} of the ids to forget are not in the data: {shown}")
        for split, dataset in {"holdout": self.holdout, **self.probes}.items():
            if dataset is None:
                continue
            if split != "holdout" and split in RESERVED:
                raise BadInput(f"{self.name}: a probe cannot be called '{split}'; that name is taken")
            shared = set(map(str, dataset["id"][:])) & set(ids)
            if split == "holdout" and shared:
                raise BadInput(
                    f"{self.name}: holdout shares {len(shared)} ids with the training data (first: '{min(shared)}'); "
                    "holdout rows must never have been trained on"
                )
        self.family.check(self.train, f"{self.name}: training data")
        for split, dataset in {"holdout": self.holdout, **self.probes}.items():
            if dataset is not None:
                self.family.check(dataset, f"{self.name}: {split}")

    @cached_property
    def forget_mask(self) -> np.ndarray:
        """`[n]` bool: which rows of `train` are to be forgotten."""
        chosen = set(self.forget_ids)
        return np.asarray([str(i) in chosen for i in self.train["id"][:]])

    @cached_property
    def forget_rows(self) -> np.ndarray:
        """`[n_forget]` row numbers in `train`."""
        return np.flatnonzero(self.forget_mask)

    @cached_property
    def retain_rows(self) -> np.ndarray:
        """`[n_retain]` row numbers in `train`."""
        return np.flatnonzero(~self.forget_mask)

    @cached_property
    def forget(self) -> Dataset:
        """The rows to forget, in training order."""
        return self.train.select(self.forget_rows)

    @cached_property
    def retain(self) -> Dataset:
        """The rows to keep, in training order; empty where none were given."""
        return self.train.select(self.retain_rows)

    @cached_property
    def splits(self) -> dict[str, Dataset]:
        """Every data set that models are measured on, by name: forget, retain, holdout, probes."""
        found = {"forget": self.forget, "retain": self.retain, "holdout": self.holdout, **self.probes}
        return {name: dataset for name, dataset in found.items() if dataset is not None and len(dataset)}

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of data, split, family, architecture, recipe and start; not of the model."""
        start: dict[str, Any] = {} if self.start is None else {"start": fingerprint(self.start)}
        if self.concept is not None:
            start["concept"] = asdict(self.concept)
        return digest(
            {
                **start,
                "train": dataset_digest(self.train),
                "forget": sorted(self.forget_ids),
                "holdout": None if self.holdout is None else dataset_digest(self.holdout),
                "probes": {k: dataset_digest(v) for k, v in self.probes.items()},
                "family": self.family.describe(),
                "architecture": self.architecture,
                "recipe": self.recipe,
            }
        )

    @property
    def target(self) -> nn.Module:
        """The target model, or an error that says it is missing."""
        if self.model is None:
            raise Missing(f"{self.name}: the problem has no target model yet; train it or pass one")
        return self.model

    def with_model(self, model: nn.Module) -> Problem:
        """The same problem about `model`; what was derived from the data is kept."""
        made = copy.copy(self)
        object.__setattr__(made, "model", model)
        return made

    @cached_property
    def _batches(self) -> dict[tuple[str, str, type[Family]], Batches]:
        return {}

    def batches(self, split: str, device: str = "cpu", quantities: Sequence[str] = ()) -> Batches:
        """Batches of a split or of `train`, as read for `quantities`; collated once for all models and methods."""
        if split != "train" and split not in self.splits:
            raise BadInput(
                f"{self.name} has no '{split}' rows; it has {', '.join(self.splits)}: give some, or do not ask for them"
            )
        dataset = self.train if split == "train" else self.splits[split]
        view = self.family.view(dataset, quantities)
        key = (split, device, type(view))
        if key not in self._batches:
            self._batches[key] = Batches(view, dataset, device)
        return self._batches[key]

    def fresh_model(self, seed: int) -> nn.Module:
        """A model of the same architecture with random weights, or with those that training starts from."""
        if self.start is not None:
            return clone(self.start)
        if self.architecture is None:
            raise Missing(
                f"{self.name}: no architecture is known, so no fresh model can be built; "
                "pass the model as a transformers folder or package.module:factory"
            )
        return self.architecture.build(seed)

    def offers(self) -> set[str]:
        """What methods can ask for here: retain, holdout, architecture, recipe, labels."""
        offered = {"forget", "labels"}
        if len(self.retain_rows):
            offered.add("retain")
        if self.holdout is not None:
            offered.add("holdout")
        if self.architecture is not None:
            offered.add("architecture")
        if self.recipe is not None:
            offered.add("recipe")
        if self.concept is not None:
            offered.add("concept")
        if self.family.name != "diffusion" or "latents" in self.train.column_names:
            offered.add("images")
        return offered

    def card(self) -> dict[str, Any]:
        """Facts for records and reports: counts and fingerprints, never contents."""
        return {
            "name": self.name,
            "scope": self.scope,
            "family": self.family.name,
            "fingerprint": self.fingerprint,
            "counts": {"train": len(self.train), **{k: len(v) for k, v in self.splits.items()}},
            "forget_digest": digest(sorted(self.forget_ids)),
            "train_digest": dataset_digest(self.train),
            "source": dict(self.source),
            "architecture": None if self.architecture is None else self.architecture.model_dump(mode="json"),
            "recipe": None if self.recipe is None else self.recipe.model_dump(mode="json"),
        }


def with_ids(dataset: Dataset, column: str | None, prefix: str) -> Dataset:
    """The data set with a string column `id`: from `column`, an existing `id`, or made of `prefix` and the row number."""
    if column is not None and column not in dataset.column_names:
        raise BadInput(f"no id column '{column}'; the data has {', '.join(dataset.column_names)}")
    source: Sequence[Any]
    if column is not None:
        source = dataset[column][:]
    elif "id" in dataset.column_names:
        source = dataset["id"][:]
    else:
        source = [f"{prefix}-{i:06d}" for i in range(len(dataset))]
    if "id" in dataset.column_names:
        dataset = dataset.remove_columns("id")
    return dataset.add_column("id", [str(i) for i in source])  # pyright: ignore
