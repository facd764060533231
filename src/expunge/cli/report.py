"""`expunge report`: write the report of a finished run again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.output import Json, print_json
from expunge.errors import BadInput


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write report.html and report.json to; default: the run's own."),
    ] = None,
    json: Json = False,
) -> None:
    """Write report.html and report.json of a run from its records; no model is loaded."""
    from expunge.report import read_run_folder, write_report

    if not (run / "scores.json").exists():
        raise BadInput(f"'{run}' is no finished run: there is no '{run / 'scores.json'}'")
    folder = out or run
    write_report(read_run_folder(run), folder)
    if json:
        print_json({"html": str(folder / "report.html"), "json": str(folder / "report.json")})
    else:
        sys.stdout.write(f"report: {folder / 'report.html'}\n")
