"""Compact tables: columns that report related quantities stand under one heading, the unit above them all."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from expunge.report.notation import scale
from expunge.report.statements import split_name
from expunge.report.tables import Column, Table


@dataclass(frozen=True)
class Matrix:
    """A table whose columns are in groups.

    Attributes:
        title: what all values are, where it is one thing.
        unit: of all values, where it is one.
        groups: headings over the columns, each with the number of columns below it, left to right.
        names: what each column is within its group; empty where the heading says it all.
        table: the values.
    """

    title: str
    unit: str
    groups: list[tuple[str, int]]
    names: list[str]
    table: Table


def attack_matrices(table: Table) -> list[Matrix]:
    """A matrix per quantity and data set attacked: statistics that attackers look at by kinds of attacker.

    A title such as "Membership AUC (loss, linear SVM)" names quantity, statistic and attacker.
    """
    parts = {column.key: _parts(column) for column in table.columns}
    matrices: dict[tuple[str, str, str], dict[str, list[Column]]] = {}
    for column in table.columns:
        quantity, statistic, _ = parts[column.key]
        found = matrices.setdefault((quantity, column.split, column.unit), {})
        found.setdefault(statistic, []).append(column)
    return [
        Matrix(
            title=f"{quantity}, {split_name(split)}",
            unit=unit,
            groups=[(statistic or quantity, len(columns)) for statistic, columns in by_statistic.items()],
            names=[parts[c.key][2] for columns in by_statistic.values() for c in columns],
            table=table.only([c for columns in by_statistic.values() for c in columns]),
        )
        for (quantity, split, unit), by_statistic in matrices.items()
    ]


def cost_matrix(table: Table) -> Matrix:
    """What runs took: for each resource the amount and its ratio to retraining."""
    return Matrix(
        title="Cost",
        unit="",
        groups=_runs(column.title for column in table.columns),
        names=["×" if c.metric.endswith("-ratio") else scale(c.unit).symbol for c in table.columns],
        table=table,
    )


def _runs(titles: Iterable[str]) -> list[tuple[str, int]]:
    return [(title, len(list(same))) for title, same in groupby(titles)]


def _parts(column: Column) -> tuple[str, str, str]:
    """Quantity, statistic and attacker; the last two are empty where the title does not say."""
    named = re.fullmatch(r"(.+) \(([^,()]+)(?:, ([^()]+))?\)", column.title)
    return (named[1], named[2], named[3] or "") if named else (column.title, "", "")
