"""What the jobs do. Each writes one folder, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from expunge.attacks import Scene, Shadow
from expunge.attacks.shadows import membership, train_shadow, unlearn_shadow
from expunge.data.specification import ProblemSpec
from expunge.errors import Missing
from expunge.evidence import Evidence, collect
from expunge.families import Architecture
from expunge.families.base import metered
from expunge.families.models import clone
from expunge.families.weights import freeze, load_weights, read_weights, save_model
from expunge.files import canonical_json, folder_atomic, read_json
from expunge.memory import peak_memory
from expunge.methods.base import Workplace
from expunge.methods.loop import fit
from expunge.metrics.base import METRICS, Role
from expunge.problem import Problem
from expunge.record import Score
from expunge.studies.spec import AttackSpec, MethodSpec, TaskSpec

OnStep = Callable[[Any], None]


class Store:
    """Finished jobs, a folder each, addressed by key. A folder is there only when it is complete."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, key: str) -> Path:
        """Where the result of a job is, or will be."""
        return self.root / "jobs" / key

    def has(self, key: str) -> bool:
        """Whether the job is done."""
        return self.folder(key).is_dir()

    def scratch(self, key: str) -> Path:
        """Where a job keeps checkpoints while it runs."""
        return self.root / "scratch" / key

    def evidence(self, key: str, split: str) -> Evidence | None:
        """Evidence of an observe job on one split; None where it was not collected."""
        file = self.folder(key) / f"{split}.parquet"
        return Evidence.read(file) if file.exists() else None


def perform(key: str, payload: dict[str, Any], store: Store, on_step: OnStep | None = None) -> None:
    """Execute one job, unless it is done."""
    if store.has(key):
        return
    torch.set_num_threads(payload["threads"])
    with folder_atomic(store.folder(key)) as folder:
        _ACTIONS[payload["kind"]](key, payload, store, folder, on_step)
        (folder / "job.json").write_text(canonical_json(payload))


@lru_cache(maxsize=8)
def _problem(specification: str, base: str) -> Problem:
    return ProblemSpec(**json.loads(specification)).build(Path(base), notice=lambda _: None)


def load_problem(payload: dict[str, Any]) -> Problem:
    """The problem of a job; built once per process."""
    return _problem(canonical_json(payload["problem"]), payload["base"])


def _load_model(problem: Problem, folder: Path) -> torch.nn.Module:
    if not folder.is_dir():
        raise Missing(f"no model at '{folder}'; the job that makes it has not finished")
    record = read_json(folder / "expunge.json")
    if record["architecture"] is not None:
        # The folder's own: what a method returns may be made of more models than the problem's.
        model = Architecture(**record["architecture"]).build(0)
    else:
        model = clone(problem.target)
    # Of what the problem's file allows: a folder cannot allow itself.
    allowed = problem.architecture is not None and problem.architecture.options.get("allow_pickle") is True
    load_weights(model, read_weights(folder / "model.safetensors"), str(folder), allow_pickle=allowed)
    freeze(model, record["frozen"])
    return model.eval()


def _save(problem: Problem, model: torch.nn.Module, folder: Path, **facts: Any) -> None:
    save_model(
        model, folder, problem.architecture, problem.family.describe(), {"problem": problem.card(), **facts}
    )


def _target(key: str, payload: dict[str, Any], store: Store, folder: Path, on_step: OnStep | None) -> None:
    problem = load_problem(payload)
    if problem.model is not None:
        _save(problem, problem.model, folder, method="target")
        return
    if problem.recipe is None:
        raise Missing(
            f"{problem.name}: there is neither a target model nor a recipe to train one; give one of them"
        )
    workplace = Workplace(payload["seed"], payload["device"], store.scratch(key), on_step=on_step)
    init = payload["seed"] if payload.get("init") is None else payload["init"]
    model = problem.fresh_model(init).to(payload["device"])
    with metered() as meter, peak_memory(payload["device"]) as memory:
        torch.manual_seed(payload["seed"])
        fit(problem, model, "train", problem.recipe, workplace)
    _save(
        problem,
        model,
        folder,
        method="target",
        seed=payload["seed"],
        examples=meter.examples,
        peak_bytes=memory.bytes,
    )


def _forget(key: str, payload: dict[str, Any], store: Store, folder: Path, on_step: OnStep | None) -> None:
    problem = load_problem(payload)
    problem = problem.with_model(_load_model(problem, store.folder(payload["target"])))
    method = MethodSpec(**payload["method"]).resolve()
    workplace = Workplace(
        payload["seed"],
        payload["device"],
        store.scratch(key),
        payload["reference"],
        on_step,
        init=payload.get("init"),
    )
    forgotten = method.forget(problem, workplace)
    _save(
        problem, forgotten.model, folder, method=method.name, parameters=method.model_dump(mode="json"), seed=payload["seed"],
        cost=asdict(forgotten.cost), notes=forgotten.notes,
    )  # fmt: skip
    (folder / "log.jsonl").write_text(
        "".join(canonical_json(_finite(entry)) + "\n" for entry in forgotten.log)
    )


def _finite(entry: dict[str, Any]) -> dict[str, Any]:
    from expunge.files import finite

    return {k: finite(v) if isinstance(v, float) else v for k, v in entry.items()}


def _shadow(key: str, payload: dict[str, Any], store: Store, folder: Path, on_step: OnStep | None) -> None:
    problem, index = load_problem(payload), payload["index"]
    workplace = Workplace(0, payload["device"], store.scratch(key), on_step=on_step)
    model = train_shadow(problem, index, workplace)
    _save(problem, model, folder, method="shadow", index=index)


def _shadow_forget(
    key: str, payload: dict[str, Any], store: Store, folder: Path, on_step: OnStep | None
) -> None:
    problem, index = load_problem(payload), payload["index"]
    shadow = _load_model(problem, store.folder(payload["shadow"]))
    workplace = Workplace(0, payload["device"], store.scratch(key), payload["reference"], on_step)
    model = unlearn_shadow(problem, index, shadow, MethodSpec(**payload["method"]).resolve(), workplace)
    _save(problem, model, folder, method="shadow-forget", index=index)


def _attack(key: str, payload: dict[str, Any], store: Store, folder: Path, on_step: OnStep | None) -> None:
    problem = load_problem(payload)
    model = _load_model(problem, store.folder(payload["model"]))
    problem = problem.with_model(_load_model(problem, store.folder(payload["target"])))

    def views(job: str) -> dict[str, Evidence]:
        return {s: e for s in ("forget", "holdout") if (e := store.evidence(job, s)) is not None}

    shadows = [
        Shadow(membership(problem, index), views(before), None if after is None else views(after))
        for index, (before, after) in enumerate(payload["shadows"])
    ]
    workplace = Workplace(payload["seed"], payload["device"], store.scratch(key), on_step=on_step)
    attack = AttackSpec(**payload["attack"]).resolve()
    retrained = [_load_model(problem, store.folder(job)) for job in payload["retrained"]]
    scene = Scene(problem, model, workplace, shadows, retrained)
    scores = attack.attack(scene)
    (folder / "scores.json").write_text(canonical_json([s.model_dump(mode="json") for s in scores]))
    if scene.transcripts:
        write_transcripts(folder / TRANSCRIPTS, scene.transcripts)


TRANSCRIPTS = "transcripts.jsonl"
"""File of an attack job with what was asked and answered; contents, unlike every other record."""


def write_transcripts(file: Path, transcripts: Sequence[dict[str, Any]]) -> None:
    """A line each."""
    file.write_text("".join(canonical_json(_finite(said)) + "\n" for said in transcripts))


def _fresh(key: str, payload: dict[str, Any], store: Store, folder: Path, on_step: OnStep | None) -> None:
    problem = load_problem(payload)
    _save(problem, problem.fresh_model(FRESH_SEED), folder, method="fresh")


FRESH_SEED = 104_729
"""Seed of the untrained model; no study uses it for a target."""


def _observe(key: str, payload: dict[str, Any], store: Store, folder: Path, on_step: OnStep | None) -> None:
    problem = load_problem(payload)
    model = _load_model(problem, store.folder(payload["model"]))
    for split, quantities in payload["quantities"].items():
        evidence = collect(
            problem.family, model, problem.splits[split], quantities, device=payload["device"],
            batches=problem.batches(split, payload["device"], quantities),
        )  # fmt: skip
        evidence.write(folder / f"{split}.parquet")


def _score(key: str, payload: dict[str, Any], store: Store, folder: Path, on_step: OnStep | None) -> None:
    cache: dict[tuple[str, str], Evidence | None] = {}

    def read(job: str, split: str) -> Evidence | None:
        if (job, split) not in cache:
            cache[job, split] = store.evidence(job, split)
        return cache[job, split]

    evidence: dict[tuple[Role, str], list[Evidence]] = {}
    for role, jobs in payload["evidence"].items():
        for split in payload["splits"]:
            evidence[role, split] = [e for job in jobs if (e := read(job, split)) is not None]
    scores = []
    for name in payload["metrics"]:
        metric = METRICS[name]
        for split in metric.splits:
            if split in payload["splits"]:
                scores.append(metric(split, evidence).model_dump(mode="json"))
    (folder / "scores.json").write_text(canonical_json(scores))


def _lm_eval(key: str, payload: dict[str, Any], store: Store, folder: Path, on_step: OnStep | None) -> None:
    from expunge.evidence.lm_eval import obstacle, task_scores

    problem, asked = load_problem(payload), TaskSpec(**payload["lm_eval"])
    model = _load_model(problem, store.folder(payload["model"]))
    reason = obstacle(problem.family, model)
    scores = (
        unanswered_tasks(asked.tasks, "not_applicable", reason)
        if reason
        else task_scores(
            problem.family, model, asked.tasks, task_folder=asked.place(Path(payload["base"])),
            batch_size=asked.batch_size, limit=asked.limit, device=payload["device"],
        )
    )  # fmt: skip
    (folder / "scores.json").write_text(canonical_json([s.model_dump(mode="json") for s in scores]))


def unanswered_tasks(
    tasks: Sequence[str], status: Literal["not_applicable", "failed"], reason: str
) -> list[Score]:
    """Why a model has no scores on tasks of the lm-eval harness, for each of them."""
    facts: dict[str, Any] = {
        "metric": "lm-eval", "unit": "share", "direction": "higher", "status": status, "reason": reason
    }  # fmt: skip
    return [Score(split=task, **facts) for task in tasks]


_ACTIONS = {
    "target": _target,
    "forget": _forget,
    "fresh": _fresh,
    "observe": _observe,
    "score": _score,
    "shadow": _shadow,
    "shadow-forget": _shadow_forget,
    "attack": _attack,
    "lm-eval": _lm_eval,
}
