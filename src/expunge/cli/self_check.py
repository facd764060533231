"""`expunge audit --self-check`: how often the audit is wrong, on models of which it is known what they know."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from expunge.cli.output import notice, print_json, print_table

if TYPE_CHECKING:
    from expunge.self_check import FamilyCheck, Rate


def check(
    family: str | None, attacks: str | None, models: int, references: int, out: Path | None, as_json: bool
) -> NoReturn:
    """Run the self-check and print it; exit code 1 where an obvious plant was cleared."""
    from expunge.cli.problem import columns
    from expunge.files import write_atomic
    from expunge.self_check import WORLDS, self_check

    chosen = attacks or "standard"
    done = self_check(
        tuple(WORLDS) if family is None else (family,), models=models, references=references,
        attacks=chosen if chosen == "standard" or chosen == "all" else columns(chosen) or [], folder=out, progress=notice,
    )  # fmt: skip
    if out is not None:
        write_atomic(out / "self-check.json", done.model_dump_json(indent=1))
    if as_json:
        print_json(done)
    else:
        for one in done.families:
            _print(one)
        if out is not None:
            sys.stdout.write(f"written: {out / 'self-check.json'}\n")
    raise typer.Exit(1 if any(one.obvious_cleared for one in done.families) else 0)


def _print(one: FamilyCheck) -> None:
    rows = [
        [
            f"{rate.construction}{'*' if rate.obvious else ''}", rate.title, str(rate.n), str(rate.found), str(rate.inconclusive),
            str(rate.cleared), str(rate.invalid), share(rate),
            ", ".join(f"{name} {n}" for name, n in list(rate.found_by.items())[:4]),
        ]
        for rate in [*one.rates, one.false_alarms]
    ]  # fmt: skip
    columns = [
        "",
        "construction",
        "models",
        "found",
        "inconclusive",
        "cleared",
        "invalid",
        "judged wrongly",
        "found by",
    ]
    title = f"{one.family}: {one.problem}, compared with {one.calibration} retrained models"
    print_table(columns, rows, title)
    sys.stdout.write("  * obvious: must never be cleared\n")
    sys.stdout.write(f"  not detected: {', '.join(one.undetected) or 'none of these constructions'}\n")
    if one.partly:
        sys.stdout.write(f"  detected in part: {', '.join(one.partly)}\n")
    sys.stdout.write("\n")


def share(rate: Rate) -> str:
    """Share judged wrongly with its interval, or why there is none."""
    if rate.wrong is None:
        return "undefined: no valid model"
    wrong = rate.cleared if rate.present else rate.found
    return f"{100 * wrong / rate.n:.0f} % ({100 * rate.wrong.low:.0f} to {100 * rate.wrong.high:.0f})"
