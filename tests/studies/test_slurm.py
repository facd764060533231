"""Slurm through submitit, by its executors that need no Slurm: the same numbers, deaths, refusals in words."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from expunge.errors import BadInput, Missing
from expunge.studies.graph import Graph, Job
from expunge.studies.jobs import Store
from expunge.studies.runner import Outcome, run_graph
from expunge.studies.runners import Runner
from expunge.studies.study import run_study
from tests.studies.test_ray import Silent
from tests.studies.test_study import numbers

TINY: dict[str, Any] = {
    "name": "tiny",
    "problems": [{"benchmark": "diabetes", "forget": "fraction=0.1", "recipe": {"epochs": 3}}],
    "methods": ["retrain", "fine-tune"],
    "metrics": ["mae"],
    "seeds": [0],
}


def slurm(**options: Any) -> Runner:
    return Runner(name="slurm", slurm=options)


def test_jobs_through_submitit_give_the_numbers_of_this_process(tmp_path: Path) -> None:
    # `debug` goes through submitit's own submission and pickled results, without a process per job.
    here = run_study(TINY, tmp_path / "here", workers=0, display="none")
    there = run_study(TINY, tmp_path / "there", runner=slurm(cluster="debug"), display="none")
    assert not there.outcome.failed and there.outcome.done == here.outcome.done
    assert numbers(there.scores) == numbers(here.scores)


@pytest.mark.slow
def test_jobs_as_processes_of_their_own_give_the_same_numbers(tmp_path: Path) -> None:
    least = {**TINY, "methods": ["retrain"]}  # every job pays for its own imports
    here = run_study(least, tmp_path / "here", workers=0, display="none")
    there = run_study(least, tmp_path / "there", workers=2, runner=slurm(cluster="local"), display="none")
    assert not there.outcome.failed and there.outcome.done == here.outcome.done
    assert numbers(there.scores) == numbers(here.scores)


class Scheduler:
    """Stands for submitit: its jobs die a number of times before they run."""

    def __init__(self, deaths: int) -> None:
        self.deaths, self.submitted = deaths, 0
        self.parameters: dict[str, Any] = {}

    def AutoExecutor(self, folder: Path, cluster: str) -> Scheduler:
        return self

    def update_parameters(self, **given: Any) -> None:
        self.parameters = given

    def submit(self, task: Any) -> Any:
        self.submitted += 1
        number = self.submitted

        def result() -> Any:
            if number <= self.deaths:
                raise RuntimeError("Job not requeued because: timed-out")
            return task()

        return SimpleNamespace(done=lambda: True, result=result)


def run_one(
    scheduler: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[Outcome, Store]:
    monkeypatch.setitem(sys.modules, "submitit", scheduler)
    store = Store(folder / "store")
    payload = {
        "kind": "target", "seed": 0, "device": "cpu", "threads": 1, "base": str(folder),
        "problem": {"benchmark": "diabetes", "recipe": {"epochs": 1}},
    }  # fmt: skip
    retries = options.pop("retries", 1)
    runner = Runner(name="slurm", slurm={"cluster": "local", **options}, retries=retries, memory=3.0)
    executor = runner.executor(store, None)
    with executor:
        graph = Graph({"k1": Job("k1", "target", "train", (), payload)}, [], {})
        return run_graph(graph, store, executor, Silent()), store


def test_a_job_that_dies_is_submitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(deaths=1)
    outcome, store = run_one(scheduler, tmp_path, monkeypatch)
    assert scheduler.submitted == 2 and outcome.done == 1 and store.has("k1")


def test_a_job_that_always_dies_fails_with_the_place_of_its_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(deaths=9)
    outcome, _ = run_one(scheduler, tmp_path, monkeypatch, retries=2)
    assert scheduler.submitted == 3
    assert outcome.failed["k1"].startswith("its Slurm job died 3 times (RuntimeError); see the logs in ")


def test_what_is_declared_to_the_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(deaths=0)
    run_one(scheduler, tmp_path, monkeypatch, partition="gpu", timeout_min=30)
    assert scheduler.parameters == {
        "name": "expunge", "cpus_per_task": 1, "gpus_per_node": 0, "mem_gb": 3.0, "timeout_min": 30,
        "slurm_partition": "gpu",
    }  # fmt: skip


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--slurm: .*slurm_partitoin"):
        run_study(TINY, tmp_path, runner=slurm(cluster="debug", partitoin="x"), display="none")


def test_without_slurm_or_submitit_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        Missing, match="--runner slurm finds no 'srun' on this machine; .* --slurm cluster=local"
    ):
        run_study(TINY, tmp_path, runner=slurm(), display="none")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(Missing, match=r"needs the package 'submitit', .* pip install 'expunge\[slurm\]'"):
        run_study(TINY, tmp_path, runner=slurm(), display="none")
