"""`expunge forget`: one method on one model."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli import problem as options
from expunge.cli.output import Json, Set, notice, print_json
from expunge.errors import BadInput


def forget(
    method: Annotated[
        str, typer.Option(help="Name of a method, or ./file.py:Class, whose code is then imported.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the unlearned model; must not exist.")],
    problem: options.ProblemFile = None,
    benchmark: options.Benchmark = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model: folder or hub id of transformers, a folder written by expunge, or package.module:factory."
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="safetensors file with the weights of package.module:factory.")
    ] = None,
    data: options.Data = None,
    forget: options.Forget = None,
    retain: Annotated[
        str | None, typer.Option(help="Data to keep, where --data holds only the rows to forget.")
    ] = None,
    family: options.Family = None,
    holdout: options.Holdout = None,
    test: options.Test = None,
    target_column: options.Column = None,
    id_column: options.IdColumn = None,
    group_column: options.GroupColumn = None,
    inputs: options.Inputs = None,
    allow_pickle: options.AllowPickle = False,
    seed: Annotated[int, typer.Option(help="Fixes everything random.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps")] = "cpu",
    save_target: Annotated[
        Path | None, typer.Option(help="Folder for the target, where this command trains it.")
    ] = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Forget with one method, and write the model that is left with a model card.

    Interrupted, the same command goes on from the last checkpoint.
    """
    from expunge import api
    from expunge.families.models import save_model
    from expunge.files import folder_atomic
    from expunge.report.card import model_card
    from expunge.studies.spec import find_method

    if out.exists() and any(out.iterdir()):
        raise BadInput(f"'{out}' exists already; choose another --out, or remove it first")
    if ":" in method:
        notice(f"importing {method}, which runs its code")
    chosen = find_method(method)(**options.assigned(set_ or []))
    rows = {"data": data} if retain is None else {"forget_data": data, "retain": retain}
    spec = options.problem_spec(
        problem, benchmark=benchmark, model=_model(model, weights), forget=forget, family=family, **rows,
        holdout=holdout, test=test, target=target_column, id=id_column, group=group_column, inputs=options.columns(inputs),
        allow_pickle=allow_pickle,
    )  # fmt: skip
    built = spec.build(Path.cwd(), notice=notice)
    obstacles = chosen.obstacles(built)
    if obstacles:
        raise BadInput(f"method '{chosen.name}' cannot run on {built.name}: {'; '.join(obstacles)}")
    if built.model is None:
        notice(f"{built.name} has no trained target; training one by its recipe")
        built = api.train_target(built, seed, device)
    scratch = out.parent / f".{out.name}.checkpoint"
    with _bar(json) as on_step:
        forgotten = api.forget(built, chosen, seed=seed, device=device, checkpoint=scratch, on_step=on_step)
    facts: dict[str, Any] = {
        "method": chosen.name, "parameters": chosen.model_dump(mode="json"), "seed": seed, "cost": asdict(forgotten.cost),
        "notes": forgotten.notes, "problem": built.card(),
    }  # fmt: skip
    family_facts = built.family.describe()
    if save_target is not None:
        with folder_atomic(save_target) as folder:
            save_model(
                built.target,
                folder,
                built.architecture,
                family_facts,
                {"method": "target", "problem": built.card()},
            )
    with folder_atomic(out) as folder:
        save_model(forgotten.model, folder, built.architecture, family_facts, facts)
        (folder / "README.md").write_text(model_card(facts))
    shutil.rmtree(scratch, ignore_errors=True)
    if json:
        from expunge.families.models import fingerprint

        print_json(options.Exported(folder=str(out), model_id=fingerprint(forgotten.model), **facts))
        return
    cost = forgotten.cost
    sys.stdout.write(
        f"{chosen.name} on {built.name}: {len(built.forget_rows)} of {len(built.train)} rows, {cost.seconds:.2f} s, "
        f"{cost.passes:.2f} passes over the data, {cost.changed:,} of {cost.parameters:,} parameters changed\n"
    )
    for line in forgotten.notes:
        sys.stdout.write(f"note: {line}\n")
    sys.stdout.write(f"model: {out}\n")


def _model(model: str | None, weights: Path | None) -> Any:
    if model is None:
        if weights is not None:
            raise BadInput(
                "--weights needs --model package.module:factory, which builds the model they belong to"
            )
        return None
    if weights is None and ":" not in model:
        return model
    return {"factory": model, "weights": None if weights is None else str(weights)}


def _bar(hidden: bool) -> Any:
    """A progress bar over training steps, as a context manager that gives the `on_step` callback."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import Progress

    @contextmanager
    def shown() -> Any:
        console = Console(stderr=True)
        if hidden or not console.is_terminal:
            yield None
            return
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("forgetting", total=None)
            yield lambda entry: progress.update(task, total=entry["of"], completed=entry["step"])

    return shown()
