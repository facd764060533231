"""How a run shows itself: a live panel on a terminal, plain lines elsewhere, and an event log either way."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from expunge.files import canonical_json, finite
from expunge.studies.graph import Job

STEP_SECONDS = 1.0
"""Training steps of a job are written to the log this far apart at least."""
_NOT_TERMS = ("step", "of", "epoch", "phase", "lr")

Display = Literal["auto", "full", "plain", "none"]


class RunProgress:
    """Follows a run; `with` it around `run_graph`."""

    def __init__(
        self, total: int, log: Path | None, display: Display = "auto", console: Console | None = None
    ) -> None:
        self._console = console or Console(stderr=True)
        self._live_wanted = display == "full" or (display == "auto" and self._console.is_terminal)
        self._plain = display == "plain" or (display == "auto" and not self._live_wanted)
        self._total, self._done, self._failed = total, 0, 0
        self._running: dict[str, tuple[Job, float, str]] = {}
        self._log = log
        self._logged: dict[str, float] = {}
        self._last_line = time.monotonic()
        self._bar = Bar(
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(), console=self._console,
        )  # fmt: skip
        self._task = self._bar.add_task("jobs", total=total)
        self._live: Live | None = None

    def __enter__(self) -> RunProgress:
        self._event(event="begin", jobs=self._total)
        if self._live_wanted:
            self._live = Live(self._panel(), console=self._console, refresh_per_second=5, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)
        if exc[0] is None:
            self._event(event="finish", failed=self._failed)

    def _panel(self) -> Group:
        now = time.monotonic()
        lines = [
            Text(f"  {job.title}  {step}  {now - since:.0f} s", style="dim")
            for job, since, step in self._running.values()
        ]
        return Group(self._bar, *lines)

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._panel())

    def _event(self, **facts: object) -> None:
        if self._log is not None:
            stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
            with self._log.open("a") as file:
                file.write(canonical_json({"at": stamp, **facts}) + "\n")

    def started(self, job: Job) -> None:
        """A job has begun."""
        self._running[job.key] = (job, time.monotonic(), "")
        self._event(event="start", job=job.key, kind=job.kind, title=job.title)
        self._refresh()

    def stepped(self, job: Job, step: int, of: int, terms: Mapping[str, Any] | None = None) -> None:
        """A job has made a training step, with these terms of its loss."""
        if job.key in self._running:
            self._running[job.key] = (*self._running[job.key][:2], f"step {step}/{of}")
            now = time.monotonic()
            if now - self._logged.get(job.key, 0.0) >= STEP_SECONDS:
                self._logged[job.key] = now
                self._event(event="step", job=job.key, step=step, of=of, losses=loss_terms(terms or {}))
            self._refresh()

    def ended(self, job: Job, seconds: float, error: str | None) -> None:
        """A job has ended, well or not."""
        self._running.pop(job.key, None)
        self._done += 1
        self._failed += error is not None
        self._bar.advance(self._task)
        self._event(
            event="end", job=job.key, seconds=round(seconds, 3), **({"error": error} if error else {})
        )
        if error is not None and (self._live is not None or self._plain):
            self._console.print(f"failed: {job.title}: {error}", style="red", highlight=False, markup=False)
        now = time.monotonic()
        if self._plain and (now - self._last_line > 10 or self._done == self._total):
            self._last_line = now
            self._console.print(
                f"{self._done}/{self._total} jobs, last: {job.title} ({seconds:.1f} s)",
                highlight=False,
                markup=False,
            )
        self._refresh()


def loss_terms(entry: Mapping[str, Any]) -> dict[str, float | None]:
    """The terms of the loss in what a training step reports, as numbers; None where one is not finite."""
    return {k: finite(float(v)) for k, v in entry.items() if k not in _NOT_TERMS}
