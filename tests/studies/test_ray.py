"""Ray: a machine or a process that dies mid-study costs nothing; what jobs declare; refusals in words."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from expunge.errors import BadInput, Missing
from expunge.record import ScoreFile
from expunge.studies.graph import Graph, Job
from expunge.studies.jobs import Store
from expunge.studies.runner import Outcome, run_graph
from expunge.studies.runners import Runner
from expunge.studies.study import run_study
from tests.studies.test_study import numbers

LONG: dict[str, Any] = {
    "name": "long",
    # So many epochs that a training lasts seconds: time enough to hit it.
    "problems": [
        {
            "benchmark": "diabetes",
            "forget": "fraction=0.1",
            "recipe": {"epochs": 300, "lr": 0.01, "batch_size": 32},
        }
    ],
    "methods": ["retrain", "fine-tune"],
    "seeds": [0, 1],
}

# Both run in a process of their own: Ray needs sockets, which the tests' process has not.
KILL_A_PROCESS = """
import json, os, signal, sys, threading, time
import psutil
from expunge.studies.runners import Runner
from expunge.studies.study import run_study

def busy():
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith("ray::expunge") or "ray::expunge" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            pass
    return found

def kill():
    while not (victims := busy()):
        time.sleep(0.02)
    victims[0].kill()
    killed.append(victims[0].pid)

killed = []
threading.Thread(target=kill, daemon=True).start()
runner = Runner(name="ray", memory=0.25)
finished = run_study(json.loads(sys.argv[1]), sys.argv[2], workers=2, runner=runner, display="none")
print(json.dumps({"killed": len(killed), "done": finished.outcome.done, "failed": finished.outcome.failed}))
"""
KILL_A_NODE = """
import json, sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from expunge.studies.runners import Runner
from expunge.studies.study import run_study

plain = {"object_store_memory": 80 << 20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **plain})
nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(2)]
killed = []

def kill():
    jobs = Path(sys.argv[2]) / "store" / "jobs"
    # Two targets are trained side by side; when the first is complete, each node is at work again.
    while not (jobs.is_dir() and list(jobs.glob("[!.]*"))):
        time.sleep(0.02)
    cluster.remove_node(nodes[1], allow_graceful=False)
    killed.append(1)

threading.Thread(target=kill, daemon=True).start()
runner = Runner(name="ray", memory=0.25, ray_address=cluster.address, retries=3)
finished = run_study(json.loads(sys.argv[1]), sys.argv[2], runner=runner, display="none")
print(json.dumps({"killed": len(killed), "done": finished.outcome.done, "failed": finished.outcome.failed}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", [KILL_A_PROCESS, KILL_A_NODE], ids=["process", "node"])
def test_killed_mid_study_nothing_is_lost_and_the_numbers_are_the_same(script: str, tmp_path: Path) -> None:
    here = run_study(LONG, tmp_path / "here", workers=0, display="none")
    command = [sys.executable, "-c", script, json.dumps(LONG), str(tmp_path / "ray")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said == {"killed": 1, "done": here.outcome.done, "failed": {}}
    assert numbers(ScoreFile.read(tmp_path / "ray" / "long" / "scores.json")) == numbers(here.scores)


class Cluster:
    """Stands for the module `ray`: runs a task when it is asked for, and remembers what was declared."""

    class exceptions:
        class RayError(Exception):
            pass

    class WorkerCrashedError(exceptions.RayError):
        pass

    def __init__(
        self, nodes: list[dict[str, float]], dies: bool = False, deaf: bool = False, slow: int = 0
    ) -> None:
        self._nodes, self._dies, self._deaf, self._slow = nodes, dies, deaf, slow
        self.asked = 0
        self.declared: list[dict[str, Any]] = []
        self.started: dict[str, Any] = {}
        self.ended = False

    def is_initialized(self) -> bool:
        return False

    def init(self, address: str, **options: Any) -> None:
        self.asked += 1
        if self._deaf or self.asked <= self._slow:
            raise ConnectionError("Could not find any running Ray instance.\nMore.")
        self.started = {"address": address, **options}

    def shutdown(self) -> None:
        self.ended = True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": n} for n in self._nodes]

    def remote(self, function: Any) -> Any:
        def options(**declared: Any) -> Any:
            self.declared.append(declared)
            return SimpleNamespace(remote=lambda *given: partial(function, *given))

        return SimpleNamespace(options=options)

    def wait(self, tasks: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return tasks[:1], tasks[1:]

    def get(self, task: Any) -> Any:
        if self._dies:
            raise self.WorkerCrashedError("gone")
        return task()

    def cancel(self, task: Any, force: bool) -> None:
        raise AssertionError("nothing is left to cancel")


class Silent:
    def started(self, job: Job) -> None: ...
    def stepped(self, job: Job, step: int, of: int) -> None: ...
    def ended(self, job: Job, seconds: float, error: str | None) -> None: ...


GIB = 1 << 30


def knock(where: tuple[str, int], timeout: float) -> Any:
    """Only the host `head` is up."""
    if where[0] != "head":
        raise ConnectionRefusedError(111, "Connection refused")
    return SimpleNamespace(close=lambda: None)


def run_one(
    cluster: Cluster | None,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int | None = 2,
    **options: Any,
) -> tuple[Outcome, Store]:
    """One job, the training of a small target, through the Ray runner on `cluster`."""
    monkeypatch.setitem(sys.modules, "ray", cluster)
    monkeypatch.setattr(socket, "create_connection", knock)
    store = Store(folder / "store")
    device = options.pop("device", "cpu")
    payload = {
        "kind": "target", "seed": 0, "device": device, "threads": 3, "base": str(folder),
        "problem": {"benchmark": "diabetes", "recipe": {"epochs": 1}},
    }  # fmt: skip
    job = Job("k1", "target", "train", (), payload)
    executor = Runner(name="ray", **options).executor(store, workers)
    with executor:
        return run_graph(Graph({"k1": job}, [], {}), store, executor, Silent()), store


def test_a_job_declares_its_cpus_gpu_memory_and_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    cluster = Cluster([{"CPU": 8, "memory": 4 * GIB}])
    try:
        outcome, store = run_one(cluster, tmp_path, monkeypatch, memory=2.5, retries=4)
    finally:
        torch.set_num_threads(1)
    assert (outcome.done, outcome.failed) == (1, {}) and store.has("k1")
    (declared,) = cluster.declared
    assert declared == {
        "num_cpus": 3, "num_gpus": 0, "memory": 2.5 * GIB, "max_retries": 4, "name": "expunge: train"
    }  # fmt: skip
    # Two jobs at a time on a cluster of our own: as many processors as they have threads.
    assert (cluster.started["address"], cluster.started["num_cpus"]) == ("local", 6)
    assert cluster.ended


def test_a_cluster_that_exists_keeps_its_own_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([{"CPU": 8, "GPU": 2, "memory": 4 * GIB}], dies=True)
    run_one(cluster, tmp_path, monkeypatch, None, ray_address="head:6379", device="cuda")
    assert cluster.started["address"] == "head:6379" and "num_cpus" not in cluster.started
    assert cluster.declared[0]["num_gpus"] == 1


def test_a_job_whose_worker_always_dies_fails_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster([{"CPU": 8, "memory": 4 * GIB}], dies=True)
    outcome, store = run_one(cluster, tmp_path, monkeypatch, retries=2)
    assert outcome.failed == {
        "k1": "its worker died 3 times (WorkerCrashedError); if memory ran out, declare more with --memory"
    }
    assert not store.has("k1")


def test_a_start_that_took_too_long_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([{"CPU": 8, "memory": 4 * GIB}], slow=1)
    outcome, store = run_one(cluster, tmp_path, monkeypatch)
    assert cluster.asked == 2 and not outcome.failed and store.has("k1")


@pytest.mark.parametrize(
    ("cluster", "options", "error", "message"),
    [
        (
            Cluster([{"CPU": 8, "memory": GIB}, {"CPU": 2, "memory": 64 * GIB}]), {"memory": 2.0}, Missing,
            "no node of the Ray cluster can hold a job of 3 CPU, 0 GPU and 2 GiB of memory; the most that nodes have is "
            "8 CPU, 0 GPU and 64 GiB of memory",
        ),
        (
            Cluster([], deaf=True), {"ray_address": "head:1"}, Missing,
            r"no Ray cluster answers at 'head:1' \(Could not find any running Ray instance.\); start one with ray start",
        ),
        (
            Cluster([]), {"ray_address": "nobody:6379"}, Missing,
            r"no Ray cluster answers at 'nobody:6379' \(\[Errno 111\] Connection refused\); start one with ray start",
        ),
        (
            Cluster([], deaf=True), {}, Missing,
            r"a Ray cluster could not be started on this machine \(Could not find any running Ray instance.\); give the address",
        ),
        (None, {}, Missing, r"--runner ray needs the package 'ray', .* run pip install 'expunge\[ray\]'"),
        (Cluster([]), {"device": "cuda:1"}, BadInput, "device 'cuda:1' names a device of one machine"),
        (Cluster([]), {"workers": 0}, BadInput, "--workers 0 runs jobs in this process; --runner ray needs at least 1"),
        (Cluster([]), {"slurm": {"partition": "gpu"}}, BadInput, "--slurm belongs to --runner slurm, not to --runner ray"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_anything_runs(
    cluster: Cluster | None, options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with pytest.raises(error, match=message):
        run_one(cluster, tmp_path, monkeypatch, **{"workers": 2, **options})
    assert not (tmp_path / "store").exists()
