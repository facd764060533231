"""Markdown tables."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "min_length": "length ≥", "max_length": "length ≤"}


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; what would break a cell is escaped."""
    lines = [list(columns), ["---"] * len(columns), *[[cell(value) for value in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: object) -> str:
    """One line of text for a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def code(value: object) -> str:
    """Text as code."""
    return f"`{value}`"


def text_of(thing: Any) -> str:
    """The docstring, as Markdown: `\\|` is how docstrings write a bar outside code."""
    return (inspect.getdoc(thing) or "").replace("\\|", "|")


def parameters(described: Sequence[dict[str, Any]], *, source: bool = True) -> str:
    """What `Parameters.describe` says, as a table."""
    columns = ["name", "default", "range", "meaning", *(["default from"] if source else [])]
    rows = []
    for row in described:
        choices = re.findall(r"'([^']*)'", row["type"]) if row["type"].startswith("Literal[") else []
        limits = ", ".join(choices or [f"{SIGNS[k]} {v}" for k, v in row["limits"].items()])
        default = "required" if row["required"] else code(row["default"])
        rows.append([code(row["name"]), default, limits, row["doc"], *([row["source"]] if source else [])])
    return table(columns, rows)
