"""Studies as processes: started, watched, paused, cancelled, resumed; the numbers do not depend on it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from expunge.app.processes import OWN, Processes
from expunge.app.runs import Runs
from expunge.errors import BadInput, Missing
from expunge.studies.plan import durations, planned

SLOW: dict[str, Any] = {
    "name": "slow",
    "problems": [{"benchmark": "diabetes", "forget": "fraction=0.1", "recipe": {"epochs": 600, "lr": 0.01}}],
    "methods": ["retrain"],
    "metrics": ["mae"],
    "seeds": [0],
}


def _until(condition: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.1)


def _log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow  # two processes that import torch; a browser test does the same by hand
def test_pause_cancel_and_resume(tmp_path: Path) -> None:
    processes = Processes(Runs(tmp_path))
    try:
        assert processes.start(SLOW, workers=0) == "slow"
        _until(lambda: any(p.step for p in processes.progress("slow").jobs))
        seen = processes.progress("slow")
        assert (seen.state, seen.controlled, seen.total) == ("running", True, 6)
        assert seen.jobs[0].kind == "target" and seen.losses[seen.jobs[0].key][0].losses.keys() == {"nll"}
        with pytest.raises(BadInput, match="under way already"):
            processes.start(SLOW)

        processes.pause("slow")
        _until(lambda: processes.state("slow")[0] == "paused", 10)
        size = (tmp_path / "slow" / "log.jsonl").stat().st_size
        time.sleep(1.5)
        assert (tmp_path / "slow" / "log.jsonl").stat().st_size == size  # nothing moves
        processes.resume("slow")
        _until(lambda: (tmp_path / "slow" / "log.jsonl").stat().st_size > size, 30)

        processes.pause("slow")
        processes.cancel("slow")  # a paused run can be cancelled too
        assert processes.state("slow") == ("interrupted", True)
        with pytest.raises(BadInput, match="not under way"):
            processes.pause("slow")

        # Another app finds what the first one started.
        other = Processes(Runs(tmp_path))
        assert other.started_here() == ["slow"]
        other.resume("slow")
        _until(lambda: other.state("slow")[0] == "finished", 180)
        done = other.progress("slow")
        assert (done.done, done.failed, done.remaining) == (done.total, 0, None)
        assert (tmp_path / "slow" / "scores.json").exists()
    finally:
        process = processes._process("slow")
        if process is not None and processes._alive(process):
            processes.cancel("slow")


def test_a_process_of_the_same_number_is_not_taken_for_ours(tmp_path: Path) -> None:
    processes = Processes(Runs(tmp_path))
    folder = tmp_path / OWN / "mine"
    folder.mkdir(parents=True)
    record = {"pid": os.getpid(), "born": "1", "command": [], "at": ""}
    (folder / "process.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match="not under way"):
        processes.cancel("mine")
    assert processes.state("mine") == ("failed", True)  # it ended and left nothing


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "../out"}, "name"),
        ({"methods": ["./mine.py:Mine"]}, "command line"),
        ({"methods": ["nothing"]}, "nothing"),
        (
            {"problems": [{"model": {"factory": "a.b:c"}, "data": "x.csv", "forget": "class=1"}]},
            "command line",
        ),
        ({"problems": [{"benchmark": "digits", "allow_pickle": True}]}, "command line"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_what_cannot_be_started_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    processes = Processes(Runs(tmp_path))
    with pytest.raises(BadInput, match=said):
        processes.start({**SLOW, **change})
    assert not (tmp_path / OWN).exists() or not any((tmp_path / OWN).iterdir())


def test_a_run_without_anything_to_run_again(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "scores.json").write_text("{}")
    processes = Processes(Runs(tmp_path))
    assert processes.state("audit") == ("recorded", False)
    with pytest.raises(Missing, match=r"run\.yaml"):
        processes.resume("audit")


def test_events_of_the_latest_attempt_count(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    lines = [
        '{"at":"2030-01-01T00:00:00+00:00","event":"begin","jobs":9}',
        '{"at":"2030-01-01T00:00:01+00:00","event":"start","job":"x","kind":"forget","title":"old"}',
        '{"at":"2030-01-01T00:01:00+00:00","event":"begin","jobs":2}',
        '{"at":"2030-01-01T00:01:01+00:00","event":"start","job":"a","kind":"forget","title":"one"}',
        '{"at":"2030-01-01T00:01:03+00:00","event":"step","job":"a","step":5,"of":9,"losses":{"forget":0.5,"retain":null}}',
        '{"at":"2030-01-01T00:01:05+00:00","event":"end","job":"a","seconds":4.0,"error":"it broke"}',
        '{"at":"2030-01-01T00:01:06+00:00","event":"sta',
    ]
    (tmp_path / "r" / "log.jsonl").write_text("\n".join(lines))
    seen = Processes(Runs(tmp_path)).progress("r")
    assert (seen.state, seen.total, seen.done, seen.failed, seen.elapsed) == ("interrupted", 2, 0, 1, 5.0)
    assert seen.jobs[0].error == "it broke" and seen.losses["a"][0].losses == {"forget": 0.5, "retain": None}


def test_planned_seconds_are_those_of_earlier_jobs(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    events = [{"event": "start", "job": k, "kind": k} for k in ("target", "forget", "observe")]
    events += [
        {"event": "end", "job": "target", "seconds": 3.0},
        {"event": "end", "job": "forget", "seconds": 5.0},
    ]
    events += [
        {"event": "end", "job": "observe", "seconds": 90.0, "error": "failed jobs say nothing of duration"}
    ]
    (tmp_path / "old" / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    assert durations([tmp_path / "old" / "log.jsonl"]) == {"target": 3.0, "forget": 5.0}
    found = planned(SLOW, tmp_path)
    assert found["seconds"] is None and "observe" in found["unknown"] and "target" not in found["unknown"]
    kinds = [j["kind"] for j in found["jobs"]]
    events += [{"event": "end", "job": "observe", "seconds": 1.0}]
    for kind in set(kinds) - {"target", "forget", "observe"}:
        events += [
            {"event": "start", "job": kind, "kind": kind},
            {"event": "end", "job": kind, "seconds": 1.0},
        ]
    (tmp_path / "old" / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    known = {"target": 3.0, "forget": 5.0}
    assert planned(SLOW, tmp_path)["seconds"] == sum(known.get(k, 1.0) for k in kinds)
