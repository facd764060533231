"""`expunge validate` and `expunge plan`: what a study would do, before it does it."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.output import Json, Set, notice, print_json, print_table

Study = Annotated[str, typer.Argument(help="YAML, TOML or JSON file, or the name of an embedded study.")]


def validate(
    study: Study,
    set_: Set = None,
    contamination: Annotated[
        bool,
        typer.Option("--contamination", help="Also read all rows, and say which probes were trained on."),
    ] = False,
    json: Json = False,
) -> None:
    """Check a study and list every problem in it at once. Exit code 2 if there is one."""
    from expunge.studies.plan import contaminated, faults_of

    faults, skipped = faults_of(study, set_ or [], notice)
    shared = contaminated(study, set_ or [], notice) if contamination and not faults else []
    if json:
        print_json(
            {"valid": not faults, "faults": faults, "skipped": skipped}
            | ({"contamination": shared} if contamination else {})
        )
    else:
        for line in shared:
            sys.stdout.write(f"contamination: {line}\n")
        for fault in faults:
            sys.stdout.write(f"fault: {fault}\n")
        for line in skipped:
            sys.stdout.write(f"would be skipped: {line}\n")
        sys.stdout.write(f"{study}: {'valid' if not faults else f'{len(faults)} fault(s)'}\n")
    if faults:
        raise typer.Exit(2)


def plan(
    study: Study,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    set_: Set = None,
    json: Json = False,
) -> None:
    """Show the job graph of a study: what is done already and what would be computed."""
    from expunge.methods.footprint import shown
    from expunge.studies.plan import planned

    found = planned(study, runs, set_ or [], notice)
    jobs, sizes, memory = found["jobs"], found["problems"], found["memory"]
    if json:
        print_json(found)
        return
    print_table(
        ["problem", "parameters", "weights", "training memory", "training rows", "to forget"],
        [
            [
                s["name"],
                f"{s['parameters']:,}",
                shown(s["weight_bytes"]),
                shown(s["training_bytes"]),
                f"{s['train']:,}",
                f"{s['forget']:,}",
            ]
            for s in sizes
        ],
    )
    sys.stdout.write("\n")
    if memory:
        parts = [part for part in memory[0] if part not in ("problem", "method")]
        rows = [[m["problem"], m["method"], *(shown(m[part]) for part in parts)] for m in memory]
        print_table(["problem", "method", *parts], rows, "memory of a training step, estimated")
        sys.stdout.write("\n")
    kinds = Counter(j["kind"] for j in jobs)
    done = Counter(j["kind"] for j in jobs if j["done"])
    print_table(
        ["job", "in all", "done", "to do"],
        [[k, str(n), str(done[k]), str(n - done[k])] for k, n in kinds.items()],
    )
    if found["seconds"] is not None:
        sys.stdout.write(
            f"\nabout {found['seconds']:.0f} s of work, as such jobs took in earlier runs here\n"
        )
