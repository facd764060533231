"""`expunge report`: write the report of a finished run again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.compare import read_run
from expunge.cli.output import Json, print_json


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write report.html and report.json to; default: the run's own.")] = None,
    json: Json = False,
) -> None:
    """Write report.html and report.json of a run from its records; no model is loaded."""
    from expunge.files import read_json
    from expunge.report import ReportInput, write_report

    scores = read_run(run)
    specification, losses = run / "run.yaml", run / "losses.json"
    folder = out or run
    write_report(
        ReportInput(
            scores,
            read_json(losses) if losses.exists() else {},
            f"expunge run {specification}" if specification.exists() else "",
            specification.read_text() if specification.exists() else "",
        ),
        folder,
    )
    if json:
        print_json({"html": str(folder / "report.html"), "json": str(folder / "report.json")})
    else:
        sys.stdout.write(f"report: {folder / 'report.html'}\n")
