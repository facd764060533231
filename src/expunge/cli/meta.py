"""`expunge meta-evaluate`: how far the metrics and attacks themselves can be trusted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli.output import Json, Set, notice, print_json, print_table

if TYPE_CHECKING:
    from expunge.studies.meta_evaluation import MetaEvaluation


def meta_evaluate(
    study: Annotated[
        str,
        typer.Argument(
            help="Study whose problems, methods, metrics and attacks are taken; default: an embedded one of digits; 'meta-text' "
            "is one of a language model."
        ),
    ] = "meta",
    models: Annotated[int, typer.Option(help="Models in each pool; at least 3.", min=1)] = 5,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a JSON file per problem; the same command again goes on from what is there."
        ),
    ] = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Train models with and without the forget set, and see which metrics and attacks tell them apart."""
    from expunge.studies.graph import chosen_attacks, chosen_metrics
    from expunge.studies.meta_evaluation import meta_evaluation
    from expunge.studies.study import load_study

    spec, _, base = load_study(study, set_ or [])
    methods = [(m.shown(), m.resolve()) for m in spec.methods if m.name != "retrain"]
    made = []
    for problem_spec in spec.problems:
        problem = problem_spec.build(base, notice=notice)
        fitting = [(label, method) for label, method in methods if not method.obstacles(problem)]
        attacks = [attack for _, attack in chosen_attacks(spec, problem)]
        found = meta_evaluation(
            problem, chosen_metrics(spec, problem), attacks, fitting, models=models,
            folder=None if out is None else out / "kept", notice=notice,
        )  # fmt: skip
        if out is not None:
            found.write(out / f"{problem.name}.json")
        made.append(found)
        if not json:
            _print(found)
    if json:
        print_json([found.model_dump(mode="json") for found in made])
    elif out is not None:
        sys.stdout.write(f"written: {out}\n")


def _print(found: MetaEvaluation) -> None:
    rows = [
        [q.metric, *(_shown(v) for v in (q.auc, q.relearning, q.quantization, q.overall)), q.reason[:60]]
        for q in found.qualities
    ]
    columns = ["number", "faithful (AUC)", "relearning", "4 bits", "harmonic mean", ""]
    print_table(columns, rows, f"{found.problem['name']}: {found.models} + {found.models} models")


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
