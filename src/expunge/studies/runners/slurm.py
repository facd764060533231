"""Jobs through Slurm, one Slurm job each, submitted by submitit."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Self

from expunge.errors import BadInput, Missing
from expunge.extras import load_extra
from expunge.studies.graph import Job
from expunge.studies.jobs import Store
from expunge.studies.runner import Ended, Origin, Progress, arrived, attempt_elsewhere

IN_FLIGHT = 100
"""Slurm jobs queued or running at once where --workers does not say; accounts are limited, schedulers slow."""
SHARED = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "name", "stderr_to_stdout")
"""Options that submitit knows for every kind of cluster; all others are Slurm's and get its prefix."""


class SlurmJobs:
    """One Slurm job per job of the study.

    A preempted job is queued again by submitit and goes on from its checkpoints; one that dies is submitted again,
    `retries` times.
    """

    def __init__(
        self, store: Store, options: Mapping[str, Any], workers: int | None, memory_gib: float, retries: int
    ) -> None:
        self._store, self._options = store, dict(options)
        self._workers, self._memory, self._retries = workers or IN_FLIGHT, memory_gib, retries
        self._running: dict[str, tuple[Any, Job]] = {}
        self._deaths: Counter[str] = Counter()
        self._submitit = load_extra("submitit", "slurm", "--runner slurm")
        self._cluster = self._options.pop("cluster", "slurm")
        if self._cluster == "slurm" and shutil.which("srun") is None:
            raise Missing(
                "--runner slurm finds no 'srun' on this machine; run it where jobs can be submitted, "
                "or try a study here with --slurm cluster=local"
            )
        self._executor: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for handle, _job in self._running.values():
            handle.cancel()

    @property
    def busy(self) -> bool:
        """Whether jobs are queued or running."""
        return bool(self._running)

    @property
    def free(self) -> bool:
        """Whether another job may be queued."""
        return len(self._running) < self._workers

    def submit(self, job: Job, progress: Progress) -> None:
        """Hand the job to the scheduler."""
        if self._executor is None:
            self._executor = self._connect(job)
        task = _Task(job.key, job.payload, Origin.here(self._store))
        self._running[job.key] = (self._executor.submit(task), job)

    def collect(self) -> list[Ended]:
        """The jobs that ended; looks once, and waits a little where there is none."""
        ended = []
        for key, (handle, job) in list(self._running.items()):
            if handle.done():
                del self._running[key]
                ended += self._ended(handle, job)
        if not ended and self._running:
            time.sleep(0.2)  # submitit asks the scheduler at intervals of its own
        return ended

    def _ended(self, handle: Any, job: Job) -> list[Ended]:
        try:
            error, seconds = handle.result()
        except Exception as fault:  # submitit has no common base for what can happen to a process
            self._deaths[job.key] += 1
            if self._deaths[job.key] <= self._retries:
                task = _Task(job.key, job.payload, Origin.here(self._store))
                self._running[job.key] = (self._executor.submit(task), job)
                return []
            reason = (
                f"its Slurm job died {self._deaths[job.key]} times ({type(fault).__name__}); "
                f"see the logs in '{self._store.root / 'slurm'}', declare more with --memory or --slurm timeout_min"
            )
            return [Ended(job, 0.0, reason)]
        return [arrived(self._store, Ended(job, seconds, error))]

    def _connect(self, job: Job) -> Any:
        folder = self._store.root.resolve() / "slurm"
        executor = self._submitit.AutoExecutor(folder=folder, cluster=self._cluster)
        given = {k if k in SHARED else f"slurm_{k}": v for k, v in self._options.items()}
        declared = {
            "name": "expunge",
            "cpus_per_task": job.payload["threads"],
            "gpus_per_node": int(str(job.payload["device"]).startswith("cuda")),
            "mem_gb": self._memory,
            "timeout_min": 24 * 60,  # submitit's own five minutes are too few for training
        }
        try:
            executor.update_parameters(**{**declared, **given})
        except (NameError, TypeError, ValueError) as error:
            raise BadInput(f"--slurm: {' '.join(str(error).split())[:300]}") from None
        return executor


class _Task:
    """What a Slurm job runs; submitit asks it what to do when the job is preempted or out of time."""

    def __init__(self, key: str, payload: dict[str, Any], origin: Origin) -> None:
        self.key, self.payload, self.origin = key, payload, origin

    def __call__(self) -> tuple[str | None, float]:
        return attempt_elsewhere(self.key, self.payload, self.origin)

    def checkpoint(self) -> Any:
        """The same job again; its checkpoints are in the store already."""
        return load_extra("submitit", "slurm", "--runner slurm").helpers.DelayedSubmission(self)
