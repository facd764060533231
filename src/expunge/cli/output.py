"""What commands print: JSON for programs, tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from expunge.files import canonical_json
from expunge.record import Claim, Judged, Score, ScoreFile, mean_of

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one value, such as methods.0.beta=0.2; may be repeated."
    ),
]

MAIN = [
    ("accuracy", "forget"), ("accuracy", "retain"), ("accuracy", "test"), ("mae", "forget"), ("mae", "retain"), ("mae", "test"),
    ("corrected-accuracy", "affected"), ("manipulation-success", "attacked"),
    ("probability", "forget"), ("probability", "retain"), ("extraction-strength", "forget"), ("truth-ratio-distance", "forget"),
    ("mia-loss-logistic", "forget"), ("lira-auc", "forget"), ("u-lira-auc", "forget"),
    ("unlearning-accuracy", "concept"), ("in-domain-retain-accuracy", "test"), ("cross-domain-retain-accuracy", "test"),
    ("undesired-rate", "samples"), ("frechet-distance", "test"), ("coverage", "test"),
    ("average-gap", "run"), ("seconds", "run"), ("seconds-ratio", "run"),
]  # fmt: skip
"""What the summary on the terminal shows; everything else is in scores.json and the report."""


def notice(sentence: str) -> None:
    """Tell the user something that is no result."""
    sys.stderr.write(f"note: {sentence}\n")


def print_json(value: Any) -> None:
    """Strict JSON: no NaN, no bare infinity."""
    sys.stdout.write(json.dumps(json.loads(canonical_json(value)), indent=2) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A plain table; text columns to the left, numbers to the right."""
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=None,
        pad_edge=False,
    )
    for i, column in enumerate(columns):
        numeric = i > 0 and all(_is_number(row[i]) for row in rows if row[i])
        # The first column names the row: it is what a reader copies, so it is never broken.
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*[cell.replace("[", r"\[") for cell in row])
    console().print(table)


def console() -> Console:
    """Standard output; wide enough for whole rows where it is no terminal."""
    made = Console()
    return made if made.is_terminal else Console(width=160)


def _is_number(text: str) -> bool:
    return text[:1] in "0123456789-+.–" or text == "undefined"


def print_scores(scores: ScoreFile) -> None:
    """One table per problem: a row per method, mean over seeds ± half the 95 % interval."""
    from expunge.stats.intervals import t_interval

    for problem in scores.problems:
        mine = [j for j in scores.judged if j.problem == problem["name"]]
        shown = [(m, s) for m, s in MAIN if any(j.score(m, s) for j in mine)]
        rows = []
        for label in dict.fromkeys(j.label for j in mine):
            judged = [j for j in mine if j.label == label]
            if all(j.status != "ok" for j in judged):
                continue
            rows.append([label, *(_cell([j.score(m, s) for j in judged], t_interval) for m, s in shown)])
        columns = ["method", *[m if s == "run" else f"{m} {s}" for m, s in shown]]
        counts = problem["counts"]
        print_table(
            columns,
            rows,
            f"{problem['name']}: {problem['scope']} ({counts['forget']} of {counts['train']} training rows)",
        )
        for line in dict.fromkeys(
            f"{j.label}: {j.status.replace('_', ' ')}: {j.reason}" for j in mine if j.status != "ok"
        ):
            sys.stdout.write(f"  {line}\n")
        sys.stdout.write("\n")


def _cell(scores: Sequence[Score | None], t_interval: Any) -> str:
    values = [s.value for s in scores if s is not None and s.value is not None]
    if not values:
        return "undefined" if any(s is not None for s in scores) else ""
    interval = t_interval(values)
    half = "" if interval is None else f" ±{(interval.high - interval.low) / 2:.2g}"
    return f"{mean_of(values):.3g}{half}"


def print_claim(claim: Claim) -> None:
    """A claim with everything that bears on it, for people."""
    made = "" if claim.claimed == claim.standing else f" (claimed: {claim.claimed})"
    sys.stdout.write(f"{claim.label}: {claim.standing}{made}. {claim.sentence}\n")
    for mark, lines in (
        ("-", claim.breaks),
        ("+", claim.supports),
        ("?", claim.missing),
        ("!", claim.proxies),
    ):
        sys.stdout.writelines(f"  {mark} {line}\n" for line in lines)
    sys.stdout.write("\n")


def failures(judged: Sequence[Judged]) -> list[str]:
    """One line per model that could not be made or measured."""
    return [f"{j.problem}: {j.label}, seed {j.seed}: {j.reason}" for j in judged if j.status == "failed"]
