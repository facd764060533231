"""`expunge audit`: measure models that somebody made, without training anything."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli import problem as options
from expunge.cli.output import Json, notice, print_json, print_scores
from expunge.errors import BadInput

if TYPE_CHECKING:
    from torch import nn

    from expunge.problem import Problem


def audit(
    model: Annotated[list[str], typer.Option(help="Model to judge; may be repeated.")],
    target: Annotated[str | None, typer.Option(help="The model before forgetting.")] = None,
    reference: Annotated[
        list[str] | None, typer.Option(help="Model trained without the forget set; may be repeated.")
    ] = None,
    problem: options.ProblemFile = None,
    benchmark: options.Benchmark = None,
    data: options.Data = None,
    forget: options.Forget = None,
    family: options.Family = None,
    holdout: options.Holdout = None,
    test: options.Test = None,
    target_column: options.Column = None,
    id_column: options.IdColumn = None,
    group_column: options.GroupColumn = None,
    inputs: options.Inputs = None,
    allow_pickle: options.AllowPickle = False,
    metrics: Annotated[
        str | None, typer.Option(help="Metrics, separated by commas; default: all that fit.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Folder for scores.json, report.html and report.json.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure models and judge them against retrained references. Without --reference, what needs one reads undefined."""
    from expunge import api
    from expunge.report import ReportInput, write_report

    names = [Path(m).name or m for m in model]
    if len(set(names)) != len(names):
        raise BadInput(
            f"two models are called '{next(n for n in names if names.count(n) > 1)}'; rename one of the folders"
        )
    spec = options.problem_spec(
        problem, benchmark=benchmark, model=None if benchmark or problem else target or model[0], data=data,
        forget=forget, family=family, holdout=holdout, test=test, target=target_column, id=id_column, group=group_column,
        inputs=options.columns(inputs), allow_pickle=allow_pickle,
    )  # fmt: skip
    built = spec.build(Path.cwd(), notice=notice)
    loaded = {n: _load(m, built, allow_pickle) for n, m in zip(names, model, strict=True)}
    references = [_load(r, built, allow_pickle) for r in reference or []]
    before = _load(target, built, allow_pickle) if target else None
    scores, losses = api.audit_with_losses(
        replace(built, model=before), loaded, retrained=references, metrics=options.columns(metrics), device=device,
        name=out.name if out else "audit",
    )  # fmt: skip
    if out is not None:
        scores.write(out / "scores.json")
        write_report(ReportInput(scores, losses, "expunge " + shlex.join(sys.argv[1:])), out)
    if json:
        print_json(scores)
        return
    print_scores(scores)
    for verdict in scores.verdicts:
        sys.stdout.write(f"{verdict.label}: {verdict.metric} on {verdict.split}: {verdict.sentence}\n")
    if not references:
        sys.stdout.write("no retrained reference was given: scores that compare with one are undefined\n")
    if out is not None:
        sys.stdout.write(f"report: {out / 'report.html'}\n")


def _load(reference: str, problem: Problem, allow_pickle: bool) -> nn.Module:
    """A model by folder or hub id, or a file of weights for the problem's own architecture."""
    from expunge.data.checkpoints import load_checkpoint
    from expunge.families.models import load_weights, read_weights

    path = Path(reference).expanduser()
    if path.is_file():
        model = problem.fresh_model(0)
        load_weights(model, read_weights(path, allow_pickle=allow_pickle), reference)
        return model.eval()
    model = load_checkpoint(reference, Path.cwd(), allow_pickle=allow_pickle, notice=notice).model
    if model is None:
        raise BadInput(f"'{reference}' has no weights to judge")
    return model
