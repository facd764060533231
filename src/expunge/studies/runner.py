"""Runs a job graph: nothing done twice, nothing half done, a failed job stops only what depends on it.

Where the jobs run is an `Executor`'s business (`expunge.studies.runners`). All of them call `attempt`, and a job's
result is a folder of the store that exists only when it is whole; so the numbers do not depend on where it was made.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol, Self

from expunge.errors import ExpungeError
from expunge.studies.graph import Graph, Job
from expunge.studies.jobs import OnStep, Store, perform


class Progress(Protocol):
    """What wants to know how a run goes."""

    def started(self, job: Job) -> None:
        """A job has begun."""

    def stepped(self, job: Job, step: int, of: int, terms: Mapping[str, Any] | None = None) -> None:
        """A job has made a training step, with these terms of its loss."""

    def ended(self, job: Job, seconds: float, error: str | None) -> None:
        """A job has ended, well or not."""


@dataclass(frozen=True)
class Ended:
    """A job that is over."""

    job: Job
    seconds: float
    """Wall time of the job itself, waiting in a queue excluded."""
    error: str | None
    """Why it failed, in one line; None where its result is in the store."""


class Executor(Protocol):
    """Where jobs run. It starts nothing before the first job; leaving the `with` block stops what still runs."""

    @property
    def busy(self) -> bool:
        """Whether jobs are under way."""
        ...

    @property
    def free(self) -> bool:
        """Whether it takes another job now."""
        ...

    def submit(self, job: Job, progress: Progress) -> None:
        """Take a job whose needs are in the store."""

    def collect(self) -> list[Ended]:
        """Wait a moment until something happens; the jobs that are over."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass
class Outcome:
    """How a run ended."""

    done: int = 0
    """Jobs computed now."""
    cached: int = 0
    """Jobs that were done already."""
    failed: dict[str, str] = field(default_factory=dict)
    """Reason by job key; jobs that depend on a failed one are here too."""


def run_graph(graph: Graph, store: Store, executor: Executor, progress: Progress) -> Outcome:
    """Run every job that is not done. A failed job does not stop the others."""
    outcome = Outcome()
    pending = {key: job for key, job in graph.jobs.items() if not store.has(key)}
    outcome.cached = len(graph.jobs) - len(pending)
    while pending or executor.busy:
        for key in list(pending):
            blamed = next((n for n in pending[key].needs if n in outcome.failed), None)
            if blamed is not None:
                outcome.failed[key] = f"'{graph.jobs[blamed].title}' failed: {outcome.failed[blamed]}"
                del pending[key]
            elif executor.free and all(store.has(n) for n in pending[key].needs):
                progress.started(pending[key])
                executor.submit(pending.pop(key), progress)
        for ended in executor.collect():
            progress.ended(ended.job, ended.seconds, ended.error)
            if ended.error is None:
                outcome.done += 1
            else:
                outcome.failed[ended.job.key] = ended.error
            shutil.rmtree(store.scratch(ended.job.key), ignore_errors=True)
    return outcome


def attempt(key: str, payload: dict[str, Any], store: Store, on_step: OnStep | None = None) -> str | None:
    """Perform one job; the reason in one line where it failed. Faults of ours leave their traceback in the store."""
    try:
        perform(key, payload, store, on_step)
    except ExpungeError as error:
        return _one_line(error)
    except Exception as error:
        folder = store.root / "failures"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{key}.txt").write_text(traceback.format_exc())
        # What is not the user's fault keeps its type.
        return f"{type(error).__name__}: {_one_line(error)}"[:600]
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


@dataclass(frozen=True)
class Origin:
    """What another process needs to know about this one, to run a job as this one would."""

    store: str
    path: tuple[str, ...]
    """Where modules are imported from."""
    folder: str
    """Working folder, which a reference such as ./mine.py:Method starts from."""

    @classmethod
    def here(cls, store: Store) -> Origin:
        """This process."""
        return cls(str(store.root.resolve()), tuple(sys.path), str(Path.cwd()))


def attempt_elsewhere(key: str, payload: dict[str, Any], origin: Origin) -> tuple[str | None, float]:
    """`attempt` in a process of a cluster; the reason where it failed, and the seconds it took."""
    sys.path += [place for place in origin.path if place not in sys.path]
    if Path(origin.folder).is_dir():
        os.chdir(origin.folder)
    warm_up()
    started = time.perf_counter()
    error = attempt(key, payload, Store(Path(origin.store)))
    return error, time.perf_counter() - started


def arrived(store: Store, ended: Ended, patience: float = 30.0) -> Ended:
    """`ended`, once its result can be seen from here; a failure where it cannot.

    Network file systems show another machine's new folder late, and never where the folder is not shared.
    """
    deadline = time.monotonic() + patience
    while ended.error is None and not store.has(ended.job.key):
        if time.monotonic() > deadline:
            where = f"'{store.root}'"
            reason = f"it ended well, but its result is not in {where}; --runs must be a folder that all machines share"
            return Ended(ended.job, ended.seconds, reason)
        time.sleep(0.1)
    return ended


def steps_to(progress: Progress, job: Job) -> OnStep:
    """What a job calls after a training step, passed on to `progress`."""

    def on_step(entry: Mapping[str, Any]) -> None:
        progress.stepped(job, entry["step"], entry["of"], entry)

    return on_step


@cache
def warm_up() -> None:
    """Pay for imports and first calls before anything is timed; once per process."""
    import torch
    from accelerate import Accelerator

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = Accelerator(cpu=True).prepare(torch.optim.SGD([parameter], lr=0.0))
    parameter.sum().backward()
    optimizer.step()
