"""One table of all models of all runs.

A thousand score files are read for it, so they are read as plain JSON and each is summarized once; the report's own
tables (`Runs.report`) have every column of a single run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic_core import from_json
from scipy import stats

from expunge.app.runs import Runs
from expunge.errors import ExpungeError, Missing
from expunge.record import Record
from expunge.report.content import MAIN
from expunge.report.tables import title_of

COLUMNS = (*MAIN, ("seconds", "run"), ("seconds-ratio", "run"))
"""What the table of all runs shows, where measured: the main table of the report, and the cost."""
Role = Literal["target", "retrained", "unlearned"]
Judgement = Literal["no larger difference", "different", "undecided"]


class ScreenColumn(Record):
    """A metric on a split."""

    metric: str
    split: str
    title: str
    unit: str
    direction: str


class ScreenCell(Record):
    """Mean over seeds, or the reason why there is none."""

    value: float | None = None
    low: float | None = Field(
        default=None, description="95 % interval of the mean over seeds, or over examples of one seed"
    )
    high: float | None = None
    gap: float | None = Field(default=None, description="mean minus mean of the retrained models")
    n: int | None = Field(default=None, description="seeds with a value")
    status: str | None = Field(default=None, description="where there is no value")
    reason: str | None = None


class ScreenRow(Record):
    """A method with its parameters on one problem of one run."""

    run: str
    problem: str
    family: str
    label: str
    method: str
    role: Role
    seeds: int
    status: str
    reason: str
    equal: int = Field(description="verdicts: no difference larger than the margin")
    different: int
    undecided: int
    cells: list[ScreenCell | None] = Field(description="by column; None where it was not measured")


class Screen(Record):
    """All models of all runs."""

    columns: list[ScreenColumn]
    rows: list[ScreenRow]
    unread: dict[str, str] = Field(description="runs whose scores cannot be read, with the reason")


class _Summary(Record):
    columns: list[ScreenColumn]
    rows: list[ScreenRow]


def screen(runs: Runs) -> Screen:
    """The table of every run in the folder."""
    with runs.reading:
        return _screen(runs)


def _screen(runs: Runs) -> Screen:
    found: list[_Summary] = []
    unread: dict[str, str] = {}
    for name in runs.names():
        try:
            path = runs.file(name, "scores.json")
        except Missing:
            continue  # it has not finished; the page of running studies shows it
        try:
            found.append(runs.kept(path, lambda p, n=name: summarize(n, p), "screen"))
        except (ExpungeError, KeyError, TypeError, ValueError) as error:
            unread[name] = f"scores.json cannot be read: {type(error).__name__}: {error}"[:300]
    order = {key: i for i, key in enumerate(COLUMNS)}
    merged = {(c.metric, c.split): c for s in found for c in s.columns}
    keys = sorted(merged, key=lambda k: order[k])
    rows = []
    for summary in found:
        place = {(c.metric, c.split): i for i, c in enumerate(summary.columns)}
        spread = [place.get(k) for k in keys]
        rows += [
            ScreenRow.model_construct(
                **{**r.__dict__, "cells": [None if i is None else r.cells[i] for i in spread]}
            )
            for r in summary.rows
        ]
    return Screen.model_construct(columns=[merged[k] for k in keys], rows=rows, unread=unread)


def summarize(run: str, path: Path) -> _Summary:
    """The rows of one score file."""
    content = from_json(path.read_bytes())
    families = {p["name"]: p.get("family", "") for p in content["problems"]}
    judgements: dict[tuple[str, str], list[str]] = {}
    for v in content.get("verdicts", ()):
        judgements.setdefault((v["problem"], v["label"]), []).append(v["judgement"])
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    wanted = set(COLUMNS)
    columns: dict[tuple[str, str], ScreenColumn] = {}
    for judged in content["judged"]:
        groups.setdefault((judged["problem"], judged["label"]), []).append(judged)
        judged["by_key"] = by_key = {}
        for s in judged.get("scores", ()):
            key = (s["metric"], s["split"])
            if key in wanted:
                by_key[key] = s
                if key not in columns:
                    columns[key] = ScreenColumn(
                        metric=key[0],
                        split=key[1],
                        title=title_of(key[0]),
                        unit=s["unit"],
                        direction=s["direction"],
                    )
    keys = list(columns)
    rows = []
    for (problem, label), models in groups.items():
        first = models[0]
        said = judgements.get((problem, label), [])
        rows.append(
            ScreenRow.model_construct(
                run=run,
                problem=problem,
                family=families.get(problem, ""),
                label=label,
                method=first["method"],
                role={"target": "target", "retrain": "retrained"}.get(first["method"], "unlearned"),
                seeds=len(models),
                status=first.get("status", "ok"),
                reason=first.get("reason", ""),
                equal=said.count("no larger difference"),
                different=said.count("different"),
                undecided=said.count("undecided"),
                cells=[_cell(models, key) for key in keys],
            )
        )
    return _Summary.model_construct(columns=[columns[k] for k in keys], rows=rows)


def _cell(models: Iterable[dict[str, Any]], key: tuple[str, str]) -> ScreenCell | None:
    scores = [s for m in models if (s := m["by_key"].get(key)) is not None]
    valid = [s for s in scores if s.get("value") is not None]
    if not scores:
        return None
    if not valid:
        return _made(status=scores[0]["status"], reason=scores[0].get("reason", ""))
    values = [s["value"] for s in valid]
    n, mean = len(values), math.fsum(values) / len(values)
    low = high = None
    if n > 1:
        half = t_quantile(n - 1) * math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
        low, high = mean - half, mean + half
        if valid[0]["unit"] in ("share", "AUC"):
            low, high = max(0.0, low), min(1.0, high)
    elif valid[0].get("interval"):
        low, high = valid[0]["interval"]["low"], valid[0]["interval"]["high"]
    gaps = [s["reference"]["gap"] for s in valid if s.get("reference")]
    gap = math.fsum(gaps) / len(gaps) if gaps else None
    missing = next((s for s in scores if s.get("value") is None), None)
    reason = (
        None if missing is None else f"{n} of {len(scores)} seeds have a value; {missing.get('reason', '')}"
    )
    return _made(mean, low, high, gap, n, None, reason)


def _made(
    value: float | None = None,
    low: float | None = None,
    high: float | None = None,
    gap: float | None = None,
    n: int | None = None,
    status: str | None = None,
    reason: str | None = None,
) -> ScreenCell:
    """A cell that needs no check: there are tens of thousands."""
    return ScreenCell.model_construct(
        value=value, low=low, high=high, gap=gap, n=n, status=status, reason=reason
    )


@lru_cache(maxsize=256)
def t_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t."""
    return float(stats.t.ppf(0.975, freedom))
