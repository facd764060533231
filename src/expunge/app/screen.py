"""One table of all models of all runs.

A thousand score files are read for it, so they are read as plain JSON and each is summarized once; the report's own
tables (`Runs.report`) have every column of a single run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic_core import from_json
from scipy import stats
from typing_extensions import TypedDict  # pydantic refuses that of typing before Python 3.12

from expunge.app.runs import Runs
from expunge.errors import ExpungeError, Missing
from expunge.record import Record
from expunge.report.content import MAIN
from expunge.report.tables import title_of

COLUMNS = (*MAIN, ("seconds", "run"), ("seconds-ratio", "run"))
"""What the table of all runs shows, where measured: the main table of the report, and the cost."""
PAUSE = 0.001
"""Seconds between two runs that are read ahead."""
Role = Literal["target", "retrained", "unlearned"]
ROLES: dict[str, Role] = {"target": "target", "retrain": "retrained"}
Judgement = Literal["no larger difference", "different", "undecided"]


class ScreenColumn(Record):
    """A metric on a split."""

    metric: str
    split: str
    title: str
    unit: str
    direction: str


class ScreenCell(TypedDict, total=False):
    """Mean over seeds, or the reason why there is none. What does not apply is left out: there are tens of thousands."""

    value: float
    low: Annotated[
        float, Field(description="95 % interval of the mean over seeds, or over examples of one seed")
    ]
    high: float
    gap: Annotated[float, Field(description="mean minus mean of the retrained models")]
    n: Annotated[int, Field(description="seeds with a value")]
    status: Annotated[str, Field(description="where there is no value")]
    reason: str


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


def screen_json(runs: Runs) -> bytes:
    """The table of every run in the folder, as JSON; made again only where a score file has changed."""
    with runs.reading:
        found, unread = _summaries(runs)
        known = runs.screen
        if known is None or known[1] != unread or [id(s) for s in known[0]] != [id(s) for s in found]:
            known = (found, unread, _merged(found, unread).model_dump_json().encode())
            runs.screen = known
    return known[2]


def screen(runs: Runs) -> Screen:
    """The table of every run in the folder."""
    with runs.reading:
        return _merged(*_summaries(runs))


def read_ahead(runs: Runs) -> None:
    """Read every run, with a pause after each, so that whoever asks for something meanwhile is answered first.

    Whoever asks for the whole table does not wait for this: it reads the rest without pauses.
    """
    for name in runs.names():
        with runs.reading:
            _summary(runs, name)
        time.sleep(PAUSE)
    screen_json(runs)


def _summary(runs: Runs, name: str) -> _Summary | str | None:
    """The rows of a run, why they cannot be read, or None where it has not finished: the page of studies shows it."""
    try:
        path = runs.file(name, "scores.json")
    except Missing:
        return None
    try:
        return runs.kept(path, lambda p: summarize(name, p), "screen")
    except (ExpungeError, KeyError, TypeError, ValueError) as error:
        return f"scores.json cannot be read: {type(error).__name__}: {error}"[:300]


def _summaries(runs: Runs) -> tuple[list[_Summary], dict[str, str]]:
    found = {name: _summary(runs, name) for name in runs.names()}
    read = [s for s in found.values() if isinstance(s, _Summary)]
    return read, {name: s for name, s in found.items() if isinstance(s, str)}


def _merged(found: list[_Summary], unread: dict[str, str]) -> Screen:
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
                role=ROLES.get(first["method"], "unlearned"),
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
        return {"status": scores[0]["status"], "reason": scores[0].get("reason", "")}
    values = [s["value"] for s in valid]
    n, mean = len(values), math.fsum(values) / len(values)
    cell: ScreenCell = {"value": mean, "n": n}
    if n > 1:
        half = t_quantile(n - 1) * math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
        low, high = mean - half, mean + half
        if valid[0]["unit"] in ("share", "AUC"):
            low, high = max(0.0, low), min(1.0, high)
        cell["low"], cell["high"] = low, high
    elif valid[0].get("interval"):
        cell["low"], cell["high"] = valid[0]["interval"]["low"], valid[0]["interval"]["high"]
    gaps = [s["reference"]["gap"] for s in valid if s.get("reference")]
    if gaps:
        cell["gap"] = math.fsum(gaps) / len(gaps)
    missing = next((s for s in scores if s.get("value") is None), None)
    if missing is not None:
        cell["reason"] = f"{n} of {len(scores)} seeds have a value; {missing.get('reason', '')}"
    return cell


@lru_cache(maxsize=256)
def t_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t."""
    return float(stats.t.ppf(0.975, freedom))
