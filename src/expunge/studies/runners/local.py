"""Jobs on this machine: in this process, or in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

from expunge.studies.graph import Job
from expunge.studies.jobs import Store
from expunge.studies.progress import loss_terms
from expunge.studies.runner import Ended, Progress, attempt, steps_to, warm_up


class InProcess:
    """Runs a job when it is submitted."""

    busy = False
    free = True

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ended: list[Ended] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, job: Job, progress: Progress) -> None:
        """Run the job."""
        started = time.perf_counter()
        error = attempt(job.key, job.payload, self._store, steps_to(progress, job))
        self._ended.append(Ended(job, time.perf_counter() - started, error))

    def collect(self) -> list[Ended]:
        """What was run since the last call."""
        ended, self._ended = self._ended, []
        return ended


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    job: Job | None = None
    progress: Progress | None = None
    since: float = 0.0


class Pool:
    """Worker processes, one job at a time each; one that dies is replaced and its job tried again."""

    def __init__(self, store: Store, size: int, retries: int) -> None:
        self._store, self._size, self._retries = store, size, retries
        # Spawned, not forked: a forked child inherits locks of torch's threads in whatever state they are.
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._deaths: Counter[str] = Counter()

    def __enter__(self) -> Self:
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
        """Whether a worker has a job."""
        return any(w.job is not None for w in self._workers)

    @property
    def free(self) -> bool:
        """Whether a worker is idle, or another may be started."""
        return len(self._workers) < self._size or any(w.job is None for w in self._workers)

    def submit(self, job: Job, progress: Progress) -> None:
        """Give the job to an idle worker."""
        worker = next((w for w in self._workers if w.job is None), None)
        if worker is None:
            worker = self._start()
            self._workers.append(worker)
        worker.job, worker.progress, worker.since = job, progress, time.perf_counter()
        worker.pipe.send((job.key, job.payload))

    def collect(self) -> list[Ended]:
        """Wait until something happens, and return the jobs that ended."""
        ended: list[Ended] = []
        running = [w for w in self._workers if w.job is not None]
        ready = wait([w.pipe for w in running], timeout=0.5) if running else []
        for worker in running:
            if worker.pipe not in ready or worker.job is None or worker.progress is None:
                continue
            try:
                kind, *rest = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                ended += self._replace(worker, worker.job, worker.progress)
                continue
            if kind == "step":
                worker.progress.stepped(worker.job, *rest)
            else:
                (error,) = rest
                ended.append(Ended(worker.job, time.perf_counter() - worker.since, error))
                worker.job = None
        return ended

    def _replace(self, worker: _Worker, job: Job, progress: Progress) -> list[Ended]:
        """Handle the death of a worker process (out of memory, killed)."""
        worker.process.join()
        code = worker.process.exitcode
        self._workers.remove(worker)
        self._deaths[job.key] += 1
        if self._deaths[job.key] <= self._retries:
            self.submit(job, progress)
            return []
        reason = (
            f"its process died {self._deaths[job.key]} times (exit code {code}); "
            "if memory ran out, use fewer --workers or a smaller batch"
        )
        return [Ended(job, time.perf_counter() - worker.since, reason)]


def _serve(pipe: Connection, store_root: str, parent: int, path: list[str]) -> None:
    """Body of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    sys.path[:] = path
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    warm_up()
    store = Store(Path(store_root))
    while True:
        try:
            key, payload = pipe.recv()
        except EOFError:
            return
        pipe.send(("ended", attempt(key, payload, store, _throttled(pipe))))


def _throttled(pipe: Connection) -> Callable[[Mapping[str, Any]], None]:
    last = 0.0

    def on_step(entry: Mapping[str, Any]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.2:
            last = now
            pipe.send(("step", entry["step"], entry["of"], loss_terms(entry)))

    return on_step


def _die_with(parent: int) -> None:
    """End this process when its parent is gone, so that a killed run leaves nothing running."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
