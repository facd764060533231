"""The verbs from Python: forget, audit, run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from expunge.attacks import Attack, Scene, fitting_attacks
from expunge.attacks.shadows import ShadowModels
from expunge.errors import Missing
from expunge.evidence import Evidence, collect
from expunge.families.models import fingerprint
from expunge.files import canonical_json, write_atomic
from expunge.methods.base import METHODS, Forgotten, Method, Workplace
from expunge.methods.loop import fit
from expunge.metrics.base import METRICS, Role, standard_metrics
from expunge.problem import Problem
from expunge.record import Judged, Score, ScoreFile
from expunge.report import read_run_folder, write_report
from expunge.studies.graph import quantities
from expunge.studies.progress import Display
from expunge.studies.results import complete
from expunge.studies.runners import Runner
from expunge.studies.spec import StudySpec, find_attack, find_method
from expunge.studies.study import Finished, LossSamples, run_study
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
    attacks: Literal["standard", "all"] | Sequence[str | Attack] = (),
    methods: Mapping[str, Method] | None = None,
    bases: Mapping[str, nn.Module] | None = None,
    device: str = "cpu",
    name: str = "audit",
) -> ScoreFile:
    """Measure models and judge them against retrained references. Nothing is trained, except by attacks that train.

    Args:
        problem: data and, as its model, the target before forgetting (optional).
        models: the model to judge, or several by name.
        retrained: models trained without the forget set; without them, scores that need one are undefined.
        metrics: names of metrics; default: all that fit the family.
        attacks: attacks on every model, the target and the retrained ones included: names or objects; 'standard' for all
            that fit and train nothing, 'all' for all that fit.
        methods: by name of a model, the method that made it, where it is known; `u-lira` repeats it on shadow models.
        bases: by name of a model, the one that it was handed over as adapters on, where it was; for `detach-guard`.
        device: where models run.
        name: name of the record.
    """
    return audit_with_losses(
        problem, models, retrained=retrained, metrics=metrics, attacks=attacks, methods=methods, bases=bases, device=device,
        name=name,
    )[0]  # fmt: skip


def audit_with_losses(
    problem: Problem,
    models: nn.Module | Mapping[str, nn.Module],
    *,
    retrained: Sequence[nn.Module] = (),
    metrics: Sequence[str] | None = None,
    attacks: Literal["standard", "all"] | Sequence[str | Attack] = (),
    methods: Mapping[str, Method] | None = None,
    bases: Mapping[str, nn.Module] | None = None,
    device: str = "cpu",
    name: str = "audit",
) -> tuple[ScoreFile, LossSamples]:
    """`audit`, and the per-example losses that a report draws."""
    attackers = _Attackers(problem, attacks, device)
    chosen = standard_metrics(problem.family) if metrics is None else [METRICS[n] for n in metrics]
    named = {"audited": models} if isinstance(models, nn.Module) else dict(models)
    rows: list[tuple[str, str, int, nn.Module]] = (
        [] if problem.model is None else [("target", "target", 0, problem.model)]
    )
    rows += [("retrain", "retrain", i, m) for i, m in enumerate(retrained)]
    rows += [("audited", label, 0, m) for label, m in named.items()]
    roles: tuple[Role, ...] = ("model", "target", "retrained", "fresh")
    wanted = quantities(chosen, problem.with_model(rows[-1][3]), roles)

    def look(model: nn.Module) -> dict[str, Evidence]:
        return {
            s: collect(
                problem.family,
                model,
                problem.splits[s],
                sorted(q),
                device=device,
                batches=problem.batches(s, device, sorted(q)),
            )
            for s, q in sorted(wanted.items())
        }

    seen = [look(model) for *_, model in rows]
    fresh = look(problem.fresh_model(104_729)) if problem.architecture is not None else None
    judged = []
    for (method, label, seed, model), own in zip(rows, seen, strict=True):
        references = [
            e for row, e in zip(rows, seen, strict=True) if row[0] == "retrain" and row[3] is not model
        ]
        evidence: dict[tuple[Role, str], list[Evidence]] = {}
        for split in wanted:
            evidence["model", split] = [own[split]]
            evidence["target", split] = [seen[0][split]] if problem.model is not None else []
            evidence["retrained", split] = [r[split] for r in references]
            evidence["fresh", split] = [fresh[split]] if fresh is not None else []
        scores: list[Score] = [
            m(split, evidence) for m in chosen for split in m.splits if split in problem.splits
        ]
        made_by = METHODS["retrain"]() if method == "retrain" else (methods or {}).get(label)
        others = [m for kind, _, _, m in rows if kind == "retrain" and m is not model]
        scene = Scene(problem, model, Workplace(seed, device), (), others, (bases or {}).get(label))
        scores += attackers.scores(scene, untouched=method == "target", made_by=made_by)
        judged.append(
            Judged(
                problem=problem.name,
                problem_id=problem.fingerprint,
                method=method,
                label=label,
                seed=seed,
                model_id=fingerprint(model),
                scores=scores,
            )
        )
    losses: LossSamples = {problem.name: {}}
    for (method, label, seed, _), own in zip(rows, seen, strict=True):
        if seed == 0:
            losses[problem.name]["retrained" if method == "retrain" else label] = {
                s: e["loss"].astype(float).tolist() for s, e in own.items()
            }
    return complete(name, [problem.card()], judged), losses


class _Attackers:
    """The attacks of an audit, and the shadow models that they share."""

    def __init__(
        self, problem: Problem, attacks: Literal["standard", "all"] | Sequence[str | Attack], device: str
    ) -> None:
        self.problem = problem
        self.attacks = (
            fitting_attacks(problem, attacks) if attacks in ("standard", "all")
            else [find_attack(a)() if isinstance(a, str) else a for a in attacks]
        )  # fmt: skip
        self.shadows = ShadowModels(problem, Workplace(device=device))

    def scores(self, scene: Scene, *, untouched: bool, made_by: Method | None) -> list[Score]:
        """What every attack achieves on the scene's model; `untouched` says that nothing was unlearned from it."""
        scores: list[Score] = []
        for attack in self.attacks:
            obstacles = attack.obstacles(self.problem)
            if obstacles:
                scores += attack.unanswered("not_applicable", "; ".join(obstacles))
                continue
            shadows = (
                self.shadows.unlearned(attack, made_by) if attack.unlearns_shadows and made_by is not None
                else self.shadows.trained(attack)
            )  # fmt: skip
            if untouched:
                shadows = [replace(shadow, after=shadow.before) for shadow in shadows]
            scores += attack.attack(replace(scene, shadows=shadows))
        return scores


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
    write_report(read_run_folder(finished.folder, command), finished.folder)
    return finished
