"""Contents of examples: the only part of the app that shows what rows say. Nothing is sent until it is asked for.

Records hold ids and numbers. Contents come from the problem itself, built again from ``run.yaml``, and from the
transcripts of attacks. A problem that would import somebody's code is not built: looking at a record must not run it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from expunge.app.examples import Chosen, Evidence
from expunge.app.runs import Runs
from expunge.errors import ExpungeError, Missing
from expunge.evidence.pictures import as_png
from expunge.files import canonical_json
from expunge.problem import Problem
from expunge.record import Record
from expunge.studies.jobs import TRANSCRIPTS

NEIGHBORS = 5


class Neighbor(Record):
    """A row to keep that is near a row to forget."""

    id: str
    group: str | None
    similarity: float = Field(
        description="cosine of the features, or of word counts for texts; 1 is the same direction"
    )
    content: str | None = None
    image: str | None = None


class ForgottenRow(Record):
    """A row of the forget set."""

    id: str
    group: str | None
    difficulty: float | None = Field(
        description="mean loss of the retrained models, nats; None where unknown"
    )
    memorized: float | None = Field(
        description="that mean minus the target's loss, nats: what having seen the row is worth"
    )
    content: str | None = None
    image: str | None = Field(default=None, description="PNG as a data address")
    neighbors: list[Neighbor] = Field(default_factory=list)


class ForgetSet(Record):
    """A page of the forget set."""

    total: int
    scope: str
    revealed: bool
    duplicates: int | None = Field(
        description="rows of the whole forget set with a row to keep at similarity 0.999 or more"
    )
    rows: list[ForgottenRow]
    missing: dict[str, str]


class Transcript(Record):
    """What an attack asked and what came back; contents are None until they are asked for."""

    id: str
    said: dict[str, Any] | None
    numbers: dict[str, float]


class Transcripts(Record):
    """A page of an attack's transcripts."""

    attack: str
    total: int
    revealed: bool
    rows: list[Transcript]


def transcripts(
    runs: Runs, run: str, problem: str, model: Chosen, attack: str, *, revealed: bool, offset: int, limit: int
) -> Transcripts:
    """What an attack on a model asked and was answered."""
    row = runs.row(run, problem, model.label, model.seed)
    if attack not in row.attacks:
        raise Missing(f"'{model.label}' was not attacked with '{attack}'")
    try:
        path = runs.job_file(row.attacks[attack], TRANSCRIPTS)
    except Missing:
        raise Missing(f"'{attack}' keeps no transcripts, or has not run") from None
    lines = runs.kept(path, lambda p: p.read_text().splitlines(), "transcripts")
    rows = []
    for line in lines[offset : offset + limit]:
        said = json.loads(line)
        numbers = {
            k: float(v) for k, v in said.items() if isinstance(v, (int, float)) and not isinstance(v, bool)
        }
        words = {k: v for k, v in said.items() if k != "id" and k not in numbers}
        rows.append(Transcript(id=str(said.get("id", "")), said=words if revealed else None, numbers=numbers))
    return Transcripts(attack=attack, total=len(lines), revealed=revealed, rows=rows)


def problem_of(runs: Runs, run: str, name: str) -> Problem:
    """The problem of a run, with its data.

    Raises:
        Missing: as `source_of`.
    """
    return _built(*source_of(runs, run, name))


def source_of(runs: Runs, run: str, name: str) -> tuple[str, str]:
    """What the problem of a run is built from: its specification as JSON, and the folder that paths start from.

    Raises:
        Missing: it cannot be built without running code of others, or its data is not here.
    """
    study = runs.study(run)
    specs = (study.get("effective") or {}).get("problems") or []
    cards = [p["name"] for p in runs.scores(run).problems]
    found = [
        s for s in specs
        if s.get("name") == name or (s.get("name") is None and (len(specs) == 1 or s.get("benchmark") == name))
    ]  # fmt: skip
    if not found or name not in cards:
        raise Missing("the record does not say where the data came from, so contents cannot be shown")
    spec = found[0]
    foreign = [
        k
        for k in ("model", "retrained", "pretrained")
        if isinstance(spec.get(k), dict) and "factory" in spec[k]
    ]
    if foreign or spec.get("allow_pickle"):
        what = (
            f"its '{foreign[0]}' is made by code" if foreign else "it allows pickle files, which can run code"
        )
        raise Missing(f"contents are not shown: {what}, and looking at a record runs none")
    return canonical_json(spec), str(study.get("base", "."))


@lru_cache(maxsize=4)
def _built(specification: str, base: str) -> Problem:
    from expunge.data.specification import ProblemSpec

    return ProblemSpec(**json.loads(specification)).build(Path(base), notice=lambda _: None)


def forget_set(
    runs: Runs, run: str, problem: str, *, revealed: bool, offset: int, limit: int, sort: str = ""
) -> ForgetSet:
    """The forget set: how hard its rows are, and what near them stays in the training data.

    Args:
        runs: the folder.
        run: name of the run.
        problem: name of the problem.
        revealed: whether contents travel.
        offset: rows to skip.
        limit: rows at most.
        sort: ``difficulty``, ``memorized`` or ``similarity`` (largest first); default: the order of the data.
    """
    scope = next((p.get("scope", "") for p in runs.scores(run).problems if p["name"] == problem), "")
    missing: dict[str, str] = {}
    built: Problem | None = None
    near = None
    try:
        source = source_of(runs, run, problem)
        built, near = _built(*source), _neighbors(*source)
    except ExpungeError as error:
        missing["contents"] = missing["neighbors"] = str(error)
    ids, groups, difficulty, memorized = _losses(runs, run, problem, missing)
    if not ids and built is not None:
        ids = [str(i) for i in built.forget["id"][:]]
    if near is not None and near[0] != ids:
        near = None
        missing["neighbors"] = "the data has changed since the run"
    order = _order(sort, len(ids), difficulty, memorized, near)[offset : offset + limit]
    contents = _Contents(built if revealed else None)
    rows = [
        ForgottenRow(
            id=ids[i], group=None if groups is None else groups[i],
            difficulty=_number(difficulty, i), memorized=_number(memorized, i),
            content=contents.text("forget", i), image=contents.image("forget", i),
            neighbors=[] if near is None else [
                Neighbor(
                    id=near[3][j], group=near[4][j] if near[4] is not None else None, similarity=round(float(s), 4),
                    content=contents.text("retain", j), image=contents.image("retain", j),
                )
                for j, s in zip(near[1][i], near[2][i], strict=True)
            ],
        )
        for i in order
    ]  # fmt: skip
    duplicates = None if near is None else int(np.sum(near[2][:, 0] >= 0.999)) if near[2].size else 0
    return ForgetSet(
        total=len(ids), scope=scope, revealed=revealed, duplicates=duplicates, rows=rows, missing=missing
    )


def _number(values: np.ndarray | None, i: int) -> float | None:
    return None if values is None or not np.isfinite(values[i]) else float(values[i])


def _order(
    sort: str, n: int, difficulty: np.ndarray | None, memorized: np.ndarray | None, near: Any
) -> list[int]:
    keys = {
        "difficulty": difficulty,
        "memorized": memorized,
        "similarity": None if near is None or not near[2].size else near[2][:, 0],
    }
    key = keys.get(sort)
    if key is None:
        return list(range(n))
    return np.argsort(np.where(np.isfinite(key), -key, np.inf), kind="stable").tolist()


def _losses(
    runs: Runs, run: str, problem: str, missing: dict[str, str]
) -> tuple[list[str], list[str] | None, np.ndarray | None, np.ndarray | None]:
    """Ids and groups of the forget rows, the retrained models' mean loss, and what it exceeds the target's by."""
    try:
        rows = runs.retrained(run, problem)
        target = next((r for r in runs.index(run).rows if r.problem == problem and r.label == "target"), None)
        looks = [(r.label, r.seed) for r in rows]
        if target is not None:
            looks.append((target.label, target.seed))
        found = [
            runs.kept(runs.evidence_file(run, problem, label, seed, "forget"), Evidence, "evidence")
            for label, seed in looks
        ]
    except ExpungeError as error:
        missing["difficulty"] = str(error)
        return [], None, None, None
    if not found:
        missing["difficulty"] = "no model was measured on the forget set"
        return [], None, None, None
    first = found[0].table
    ids = [str(i) for i in first["id"].to_pylist()]
    groups = [str(g) for g in first["group"].to_pylist()] if "group" in first.column_names else None
    losses = [e.table["loss"].to_numpy().astype(float) for e in found if "loss" in e.quantities]
    n = len(rows)
    if not n or len(losses) < n:
        missing["difficulty"] = "no retrained model says how hard the rows are to those who never saw them"
        return ids, groups, None, None
    mean = np.mean(losses[:n], axis=0)
    return ids, groups, mean, mean - losses[n] if len(losses) > n else None


@lru_cache(maxsize=4)
def _neighbors(
    specification: str, base: str
) -> tuple[list[str], np.ndarray, np.ndarray, list[str], list[str] | None]:
    """Forget ids; row numbers in retain and cosine similarity of the nearest of each; retain ids and groups."""
    problem = _built(specification, base)
    forget, retain = problem.forget, problem.retain
    ids, kept = [str(i) for i in forget["id"][:]], [str(i) for i in retain["id"][:]]
    groups = problem.family.groups(retain) if len(retain) else None
    named = None if groups is None else [str(g) for g in groups]
    if not len(retain):
        return ids, np.zeros((len(ids), 0), dtype=int), np.zeros((len(ids), 0)), kept, named
    texts = _texts(problem)
    if texts is not None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectors = TfidfVectorizer(sublinear_tf=True).fit(texts[0] + texts[1])
        a, b = vectors.transform(texts[0]), vectors.transform(texts[1])
    else:
        a, b = (_numeric(problem, part) for part in (forget, retain))
        center, scale = b.mean(0), np.where(b.std(0) > 0, b.std(0), 1.0)
        a, b = ((x - center) / scale for x in (a, b))
    from sklearn.neighbors import NearestNeighbors

    k = min(NEIGHBORS, len(retain))
    distance, nearest = NearestNeighbors(n_neighbors=k, metric="cosine").fit(b).kneighbors(a)
    return ids, nearest, 1 - distance, kept, named


def _texts(problem: Problem) -> tuple[list[str], list[str]] | None:
    """Forget and retain rows as texts; None where they are none."""
    columns = _text_columns(problem)
    if not columns:
        return None
    return tuple(  # pyright: ignore[reportReturnType]
        [" ".join(str(v) for v in values) for values in zip(*(part[c][:] for c in columns), strict=True)]
        for part in (problem.forget, problem.retain)
    )


def _text_columns(problem: Problem) -> list[str]:
    family: Any = problem.family
    if hasattr(family, "template"):
        return [c for c in family.template.columns if c in problem.train.column_names]
    columns = family.describe().get("inputs", {}).get("columns", [])
    return [c for c in columns if c in problem.train.column_names and isinstance(problem.train[0][c], str)]


def _numeric(problem: Problem, part: Any) -> np.ndarray:
    batch = problem.family.collate(part.with_format("numpy")[:])
    return np.concatenate(
        [v.reshape(len(part), -1).double().cpu().numpy() for v in batch.inputs.values()], axis=1
    )


class _Contents:
    """What rows say; nothing where there is no problem to ask."""

    def __init__(self, problem: Problem | None) -> None:
        self.problem = problem
        self.columns = [] if problem is None else _text_columns(problem)
        inputs = {} if problem is None else problem.family.describe().get("inputs", {})
        self.picture = inputs.get("column") if inputs.get("kind") == "images" else None
        self.table = inputs.get("columns", []) if inputs.get("kind") == "table" else []

    def text(self, split: str, row: int) -> str | None:
        """A row in words or numbers."""
        if self.problem is None:
            return None
        said = self.problem.splits[split][int(row)]
        if self.columns:
            return "\n".join(str(said[c]) for c in self.columns)
        if self.table:
            return ", ".join(
                f"{c} {said[c]:.4g}" if isinstance(said[c], float) else f"{c} {said[c]}" for c in self.table
            )
        return None

    def image(self, split: str, row: int) -> str | None:
        """A row as a PNG, where it is a picture."""
        if self.problem is None or self.picture is None:
            return None
        value = self.problem.splits[split][int(row)][self.picture]
        return as_png(value)


def prompts_of(problem: Problem, split: str, rows: Sequence[int]) -> list[str] | None:
    """What a generator is asked for in some rows; None of other families."""
    if problem.family.name != "diffusion" or split not in problem.splits:
        return None
    return [str(p) for p in problem.splits[split].select(list(rows))["prompt"]]


def answer_tokens(problem: Problem, split: str, rows: Sequence[int]) -> list[list[str] | None]:
    """The tokens of the true answers of some rows, as the model was asked for them; None of other families."""
    from expunge.families import CausalLM

    family = problem.family
    if not isinstance(family, CausalLM) or split not in problem.splits:
        return [None for _ in rows]
    batch = family.collate(problem.splits[split].with_format("numpy")[list(rows)])
    tokens: list[list[str] | None] = []
    for targets, mask in zip(batch.targets, batch.mask, strict=True):
        tokens.append([family.tokenizer.decode([int(t)]) for t in targets[mask]])
    return tokens
