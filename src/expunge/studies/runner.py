"""Runs a job graph on this machine: worker processes, live progress, nothing done twice, nothing half done."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from expunge.errors import ExpungeError
from expunge.studies.graph import Graph, Job
from expunge.studies.jobs import Store, perform


class Progress(Protocol):
    """What wants to know how a run goes."""

    def started(self, job: Job) -> None:
        """A job has begun."""

    def stepped(self, job: Job, step: int, of: int) -> None:
        """A job has made a training step."""

    def ended(self, job: Job, seconds: float, error: str | None) -> None:
        """A job has ended, well or not."""


@dataclass
class Outcome:
    """How a run ended."""

    done: int = 0
    """Jobs computed now."""
    cached: int = 0
    """Jobs that were done already."""
    failed: dict[str, str] = field(default_factory=dict)
    """Reason by job key; jobs that depend on a failed one are here too."""


def run_graph(graph: Graph, store: Store, workers: int, progress: Progress) -> Outcome:
    """Run every job that is not done. A failed job does not stop the others.

    With `workers` = 0 the jobs run in this process, one after another.
    """
    outcome = Outcome()
    pending = {key: job for key, job in graph.jobs.items() if not store.has(key)}
    outcome.cached = len(graph.jobs) - len(pending)
    if not pending:
        return outcome
    executor = (
        _InProcess(store, progress) if workers == 0 else _Pool(store, progress, min(workers, len(pending)))
    )
    with executor:
        while pending or executor.busy:
            for key in list(pending):
                blamed = next((n for n in pending[key].needs if n in outcome.failed), None)
                if blamed is not None:
                    outcome.failed[key] = f"'{graph.jobs[blamed].title}' failed: {outcome.failed[blamed]}"
                    del pending[key]
                elif executor.free and all(store.has(n) for n in pending[key].needs):
                    executor.submit(pending.pop(key))
            for job, error in executor.collect():
                if error is None:
                    outcome.done += 1
                else:
                    outcome.failed[job.key] = error
                shutil.rmtree(store.scratch(job.key), ignore_errors=True)
    return outcome


def _reason(error: BaseException) -> str:
    """One line for tables; what is not the user's fault keeps its type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ExpungeError) else f"{type(error).__name__}: {text}"[:600]


class _InProcess:
    """Runs a job when it is submitted."""

    busy = False
    free = True

    def __init__(self, store: Store, progress: Progress) -> None:
        self._store, self._progress = store, progress
        self._ended: list[tuple[Job, str | None]] = []

    def __enter__(self) -> _InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, job: Job) -> None:
        self._progress.started(job)
        started, error = time.perf_counter(), None
        try:
            perform(
                job.key, job.payload, self._store, lambda s: self._progress.stepped(job, s["step"], s["of"])
            )
        except Exception as fault:
            error = _reason(fault)
        self._progress.ended(job, time.perf_counter() - started, error)
        self._ended.append((job, error))

    def collect(self) -> list[tuple[Job, str | None]]:
        ended, self._ended = self._ended, []
        return ended


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    job: Job | None = None
    since: float = 0.0


class _Pool:
    """Worker processes, one job at a time each; one that dies is replaced and its job tried once more."""

    def __init__(self, store: Store, progress: Progress, size: int) -> None:
        self._store, self._progress, self._size = store, progress, size
        # Spawned, not forked: a forked child inherits locks of torch's threads in whatever state they are.
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._retried: set[str] = set()

    def __enter__(self) -> _Pool:
        self._workers = [self._start() for _ in range(self._size)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            if worker.job is None:
                worker.pipe.close()  # an idle worker sees the end of its work and leaves by itself
            else:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(timeout=5)
            if worker.process.is_alive():
                worker.process.kill()

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, str(self._store.root), os.getpid(), list(sys.path)), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)

    @property
    def busy(self) -> bool:
        return any(w.job is not None for w in self._workers)

    @property
    def free(self) -> bool:
        return any(w.job is None for w in self._workers)

    def submit(self, job: Job) -> None:
        worker = next(w for w in self._workers if w.job is None)
        worker.job, worker.since = job, time.perf_counter()
        self._progress.started(job)
        worker.pipe.send((job.key, job.payload))

    def collect(self) -> list[tuple[Job, str | None]]:
        """Wait until something happens, and return the jobs that ended."""
        ended: list[tuple[Job, str | None]] = []
        running = [w for w in self._workers if w.job is not None]
        ready = wait([w.pipe for w in running], timeout=0.5) if running else []
        for worker in running:
            if worker.pipe not in ready or worker.job is None:
                continue
            try:
                kind, *rest = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                ended += self._replace(worker)
                continue
            if kind == "step":
                self._progress.stepped(worker.job, *rest)
            else:
                (error,) = rest
                self._progress.ended(worker.job, time.perf_counter() - worker.since, error)
                ended.append((worker.job, error))
                worker.job = None
        return ended

    def _replace(self, worker: _Worker) -> list[tuple[Job, str | None]]:
        """Handle the death of a worker process (out of memory, killed)."""
        worker.process.join()
        code, job = worker.process.exitcode, worker.job
        fresh = self._start()
        worker.process, worker.pipe, worker.job = fresh.process, fresh.pipe, None
        if job is None:
            return []
        if job.key not in self._retried:
            self._retried.add(job.key)
            self.submit(job)
            return []
        reason = f"its process died twice (exit code {code}); if memory ran out, use fewer --workers or a smaller batch"
        self._progress.ended(job, time.perf_counter() - worker.since, reason)
        return [(job, reason)]


def _serve(pipe: Connection, store_root: str, parent: int, path: list[str]) -> None:
    """Body of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    sys.path[:] = path
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    _warm_up()
    store = Store(Path(store_root))
    while True:
        try:
            key, payload = pipe.recv()
        except EOFError:
            return
        error: str | None = None
        try:
            perform(key, payload, store, _throttled(pipe))
        except Exception as fault:
            error = _reason(fault)
            if not isinstance(fault, ExpungeError):
                write_traceback(store, key)
        pipe.send(("ended", error))


def write_traceback(store: Store, key: str) -> None:
    """Keep the traceback of a job that failed by a fault of ours, for a bug report."""
    folder = store.root / "failures"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{key}.txt").write_text(traceback.format_exc())


def _throttled(pipe: Connection) -> Callable[[Mapping[str, Any]], None]:
    last = 0.0

    def on_step(entry: Mapping[str, Any]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.2:
            last = now
            pipe.send(("step", entry["step"], entry["of"]))

    return on_step


def _die_with(parent: int) -> None:
    """End this process when its parent is gone, so that a killed run leaves nothing running."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _warm_up() -> None:
    """Pay for imports and first calls before anything is timed."""
    import torch
    from accelerate import Accelerator

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = Accelerator(cpu=True).prepare(torch.optim.SGD([parameter], lr=0.0))
    parameter.sum().backward()
    optimizer.step()
