"""The folder of runs as the app reads it. No path outside it is ever opened, whatever names or links say."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from expunge.errors import BadInput, Missing
from expunge.files import read_json
from expunge.record import ScoreFile
from expunge.report.content import Report, compose
from expunge.report.run_folder import read_run_folder
from expunge.studies.index import FILE, RowJobs, RunIndex

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
KEY = re.compile(r"[0-9a-f]{20}")
OWN_FOLDERS = ("store",)
"""Folders beside the runs that are none."""
Read = TypeVar("Read")


class Runs:
    """All runs in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.reading = threading.Lock()
        """Held while all runs are read, so that two who ask at once do not both read them."""
        self.screen: Any = None
        """The table of all runs as it was last sent, with what it was made from."""
        self._kept: dict[tuple[str, Path], tuple[tuple[int, int], Any]] = {}

    def confined(self, path: Path) -> Path:
        """`path` with its links followed, where that stays inside the folder of runs.

        Raises:
            Missing: it is not there, or leads out of the folder.
        """
        try:
            found = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            raise Missing(f"there is no '{path.name}'") from None
        if not found.is_relative_to(self.root):
            raise Missing(f"'{path.name}' leads out of the folder of runs, from where nothing is served")
        return found

    def names(self) -> list[str]:
        """Names of the runs, the newest first."""
        if not self.root.is_dir():
            return []
        found: list[tuple[float, str]] = []
        for folder in self.root.iterdir():
            if folder.name in OWN_FOLDERS or not NAME.fullmatch(folder.name):
                continue
            try:
                inside = self.confined(folder)
                scores = inside / "scores.json"
                marker = scores if scores.exists() else inside / "run.yaml"
                found.append((marker.stat().st_mtime, folder.name))
            except (Missing, OSError):
                continue
        return [name for _, name in sorted(found, reverse=True)]

    def folder(self, name: str) -> Path:
        """The folder of a run."""
        if not NAME.fullmatch(name) or name in OWN_FOLDERS:
            raise BadInput(f"{name[:60]!r} is no name of a run")
        folder = self.confined(self.root / name)
        if not folder.is_dir():
            raise Missing(f"there is no run '{name}'")
        return folder

    def file(self, run: str, name: str) -> Path:
        """A file of a run."""
        return self.confined(self.folder(run) / name)

    def job_file(self, key: str, name: str) -> Path:
        """A file of a finished job."""
        if not KEY.fullmatch(key):
            raise BadInput(f"{key[:60]!r} is no key of a job")
        return self.confined(self.root / "store" / "jobs" / key / name)

    def has_job(self, key: str) -> bool:
        """Whether a job is done."""
        return KEY.fullmatch(key) is not None and (self.root / "store" / "jobs" / key).is_dir()

    def kept(self, path: Path, read: Callable[[Path], Read], purpose: str) -> Read:
        """What `read` makes of a file, as long as the file does not change."""
        facts = path.stat()
        stamp = (facts.st_mtime_ns, facts.st_size)
        known = self._kept.get((purpose, path))
        if known is None or known[0] != stamp:
            known = (stamp, read(path))
            self._kept[purpose, path] = known
        return known[1]

    def scores(self, run: str) -> ScoreFile:
        """`scores.json` of a run."""
        return self.kept(self.file(run, "scores.json"), ScoreFile.read, "scores")

    def report(self, run: str) -> Report:
        """The tables of a run's report."""
        return self.kept(
            self.file(run, "scores.json"),
            lambda path: compose(read_run_folder(path.parent, self._command(run))),
            "report",
        )

    def _command(self, run: str) -> str:
        """What runs a study again, from the folder above that of the runs; empty where there was none."""
        return f"expunge run {self.root.name}/{run}/run.yaml" if self.study(run) else ""

    def study(self, run: str) -> dict[str, Any]:
        """`run.yaml` of a run; empty where there is none, as of an audit."""
        try:
            path = self.file(run, "run.yaml")
        except Missing:
            return {}
        return self.kept(path, _yaml, "study")

    def index(self, run: str) -> RunIndex:
        """Which jobs belong to which rows.

        Raises:
            Missing: the run has no index.
        """
        try:
            path = self.file(run, FILE)
        except Missing:
            raise Missing(
                "this record holds scores only; evidence per example comes with runs of this version: "
                "the same command again computes what is missing"
            ) from None
        return self.kept(path, lambda p: RunIndex.model_validate(read_json(p)), "index")

    def row(self, run: str, problem: str, label: str, seed: int) -> RowJobs:
        """The jobs of one model.

        Raises:
            Missing: there is no such model.
        """
        for row in self.index(run).rows:
            if (row.problem, row.label, row.seed) == (problem, label, seed):
                return row
        raise Missing(f"run '{run}' has no model '{label}' with seed {seed} on '{problem}'")

    def evidence_file(self, run: str, problem: str, label: str, seed: int, split: str) -> Path:
        """The evidence of a model on a split, as a Parquet file.

        Raises:
            Missing: it was not collected.
        """
        if not NAME.fullmatch(split):
            raise BadInput(f"{split[:60]!r} is no name of a split")
        row = self.row(run, problem, label, seed)
        if row.observe is None:
            raise Missing(f"'{label}' cannot run on '{problem}', so it has no evidence")
        try:
            return self.job_file(row.observe, f"{split}.parquet")
        except Missing:
            raise Missing(f"'{label}' (seed {seed}) was not measured on '{split}'") from None

    def splits(self, run: str, problem: str, label: str, seed: int) -> list[str]:
        """The splits that a model was measured on."""
        row = self.row(run, problem, label, seed)
        if row.observe is None or not self.has_job(row.observe):
            return []
        folder = self.confined(self.root / "store" / "jobs" / row.observe)
        return sorted(p.stem for p in folder.glob("*.parquet"))

    def model_record(self, run: str, problem: str, label: str, seed: int) -> dict[str, Any]:
        """What is known of a model beside its weights; empty where it was not made."""
        row = self.row(run, problem, label, seed)
        if row.model is None or not self.has_job(row.model):
            return {}
        return self.kept(self.job_file(row.model, "expunge.json"), read_json, "model")

    def retrained(self, run: str, problem: str) -> list[RowJobs]:
        """The retrained models of a problem whose evidence is there."""
        scores = self.scores(run)
        of = {
            (j.label, j.seed) for j in scores.judged if j.problem == problem and j.method == "retrain" and j.status == "ok"
        }  # fmt: skip
        rows = [r for r in self.index(run).rows if r.problem == problem and (r.label, r.seed) in of]
        return [r for r in rows if r.observe is not None and self.has_job(r.observe)]


@lru_cache(maxsize=1)
def _loader() -> type:
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _yaml(path: Path) -> dict[str, Any]:
    content = yaml.load(path.read_text(), Loader=_loader())
    return content if isinstance(content, dict) else {}
