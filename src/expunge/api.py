"""The verbs from Python: forget, audit, run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.attacks import Attack, Scene
from expunge.errors import BadInput, Missing
from expunge.evidence import Evidence
from expunge.families.models import fingerprint
from expunge.files import canonical_json, write_atomic
from expunge.methods.base import METHODS, Forgotten, Method, Workplace, keeps_target
from expunge.methods.loop import fit
from expunge.metrics.base import Metric, Role, chosen_metrics, standard_metrics
from expunge.problem import Problem
from expunge.record import Claimed, Judged, Score, ScoreFile
from expunge.report import read_run_folder, write_report
from expunge.studies.battery import Battery, identity
from expunge.studies.claims import claimed_of
from expunge.studies.graph import quantities
from expunge.studies.progress import Display
from expunge.studies.results import complete
from expunge.studies.runners import Runner
from expunge.studies.samples import LossSamples, retrained_label
from expunge.studies.spec import StudySpec, find_method
from expunge.studies.study import Finished, run_study
from expunge.studies.tuning import Budget


def train_target(problem: Problem, seed: int = 0, device: str = "cpu") -> Problem:
    """The problem with a target trained from scratch by its own recipe."""
    if problem.recipe is None:
        raise Missing(
            f"{problem.name}: there is neither a target model nor a recipe to train one; give one of them"
        )
    model = problem.fresh_model(seed).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return problem.with_model(fit(problem, model, "train", problem.recipe, Workplace(seed, device)))


def forget(
    problem: Problem,
    method: str | Method,
    *,
    seed: int = 0,
    device: str = "cpu",
    checkpoint: Path | None = None,
    on_step: Callable[[Mapping[str, Any]], None] | None = None,
    **parameters: Any,
) -> Forgotten:
    """Forget with one method.

    Args:
        problem: what to forget; without a target model one is trained first by the problem's recipe.
        method: a method, its name, or ``./file.py:Class``.
        seed: fixes everything random.
        device: where models run.
        checkpoint: folder for checkpoints; the same call again goes on from the last one.
        on_step: called after every training step.
        parameters: the method's hyperparameters, when it is given by name.

    Returns:
        The unlearned model, its cost, the log of losses and notes. The target is not changed.
    """
    if isinstance(method, str):
        method = find_method(method)(**parameters)
    elif parameters:
        method = method.replace(**parameters)
    if problem.model is None:
        problem = train_target(problem, seed, device)
    return method.forget(problem, Workplace(seed, device, checkpoint, on_step=on_step))


def audit(
    problem: Problem,
    models: nn.Module | Mapping[str, nn.Module],
    *,
    retrained: Sequence[nn.Module] = (),
    metrics: Sequence[str] | None = None,
    attacks: str | Sequence[str | Attack] = (),
    methods: Mapping[str, Method] | None = None,
    bases: Mapping[str, nn.Module] | None = None,
    claim: Claimed | None = None,
    guarantees: Mapping[str, str] | None = None,
    device: str = "cpu",
    name: str = "audit",
    folder: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> ScoreFile:
    """Measure models and judge them against retrained references. Nothing is trained, except by attacks that train.

    Args:
        problem: data and, as its model, the target before forgetting (optional).
        models: the model to judge, or several by name.
        retrained: models trained without the forget set; without them, scores that need one are undefined.
        metrics: names of metrics; default: all that fit the family.
        attacks: attacks on every model, the target and the retrained ones included: names or objects, or one name;
            'standard' for all that a claim needs and that take seconds, 'all' for all that fit.
        methods: by name of a model, the method that made it, where it is known; `u-lira` repeats it on shadow models, and
            what it means to do (removal, suppression) is the claim that is tested.
        bases: by name of a model, the one that it was handed over as adapters on, where it was; for `detach-guard`.
        claim: what the makers claim, for all models; default: what `methods` say, else removal.
        guarantees: by name of a model, the guarantee of the method that a record names which was written with these very
            weights; only with one can a claim of exactness stand.
        device: where models run.
        name: name of the record.
        folder: where evidence and the result of each attack are kept; the same call again computes nothing.
        progress: told a line when an attack is done.
    """
    return audit_with_losses(
        problem, models, retrained=retrained, metrics=metrics, attacks=attacks, methods=methods, bases=bases, claim=claim,
        guarantees=guarantees, device=device, name=name, folder=folder, progress=progress,
    )[0]  # fmt: skip


def audit_with_losses(
    problem: Problem,
    models: nn.Module | Mapping[str, nn.Module],
    *,
    retrained: Sequence[nn.Module] = (),
    metrics: Sequence[str] | None = None,
    attacks: str | Sequence[str | Attack] = (),
    methods: Mapping[str, Method] | None = None,
    bases: Mapping[str, nn.Module] | None = None,
    claim: Claimed | None = None,
    guarantees: Mapping[str, str] | None = None,
    device: str = "cpu",
    name: str = "audit",
    folder: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[ScoreFile, LossSamples]:
    """`audit`, and the per-example losses that a report draws."""
    battery = Battery(problem, attacks, device, folder, progress)
    chosen = standard_metrics(problem.family) if metrics is None else chosen_metrics(metrics, problem.family)
    named = {"audited": models} if isinstance(models, nn.Module) else dict(models)
    taken = next((label for label in named if label in ("target", "retrain")), None)
    if taken is not None:
        raise BadInput(
            f"an audited model cannot be called '{taken}', as the models to compare with are; rename it"
        )
    rows: list[tuple[str, str, int, nn.Module]] = (
        [] if problem.model is None else [("target", "target", 0, problem.model)]
    )
    rows += [("retrain", "retrain", i, m) for i, m in enumerate(retrained)]
    rows += [("audited", label, 0, m) for label, m in named.items()]
    roles: tuple[Role, ...] = ("model", "target", "retrained", "fresh")
    # Of each model its own layers: what compares two models takes those that both have.
    wanted = [quantities(chosen, problem.with_model(model), roles) for *_, model in rows]
    ids = [identity(model, problem) for *_, model in rows]
    scenes = [
        battery.scene(
            model, seed, [m for k, (kind, _, _, m) in enumerate(rows) if kind == "retrain" and k != i],
            (bases or {}).get(label) if method == "audited" else None,
        )
        for i, (method, label, seed, model) in enumerate(rows)
    ]  # fmt: skip
    seen = [
        _look(battery, scene, one, key, f"reference {seed}" if method == "retrain" else f"'{label}'")
        for (method, label, seed, _), scene, one, key in zip(rows, scenes, wanted, ids, strict=True)
    ]
    fresh = None
    if problem.architecture is not None:
        untrained = problem.fresh_model(104_729)
        asked = quantities(chosen, problem.with_model(untrained), roles)
        fresh = battery.look(battery.scene(untrained), asked, identity(untrained, problem))
    judged = []
    for i, (method, label, seed, model) in enumerate(rows):
        others = [k for k, row in enumerate(rows) if row[0] == "retrain" and k != i]
        references = [seen[k] for k in others]
        evidence: dict[tuple[Role, str], list[Evidence]] = {}
        for split in wanted[i]:
            evidence["model", split] = [seen[i][split]]
            evidence["target", split] = [seen[0][split]] if problem.model is not None else []
            evidence["retrained", split] = [r[split] for r in references]
            evidence["fresh", split] = [fresh[split]] if fresh is not None else []
        read = [
            ids[i],
            ids[0] if problem.model is not None else None,
            [ids[k] for k in others],
            fresh is not None,
        ]
        scores = battery.scores(chosen, read, partial(_measured, problem, chosen, evidence))
        known = (methods or {}).get(label) if method == "audited" else None
        scores += battery.attack(
            scenes[i], f"{label}, seed {seed}" if method == "retrain" else label, ids[i], untouched=method == "target",
            made_by=METHODS["retrain"]() if method == "retrain" else known,
        )  # fmt: skip
        judged.append(
            Judged(
                problem=problem.name,
                problem_id=problem.fingerprint,
                method=method,
                label=label,
                seed=seed,
                model_id=fingerprint(model),
                scores=scores,
                claimed=claimed_of(claim, known) if method == "audited" else None,
                guarantee=(guarantees or {}).get(label, "") if method == "audited" else "",
                keeps_target=method == "audited"
                and _keeps_target(problem.model, model, scenes[i].underneath),
            )
        )
    losses: LossSamples = {problem.name: {}}
    for (method, label, seed, _), own in zip(rows, seen, strict=True):
        if seed == 0 or method == "retrain":
            losses[problem.name][retrained_label(seed) if method == "retrain" else label] = {
                s: e["loss"].astype(float).tolist() for s, e in own.items() if "loss" in e.table.column_names
            }
    return complete(name, [problem.card()], judged), losses


def _look(
    battery: Battery, scene: Scene, wanted: Mapping[str, set[str]], model_id: str, who: str
) -> dict[str, Evidence]:
    """Evidence of a model; whose it is, where the model cannot read the problem's data at all."""
    try:
        return battery.look(scene, wanted, model_id)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        said = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise BadInput(
            f"{who} cannot be run on the data of {battery.problem.name}: {said}; it must be a {battery.problem.family.name} "
            "that takes these inputs"
        ) from error


def _keeps_target(target: nn.Module | None, model: nn.Module, underneath: nn.Module | None) -> bool:
    """Whether whoever holds the model holds the target: inside it, or under the adapters that it was handed over as."""
    if target is None:
        return False
    return keeps_target(target, model) or (
        underneath is not None and fingerprint(underneath) == fingerprint(target)
    )


def _measured(
    problem: Problem, metrics: Sequence[Metric], evidence: dict[tuple[Role, str], list[Evidence]]
) -> list[Score]:
    return [m(split, evidence) for m in metrics for split in m.splits if split in problem.splits]


def run(
    study: StudySpec | dict[str, Any] | Path | str,
    runs: Path | str = "runs",
    *,
    workers: int | None = None,
    runner: Runner | None = None,
    budget: Budget | None = None,
    display: Display = "auto",
    assignments: Sequence[str] = (),
    command: str = "",
    notice: Callable[[str], None] | None = None,
) -> Finished:
    """Run a study and write its folder: run.yaml, scores.json, report.html, report.json, log.jsonl.

    The same call again computes only what is missing. Arguments as for `expunge.studies.study.run_study`; `command` is
    what the report says reproduces the run.
    """
    finished = run_study(
        study, runs, workers=workers, runner=runner, budget=budget, display=display, assignments=assignments, notice=notice,
    )  # fmt: skip
    write_atomic(finished.folder / "losses.json", canonical_json(finished.losses))
    if finished.images:
        write_atomic(finished.folder / "images.json", canonical_json(finished.images))
    write_report(read_run_folder(finished.folder, command), finished.folder)
    return finished
