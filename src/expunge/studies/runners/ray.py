"""Jobs as Ray tasks: on a cluster that exists, or on one started on this machine for the run."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any, Self

from expunge.errors import BadInput, Missing
from expunge.extras import load_extra
from expunge.studies.graph import Job
from expunge.studies.jobs import Store
from expunge.studies.runner import Ended, Origin, Progress, arrived, attempt_elsewhere

OBJECTS = 80 << 20
"""Bytes of Ray's object store on this machine, near its least: results travel as files, never as objects."""


class RayTasks:
    """One task per job, with declared CPU, GPU and memory.

    Ray repeats a task whose worker process or node died, `retries` times. A task that is repeated goes on from the
    checkpoints of the one that died, and finds finished jobs finished.
    """

    def __init__(
        self, store: Store, address: str | None, workers: int | None, memory_bytes: int, retries: int
    ) -> None:
        self._store, self._address, self._workers = store, address, workers
        self._memory, self._retries = memory_bytes, retries
        self._running: dict[Any, Job] = {}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a study reports to nobody
        self._ray = load_extra("ray", "ray", "--runner ray")
        self._connected = self._ours = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for task in self._running:
            self._ray.cancel(task, force=True)
        if self._ours:
            self._ray.shutdown()

    @property
    def busy(self) -> bool:
        """Whether tasks are queued or running."""
        return bool(self._running)

    @property
    def free(self) -> bool:
        """Whether `workers` allows another task; where it says nothing, the cluster's queue takes every job."""
        return self._workers is None or len(self._running) < self._workers

    def submit(self, job: Job, progress: Progress) -> None:
        """Queue the job on the cluster."""
        needs = self._resources(job)
        if not self._connected:
            self._connect(int(needs["num_cpus"]))
            self._refuse_impossible(needs)
            self._connected = True
        task = self._ray.remote(attempt_elsewhere).options(
            **needs, max_retries=self._retries, name=f"expunge: {job.title}"
        )
        self._running[task.remote(job.key, job.payload, Origin.here(self._store))] = job

    def collect(self) -> list[Ended]:
        """Wait until a task ends, at most half a second."""
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        if not ready:
            ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=0.5)
        return [self._ended(task) for task in ready]

    def _ended(self, task: Any) -> Ended:
        job = self._running.pop(task)
        try:
            error, seconds = self._ray.get(task)
        except self._ray.exceptions.RayError as fault:
            kind = type(fault).__name__
            reason = f"its worker died {self._retries + 1} times ({kind}); if memory ran out, declare more with --memory"
            return Ended(job, 0.0, reason)
        return arrived(self._store, Ended(job, seconds, error))

    def _resources(self, job: Job) -> dict[str, float]:
        device = str(job.payload["device"])
        if device not in ("cpu", "cuda"):
            raise BadInput(
                f"device '{device}' names a device of one machine; under --runner ray write cpu, or cuda, "
                "for which the cluster gives every job a GPU of its own"
            )
        return {
            "num_cpus": job.payload["threads"],
            "num_gpus": float(device == "cuda"),
            "memory": self._memory,
        }

    def _connect(self, threads: int) -> None:
        ray = self._ray
        if ray.is_initialized():
            return
        here = {"num_cpus": (self._workers or os.cpu_count() or 1) * threads, "object_store_memory": OBJECTS}
        options = {} if self._address else {**here, "include_dashboard": False}
        # Ray gives a cluster 30 seconds to start, which a machine that is busy just then can exceed.
        for last in (True,) if self._address else (False, True):
            try:
                _knock(self._address)
                ray.init(self._address or "local", log_to_driver=False, configure_logging=False, **options)
                break
            except (OSError, RuntimeError, ValueError) as error:
                said = str(error).strip().splitlines() or [type(error).__name__]
                if self._address:
                    raise Missing(
                        f"no Ray cluster answers at '{self._address}' ({said[0]}); start one with ray start --head, or "
                        "leave --ray-address out"
                    ) from None
                if last:
                    raise Missing(
                        f"a Ray cluster could not be started on this machine ({said[0]}); give the address of one with "
                        "--ray-address, or leave --runner out"
                    ) from None
                ray.shutdown()
        self._ours = True

    def _refuse_impossible(self, needs: dict[str, float]) -> None:
        """A task that no node can ever hold would wait forever."""
        names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
        nodes = [n["Resources"] for n in self._ray.nodes() if n["Alive"]]
        if any(all(n.get(names[k], 0) >= v for k, v in needs.items()) for n in nodes):
            return
        largest = {k: max((n.get(name, 0) for n in nodes), default=0) for k, name in names.items()}
        raise Missing(
            f"no node of the Ray cluster can hold a job of {_shown(needs)}; the most that nodes have is "
            f"{_shown(largest)}; declare less with --memory or 'threads', or add nodes"
        )


def _knock(address: str | None) -> None:
    """Fail at once where nothing listens: Ray itself would try for minutes, and says little."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdigit() and "//" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _shown(resources: Mapping[str, float]) -> str:
    gib = resources["memory"] / (1 << 30)
    return f"{resources['num_cpus']:g} CPU, {resources['num_gpus']:g} GPU and {gib:.3g} GiB of memory"
