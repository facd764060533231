"""Evidence of one or two models, example by example: pages of a table, matrices, residuals, answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from expunge.app.runs import Runs
from expunge.errors import BadInput, Missing, did_you_mean
from expunge.record import Record

CONTENTS = ("text", "answer_text")
"""Columns that say what an example or a model says; they travel only when asked for."""
Side = Literal["a", "b"]


@dataclass(frozen=True)
class Chosen:
    """A model of a run."""

    label: str
    seed: int

    @classmethod
    def parse(cls, text: str) -> Chosen:
        """From ``label@seed``."""
        label, at, seed = text.rpartition("@")
        if not at or not seed.isdigit():
            raise BadInput(f"{text[:80]!r} names no model; it is written label@seed, such as npo@0")
        return cls(label, int(seed))


class ExamplePage(Record):
    """Some rows of the table of examples."""

    total: int = Field(description="rows of the split")
    matching: int = Field(description="rows that the filter keeps")
    columns: list[str] = Field(description="quantities, a column each per model")
    ids: list[str]
    groups: list[str] | None
    a: dict[str, list[float | int | str | None]] = Field(description="by quantity, the first model's values")
    b: dict[str, list[float | int | str | None]] | None
    undefined: dict[str, int] = Field(description="by quantity: values that are not finite, over both models")


class Evidence:
    """Scalar evidence of a model on a split, read once while the file does not change."""

    def __init__(self, path: Path) -> None:
        file = pq.ParquetFile(path)
        scalars = [
            field.name
            for field in file.schema_arrow
            if not pa.types.is_nested(field.type) and field.name not in CONTENTS
        ]
        self.path = path
        self.names = list(file.schema_arrow.names)
        table = file.read(scalars)
        if "predicted" not in self.names and "logp" in self.names:
            logp = self.array("logp")
            told = np.where(np.isnan(logp).any(1), np.nan, logp.argmax(1))
            table = table.append_column("predicted", pa.array(told))
        self.table = table.combine_chunks()

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def quantities(self) -> list[str]:
        """Scalar columns but id and group."""
        return [n for n in self.table.column_names if n not in ("id", "group")]

    def array(self, name: str) -> np.ndarray:
        """A column: `[n]`, or `[n, d]` of vectors.

        Raises:
            Missing: the evidence does not have it.
        """
        if name not in self.names:
            raise Missing(f"the evidence has no '{name}'{did_you_mean(name, self.names)}")
        column = pq.read_table(self.path, columns=[name])[name].combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        return column.to_numpy(zero_copy_only=False)

    def lists(self, name: str, rows: Sequence[int]) -> list[Any]:
        """Nested or textual values of some rows."""
        if name not in self.names:
            raise Missing(f"the evidence has no '{name}'")
        return pq.read_table(self.path, columns=[name])[name].take(pa.array(rows)).to_pylist()


def evidence(runs: Runs, run: str, problem: str, model: Chosen, split: str) -> Evidence:
    """The evidence of a model on a split."""
    path = runs.evidence_file(run, problem, model.label, model.seed, split)
    return runs.kept(path, Evidence, "evidence")


def paired(
    runs: Runs, run: str, problem: str, a: Chosen, b: Chosen | None, split: str
) -> tuple[Evidence, Evidence | None]:
    """The evidence of one or two models on the same rows in the same order."""
    first = evidence(runs, run, problem, a, split)
    if b is None:
        return first, None
    second = evidence(runs, run, problem, b, split)
    if not first.table["id"].equals(second.table["id"]):
        raise Missing(
            f"the two models were not measured on the same rows of '{split}', so they cannot be compared row by row"
        )
    return first, second


def example_page(
    first: Evidence, second: Evidence | None, *, sort: str = "", descending: bool = False, search: str = "", only: str = "",
    offset: int = 0, limit: int = 100,
) -> ExamplePage:  # fmt: skip
    """A page of the table.

    Args:
        first: of model A.
        second: of model B, on the same rows.
        sort: ``id``, ``group``, or a quantity with its side: ``a:loss``, ``b:loss``, ``d:loss`` (B minus A). Rows without
            a finite value come last either way.
        descending: largest first.
        search: keeps rows whose id or group holds this text.
        only: ``changed`` (predictions differ), ``worse`` (A right, B wrong), ``better`` (the other way round).
        offset: rows to skip.
        limit: rows at most, 1 to 1,000.
    """
    if not 1 <= limit <= 1000 or offset < 0:
        raise BadInput(f"a page holds 1 to 1000 rows from 0 on, not {limit} from {offset}")
    kept = _kept(first, second, search, only)
    order = _sorted(first, second, sort, descending)
    if kept is not None:
        order = order[kept[order]]
    rows = pa.array(order[offset : offset + limit])
    quantities = [q for q in first.quantities if second is None or q in second.quantities]
    undefined = {}
    for q in quantities:
        bad = sum(_not_finite(e.table[q]) for e in (first, second) if e is not None)
        if bad:
            undefined[q] = bad
    page = first.table.take(rows)
    return ExamplePage(
        total=len(first),
        matching=len(order),
        columns=quantities,
        ids=[str(i) for i in page["id"].to_pylist()],
        groups=[str(g) for g in page["group"].to_pylist()] if "group" in page.column_names else None,
        a={q: plain(page[q]) for q in quantities},
        b=None if second is None else {q: plain(second.table[q].take(rows)) for q in quantities},
        undefined=undefined,
    )


def _kept(first: Evidence, second: Evidence | None, search: str, only: str) -> np.ndarray | None:
    kept = None
    if search:
        columns = [c for c in ("id", "group") if c in first.table.column_names]
        wanted = search.lower()
        kept = np.logical_or.reduce(
            [np.char.find(np.char.lower(first.table[c].to_numpy().astype(str)), wanted) >= 0 for c in columns]
        )
    if only:
        mask = _only(first, second, only)
        kept = mask if kept is None else kept & mask
    return kept


def _only(first: Evidence, second: Evidence | None, only: str) -> np.ndarray:
    if second is None:
        raise BadInput(f"the filter {only!r} compares two models; choose a second one")
    if only == "changed":
        return _column(first, "predicted") != _column(second, "predicted")
    if only in ("worse", "better"):
        right, wrong = (first, second) if only == "worse" else (second, first)
        return (_column(right, "correct") == 1) & (_column(wrong, "correct") == 0)
    raise BadInput(f"there is no filter {only!r}; there are changed, worse and better")


def _column(found: Evidence, name: str) -> np.ndarray:
    if name not in found.table.column_names:
        raise Missing(f"the evidence of this split has no '{name}'")
    return found.table[name].to_numpy()


def _sorted(first: Evidence, second: Evidence | None, sort: str, descending: bool) -> np.ndarray:
    n = len(first)
    if not sort:
        return np.arange(n)
    if sort in ("id", "group"):
        if sort not in first.table.column_names:
            raise BadInput("the rows have no groups to sort by")
        order = np.argsort(first.table[sort].to_numpy().astype(str), kind="stable")
        return order[::-1] if descending else order
    side, _, quantity = sort.partition(":")
    sides: dict[str, Evidence | None] = {"a": first, "b": second, "d": second}
    chosen = sides.get(side)
    if chosen is None or quantity not in first.quantities or quantity not in chosen.quantities:
        raise BadInput(
            f"cannot sort by {sort[:60]!r}; it is id, group, or a:, b: or d: and one of {', '.join(first.quantities)}"
        )
    values = _column(chosen, quantity).astype(float)
    if side == "d":
        values = values - _column(first, quantity).astype(float)
    key = np.where(np.isfinite(values), -values if descending else values, np.inf)
    return np.argsort(key, kind="stable")


def _not_finite(column: Any) -> int:
    if not pa.types.is_floating(column.type):
        return column.null_count
    return int((~np.isfinite(column.to_numpy())).sum())


def plain(column: Any) -> list[float | int | str | None]:
    """Values for JSON, which has neither NaN nor infinity: None stands for both."""
    values = column.to_pylist()
    if pa.types.is_floating(column.type):
        return [v if v is not None and np.isfinite(v) else None for v in values]
    return values


class Matrix(Record):
    """Rows by true and by predicted class."""

    classes: list[str]
    counts: list[list[int]] = Field(description="rows: the true class; columns: the predicted one")
    confidence: list[list[float | None]] | None = Field(
        description="mean probability of the predicted class; None where nothing was predicted so"
    )


def prediction_matrix(found: Evidence, classes: Sequence[str]) -> Matrix:
    """The confusion matrix of a classifier."""
    said = _column(found, "predicted")
    predicted = np.where(known := np.isfinite(said), said, 0).astype(int)
    if "target" in found.table.column_names:
        true = _column(found, "target").astype(int)
    else:
        place = {str(c): i for i, c in enumerate(classes)}
        groups = (
            [str(g) for g in found.table["group"].to_pylist()] if "group" in found.table.column_names else []
        )
        if not groups or not set(groups) <= set(place):
            raise Missing(
                "the evidence does not hold the true classes: its groups are others, and 'target' was not collected"
            )
        true = np.asarray([place[g] for g in groups])
    n = len(classes)
    counts = np.zeros((n, n), dtype=int)
    np.add.at(counts, (true, predicted), known)
    confidence = None
    if "logp" in found.names:
        top = np.where(known, np.exp(found.array("logp").max(1)), 0.0)
        total = np.zeros((n, n))
        np.add.at(total, (true, predicted), top)
        confidence = [
            [float(t / c) if c and np.isfinite(t) else None for t, c in zip(ts, cs, strict=True)]
            for ts, cs in zip(total, counts, strict=True)
        ]
    return Matrix(classes=list(classes), counts=counts.tolist(), confidence=confidence)


class Residuals(Record):
    """True and predicted values of a regressor, thinned evenly where there are many."""

    ids: list[str]
    target: list[float]
    predicted: list[float | None]
    n: int = Field(description="rows of the split")


def residuals(found: Evidence, most: int = 4000) -> Residuals:
    """Predictions against the truth; the first of several target columns."""
    step = max(1, -(-len(found) // most))
    target, predicted = (
        np.asarray(found.array(c), dtype=float).reshape(len(found), -1)[::step, 0]
        for c in ("target", "predicted")
    )
    ids = [str(i) for i in found.table["id"].to_pylist()][::step]
    return Residuals(
        ids=ids,
        target=target.tolist(),
        predicted=[float(v) if np.isfinite(v) else None for v in predicted],
        n=len(found),
    )
