"""`expunge ledger plan`: what a stream of requests would cost."""

from __future__ import annotations

import itertools
import json as json_module
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli.output import Json, print_json, print_table
from expunge.errors import BadInput, did_you_mean

if TYPE_CHECKING:
    from expunge.ledger.planning import Option, Plan

EXAMPLE = "Example: expunge ledger plan --users 1e6 --method retrain --method sisa --shards 5,20 --slices 1,5"

METHODS = ("retrain", "sisa", "s3t", "acu", "approximate")


def plan(
    users: Annotated[float, typer.Option(help="People whose rows were learned from.")] = 1e5,
    yearly: Annotated[float, typer.Option(help="Share of them that asks within a year.")] = 0.01,
    rows: Annotated[int, typer.Option(help="Rows of a user.")] = 10,
    together: Annotated[
        float, typer.Option(help="Share of a user's further rows that lie in the slice of the first.")
    ] = 1.0,
    bursts: Annotated[
        float, typer.Option(help="Squared coefficient of variation of a day's rate; 0 for none.")
    ] = 0.0,
    deadline: Annotated[float, typer.Option(help="Days from a request to its deadline.")] = 30.0,
    days: Annotated[float, typer.Option(help="Days to simulate.")] = 365.0,
    method: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(METHODS)}; may be repeated. Default: retrain and sisa."),
    ] = None,
    shards: Annotated[str, typer.Option(help="Numbers of shards of sisa and s3t.")] = "5,10,20",
    slices: Annotated[str, typer.Option(help="Numbers of slices of sisa and s3t.")] = "1,5",
    sequences: Annotated[
        str, typer.Option(help="Numbers of sequences of s3t; those above the slices are left out.")
    ] = "1",
    training: Annotated[
        float, typer.Option(help="Hours that training on everything takes one worker.")
    ] = 10.0,
    window: Annotated[float, typer.Option(help="Hours for which requests are gathered.")] = 24.0,
    workers: Annotated[int, typer.Option(help="Workers that train shards side by side.")] = 1,
    price: Annotated[float, typer.Option(help="Money per hour of one worker.")] = 0.0,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Another value of the service, such as model_bytes=5e8."
        ),
    ] = None,
    accuracy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD:SHARDS=VALUE", help="A measured accuracy, such as sisa:5=0.93; may be repeated."
        ),
    ] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="Recommend nothing below.")] = None,
    max_storage: Annotated[
        float | None, typer.Option(help="Recommend nothing that keeps more bytes.")
    ] = None,
    max_missed: Annotated[float, typer.Option(help="Largest share of missed deadlines.")] = 0.0,
    empirical: Annotated[
        bool, typer.Option("--empirical", help="Forgetting that is only audited is good enough.")
    ] = False,
    chart: Annotated[
        Path | None, typer.Option(help="File for a chart, as a Vega-Lite specification.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes the draws.")] = 0,
    json: Json = False,
) -> None:
    """Simulate a stream of requests against methods, shards and slices, and recommend.

    Name only methods that fit your model: s3t needs adapters, acu a linear head on a frozen backbone. Accuracy is known only
    where you say what you measured.
    """
    from expunge.extras import load_extra

    load_extra("sqlalchemy", "ledger", "the ledger")
    from expunge.cli.problem import assigned
    from expunge.ledger.planning import Limits, Service, Stream, simulate

    asked: dict[str, Any] = {
        "users": users, "yearly": yearly, "rows": rows, "together": together, "bursts": bursts, "deadline": deadline,
        "days": days,
    }  # fmt: skip
    found = simulate(
        Stream(**asked),
        Service(**{
            "training": 3600 * training, "window": window, "workers": workers, "price": price, **assigned(set_ or [])
        }),
        options(
            method or ["retrain", "sisa"], numbers("shards", shards), numbers("slices", slices),
            numbers("sequences", sequences),
        ),
        Limits(missed=max_missed, accuracy=min_accuracy, storage=max_storage, empirical=empirical),
        dict(map(point, accuracy or [])),
        seed,
    )  # fmt: skip
    if chart is not None:
        chart.write_text(json_module.dumps(drawn(found), indent=1) + "\n")
    if json:
        print_json(found)
    else:
        show(found)


def options(
    methods: Sequence[str], shards: Sequence[int], slices: Sequence[int], sequences: Sequence[int]
) -> list[Option]:
    """Every combination that there is."""
    from expunge.ledger.planning import Option

    made: list[Option] = []
    for name in dict.fromkeys(methods):
        if name not in METHODS:
            raise BadInput(
                f"nothing is known of what '{name}' costs{did_you_mean(name, METHODS)}; choose from {', '.join(METHODS)}"
            )
        grid: list[dict[str, Any]] = [{}]
        if name in ("sisa", "s3t"):
            grid = [{"shards": s, "slices": r} for s, r in itertools.product(shards, slices)]
        if name == "s3t":
            grid = [{**cell, "sequences": b} for cell in grid for b in sequences if b <= cell["slices"]]
        made += [Option(method=name, **cell) for cell in grid]
    return made


def numbers(name: str, text: str) -> list[int]:
    """Whole numbers of at least 1 that commas separate."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise BadInput(f"--{name} '{text}' is not a list of positive whole numbers; write it such as 5,10,20")
    return list(dict.fromkeys(map(int, parts)))


def point(text: str) -> tuple[Any, float]:
    """`((method, shards), accuracy)` from METHOD:SHARDS=VALUE; without shards it is 1."""
    try:
        key, value = text.split("=")
        name, _, shards = key.partition(":")
        if name not in METHODS or int(shards or 1) < 1:
            raise ValueError
        return (name, int(shards or 1)), float(value)
    except ValueError:
        raise BadInput(
            f"--accuracy '{text}' is not METHOD:SHARDS=VALUE; write it such as sisa:5=0.93"
        ) from None


def show(plan: Plan) -> None:
    """The table and the recommendation, for people."""
    rows = [
        [
            f.label, f"{f.trainings:.4g}", f"{f.hours:.4g}", *([f"{f.money:.4g}"] if plan.service.price else []),
            f"{f.utilization:.3g}", f"{f.latency.median:.3g}" if f.latency else "", f"{f.latency.p99:.3g}" if f.latency else "",
            f"{100 * f.missed:.3g}", "" if f.accuracy is None else f"{f.accuracy:.4g}", f"{f.storage / 1e9:.3g}",
        ]
        for f in plan.forecasts
    ]  # fmt: skip
    columns = [
        "option",
        "trainings",
        "hours",
        *(["money"] if plan.service.price else []),
        "busy",
        "median days",
        "99 % days",
    ]
    title = f"{plan.requests:,} requests of {plan.stream.users:,} users within {plan.stream.days:g} days"
    print_table([*columns, "missed %", "accuracy", "storage GB"], rows, title)
    for f in plan.forecasts:
        if f.capacity is not None:
            sys.stdout.write(
                f"  {f.label}: adapters stand {f.capacity:.0f} deletions on average before no shard has any left\n"
            )
    sys.stdout.write(f"{'recommended' if plan.recommended else 'no recommendation'}: {plan.reason}\n")


def drawn(plan: Plan) -> dict[str, Any]:
    """A Vega-Lite chart of the 99th percentile of latency against work."""
    from expunge.report import vega

    rows = [
        {
            "option": f.label,
            "method": f.option.method,
            "hours": vega.rounded(f.hours),
            "days": vega.rounded(f.latency.p99),
        }
        for f in plan.forecasts
        if f.latency is not None
    ]
    encoding = {
        "x": vega.quantity("hours", title="Hours of one worker (symlog scale)", scale={"type": "symlog"}),
        "y": vega.quantity("days", title="99th percentile of latency, days"),
        "color": {"field": "method", "type": "nominal"},
        "tooltip": vega.tips(("option",), ("hours", "hours", ".4~r"), ("days", "days", ".4~r")),
    }
    mark = {"type": "point", "filled": True, "size": 70}
    return vega.chart(rows, "Latency against work", mark=mark, encoding=encoding)
