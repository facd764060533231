"""`expunge compare`: several runs in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.output import Json, print_json, print_scores
from expunge.errors import BadInput
from expunge.record import Judged, ScoreFile


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders or scores.json files.")],
    json: Json = False,
) -> None:
    """Compare methods across runs; rows about the same problem (same data, split, model and recipe) stand in one table."""
    merged = merge([read_run(path) for path in runs])
    if json:
        print_json(merged)
    else:
        print_scores(merged)


def read_run(path: Path) -> ScoreFile:
    """The scores of a run folder or file."""
    file = path / "scores.json" if path.is_dir() else path
    if not file.exists():
        raise BadInput(f"'{path}' is no finished run: there is no '{file}'")
    return ScoreFile.read(file)


def merge(files: list[ScoreFile]) -> ScoreFile:
    """One table: problems with equal fingerprints are one problem, equal models are shown once."""
    from expunge.studies.results import complete

    names: dict[str, str] = {}
    problems, judged, seen = [], [], set()
    for file in files:
        for problem in file.problems:
            if problem["fingerprint"] not in names:
                name = problem["name"]
                if name in names.values():
                    name = f"{name} ({file.name})"
                names[problem["fingerprint"]] = name
                problems.append({**problem, "name": name})
        for one in file.judged:
            identity = (one.problem_id, one.model_id or one.label, one.label, one.seed)
            if identity not in seen:
                seen.add(identity)
                judged.append(_raw(one, names[one.problem_id]))
    return complete(" + ".join(f.name for f in files), problems, judged)


def _raw(judged: Judged, problem: str) -> Judged:
    """Without what is derived from the other models of its run."""
    derived = ("average-gap", "tow")
    scores = [
        s.model_copy(update={"reference": None})
        for s in judged.scores
        if s.metric not in derived and not s.metric.endswith("-ratio")
    ]
    return judged.model_copy(update={"problem": problem, "scores": scores})
