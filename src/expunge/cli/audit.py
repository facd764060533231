"""`expunge audit`: measure and attack models that somebody made."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from expunge.cli import problem as options
from expunge.cli.output import Json, notice, print_claim, print_json, print_scores
from expunge.errors import BadInput

if TYPE_CHECKING:
    from torch import nn

    from expunge.attacks import Attack
    from expunge.methods import Method
    from expunge.problem import Problem
    from expunge.record import Claimed


def audit(
    model: Annotated[list[str] | None, typer.Option(help="Model to judge; may be repeated.")] = None,
    target: Annotated[str | None, typer.Option(help="The model before forgetting.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Model that adapters belong to, where their folder does not name it.")
    ] = None,
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
        str | None,
        typer.Option(help="Metrics, separated by commas; default: standard, which may be one of them."),
    ] = None,
    attacks: Annotated[
        str | None,
        typer.Option(
            help="Attacks, separated by commas (expunge list attacks); 'standard': what a claim needs, in seconds each; "
            "'all': all that fit."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Parameter of an attack, such as lira.shadows=32; may be repeated."),
    ] = None,
    claim: Annotated[
        str | None,
        typer.Option(
            help="What is claimed of the models: exact, removal or suppression; default: what the record beside them says of the "
            "method, else removal. It is tested and may be lowered, never raised."
        ),
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(help="Tasks of the lm-eval harness, separated by commas, for language models."),
    ] = None,
    lm_eval_folder: Annotated[
        Path | None, typer.Option(help="Folder with further tasks of the harness, in YAML.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps")] = "cpu",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for scores.json, report.html, report.json and claims.md (for a model card), and for what was "
            "measured: the same command again computes only what is missing."
        ),
    ] = None,
    self_check: Annotated[
        bool,
        typer.Option(
            "--self-check",
            help="Audit the auditor instead: models with planted residue and clean ones are made and judged blind; --family, "
            "--attacks and --out apply.",
        ),
    ] = False,
    models: Annotated[int, typer.Option(help="Self-check: models of each construction.", min=1)] = 5,
    calibration: Annotated[
        int,
        typer.Option(help="Self-check: retrained models to compare with, none of which is judged.", min=2),
    ] = 6,
    json: Json = False,
) -> None:
    """Measure models and judge them against retrained references. Without --reference, what needs one reads undefined."""
    if out is not None and out.exists() and not out.is_dir():
        raise BadInput(f"--out '{out}' is a file; name a folder, which is made where it does not exist")
    if self_check:
        from expunge.cli.self_check import check

        check(family, attacks, models, calibration, out, json)
    if not model:
        raise BadInput(
            "there is no model to judge: give --model FOLDER, or --self-check to judge the auditor"
        )
    from expunge import api
    from expunge.files import write_atomic
    from expunge.report import ReportInput, write_report
    from expunge.report.card import claim_sections

    names = [_label(m) for m in model]
    if len(set(names)) != len(names):
        raise BadInput(
            f"two models are called '{next(n for n in names if names.count(n) > 1)}'; rename one of the folders"
        )
    twice = next((r for r in reference or [] if (reference or []).count(r) > 1), None)
    if twice is not None:
        raise BadInput(
            f"--reference '{twice}' is given twice; one retrained model counts once, and only further seeds show a spread"
        )
    spec = options.problem_spec(
        problem, benchmark=benchmark, model=None if benchmark or problem else target or base or model[0], data=data,
        forget=forget, family=family, holdout=holdout, test=test, target=target_column, id=id_column, group=group_column,
        inputs=options.columns(inputs), allow_pickle=allow_pickle,
    )  # fmt: skip
    built = spec.build(Path.cwd(), notice=notice)
    records = {n: _record(m) for n, m in zip(names, model, strict=True)}
    loaded = {n: _load(m, built, allow_pickle, base) for n, m in zip(names, model, strict=True)}
    references = [_load(r, built, allow_pickle, base) for r in reference or []]
    _notice_copies(reference or [], references)
    beneath = (
        {n: _beneath(m, allow_pickle, base) for n, m in zip(names, model, strict=True)} if attacks else {}
    )
    before = _load(target, built, allow_pickle) if target else None
    scores, losses = api.audit_with_losses(
        replace(built, model=before), loaded, retrained=references, metrics=options.columns(metrics),
        attacks=_attacks(attacks, set_ or []), methods=_methods(records), claim=_claim(claim),
        bases={n: m for n, m in beneath.items() if m is not None},
        guarantees=_guarantees(records, loaded, built), device=device, name=out.name if out else "audit", folder=out,
        progress=notice,
    )  # fmt: skip
    tasks = options.columns(lm_eval)
    if tasks:
        from expunge.evidence.lm_eval import task_scores

        everyone = {**loaded, **({} if before is None else {"target": before})}
        for judged in scores.judged:
            one = references[judged.seed] if judged.method == "retrain" else everyone[judged.label]
            judged.scores += task_scores(built.family, one, tasks, task_folder=lm_eval_folder, device=device)
    if out is not None:
        scores.write(out / "scores.json")
        write_atomic(out / "claims.md", claim_sections([c for c in scores.claims if c.label in loaded]))
        write_report(ReportInput(scores, losses, "expunge " + shlex.join(sys.argv[1:])), out)
    failed = [s for j in scores.judged for s in j.scores if s.status == "failed"]
    if json:
        print_json(scores)
        raise typer.Exit(1 if failed else 0)
    print_scores(scores)
    for one in scores.claims:
        print_claim(one)
    for verdict in scores.verdicts:
        sys.stdout.write(f"{verdict.label}: {verdict.metric} on {verdict.split}: {verdict.sentence}\n")
    if not references:
        sys.stdout.write("no retrained reference was given: scores that compare with one are undefined\n")
    if out is not None:
        sys.stdout.write(f"report: {out / 'report.html'}\n")
    for reason in dict.fromkeys(f"{s.metric}: {s.reason}" for s in failed):
        sys.stderr.write(f"failed: {reason}\n")
    raise typer.Exit(1 if failed else 0)


def _label(reference: str) -> str:
    """What tables call a model: its folder, told from the rows that are called so anyway."""
    name = Path(reference).name or reference
    return f"{name}, audited" if name in ("target", "retrain") else name


def _notice_copies(names: list[str], models: list[nn.Module]) -> None:
    """Say where references have equal weights: copies of one model would show no spread."""
    from expunge.families.models import fingerprint

    by_weights: dict[str, str] = {}
    for name, model in zip(names, models, strict=True):
        first = by_weights.setdefault(fingerprint(model), name)
        if first != name:
            notice(
                f"references '{first}' and '{name}' have the same weights; where retraining depends on a seed they are one "
                "model, and the spread of retrained models is taken for smaller than it is"
            )


def _claim(given: str | None) -> Claimed | None:
    from expunge.errors import did_you_mean

    if given is None or given == "exact" or given == "removal" or given == "suppression":
        return given
    raise BadInput(
        f"a claim is exact, removal or suppression, got '{given}'{did_you_mean(given, ('exact', 'removal', 'suppression'))}"
    )


def _beneath(reference: str, allow_pickle: bool, base: str | None) -> nn.Module | None:
    """What adapters were put on, where the model is handed over as adapters."""
    from expunge.data.checkpoints import beneath_adapters

    return beneath_adapters(reference, Path.cwd(), allow_pickle=allow_pickle, under=base)


def _attacks(given: str | None, assignments: list[str]) -> Literal["standard", "all"] | list[Attack]:
    """The attacks named on the command line, with the parameters that `--set` gives them."""
    from expunge.errors import did_you_mean
    from expunge.studies.spec import AttackSpec, find_attack, override

    if given == "standard" or given == "all":
        if assignments:
            raise BadInput(f"--set {assignments[0]!r} needs the attacks by name, not --attacks {given}")
        return given
    # By its own name, which is not what was given where a class of a file, or the beginning of a name, was.
    names = {find_attack(name).name: name for name in options.columns(given) or []}
    chosen = override({name: {} for name in names}, assignments)
    strange = next((name for name in chosen if name not in names), None)
    if strange is not None:
        raise BadInput(f"--set '{strange}...' is about no attack in --attacks{did_you_mean(strange, names)}")
    return [
        AttackSpec(name=names[name], parameters=parameters).resolve() for name, parameters in chosen.items()
    ]


def _record(reference: str) -> dict[str, Any]:
    """What `expunge forget` wrote beside a model; empty where nothing is."""
    from expunge.files import read_json

    file = Path(reference).expanduser() / "expunge.json"
    return read_json(file) if file.is_file() else {}


def _methods(records: dict[str, dict[str, Any]]) -> dict[str, Method]:
    """The methods that made the models, where their records say so and they are known here."""
    from expunge.methods import METHODS

    return {
        name: METHODS[record["method"]](**record.get("parameters", {}))
        for name, record in records.items()
        if record.get("method", "") in METHODS
    }


def _guarantees(
    records: dict[str, dict[str, Any]], models: dict[str, nn.Module], problem: Problem
) -> dict[str, str]:
    """The guarantee of a model's method, where its record was written with these weights, for this data and this request."""
    from expunge.families.models import fingerprint
    from expunge.methods import METHODS

    card, found = problem.card(), {}
    for name, record in records.items():
        about = record.get("problem", {})
        same = all(about.get(key) == card[key] for key in ("train_digest", "forget_digest"))
        if (
            record.get("method", "") in METHODS
            and same
            and record.get("fingerprint") == fingerprint(models[name])
        ):
            found[name] = METHODS[record["method"]].guarantee
    return found


def _load(reference: str, problem: Problem, allow_pickle: bool, base: str | None = None) -> nn.Module:
    """A model by folder or hub id, adapters on `base`, or a file of weights for the problem's own architecture."""
    from expunge.data.checkpoints import load_checkpoint
    from expunge.families.weights import load_weights, read_weights

    path = Path(reference).expanduser()
    if path.is_file():
        model = problem.fresh_model(0)
        load_weights(model, read_weights(path, allow_pickle=allow_pickle), reference)
        return model.eval()
    model = load_checkpoint(reference, Path.cwd(), allow_pickle=allow_pickle, notice=notice, under=base).model
    if model is None:
        raise BadInput(f"'{reference}' has no weights to judge")
    return model
