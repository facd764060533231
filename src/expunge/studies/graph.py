"""The job graph of a study: what there is to do, addressed by everything that determines it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

import expunge
from expunge.files import digest
from expunge.methods.base import Method
from expunge.metrics.base import METRICS, Metric, standard_metrics
from expunge.problem import Problem
from expunge.studies.spec import MethodSpec, StudySpec

Kind = Literal["target", "forget", "fresh", "observe", "score"]


@dataclass(frozen=True)
class Job:
    """One piece of work. Equal inputs give equal keys, so that nothing is done twice."""

    key: str
    kind: Kind
    title: str
    needs: tuple[str, ...]
    """Keys of the jobs whose results it reads."""
    payload: dict[str, Any] = field(compare=False)
    """Plain data that a worker process executes."""


@dataclass
class Row:
    """One model of the table: a method with parameters on a problem with a seed."""

    problem: str
    problem_id: str
    method: str
    label: str
    passed: dict[str, Any]
    effective: dict[str, Any]
    seed: int
    obstacles: list[str]
    model: str | None = None
    """Key of the job that makes the model."""
    observe: str | None = None
    score: str | None = None


@dataclass
class Graph:
    """All jobs of a study in an order in which they can run, and the rows of its table."""

    jobs: dict[str, Job]
    rows: list[Row]
    problems: dict[str, Problem]
    """By name."""


def build_graph(spec: StudySpec, base: Path, notice: Callable[[str], None]) -> Graph:
    """Everything that `spec` asks for. Problems are built here once, so that every fault in them shows before any work."""
    graph = Graph({}, [], {})
    for problem_spec in spec.problems:
        problem = problem_spec.build(base, notice=notice)
        name = problem.name
        if name in graph.problems:
            from expunge.errors import BadInput

            raise BadInput(f"two problems are called '{name}'; give one of them another 'name'")
        graph.problems[name] = problem
        _add_problem(graph, spec, problem, problem_spec.model_dump(mode="json"), str(base))
    return graph


def _add_problem(
    graph: Graph, spec: StudySpec, problem: Problem, problem_spec: dict[str, Any], base: str
) -> None:
    metrics = chosen_metrics(spec, problem)
    methods = list(spec.methods)
    if (
        not any(m.name == "retrain" for m in methods)
        and {"recipe", "architecture", "retain"} <= problem.offers()
    ):
        methods.insert(0, MethodSpec(name="retrain"))  # the yardstick of every table
    common = {"problem": problem_spec, "base": base, "device": spec.device, "threads": spec.threads}

    def add(kind: Kind, title: str, needs: list[str], identity: Any, **payload: Any) -> str:
        key = digest(
            {
                "kind": kind,
                "needs": needs,
                "identity": identity,
                "threads": spec.threads,
                "device": spec.device,
            }
        )
        graph.jobs.setdefault(
            key,
            Job(key, kind, f"{title} · {problem.name}", tuple(needs), {"kind": kind, **common, **payload}),
        )
        return key

    def observe(title: str, model: str, roles: tuple[str, ...]) -> str:
        wanted = quantities(metrics, problem, roles)
        listed = {split: sorted(found) for split, found in sorted(wanted.items())}
        identity = {
            "problem": problem.fingerprint,
            "quantities": listed,
            "code": code_digest("families", "evidence", "problem.py"),
        }
        return add("observe", f"look at {title}", [model], identity, model=model, quantities=listed)

    training_code = code_digest(
        "families",
        "problem.py",
        *(f"methods/{m}.py" for m in ("base", "objective", "frozen", "loop", "checkpoint")),
    )
    targets: dict[int, str] = {}
    for seed in spec.seeds:
        given = problem.model is not None
        identity = {"problem": problem.fingerprint, "code": training_code, "torch": torch.__version__}
        identity["model"] = _model_id(problem) if given else seed
        title = "given target" if given else f"train target, seed {seed}"
        targets[seed] = add("target", title, [], identity, seed=seed)

    def row(
        method: str,
        label: str,
        passed: dict[str, Any],
        effective: dict[str, Any],
        seed: int,
        obstacles: list[str],
    ) -> Row:
        made = Row(problem.name, problem.fingerprint, method, label, passed, effective, seed, obstacles)
        graph.rows.append(made)
        return made

    # A target that was given is one model, whatever the seed: showing it once per seed would look like certainty.
    for seed in spec.seeds[:1] if problem.model is not None else spec.seeds:
        made = row("target", "target", {}, {}, seed, [])
        made.model = targets[seed]
        made.observe = observe(f"target, seed {seed}", targets[seed], ("model", "target"))
    for method_spec in methods:
        method = method_spec.resolve()
        effective = method.model_dump(mode="json")
        label = method_spec.shown()
        obstacles = method.obstacles(problem)
        for seed in spec.seeds:
            made = row(method.name, label, method_spec.parameters, effective, seed, obstacles)
            if obstacles:
                continue
            identity = {"method": method.name, "parameters": effective, "source": source_digest(type(method)), "seed": seed,
                        "reference": spec.reference, "problem": problem.fingerprint, "code": training_code}  # fmt: skip
            made.model = add(
                "forget", f"{label}, seed {seed}", [targets[seed]], identity,
                method=method_spec.model_dump(mode="json"), seed=seed, target=targets[seed], reference=spec.reference,
            )  # fmt: skip
            roles = ("model", "retrained") if method.name == "retrain" else ("model",)
            made.observe = observe(f"{label}, seed {seed}", made.model, roles)

    fresh: str | None = None
    if "architecture" in problem.offers() and any(role == "fresh" for m in metrics for role, _ in m.reads):
        identity = {"problem": problem.fingerprint, "code": training_code}
        fresh = observe(
            "an untrained model", add("fresh", "make an untrained model", [], identity), ("fresh",)
        )

    mine = [r for r in graph.rows if r.problem == problem.name and r.observe is not None]
    retrained = [r for r in mine if r.method == "retrain"]
    looks = {r.model: r.observe for r in mine if r.method == "target"}
    target_of = {seed: looks[key] for seed, key in targets.items()}
    for made in mine:
        # A retrained model is compared with the other retrained models: that spread is what "no difference" means.
        references = [r.observe for r in retrained if r is not made and r.observe is not None]
        evidence = {"model": [made.observe], "target": [target_of[made.seed]], "retrained": references}
        evidence["fresh"] = [fresh] if fresh is not None else []
        needs = sorted({key for keys in evidence.values() for key in keys if key is not None})
        identity = {
            "metrics": [(m.name, source_digest(m.function)) for m in metrics],
            "evidence": evidence, "code": code_digest("metrics", "stats/intervals.py"),
        }  # fmt: skip
        made.score = add(
            "score", f"score {made.label}, seed {made.seed}", needs, identity,
            evidence=evidence, metrics=[m.name for m in metrics], splits=sorted(problem.splits),
        )  # fmt: skip


def chosen_metrics(spec: StudySpec, problem: Problem) -> list[Metric]:
    """The metrics of a study that fit the problem's family."""
    if spec.metrics == "standard":
        return standard_metrics(problem.family)
    return [m for m in (METRICS[n] for n in spec.metrics) if m.fits(problem.family)]


def quantities(metrics: list[Metric], problem: Problem, roles: tuple[str, ...]) -> dict[str, set[str]]:
    """What one evidence pass has to yield, by split, when the model plays `roles`."""
    layers = (
        problem.family.layers(problem.model or problem.fresh_model(0))
        if any(m.by_layer for m in metrics)
        else []
    )
    wanted: dict[str, set[str]] = {}
    for metric in metrics:
        for split in metric.splits:
            for (role, where), found in metric.needs(split, layers).items():
                if role in roles and where in problem.splits:
                    wanted.setdefault(where, set()).update(found)
    for found in wanted.values():
        found.add("loss")  # the report draws its distribution
    return wanted


def _model_id(problem: Problem) -> str:
    from expunge.families.models import fingerprint

    return fingerprint(problem.target)


@cache
def code_digest(*places: str) -> str:
    """Fingerprint of the package's own source files under `places`: changed code must not meet old results."""
    root = Path(expunge.__file__).parent
    hasher = hashlib.sha256()
    for place in places:
        path = root / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            hasher.update(file.read_bytes())
    return hasher.hexdigest()[:20]


def source_digest(item: type[Method] | Callable[..., Any]) -> str:
    """Fingerprint of the file that defines `item`, and of those of its bases outside the core."""
    import inspect

    classes = [c for c in item.__mro__ if issubclass(c, Method)] if isinstance(item, type) else [item]
    hasher = hashlib.sha256()
    for one in classes:
        hasher.update(Path(inspect.getfile(one)).read_bytes())
    return hasher.hexdigest()[:20]
