"""`expunge find`: which rows matter."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli import problem as options
from expunge.cli.output import Json, Set, notice, print_json, print_table
from expunge.errors import BadInput

app = typer.Typer(help="Find which rows matter, and which give probes away.", no_args_is_help=True)

EXAMPLE = "Example: expunge find worst-case --benchmark digits --size 50 --out ids.txt"


@app.command("worst-case", epilog=EXAMPLE)
def worst_case(
    size: Annotated[int, typer.Option(min=1, help="How many rows to find.")],
    out: Annotated[Path, typer.Option(help="File for their ids, one per line; must not exist.")],
    problem: options.ProblemFile = None,
    benchmark: options.Benchmark = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model: folder or hub id of transformers, or a folder written by expunge."),
    ] = None,
    data: options.Data = None,
    family: options.Family = None,
    target_column: options.Column = None,
    id_column: options.IdColumn = None,
    group_column: options.GroupColumn = None,
    inputs: options.Inputs = None,
    allow_pickle: options.AllowPickle = False,
    easiest: Annotated[
        bool, typer.Option("--easiest", help="The rows easiest to forget instead of the hardest.")
    ] = False,
    random_sets: Annotated[
        int, typer.Option(min=0, help="Random sets of the same size to compare with.")
    ] = 19,
    seed: Annotated[int, typer.Option(help="Fixes everything random.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps")] = "cpu",
    set_: Set = None,
    json: Json = False,
) -> None:
    """Find the training rows that stay best remembered after forgetting (Fan et al., ECCV 2024).

    The hardest are rows that a model without them still predicts: they test claims about forget accuracy.
    The easiest are atypical rows. Settings of the search: --set rounds=20, epochs, lr, step, batch_size.
    """
    from expunge import api
    from expunge.files import write_atomic
    from expunge.find.worst_case import Search, find_worst_case

    if out.exists():
        raise BadInput(f"'{out}' exists already; choose another --out, or remove it first")
    search = Search(**{**options.assigned(set_ or []), "size": size, "easiest": easiest, "seed": seed})
    spec = options.problem_spec(
        problem, benchmark=benchmark, model=model, data=data, family=family, target=target_column, id=id_column,
        group=group_column, inputs=options.columns(inputs), allow_pickle=allow_pickle,
        # The search looks at all rows, and a problem is not complete without some to forget.
        forget=None if data is None else "fraction=0.1",
    )  # fmt: skip
    built = spec.build(Path.cwd(), notice=notice)
    if built.model is None:
        notice(f"{built.name} has no trained target; training one by its recipe")
        built = api.train_target(built, seed, device)
    with _bar(json) as on_step:
        found = find_worst_case(built, search, random_sets=random_sets, device=device, on_step=on_step)
    write_atomic(out, "\n".join(found.ids) + "\n")
    if json:
        print_json(
            {
                "file": str(out), "ids": found.ids, "search": search, "problem": built.card(), "history": found.history,
                "forget_loss": found.forget_loss, "random_losses": found.random_losses, "p_value": found.p_value,
                "overlap": found.overlap, "groups": found.groups,
            }
        )  # fmt: skip
        return
    _print(found, f"{size} rows of {built.name} {'easiest' if easiest else 'hardest'} to forget")
    sys.stdout.write(f"ids: {out}\n")


@app.command(
    "path-dependence",
    epilog="Example: expunge find path-dependence --benchmark digits --forget fraction=0.3 --method npo",
)
def path_dependence(
    problem: options.ProblemFile = None,
    benchmark: options.Benchmark = None,
    forget: options.Forget = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Method to try; may be repeated. Default: npo and gradient-difference."),
    ] = None,
    parts: Annotated[int, typer.Option(min=1, max=3, help="Stages that the data to keep is split into.")] = 2,
    seeds: Annotated[int, typer.Option(min=1, help="How many sets of initial weights.")] = 3,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps")] = "cpu",
    set_: Set = None,
    json: Json = False,
) -> None:
    """Find whether forgetting depends on the order in which the data was learned (Yu et al., 2025).

    Trains the same data in stages in every order, the forget set being one stage, forgets from each model, and
    compares how far the results differ between orders with how far retrained models do. Hyperparameters:
    --set npo.lr=0.005.
    """
    from dataclasses import asdict

    from expunge.studies.paths import PathSpec
    from expunge.studies.paths import path_dependence as run
    from expunge.studies.spec import find_method

    names = method or ["npo", "gradient-difference"]
    parameters = options.assigned(set_ or [])
    unknown = [name for name in parameters if name not in names]
    if unknown:
        raise BadInput(f"--set names '{unknown[0]}', which is none of the methods: {', '.join(names)}")
    methods = {name: find_method(name)(**parameters.get(name, {})) for name in names}
    built = options.problem_spec(problem, benchmark=benchmark, forget=forget).build(Path.cwd(), notice=notice)
    with _bar(json) as on_step:
        effects = run(
            built, methods, PathSpec(parts=parts, seeds=list(range(seeds))), device=device, on_step=on_step
        )
    if json:
        print_json({"problem": built.card(), "effects": [asdict(e) for e in effects]})
        return
    columns = [
        "model",
        "lowest",
        "highest",
        "difference",
        "sd over seeds",
        "p",
        "times retrained",
        "not matched",
    ]
    for quantity, split in dict.fromkeys((e.quantity, e.split) for e in effects):
        if split not in ("forget", "test"):
            continue  # the stages that were kept are in --json
        rows = [
            [e.model, *map(_number, (e.lowest, e.highest, e.delta, e.seed_sd, e.p_value, e.to_retrained)),
             str(e.unmatched or "")]
            for e in effects if (e.quantity, e.split) == (quantity, split)
        ]  # fmt: skip
        print_table(columns, rows, f"{built.name}: {quantity} on {split}, by order of the stages")
        sys.stdout.write("\n")


@app.command(
    "contamination",
    epilog="Example: expunge find contamination --benchmark tofu-mini",
)
def contamination(
    problem: options.ProblemFile = None,
    benchmark: options.Benchmark = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model, whose tokenizer reads the data: folder or hub id, as in forget."),
    ] = None,
    data: options.Data = None,
    forget: options.Forget = None,
    family: options.Family = None,
    holdout: options.Holdout = None,
    test: options.Test = None,
    target_column: options.Column = None,
    id_column: options.IdColumn = None,
    inputs: options.Inputs = None,
    ngram: Annotated[int, typer.Option(min=1, help="Words in a row that count as a trace.")] = 13,
    allow_pickle: options.AllowPickle = False,
    json: Json = False,
) -> None:
    """Find probes that stand in the training data, and retain rows that repeat what is to be forgotten.

    A probe that was trained on shows nothing about models that never saw it (probes of what is to be kept may be), and a
    copy of a forget row among the rows to keep teaches it again. Texts are compared by n-grams and near-duplicates, everything
    else by equal inputs; paraphrases are not found.
    """
    from dataclasses import asdict

    from expunge.find.contamination import contamination as compare

    built = options.problem_spec(
        problem, benchmark=benchmark, model=model, data=data, family=family, holdout=holdout, test=test,
        target=target_column, id=id_column, inputs=options.columns(inputs), allow_pickle=allow_pickle,
        forget=forget or (None if data is None else "fraction=0.1"),
    ).build(Path.cwd(), notice=notice)  # fmt: skip
    found = compare(built, ngram)
    if json:
        print_json({"problem": built.card(), "contamination": [asdict(c) for c in found]})
        return
    rows = [
        [f"{c.split} in {c.against}", str(c.n), *(_count(v) for v in (c.exact, c.overlapping, c.near)),
         "" if c.longest is None else f"{c.longest:.0%}"]
        for c in found
    ]  # fmt: skip
    columns = ["rows", "n", "equal", f"{ngram} words in common", "near-duplicates", "longest run"]
    print_table(
        columns,
        rows,
        f"{built.name}: what probes share with rows trained on, and forget rows with those to keep",
    )
    for c in found:
        if c.reason:
            sys.stdout.write(f"  {c.split} in {c.against}: undefined; {c.reason}\n")
        for pair in c.pairs:
            sys.stdout.write(
                f"  {c.split} '{pair.probe}' is like {c.against} '{pair.row}': {pair.similarity:.2f}\n"
            )
    if not any(c.found or c.reason for c in found):
        sys.stdout.write("  nothing found\n")


def _count(value: int | None) -> str:
    return "" if value is None else str(value)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3g}"


def _print(found: Any, title: str) -> None:
    rows = [["found", f"{found.forget_loss:.3g}"]]
    if found.random_losses:
        low, high = min(found.random_losses), max(found.random_losses)
        rows.append([f"{len(found.random_losses)} random sets, lowest", f"{low:.3g}"])
        rows.append([f"{len(found.random_losses)} random sets, highest", f"{high:.3g}"])
    print_table(["forget set", "mean loss after fine-tuning on the rest, nats"], rows, title)
    if found.p_value is not None:
        sys.stdout.write(f"p-value against random sets: {found.p_value:.2g}\n")
    if found.groups:
        sys.stdout.write("rows by group: " + ", ".join(f"{g} {n}" for g, n in found.groups.items()) + "\n")
    sys.stdout.write(f"{found.overlap:.0%} of the rows were in the random start\n")


@contextmanager
def _bar(hidden: bool) -> Iterator[Callable[[Mapping[str, Any]], None] | None]:
    """A progress bar over runs of the lower level, where standard error is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if hidden or not console.is_terminal:
        yield None
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("searching", total=None)
        yield lambda entry: progress.update(task, total=entry["of"], completed=entry["step"])
