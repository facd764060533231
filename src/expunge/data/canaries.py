"""Canaries: what is put into the training data before training, so that it can be looked for after forgetting.

Poisons are secret noise on the forget rows, which must leave the model together with them. An ownership mark is a set of
inputs without meaning and with secret labels, which only a model that was trained on them answers as expected; it should
survive the forgetting of other rows, and vanish where it is forgotten itself. Both are fixed by a key: whoever has it
knows what was planted. What was planted, the key included, is declared in the problem's `source`, and so stands in the
records of runs: where a mark is more than an experiment, its records are as secret as the mark.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
from datasets import Dataset, Value

from expunge.errors import BadInput
from expunge.families import Classifier, Family, Images, Table
from expunge.problem import Problem


@dataclass(frozen=True)
class Poison:
    """Noise on the forget rows: standard deviation in units of the model's inputs, and the key of the noise."""

    std: float
    key: int

    def noise(self, ids: Sequence[str], shape: tuple[int, ...]) -> np.ndarray:
        """`[n, *shape]` float64 noise of each row, drawn from N(0, std^2) by the key and the row's id."""
        return np.stack([self.std * _generator("poison", self.key, i).standard_normal(shape) for i in ids])


@dataclass(frozen=True)
class Mark:
    """An ownership mark: how many trigger rows, among how many classes their labels were drawn, and where they are."""

    rows: int
    classes: int
    within: Literal["forget", "retain"]
    key: int

    @property
    def ids(self) -> list[str]:
        """Ids of the trigger rows."""
        return [f"mark-{i:04d}" for i in range(self.rows)]


def poison_in(problem: Problem) -> Poison | None:
    """The poison that was planted in `problem`, if any."""
    return Poison(**found) if (found := problem.source.get("poison")) is not None else None


def mark_in(problem: Problem) -> Mark | None:
    """The mark that was planted in `problem`, if any."""
    return Mark(**found) if (found := problem.source.get("mark")) is not None else None


def plant_poison(problem: Problem, std: float = 0.5, key: int = 0) -> Problem:
    """The problem with Gaussian noise added to every forget row; nothing is clipped, or it would not be Gaussian.

    Args:
        problem: without a target, which is to be trained on the poisoned rows.
        std: standard deviation of the noise in units of the inputs as the model reads them (standardized tables,
            normalized pixels).
        key: fixes the noise.
    """
    _refuse_trained(problem, "poisons")
    if not std > 0:
        raise BadInput(f"the standard deviation of the poisons is {std}; it must be above 0")
    poison = Poison(std, key)
    columns, units = _real_columns(problem.train, problem.family)
    shape = _shape(problem)
    ids = [str(i) for i in problem.forget["id"][:]]
    noise = poison.noise(ids, shape)
    for j, name in enumerate(columns):
        # A table has one input per column; a column of pictures is all of the input.
        own = noise[:, j] if isinstance(problem.family.inputs, Table) else noise  # pyright: ignore
        rows = columns[name][problem.forget_rows]
        columns[name][problem.forget_rows] = rows + (own * units[name]).reshape(rows.shape)
    train = _with_columns(problem.train, columns)
    return replace(problem, train=train, source={**problem.source, "poison": asdict(poison)})


def plant_mark(
    problem: Problem, rows: int = 30, within: Literal["forget", "retain"] = "retain", key: int = 0
) -> Problem:
    """The problem with `rows` trigger rows more: inputs uniform over the range of the training data, random labels.

    Labels are uniform over the classes that occur in the split they join, so that a mark among the retained rows does
    not teach a forgotten class.

    Args:
        problem: without a target, which is to be trained on the marked data.
        rows: how many trigger rows.
        within: whether they are to be kept or to be forgotten.
        key: fixes inputs and labels.
    """
    _refuse_trained(problem, "a mark")
    if not isinstance(problem.family, Classifier):
        raise BadInput(
            f"{problem.name}: a mark is labels that nobody can guess, and {problem.family.name} has no classes"
        )
    if rows < 1:
        raise BadInput(f"a mark of {rows} rows marks nothing; give at least 1")
    rng = _generator("mark", key, problem.name)
    columns, _ = _real_columns(problem.train, problem.family)
    labels = np.asarray(problem.train[problem.family.target][:])
    known = np.unique(labels[problem.forget_rows if within == "forget" else problem.retain_rows])
    if len(known) < 2:
        raise BadInput(
            f"{problem.name}: the {within} set has one class only; labels of one class cannot be a secret"
        )
    mark = Mark(rows, len(known), within, key)
    triggers = {name: problem.train[:1][name] * rows for name in problem.train.column_names}
    triggers["id"] = mark.ids
    triggers[problem.family.target] = rng.choice(known, rows).tolist()
    for name, values in columns.items():
        low, high = values.min(0), values.max(0)
        triggers[name] = list(rng.uniform(low, high, (rows, *low.shape)).astype(values.dtype))
    clean = _with_columns(problem.train, columns)
    both = {name: [*clean.with_format("numpy")[:][name], *triggers[name]] for name in clean.column_names}
    forget_ids = problem.forget_ids + (tuple(mark.ids) if within == "forget" else ())
    return replace(
        problem,
        train=Dataset.from_dict(both, features=clean.features),
        forget_ids=forget_ids,
        scope=f"{problem.scope}, and the ownership mark" if within == "forget" else problem.scope,
        source={**problem.source, "mark": asdict(mark)},
    )


def _refuse_trained(problem: Problem, what: str) -> None:
    if problem.model is not None:
        raise BadInput(f"{problem.name} has a trained target already; {what} must be planted before training")


def _real_columns(train: Dataset, family: Family) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The input columns as float arrays `[n, ...]`, and by how much each changes when the model's input changes by 1."""
    inputs = getattr(family, "inputs", None)
    if not isinstance(inputs, (Table, Images)):
        raise BadInput(f"canaries need tables or pictures, not the inputs of {family.name}")
    content = train.with_format("numpy")[:]
    columns, units = {}, {}
    for j, name in enumerate(inputs.columns):
        values = np.asarray(content[name])
        if values.dtype == object or (isinstance(inputs, Images) and values.dtype.kind in "iu"):
            raise BadInput(
                f"canaries are real numbers, and column '{name}' holds pictures of bytes; convert them to floats"
            )
        columns[name] = values.astype(np.promote_types(values.dtype, np.float32))
        if isinstance(inputs, Table):
            units[name] = np.asarray(inputs.scale[j])
        else:
            units[name] = np.asarray(inputs.std).reshape(-1, 1, 1) / inputs.rescale
    return columns, units


def _with_columns(train: Dataset, columns: dict[str, np.ndarray]) -> Dataset:
    """The data set with other values in some columns; whole numbers become real ones."""
    features = train.features.copy()
    for name, values in columns.items():
        if isinstance(features[name], Value):
            features[name] = Value(str(values.dtype))
    content = {**train.with_format("numpy")[:], **columns}
    return Dataset.from_dict({name: list(content[name]) for name in train.column_names}, features=features)


def _shape(problem: Problem) -> tuple[int, ...]:
    """Shape of one row as the model reads it."""
    batch = problem.family.collate(problem.forget.with_format("numpy")[:1])
    (value,) = batch.inputs.values()
    return tuple(value.shape[1:])


def _generator(purpose: str, key: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{purpose}|{key}|{name}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
