"""kill -9 at any moment, then the same command: same numbers, nothing complete recomputed, nothing half-written read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from expunge.record import ScoreFile
from expunge.studies.study import Finished
from tests.studies.conftest import SMALL
from tests.studies.test_study import numbers


def start(folder: Path, **changes: object) -> subprocess.Popen[bytes]:
    study = folder / "small.yaml"
    study.write_text(yaml.safe_dump({**SMALL, **changes}))
    command = [
        sys.executable,
        "-c",
        # A shell's background jobs ignore Ctrl-C, and hand that down to tests that run in one.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from expunge.cli import main; main()",
        "run",
        str(study),
        "--runs",
        str(folder / "runs"),
    ]
    return subprocess.Popen(
        [*command, "--workers", "2", "--display", "none"], start_new_session=True, stdout=subprocess.DEVNULL
    )


def complete(folder: Path) -> dict[str, int]:
    """Inode change time of every complete job."""
    jobs = folder / "runs" / "store" / "jobs"
    return {p.name: p.stat().st_mtime_ns for p in jobs.glob("[!.]*")} if jobs.is_dir() else {}


@pytest.mark.parametrize(
    "after",
    [*(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1, 25)), 9],
)
def test_kill_and_run_again(after: int, finished: Finished, tmp_path: Path) -> None:
    total = finished.outcome.done
    assert after < total
    process = start(tmp_path)
    deadline = time.monotonic() + 90
    while len(complete(tmp_path)) < after and time.monotonic() < deadline:
        time.sleep(0.002)
    if after == 0:
        time.sleep(0.5)
    os.killpg(process.pid, signal.SIGKILL) if after % 2 else process.kill()
    process.wait()
    time.sleep(1.5)  # workers notice that their parent is gone
    before = complete(tmp_path)
    assert len(before) < total, "the run was over before it was killed; the test proves nothing"
    # What a kill in the middle of a write leaves behind must be ignored.
    jobs = tmp_path / "runs" / "store" / "jobs"
    jobs.mkdir(parents=True, exist_ok=True)
    (jobs / ".half.x1").mkdir()
    (jobs / ".half.x1" / "model.safetensors").write_bytes(b"half")

    again = start(tmp_path)
    assert again.wait(timeout=120) == 0
    after_times = complete(tmp_path)
    assert {k: after_times[k] for k in before} == before, "a complete job was computed again"
    scores = ScoreFile.read(tmp_path / "runs" / "small" / "scores.json")
    assert numbers(scores) == numbers(finished.scores)


def test_a_dead_worker_is_replaced(finished: Finished, tmp_path: Path) -> None:
    process = start(tmp_path)
    deadline = time.monotonic() + 60
    while len(complete(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    assert process.wait(timeout=120) == 0
    assert numbers(ScoreFile.read(tmp_path / "runs" / "small" / "scores.json")) == numbers(finished.scores)


def test_interrupt_exits_with_130(tmp_path: Path) -> None:
    process = start(
        tmp_path, seeds=list(range(40))
    )  # so much that it cannot be over before the signal arrives
    deadline = time.monotonic() + 60
    while len(complete(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
