"""Tuning on equal terms: every method gets the same budget, on data that nothing is judged on later.

Each method's parameters are searched by Optuna's tree-structured Parzen estimator (Bergstra et al., NIPS 2011) for the
least *average gap to the retrained model* on the problem's validation counterpart (`expunge.data.benchmarks.validation`:
other rows to forget, other test and holdout rows) with a seed that the study does not have. The first trial is the
setting as the study gives it, the others come from `expunge.studies.space.search_space`; all are kept. Deviation from
AlgoPerf (Dahl et al., 2023, arXiv:2306.07179): its points are quasi-random and one search space serves all workloads;
here a setting is found per problem, as is customary in this field.

A proposal depends on the trials before it and on nothing else, and a trial is jobs of the study's store; so the same
command after an interruption proposes the same, finds what is done, and goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import Field

from expunge.data.specification import ProblemSpec
from expunge.errors import BadInput, Missing
from expunge.extras import load_extra
from expunge.files import digest, read_json, write_atomic
from expunge.metrics.composite import (
    AVERAGED,
    AVERAGED_IMAGES,
    AVERAGED_REGRESSION,
    AVERAGED_TEXT,
    average_gap,
)
from expunge.parameters import Parameters
from expunge.record import Judged, Record, Score, Status
from expunge.studies.graph import Graph, Job, Row, build_graph
from expunge.studies.jobs import Store
from expunge.studies.progress import Display, RunProgress
from expunge.studies.runner import Executor, Outcome, run_graph
from expunge.studies.sensitivity import Sensitivity, sensitivity
from expunge.studies.space import Dimension, search_space
from expunge.studies.spec import MethodSpec, StudySpec

OBJECTIVE = "average gap to the retrained model, on the validation counterpart of the problem"
MOST_TRIALS = 200
"""Trials of one method at most, where the budget is in seconds: judging a model takes time that no budget counts."""
FIRST_SEED = 100_000
"""Validation seeds start here, far from the seeds of studies."""


class Budget(Parameters):
    """What each method may spend on each problem: trials, or seconds of its own running time."""

    title = "--tune"

    trials: int | None = Field(default=None, ge=1, description="trials, the setting as given included")
    seconds: float | None = Field(
        default=None, gt=0, description="seconds that its runs take together; the last may exceed them"
    )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From ``20`` (trials) or ``300s`` (seconds)."""
        found = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)\s*s", text.strip())
        if found is None:
            raise BadInput(
                f"--tune {text!r} is neither a number of trials, such as 20, nor of seconds, such as 300s"
            )
        return cls(trials=int(found[1])) if found[1] else cls(seconds=float(found[2]))

    def left(self, trials: Sequence[Trial]) -> bool:
        """Whether another trial may begin."""
        if self.trials is not None:
            return len(trials) < self.trials
        spent = sum(t.seconds for t in trials)
        return spent < (self.seconds or 0.0) and len(trials) < MOST_TRIALS

    def shown(self) -> str:
        """In words."""
        return f"{self.trials} trials" if self.trials is not None else f"{self.seconds:g} s"


class Trial(Record):
    """One setting that was tried."""

    number: int
    parameters: dict[str, Any] = Field(description="of the tuned parameters")
    status: Status
    reason: str = Field(default="", description="why the status is not ok")
    gap: float | None = Field(default=None, description="the objective; lower is better")
    seconds: float = Field(description="running time of the method")


class TunedMethod(Record):
    """One method on one problem: its search and what was found."""

    problem: str
    method: str
    label: str = Field(description="what tables call the method as given")
    given: dict[str, Any] = Field(description="parameters as the study gives them")
    unit: str = Field(default="", description="of the gap")
    dimensions: list[Dimension]
    held: dict[str, str] = Field(description="parameters that were not tuned, with the reason")
    trials: list[Trial] = Field(default_factory=list)
    sensitivity: Sensitivity | None = Field(default=None, description="None until a trial has succeeded")

    @property
    def best(self) -> Trial | None:
        """The trial of the least gap, the earliest of equals; None where all failed."""
        done = [t for t in self.trials if t.gap is not None]
        return min(done, key=lambda t: (t.gap, t.number)) if done else None

    def found(self) -> MethodSpec | None:
        """The method with the setting found, as a row of the study."""
        best = self.best
        if best is None:
            return None
        return MethodSpec(
            name=self.method, label=f"{self.label}, tuned", parameters={**self.given, **best.parameters}
        )


class Tuning(Record):
    """`tuning.json`: everything that was tried."""

    schema_version: int = 1
    budget: str = Field(description="of each method on each problem")
    objective: str = OBJECTIVE
    seed: int = Field(description="of the validation models; not among the study's seeds")
    methods: list[TunedMethod]
    untuned: dict[str, str] = Field(
        default_factory=dict, description="methods of the study that were not tuned, with the reason"
    )

    def of(self, problem: str) -> list[TunedMethod]:
        """The methods tuned on one problem."""
        return [m for m in self.methods if m.problem == problem]


@dataclass(frozen=True)
class _Workload:
    """A problem's validation counterpart, and whose name it tunes for."""

    problem: str
    spec: ProblemSpec


class _Clock(RunProgress):
    """Keeps how long each job took, for trials that fail and so leave no record of it."""

    def __init__(self, total: int, log: Path, display: Display) -> None:
        super().__init__(total, log, display)
        self.seconds: dict[str, float] = {}

    def ended(self, job: Job, seconds: float, error: str | None) -> None:
        self.seconds[job.key] = seconds
        super().ended(job, seconds, error)


def tune(
    spec: StudySpec,
    base: Path,
    budget: Budget,
    store: Store,
    executor: Executor,
    folder: Path,
    *,
    display: Display = "auto",
    notice: Callable[[str], None] = lambda _: None,
) -> Tuning:
    """Tune every method of `spec` on every problem of it, each with the same `budget`.

    In every round each search proposes one trial, and all of them run side by side; proposals therefore do not depend on
    the number of workers. ``tuning.json`` in `folder` is written after every round.
    """
    load_extra("optuna", "tune", "--tune")  # its absence is said now, not after the first round
    seed = next(s for s in count(FIRST_SEED) if s not in spec.seeds)
    tuning = Tuning(budget=budget.shown(), seed=seed, methods=[])
    workloads = []
    for problem_spec in spec.problems:
        options = {"of": problem_spec.model_dump(mode="json"), "base": str(base)}
        try:
            name = problem_spec.build(base).name
        except Missing:
            if problem_spec.optional:
                continue  # the study itself says that it is left out
            raise
        workload = _Workload(
            name, ProblemSpec(name=f"{name} (validation)", benchmark="validation", options=options)
        )
        workloads.append(workload)
        _searches(spec, workload, tuning)
    while True:
        proposed = {i: _propose(m, seed) for i, m in enumerate(tuning.methods) if budget.left(m.trials)}
        if not proposed:
            return tuning
        graph = merge(
            build_graph(_round(spec, w, tuning, proposed), base, notice)
            for w in workloads
            if any(tuning.methods[i].problem == w.problem for i in proposed)
        )
        missing = sum(not store.has(key) for key in graph.jobs)
        clock = _Clock(missing, folder / "log.jsonl", display)
        with clock:
            outcome = run_graph(graph, store, executor, clock)
        for i, parameters in proposed.items():
            method = tuning.methods[i]
            method.trials.append(_result(method, parameters, str(i), graph, store, outcome, clock))
            method.sensitivity = sensitivity(
                method.dimensions, [(t.parameters, t.gap) for t in method.trials], method.unit
            )
        write_atomic(folder / "tuning.json", tuning.model_dump_json(indent=1))


def with_found(spec: StudySpec, tuning: Tuning, base: Path, notice: Callable[[str], None]) -> Graph:
    """The study on its own seeds and splits: every method as given, and beside it as tuned."""
    graphs = []
    for problem_spec in spec.problems:
        tuned = {m.label: found for m in tuning.of(problem_spec.build(base).name) if (found := m.found())}
        methods = [one for m in spec.methods for one in (m, tuned.get(m.shown())) if one is not None]
        graphs.append(build_graph(spec.replace(problems=[problem_spec], methods=methods), base, notice))
    return merge(graphs)


def merge(graphs: Any) -> Graph:
    """One graph of several; equal jobs are one."""
    whole = Graph({}, [], {})
    for graph in graphs:
        for name in graph.problems:
            if name in whole.problems:
                raise BadInput(f"two problems are called '{name}'; give one of them another 'name'")
        whole.jobs.update(graph.jobs)
        whole.rows.extend(graph.rows)
        whole.problems.update(graph.problems)
    return whole


def _searches(spec: StudySpec, workload: _Workload, tuning: Tuning) -> None:
    problem = workload.spec.build()
    for method_spec in spec.methods:
        method, label = method_spec.resolve(), method_spec.shown()
        space = search_space(method)
        obstacles = method.obstacles(problem)
        if obstacles or not space.dimensions:
            reason = "; ".join(obstacles) or "it has no parameter with a range"
            tuning.untuned[f"{workload.problem}: {label}"] = reason
            continue
        tuning.methods.append(
            TunedMethod(
                problem=workload.problem, method=method_spec.name, label=label, given=method_spec.parameters,
                dimensions=space.dimensions, held=space.held,
            )
        )  # fmt: skip


def _propose(method: TunedMethod, seed: int) -> dict[str, Any]:
    """The next setting; the first is the one given.

    A new sampler is made from the recorded trials each time: a proposal then depends on them alone, and an interrupted
    search goes on as if nothing had happened. Failed trials are told as pruned, which the sampler takes for the worst.
    """
    if not method.trials:
        values = MethodSpec(name=method.method, parameters=method.given).resolve()
        return {d.parameter: getattr(values, d.parameter) for d in method.dimensions}
    optuna = load_extra("optuna", "tune", "--tune")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {d.parameter: _distribution(optuna, d) for d in method.dimensions}
    states = optuna.trial.TrialState
    own = int(digest([method.problem, method.label, len(method.trials), seed]), 16) % (1 << 32)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=own), direction="minimize")
    for trial in method.trials:
        study.add_trial(
            optuna.trial.create_trial(
                state=states.PRUNED if trial.gap is None else states.COMPLETE,
                value=trial.gap, params=trial.parameters, distributions=distributions,
            )
        )  # fmt: skip
    return study.ask(distributions).params


def _distribution(optuna: Any, dimension: Dimension) -> Any:
    if dimension.kind == "choice":
        return optuna.distributions.CategoricalDistribution(dimension.choices)
    if dimension.kind == "whole":
        return optuna.distributions.IntDistribution(
            int(dimension.low or 0), int(dimension.high or 0), log=dimension.log
        )
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _round(
    spec: StudySpec, workload: _Workload, tuning: Tuning, proposed: dict[int, dict[str, Any]]
) -> StudySpec:
    """One round's study of one problem: a row per search, labeled by its number."""
    methods = [
        MethodSpec(name=m.method, label=str(i), parameters={**m.given, **proposed[i]})
        for i, m in enumerate(tuning.methods)
        if i in proposed and m.problem == workload.problem
    ]
    metrics = sorted(
        {name for name, _ in (*AVERAGED, *AVERAGED_REGRESSION, *AVERAGED_TEXT, *AVERAGED_IMAGES)}
    )
    return StudySpec(
        name=spec.name, problems=[workload.spec], methods=methods, seeds=[tuning.seed], metrics=metrics,
        device=spec.device, threads=spec.threads, reference=spec.reference,
    )  # fmt: skip


def _result(
    method: TunedMethod, parameters: dict[str, Any], label: str, graph: Graph, store: Store, outcome: Outcome,
    clock: _Clock,
) -> Trial:  # fmt: skip
    """What came of a trial."""
    (row,) = [r for r in graph.rows if r.label == label]
    facts: dict[str, Any] = {"number": len(method.trials), "parameters": parameters}
    reason = next(
        (outcome.failed[k] for k in (row.model, row.observe, row.score) if k in outcome.failed), None
    )
    if reason is not None:
        return Trial(**facts, status="failed", reason=reason, seconds=clock.seconds.get(row.model or "", 0.0))
    retrained = [r for r in graph.rows if r.method == "retrain" and r.problem == row.problem]
    gap = average_gap(_scored(row, store), [_scored(r, store) for r in retrained])
    method.unit = gap.unit
    seconds = read_json(store.folder(row.model or "") / "expunge.json")["cost"]["seconds"]
    return Trial(**facts, status=gap.status, reason=gap.reason, gap=gap.value, seconds=seconds)


def _scored(row: Row, store: Store) -> Judged:
    scores = [Score.model_validate(s) for s in read_json(store.folder(row.score or "") / "scores.json")]
    return Judged(
        problem=row.problem, problem_id=row.problem_id, method=row.method, label=row.label, seed=row.seed, scores=scores
    )  # fmt: skip
