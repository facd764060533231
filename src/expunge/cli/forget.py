"""`expunge forget`: one method on one model."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
from json import dumps as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from expunge.cli import problem as options
from expunge.cli.output import Json, Set, notice, print_json
from expunge.errors import BadInput

if TYPE_CHECKING:
    from torch import nn

    from expunge.methods.base import Forgotten
    from expunge.methods.lora import SavedAdapter


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
    concept: options.Concept = None,
    anchor: options.Anchor = None,
    preserve: options.Preserve = None,
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
    accelerate: Annotated[
        Literal["ddp", "fsdp2"] | None,
        typer.Option(
            help="Share the work among processes: ddp, a whole model in each; fsdp2, a part of it. Also under torchrun."
        ),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes to start; default: one for each CUDA device.")
    ] = None,
    lora: options.Lora = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Forget with one method, and write the model that is left with a model card.

    Interrupted, the same command goes on from the last checkpoint.
    """
    arguments = dict(locals())
    from expunge import api
    from expunge.families import Diffusion
    from expunge.families.membranes import Permeable
    from expunge.families.models import innermost
    from expunge.families.pipelines import save_pipeline, save_pipeline_adapter
    from expunge.families.sparse_features import Ablated
    from expunge.families.weights import save_model
    from expunge.files import folder_atomic
    from expunge.methods import distributed
    from expunge.methods.footprint import footprint
    from expunge.methods.sharding import check_sharded
    from expunge.report.card import model_card
    from expunge.studies.spec import find_method

    team = distributed.ALONE
    if distributed.launched():
        team = distributed.join(accelerate or "ddp", device)
    elif processes is not None and accelerate is None:
        raise BadInput("--processes says how many, not how; add --accelerate ddp or --accelerate fsdp2")
    say = notice if team.rank == 0 else _silent
    if team.rank == 0 and out.exists() and any(out.iterdir()):
        raise BadInput(f"'{out}' exists already; choose another --out, or remove it first")
    if ":" in method:
        say(f"importing {method}, which runs its code")
    found = find_method(method)
    chosen = found(**{**options.assigned(set_ or []), **options.adapters(found, lora)})
    rows = {"data": data} if retain is None else {"forget_data": data, "retain": retain}
    spec = options.problem_spec(
        problem, benchmark=benchmark, model=_model(model, weights), forget=forget, family=family, **rows,
        holdout=holdout, test=test, target=target_column, id=id_column, group=group_column, inputs=options.columns(inputs),
        allow_pickle=allow_pickle, concept=concept, anchor=anchor, preserve=preserve or None,
    )  # fmt: skip
    if accelerate is not None and team is distributed.ALONE:
        if accelerate == "fsdp2":
            check_sharded(chosen)
        distributed.launch(_member, arguments, distributed.members_for(device, processes))
        return
    # Shards are on the devices; whole models stay where there is room for them.
    home = "cpu" if team.kind == "fsdp2" else device
    built = spec.build(Path.cwd(), notice=say)
    obstacles = chosen.obstacles(built)
    if obstacles:
        raise BadInput(f"method '{chosen.name}' cannot run on {built.name}: {'; '.join(obstacles)}")
    if built.model is None:
        say(f"{built.name} has no trained target; training one by its recipe")
        built = api.train_target(built, seed, home)
    if (estimate := footprint(built, chosen)) is not None:
        say(f"memory of a step beside the target, estimated: {estimate}")
    scratch = out.parent / f".{out.name}.checkpoint"
    with _bar(json or team.rank > 0) as on_step:
        forgotten = api.forget(built, chosen, seed=seed, device=home, checkpoint=scratch, on_step=on_step)
    if team.rank:
        return
    adapter = _separable(forgotten, built.target)
    pipeline = built.family if isinstance(built.family, Diffusion) else None
    if isinstance(forgotten.model, Permeable):
        forgotten.notes.append(
            "a plain pipeline has no gates: in OUT/pipeline the adapter is always in; to have prompts let it in, load "
            "OUT/adapter and set its weight for each prompt, or use the model in OUT"
        )
    if isinstance(forgotten.model, Ablated):
        pipeline = None
        forgotten.notes.append(
            "a plain pipeline of diffusers cannot hold what is changed while images are drawn, so that none is written; the "
            "folder is read by expunge"
        )
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
        if pipeline is not None:
            save_pipeline(innermost(_plain(forgotten.model)), pipeline, folder / "pipeline")
        if adapter is not None:
            base = (
                save_target
                if save_target is not None
                else spec.model
                if isinstance(spec.model, str)
                else None
            )
            write_adapter(adapter, folder / "adapter", base, built.target, facts)
            if isinstance(built.family, Diffusion):
                save_pipeline_adapter(
                    {name: adapter.pair(name) for name in adapter.layers}, folder / "adapter"
                )
    shutil.rmtree(scratch, ignore_errors=True)
    if json:
        from expunge.families.models import fingerprint

        beside = None if adapter is None else str(out / "adapter")
        model_id = fingerprint(forgotten.model)
        print_json(options.Exported(folder=str(out), adapter=beside, model_id=model_id, **facts))
        return
    cost = forgotten.cost
    sys.stdout.write(
        f"{chosen.name} on {built.name}: {len(built.forget_rows)} of {len(built.train)} rows, {cost.seconds:.2f} s, "
        f"{cost.passes:.2f} passes over the data"
        + (f", {cost.changed:,} of {cost.parameters:,} parameters changed\n" if cost.parameters else "\n")
    )
    for line in forgotten.notes:
        sys.stdout.write(f"note: {line}\n")
    sys.stdout.write(f"model: {out}\n")
    if pipeline is not None:
        sys.stdout.write(f"for diffusers: {out / 'pipeline'}\n")
    if adapter is not None:
        sys.stdout.write(f"adapter: {out / 'adapter'}\n")


def _plain(model: nn.Module) -> nn.Module:
    """The model without gates: of adapters that prompts let in, the one in which they are always in."""
    from expunge.families.membranes import Permeable

    return model.merged() if isinstance(model, Permeable) else model


def _separable(forgotten: Forgotten, target: nn.Module) -> SavedAdapter | None:
    """The adapters, where the target with them is the unlearned model; a note where it is not."""
    adapter = forgotten.adapter
    if adapter is None or adapter.explains(target, _plain(forgotten.model)):
        return adapter
    forgotten.notes.append(
        "more than the adapters differs from the target, so that they are not written by themselves"
    )
    return None


def write_adapter(
    adapter: SavedAdapter, folder: Path, base: Path | str | None, target: nn.Module, facts: dict[str, Any]
) -> None:
    """Write a folder that ``peft`` reads, with a model card and what `expunge audit` needs to know of it."""
    from expunge.families.models import fingerprint
    from expunge.report.card import adapter_card

    named = (
        None
        if base is None
        else str(Path(base).expanduser().resolve() if Path(base).expanduser().exists() else base)
    )
    base_id = fingerprint(target)
    adapter.write(folder, named)
    record = {**facts, "base": named, "base_id": base_id}
    (folder / "expunge.json").write_text(json_text(record, indent=2, sort_keys=True))
    (folder / "README.md").write_text(adapter_card(facts, named, base_id))


def _member(**arguments: Any) -> None:
    """The same command in one of the processes that it starts."""
    from expunge.cli.main import quiet_libraries

    quiet_libraries()
    forget(**arguments)


def _silent(sentence: str) -> None:
    """What `notice` is in all processes but the first."""


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
