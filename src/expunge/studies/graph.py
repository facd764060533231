"""The job graph of a study: what there is to do, addressed by everything that determines it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from expunge.attacks import Attack, fitting_attacks
from expunge.errors import BadInput, Missing, did_you_mean
from expunge.families.models import fingerprint
from expunge.files import digest
from expunge.methods.base import METHODS, Method
from expunge.metrics.base import Metric, standard_metrics
from expunge.metrics.base import chosen_metrics as metrics_named
from expunge.problem import Problem
from expunge.studies.sources import code_digest, source_digest
from expunge.studies.spec import AttackSpec, MethodSpec, StudySpec

PICTURED = 256
"""Rows at most of a split whose generated images are kept: 200 MB a model at 512 x 512 pixels."""

Kind = Literal[
    "target", "forget", "fresh", "observe", "score", "shadow", "shadow-forget", "attack", "lm-eval"
]


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


@dataclass(frozen=True)
class RowAttack:
    """An attack on the model of a row."""

    attack: Attack
    job: str | None
    """Key of the job that attacks; None where it cannot."""
    obstacle: str = ""


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
    tasks: str | None = None
    """Key of the job that runs tasks of the lm-eval harness."""
    attacks: list[RowAttack] = field(default_factory=list)
    init: int | None = None
    """Seed of the fresh weights that target and retrained model start from, where it is not `seed`."""


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
    if spec.lm_eval is not None:
        from expunge.evidence.lm_eval import known_tasks

        known_tasks(spec.lm_eval.tasks, spec.lm_eval.place(base))
    for problem_spec in spec.problems:
        try:
            problem = problem_spec.build(base, notice=notice)
        except Missing as absent:
            if not problem_spec.optional:
                raise
            notice(f"left out: {absent}")
            continue
        name = problem.name
        if name in graph.problems:
            raise BadInput(f"two problems are called '{name}'; give one of them another 'name'")
        earlier = problem_spec.after
        if earlier is not None and earlier not in graph.problems:
            near = did_you_mean(earlier, graph.problems)
            raise BadInput(
                f"problem '{name}' comes after '{earlier}', as which no problem before it is known{near}"
            )
        graph.problems[name] = problem
        jobs = _ProblemJobs(graph, spec, problem, problem_spec.model_dump(mode="json"), str(base))
        jobs.add_models()
        jobs.add_scores()
        jobs.add_attacks()
        jobs.add_tasks(base)
    if not graph.problems:
        raise Missing("the study has no problem left: all are optional and their data is missing")
    return graph


class _ProblemJobs:
    """Adds the jobs and rows of one problem to a graph."""

    def __init__(
        self, graph: Graph, spec: StudySpec, problem: Problem, problem_spec: dict[str, Any], base: str
    ) -> None:
        self.graph, self.spec, self.problem = graph, spec, problem
        self.metrics = chosen_metrics(spec, problem)
        self.common = {"problem": problem_spec, "base": base, "device": spec.device, "threads": spec.threads}
        self.training_code = code_digest(
            "families",
            "problem.py",
            *(f"methods/{m}.py" for m in ("base", "objective", "frozen", "loop", "checkpoint")),
        )
        self.after: str | None = problem_spec["after"]
        self.targets: dict[int, str] = {}
        """Key of the target by seed."""
        self.methods: dict[str, MethodSpec] = {}
        """By label."""

    def add(self, kind: Kind, title: str, needs: list[str], identity: Any, **payload: Any) -> str:
        """Add a job, unless an equal one is there, and return its key."""
        key = digest(
            {
                "kind": kind,
                "needs": needs,
                "identity": identity,
                "threads": self.spec.threads,
                "device": self.spec.device,
            }
        )
        title = f"{title} · {self.problem.name}"
        job = Job(key, kind, title, tuple(needs), {"kind": kind, **self.common, **payload})
        self.graph.jobs.setdefault(key, job)
        return key

    def observe(self, title: str, model: str, wanted: Mapping[str, Collection[str]]) -> str:
        """Add the look at a model for the `wanted` quantities by split."""
        listed = {split: sorted(found) for split, found in sorted(wanted.items())}
        identity = {
            "problem": self.problem.fingerprint,
            "quantities": listed,
            "code": code_digest("families", "evidence", "problem.py"),
        }
        return self.add("observe", f"look at {title}", [model], identity, model=model, quantities=listed)

    def _look(self, title: str, model: str, *roles: str) -> str:
        return self.observe(title, model, quantities(self.metrics, self.problem, roles))

    def _row(
        self, method: str, label: str, passed: dict[str, Any], effective: dict[str, Any], seed: int, obstacles: list[str]
    ) -> Row:  # fmt: skip
        made = Row(self.problem.name, self.problem.fingerprint, method, label, passed, effective, seed, obstacles)  # fmt: skip
        made.init = None if self.problem.model is not None else self.spec.init
        self.graph.rows.append(made)
        return made

    def add_models(self) -> None:
        """Targets, retrained and unlearned models, and the look at each."""
        spec, problem = self.spec, self.problem
        methods = list(spec.methods)
        if not METHODS["retrain"].obstacles(problem) and not any(m.name == "retrain" for m in methods):
            methods.insert(0, MethodSpec(name="retrain"))  # the yardstick of every table
        given = problem.model is not None
        init = {} if spec.init is None or given else {"init": spec.init}
        for seed in spec.seeds:
            identity = {
                "problem": problem.fingerprint, "code": self.training_code, "torch": torch.__version__,
                "model": fingerprint(problem.target) if given else seed, **init,
            }  # fmt: skip
            title = "given target" if given else f"train target, seed {seed}"
            self.targets[seed] = self._earlier("target", seed) or self.add(
                "target", title, [], identity, seed=seed, **init
            )
        # A model that was given is one model, whatever the seed: showing it once per seed would look like certainty.
        for seed in spec.seeds[:1] if given else spec.seeds:
            made = self._row("target", "target", {}, {}, seed, [])
            made.model = self.targets[seed]
            made.observe = self._look(f"target, seed {seed}", made.model, "model", "target")
        for method_spec in methods:
            method = method_spec.resolve()
            effective, label = method.model_dump(mode="json"), method_spec.shown()
            obstacles = method.obstacles(problem)
            self.methods[label] = method_spec
            handed_out = method.name == "retrain" and problem.retrained is not None
            for seed in spec.seeds[:1] if handed_out else spec.seeds:
                made = self._row(method.name, label, method_spec.parameters, effective, seed, obstacles)
                if obstacles:
                    continue
                identity = {**self._identity(method), "seed": seed, **init}
                if handed_out and problem.retrained is not None:
                    identity["retrained"] = fingerprint(problem.retrained)
                target = self._forgets_from(made)
                made.model = self.add(
                    "forget", f"{label}, seed {seed}", [target], identity,
                    method=method_spec.model_dump(mode="json"), seed=seed, target=target, reference=spec.reference,
                    **init,
                )  # fmt: skip
                roles = ("model", "retrained") if method.name == "retrain" else ("model",)
                made.observe = self._look(f"{label}, seed {seed}", made.model, *roles)

    def _forgets_from(self, row: Row) -> str:
        """Key of the model that `row` starts from: the target, or what the same method left behind of an earlier request."""
        earlier = None if row.method == "retrain" else self._earlier(row.label, row.seed)
        return earlier or self.targets[row.seed]

    def _earlier(self, label: str, seed: int) -> str | None:
        """Key of the model of that row of the problem that this one comes after, if any."""
        of = (self.after, label, seed)
        return next((r.model for r in self.graph.rows if (r.problem, r.label, r.seed) == of), None)

    def _identity(self, method: Method) -> dict[str, Any]:
        return {
            "method": method.name, "parameters": method.model_dump(mode="json"), "source": source_digest(type(method)),
            "reference": self.spec.reference, "problem": self.problem.fingerprint, "code": self.training_code,
        }  # fmt: skip

    def _rows_with_models(self) -> list[Row]:
        return [r for r in self.graph.rows if r.problem == self.problem.name and r.model is not None]

    def add_scores(self) -> None:
        """The scores of every row by the study's metrics."""
        problem, metrics = self.problem, self.metrics
        fresh: str | None = None
        if "architecture" in problem.offers() and any(
            role == "fresh" for m in metrics for role, _ in m.reads
        ):
            identity = {"problem": problem.fingerprint, "code": self.training_code}
            fresh = self._look(
                "an untrained model", self.add("fresh", "make an untrained model", [], identity), "fresh"
            )

        mine = self._rows_with_models()
        retrained = [r for r in mine if r.method == "retrain"]
        looks = {r.model: r.observe for r in mine if r.method == "target"}
        target_of = {seed: looks[key] for seed, key in self.targets.items()}
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
            made.score = self.add(
                "score", f"score {made.label}, seed {made.seed}", needs, identity,
                evidence=evidence, metrics=[m.name for m in metrics], splits=sorted(problem.splits),
            )  # fmt: skip

    def add_attacks(self) -> None:
        """Every attack on every row: an attack's controls are the rows of the target and of the retrained models."""
        for attack_spec, attack in chosen_attacks(self.spec, self.problem):
            obstacles = attack.obstacles(self.problem)
            for row in self._rows_with_models():
                if obstacles:
                    row.attacks.append(RowAttack(attack, None, "; ".join(obstacles)))
                else:
                    row.attacks.append(RowAttack(attack, self._attack(attack_spec, attack, row)))

    def add_tasks(self, base: Path) -> None:
        """Tasks of the lm-eval harness on every row, where the problem is about a language model."""
        asked = self.spec.lm_eval
        if asked is None or self.problem.family.name != "causal_lm":
            return
        from importlib.metadata import version

        folder = asked.place(base)
        # What the tasks say, and the data beside them; data elsewhere is the tasks' own affair.
        files = [] if folder is None else sorted(f for f in folder.rglob("*") if f.is_file())
        identity = {
            **asked.model_dump(mode="json", exclude={"folder"}), "problem": self.problem.fingerprint,
            "files": [hashlib.sha256(f.read_bytes()).hexdigest() for f in files], "harness": version("lm-eval"),
            "code": code_digest("families", "evidence/lm_eval.py"),
        }  # fmt: skip
        for row in self._rows_with_models():
            assert row.model is not None
            row.tasks = self.add(
                "lm-eval", f"lm-eval on {row.label}, seed {row.seed}", [row.model], identity,
                model=row.model, lm_eval=asked.model_dump(mode="json"),
            )  # fmt: skip

    def _attack(self, attack_spec: AttackSpec, attack: Attack, row: Row) -> str:
        assert row.model is not None  # rows without a model are not attacked
        shadows = [self._shadow(index, attack, row) for index in range(attack.shadow_models())]
        looks = [key for before, after in shadows for key in (before, after) if key is not None]
        identity = {
            "attack": attack.name, "parameters": attack.model_dump(mode="json"), "source": source_digest(type(attack)),
            "seed": row.seed, "problem": self.problem.fingerprint, "shadows": shadows,
            "code": [
                self.training_code,
                code_digest(*(f"attacks/{m}.py" for m in ("base", "roc", "shadows"))),
                code_digest("evidence", "metrics", "stats/intervals.py"),
            ],
        }  # fmt: skip
        target = self.targets[row.seed]
        models = {r.model for r in self._rows_with_models() if r.method == "retrain"} - {row.model, None}
        retrained = sorted(m for m in models if m is not None) if attack.compares else []
        return self.add(
            "attack", f"attack {row.label}, seed {row.seed}, with {attack.name}",
            sorted({row.model, target, *looks, *retrained}), {**identity, "model": row.model, "target": target},
            attack=attack_spec.model_dump(mode="json"), seed=row.seed, model=row.model, target=target, shadows=shadows,
            retrained=retrained,
        )  # fmt: skip

    def _shadow(self, index: int, attack: Attack, row: Row) -> tuple[str, str | None]:
        """The looks at shadow number `index`: trained, and with its members unlearned as in `row`."""
        read = attack.quantities(self.problem.family)
        wanted = {"forget": read, "holdout": read}
        drawing = code_digest("attacks/shadows.py")
        # Neither method nor seed: all methods and seeds of all studies of this problem share the shadow.
        identity = {
            "problem": self.problem.fingerprint, "index": index, "code": [self.training_code, drawing],
            "torch": torch.__version__,
        }  # fmt: skip
        shadow = self.add("shadow", f"train shadow {index}", [], identity, index=index)
        before = self.observe(f"shadow {index}", shadow, wanted)
        if not attack.unlearns_shadows:
            return before, None
        if row.method == "target":
            return before, before  # nothing was unlearned
        method_spec = self.methods[row.label]
        unlearned = self.add(
            "shadow-forget", f"{row.label} on shadow {index}", [shadow],
            {**self._identity(method_spec.resolve()), "index": index, "drawing": drawing},
            method=method_spec.model_dump(mode="json"), index=index, shadow=shadow, reference=self.spec.reference,
        )  # fmt: skip
        return before, self.observe(f"shadow {index} after {row.label}", unlearned, wanted)


def chosen_attacks(spec: StudySpec, problem: Problem) -> list[tuple[AttackSpec, Attack]]:
    """The attacks of a study; of 'standard' and 'all' those that fit the problem."""
    if isinstance(spec.attacks, str):
        return [(AttackSpec(name=a.name), a) for a in fitting_attacks(problem, spec.attacks)]
    return [(named, named.resolve()) for named in spec.attacks]


def chosen_metrics(spec: StudySpec, problem: Problem) -> list[Metric]:
    """The metrics of a study that fit the problem's family."""
    if spec.metrics == "standard":
        return standard_metrics(problem.family)
    return [m for m in metrics_named(spec.metrics, problem.family) if m.fits(problem.family)]


def quantities(metrics: list[Metric], problem: Problem, roles: tuple[str, ...]) -> dict[str, set[str]]:
    """What one evidence pass has to yield, by split, when the model plays `roles`."""
    layers = (
        problem.family.compared_layers(problem.model or problem.fresh_model(0))
        if any(m.by_layer for m in metrics)
        else []
    )
    wanted: dict[str, set[str]] = {}
    for metric in metrics:
        for split in metric.splits:
            for (role, where), found in metric.needs(split, layers).items():
                if role in roles and where in problem.splits:
                    wanted.setdefault(where, set()).update(found)
    for found in wanted.values() if "loss" in problem.family.quantities else ():
        found.add("loss")  # the report draws its distribution
    drawn = problem.family.generated if "image" in problem.family.generated else frozenset()
    for split, found in wanted.items():
        if found & drawn and len(problem.splits[split]) <= PICTURED:
            found.add(
                "image"
            )  # it is drawn anyway, for judges to look at; the app sets two models' side by side
    return wanted
