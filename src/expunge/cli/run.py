"""`expunge run` and `expunge demo`: a study from plan to report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from expunge.cli.output import Json, Set, failures, notice, print_json

Runs = Annotated[Path, typer.Option(help="Folder of all runs; finished work in it is shared between them.")]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Worker processes; default: one per core. 0 runs in this process.")
]
Display = Annotated[Literal["auto", "full", "plain", "none"], typer.Option(help="How progress is shown.")]


def demo(
    runs: Runs = Path("runs"), workers: Workers = None, display: Display = "auto", json: Json = False
) -> None:
    """Forget from real classifiers and regressors, and prove it, in about two minutes on two cores.

    Handwritten digits: a class and a random tenth. Diabetes patients: a random tenth. Three seeds, every method.
    """
    execute("demo", runs, workers, display, [], json)


def run(
    study: Annotated[
        str,
        typer.Argument(
            help="YAML, TOML or JSON file, or the name of an embedded study (expunge list studies)."
        ),
    ],
    runs: Runs = Path("runs"),
    workers: Workers = None,
    display: Display = "auto",
    set_: Set = None,
    json: Json = False,
) -> None:
    """Run a study: train, retrain, forget, audit, report. The same command again computes only what is missing."""
    execute(study, runs, workers, display, set_ or [], json)


def execute(
    study: str, runs: Path, workers: int | None, display: Display, assignments: list[str], json: bool
) -> None:
    """Run a study and print its summary."""
    from expunge import api
    from expunge.cli.output import print_scores

    # The command as given, so that the report can say how to get it again.
    command = "expunge " + shlex.join(sys.argv[1:])
    finished = api.run(
        study,
        runs,
        workers=workers,
        display="none" if json else display,
        assignments=assignments,
        command=command,
        notice=notice,
    )
    if json:
        print_json(finished.scores)
    else:
        print_scores(finished.scores)
        outcome = finished.outcome
        sys.stdout.write(
            f"{outcome.done} jobs computed, {outcome.cached} taken from earlier runs, {finished.seconds:.0f} s\n"
        )
        sys.stdout.write(f"report: {finished.folder / 'report.html'}\n")
    failed = failures(finished.scores.judged)
    if failed:
        sys.stderr.write("".join(f"failed: {line}\n" for line in failed))
        raise typer.Exit(1)
