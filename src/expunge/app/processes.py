"""Studies as detached processes: started here, watched through their event log, and left alone when the app ends.

The app remembers of each what it needs to find the process again (in ``.app`` beside the runs). A process id alone says
little, since ids are reused: the time the process was born belongs to it. Whatever happens to a process, every write of
a run is atomic and finished jobs are kept, so pausing, killing and starting again change no number.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from expunge.app.runs import NAME, Runs
from expunge.errors import BadInput, Missing
from expunge.files import canonical_json, read_json, write_atomic
from expunge.record import Record, mean_of
from expunge.studies.plan import refuse_code
from expunge.studies.study import as_yaml, load_study

State = Literal["running", "paused", "interrupted", "finished", "failed", "recorded"]
OWN = ".app"
_ENTRY = "from expunge.cli import main; main()"
LATEST = 4000
"""Points of the loss curves that the app keeps of a job."""


class Started(Record):
    """The process of a study."""

    pid: int
    born: str = Field(description="when, as the system says it")
    command: list[str]
    at: str


class RunningJob(Record):
    """A job under way, or over."""

    key: str
    kind: str
    title: str
    state: Literal["running", "done", "failed"]
    seconds: float | None = None
    step: int | None = None
    of: int | None = None
    error: str | None = None


class LossPoint(Record):
    """Loss terms after a step."""

    step: int
    losses: dict[str, float | None]


class Progress(Record):
    """How a run goes."""

    run: str
    state: State
    controlled: bool = Field(description="whether this app started it and can pause or cancel it")
    total: int | None = Field(description="jobs of the study; None where its log does not say")
    done: int
    failed: int
    elapsed: float | None = Field(
        description="seconds between the first and the last event of the latest attempt"
    )
    remaining: float | None = Field(
        description="seconds that the jobs to do took on average; None where unknown"
    )
    jobs: list[RunningJob] = Field(description="those under way, then the latest ones")
    losses: dict[str, list[LossPoint]] = Field(description="by job, of those under way and the latest")
    output: str = Field(description="the last lines that the process said")


class Processes:
    """Starts, finds and signals the processes of studies."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs

    def _folder(self, run: str) -> Path:
        if not NAME.fullmatch(run):
            raise BadInput(f"{run[:60]!r} is no name of a run")
        folder = self.runs.root / OWN / run
        if folder.exists():
            self.runs.confined(folder)
        return folder

    def start(self, study: dict[str, Any], workers: int | None = None) -> str:
        """Start a study; the name of its run.

        Raises:
            BadInput: the study has a fault, would import code, or runs already.
        """
        spec, passed, base = load_study(study)
        refuse_code(spec)
        for named in (*spec.methods, *(spec.attacks if isinstance(spec.attacks, list) else ())):
            named.resolve()  # an unknown name, or a parameter out of range, is told now
        folder = self._folder(spec.name)
        folder.mkdir(parents=True, exist_ok=True)
        # In the form of a run.yaml: relative paths start from where the app runs, not from this file.
        write_atomic(folder / "study.yaml", as_yaml(passed, spec, base.resolve()))
        write_atomic(folder / "workers.json", canonical_json(workers))
        return self._launch(spec.name)

    def resume(self, run: str) -> None:
        """Go on with a paused run, or start an interrupted one again; what is done stays done."""
        process = self._process(run)
        if process is not None and self._alive(process):
            self._signal(process, signal.SIGCONT)
            return
        self._launch(run)

    def pause(self, run: str) -> None:
        """Stop a run where it stands; its memory stays taken."""
        self._signal(self._running(run), signal.SIGSTOP)

    def cancel(self, run: str) -> None:
        """End a run; what is complete is kept."""
        process = self._running(run)
        self._signal(process, signal.SIGTERM)
        self._signal(process, signal.SIGCONT)  # a paused process takes no other signal
        deadline = time.monotonic() + 5
        while self._alive(process) and time.monotonic() < deadline:
            time.sleep(0.05)
        if self._alive(process):
            self._signal(process, signal.SIGKILL)

    def _launch(self, run: str) -> str:
        process = self._process(run)
        if process is not None and self._alive(process):
            raise BadInput(f"run '{run}' is under way already")
        folder = self._folder(run)
        study = folder / "study.yaml"
        if not study.exists():
            study = self.runs.file(run, "run.yaml")
            refuse_code(load_study(study)[0])
            folder.mkdir(parents=True, exist_ok=True)
        workers = read_json(folder / "workers.json") if (folder / "workers.json").exists() else None
        command = [
            sys.executable,
            "-c",
            _ENTRY,
            "run",
            str(study),
            "--runs",
            str(self.runs.root),
            "--display",
            "plain",
        ]
        command += [] if workers is None else ["--workers", str(workers)]
        with (folder / "output.txt").open("ab") as output:
            started = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                close_fds=True,
            )
        record = Started(
            pid=started.pid,
            born=_born(started.pid) or "",
            command=command,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_atomic(folder / "process.json", record.model_dump_json())
        return run

    def _process(self, run: str) -> Started | None:
        path = self._folder(run) / "process.json"
        return Started.model_validate(read_json(path)) if path.exists() else None

    def _running(self, run: str) -> Started:
        process = self._process(run)
        if process is None or not self._alive(process):
            raise BadInput(f"run '{run}' is not under way, or was not started here")
        return process

    @staticmethod
    def _alive(process: Started) -> bool:
        with suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)  # a child that has ended stays a zombie until somebody asks
        return _born(process.pid) == process.born != ""

    @staticmethod
    def _signal(process: Started, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)  # its workers are of its session

    def state(self, run: str) -> tuple[State, bool]:
        """How a run stands, and whether the app controls it."""
        process = self._process(run)
        if process is not None and self._alive(process):
            return ("paused" if _stopped(process.pid) else "running"), True
        events = self._events(run)
        controlled = process is not None
        last = events[-1] if events else {}
        if last.get("event") == "finish":
            return ("failed" if last["failed"] else "finished"), controlled
        if not any(e.get("event") == "begin" for e in events):
            if process is not None and not self._has(run, "scores.json"):
                return "failed", True  # it ended before its first job
            return "recorded", controlled
        return "interrupted", controlled

    def _has(self, run: str, name: str) -> bool:
        try:
            self.runs.file(run, name)
        except (Missing, BadInput):
            return False
        return True

    def _events(self, run: str) -> list[dict[str, Any]]:
        """The events of the latest attempt."""
        try:
            log = self.runs.file(run, "log.jsonl")
        except Missing:
            return []
        return self.runs.kept(log, _latest, "events")

    def started_here(self) -> list[str]:
        """Runs that the app started, the newest first."""
        folder = self.runs.root / OWN
        found = [p for p in folder.glob("*/process.json") if NAME.fullmatch(p.parent.name)]
        return [p.parent.name for p in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)]

    def progress(self, run: str) -> Progress:
        """How a run goes, from its event log."""
        state, controlled = self.state(run)
        events = self._events(run)
        jobs: dict[str, RunningJob] = {}
        losses: dict[str, list[LossPoint]] = {}
        kinds: dict[str, list[float]] = {}
        total = next((e["jobs"] for e in events if e["event"] == "begin"), None)
        for event in events:
            match event["event"]:
                case "start":
                    key = event["job"]
                    jobs[key] = RunningJob(key=key, kind=event["kind"], title=event["title"], state="running")
                case "step" if event["job"] in jobs:
                    jobs[event["job"]].step, jobs[event["job"]].of = event["step"], event["of"]
                    losses.setdefault(event["job"], []).append(
                        LossPoint(step=event["step"], losses=event["losses"])
                    )
                case "end" if event["job"] in jobs:
                    job = jobs[event["job"]]
                    job.seconds, job.error = event["seconds"], event.get("error")
                    job.state = "failed" if job.error else "done"
                    if not job.error:
                        kinds.setdefault(job.kind, []).append(event["seconds"])
        over = [j for j in jobs.values() if j.state != "running"]
        under = [j for j in jobs.values() if j.state == "running"] if state in ("running", "paused") else []
        latest = [*under, *over[::-1][:12]]
        output = self._folder(run) / "output.txt"
        return Progress(
            run=run, state=state, controlled=controlled, total=total, done=sum(j.state == "done" for j in over),
            failed=sum(j.state == "failed" for j in over), elapsed=_span(events),
            remaining=self._remaining(run, jobs, kinds, len(under)) if state in ("running", "paused") else None,
            jobs=latest, losses={j.key: losses[j.key][-LATEST:] for j in latest if j.key in losses},
            output="\n".join(output.read_text(errors="replace").splitlines()[-12:]) if output.exists() else "",
        )  # fmt: skip

    def _remaining(
        self, run: str, jobs: dict[str, RunningJob], kinds: dict[str, list[float]], side_by_side: int
    ) -> float | None:
        """Seconds of the jobs to do, each as long as those of its kind took; None where a kind has not ended yet."""
        try:
            planned = self.runs.index(run).jobs
        except Missing:
            return None
        to_do = [
            j
            for j in planned
            if not self.runs.has_job(j.key) and (j.key not in jobs or jobs[j.key].state == "running")
        ]
        every = [s for values in kinds.values() for s in values]
        if not every:
            return None
        return sum(mean_of(kinds.get(j.kind, every)) for j in to_do) / max(1, side_by_side)


def _latest(log: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for line in log.read_text(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue  # the last line of a process that was killed while writing it
        if event.get("event") == "begin":
            events = []
        events.append(event)
    return events


def _span(events: list[dict[str, Any]]) -> float | None:
    if not events:
        return None
    first, last = (datetime.fromisoformat(events[i]["at"]) for i in (0, -1))
    return (last - first).total_seconds()


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat after the name, or of ps where there is no /proc; None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return None
    except ProcessLookupError:
        return None
    asked = subprocess.run(
        ["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    words = asked.stdout.split()
    return [words[0][0], *[""] * 18, " ".join(words[1:])] if words else None


def _born(pid: int) -> str | None:
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else fields[19]


def _stopped(pid: int) -> bool:
    fields = _stat(pid)
    return fields is not None and fields[0] in ("T", "t")
