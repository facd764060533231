"""What a study would do, before it does it: faults, jobs, sizes, memory, and time as earlier runs here took it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from expunge.errors import BadInput, ExpungeError
from expunge.files import finite
from expunge.find.contamination import contamination
from expunge.methods.footprint import footprint, skeleton
from expunge.metrics.base import METRICS
from expunge.problem import Problem
from expunge.record import mean_of
from expunge.studies.graph import Graph, build_graph
from expunge.studies.jobs import Store
from expunge.studies.spec import MethodSpec, StudySpec
from expunge.studies.study import load_study

Study = StudySpec | dict[str, Any] | Path | str


def faults_of(
    study: Study, assignments: Sequence[str] = (), notice: Callable[[str], None] = lambda _: None
) -> tuple[list[str], list[str]]:
    """Every fault of a study, and the pairs of method and problem that it would skip with the reason."""
    try:
        spec, _, base = load_study(study, assignments)
    except ExpungeError as error:
        return str(error).split("; '"), []
    faults: list[str] = []
    methods, problems = [], []
    for method in spec.methods:
        try:
            methods.append((method.shown(), method.resolve()))
        except ExpungeError as error:
            faults.append(str(error))
    for problem in spec.problems:
        try:
            problems.append(problem.build(base, notice=notice))
        except ExpungeError as error:
            faults.append(str(error))
    if spec.metrics != "standard":
        for name in spec.metrics:
            try:
                if name != "standard":
                    METRICS[name]
            except ExpungeError as error:
                faults.append(str(error))
    names = Counter(p.name for p in problems)
    faults += [
        f"two problems are called '{n}'; give one of them another 'name'"
        for n, count in names.items()
        if count > 1
    ]
    skipped = [
        f"{label} on {p.name}: {'; '.join(o)}"
        for label, m in methods
        for p in problems
        if (o := m.obstacles(p))
    ]
    return faults, skipped


def contaminated(
    study: Study, assignments: Sequence[str] = (), notice: Callable[[str], None] = lambda _: None
) -> list[str]:
    """What probes of a study without faults share with its training data, and forget rows with those to keep, in words."""
    spec, _, base = load_study(study, assignments)
    lines = []
    for problem_spec in spec.problems:
        problem = problem_spec.build(base, notice=notice)
        for one in contamination(problem):
            counts = {"equal": one.exact, "overlapping": one.overlapping, "nearly equal": one.near}
            said = ", ".join(f"{n} {how}" for how, n in counts.items() if n)
            if one.found:
                lines.append(f"{problem.name}: of {one.n} {one.split} rows, to {one.against} rows: {said}")
    return lines


def planned(
    study: Study, runs: Path, assignments: Sequence[str] = (), notice: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Jobs (with `done`), sizes of the problems, memory of a step of each method, and `seconds` of the jobs to do.

    `seconds` adds up, for every job to do, the mean duration of jobs of its kind in the logs under `runs`; it is None
    where a kind has never run there, and those kinds are in `unknown`.
    """
    spec, _, base = load_study(study, assignments)
    graph = build_graph(spec, base, notice)
    store = Store(runs / "store")
    jobs = [
        {"key": j.key, "kind": j.kind, "title": j.title, "needs": list(j.needs), "done": store.has(j.key)}
        for j in graph.jobs.values()
    ]
    seconds, unknown = _seconds(graph, store, runs)
    return {
        "jobs": jobs,
        "problems": [_size(p) for p in graph.problems.values()],
        "memory": _memory(spec.methods, list(graph.problems.values())),
        "seconds": seconds,
        "unknown": unknown,
    }


def durations(logs: Iterable[Path]) -> dict[str, float]:
    """Mean seconds of a finished job by kind, over the event logs of runs."""
    took: dict[str, list[float]] = defaultdict(list)
    for log in logs:
        kinds: dict[str, str] = {}
        for line in log.read_text().splitlines():
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a run that was killed while writing it
            if event.get("event") == "start":
                kinds[event["job"]] = event["kind"]
            elif event.get("event") == "end" and "error" not in event and event["job"] in kinds:
                took[kinds[event["job"]]].append(event["seconds"])
    return {kind: mean_of(values) for kind, values in took.items()}


def _seconds(graph: Graph, store: Store, runs: Path) -> tuple[float | None, list[str]]:
    missing = [j.kind for j in graph.jobs.values() if not store.has(j.key)]
    known = durations(sorted(runs.glob("*/log.jsonl")))
    unknown = sorted({kind for kind in missing if kind not in known})
    return (None if unknown else finite(sum(known[kind] for kind in missing))), unknown


def _memory(methods: Sequence[MethodSpec], problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """What a step of each method would take on each language model."""
    rows = []
    for problem in problems:
        for spec in methods:
            method = spec.resolve()
            estimate = None if method.obstacles(problem) else footprint(problem, method)
            if estimate is not None:
                rows.append({"problem": problem.name, "method": spec.shown(), **estimate.facts()})
    return rows


def _size(problem: Problem) -> dict[str, Any]:
    """Size of a problem; training memory is weights, gradients and momentum, activations not counted."""
    model = skeleton(problem)
    parameters = sum(p.numel() for p in model.parameters())
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    counts = {"train": len(problem.train), "forget": len(problem.forget_rows)}
    return {
        "name": problem.name,
        "parameters": parameters,
        "weight_bytes": weights,
        "training_bytes": 3 * weights,
        **counts,
    }


def refuse_code(spec: StudySpec) -> None:
    """Refuse a study that would import somebody's code or read pickle files.

    Raises:
        BadInput: it would.
    """
    if spec.imports():
        raise BadInput(
            f"'{spec.imports()[0]}' is code; studies that import code are started from the command line"
        )
    for problem in spec.problems:
        made = [m for m in (problem.model, problem.retrained, problem.pretrained) if hasattr(m, "factory")]
        if made or problem.allow_pickle:
            raise BadInput(
                "a model made by a factory, or read from a pickle file, runs code; such studies are started from the command line"
            )
