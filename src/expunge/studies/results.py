"""From finished jobs to the table: references, costs as ratios, composites, verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from expunge.attacks.base import find_measure
from expunge.files import read_json
from expunge.methods.base import FILTERED
from expunge.metrics.base import with_reference
from expunge.metrics.composite import anamnesis_index, average_gap, tow, tow_mia
from expunge.record import Claim, Judged, Score, ScoreFile, Verdict, environment, mean_of
from expunge.stats.equivalence import verdict
from expunge.studies.across import across
from expunge.studies.claims import claims
from expunge.studies.graph import Graph, Row
from expunge.studies.jobs import Store, unanswered_tasks

COSTS = {
    "seconds": ("seconds", "wall time of the method"),
    "peak_bytes": ("bytes", "peak memory above the start"),
    "passes": ("passes over the training data", "forward passes of all models, in training-set sizes"),
}
"""Cost fields with their unit and meaning; each is also given as a ratio to retraining."""


RESOLVED_BYTES = 4 << 20
"""Peaks below this are noise of pages and allocator arenas, not a measurement."""


def score_file(name: str, graph: Graph, store: Store, failed: dict[str, str], threads: int) -> ScoreFile:
    """Everything a finished run knows, as `scores.json`; `threads` are those of each job."""
    judged = [_judged(row, graph, store, failed) for row in graph.rows]
    made = complete(name, [p.card() for p in graph.problems.values()], judged)
    together = across(graph, store)
    return made.model_copy(
        update={"across": together, "environment": {**made.environment, "threads": threads}}
    )


def _judged(row: Row, graph: Graph, store: Store, failed: dict[str, str]) -> Judged:
    facts: dict[str, Any] = {
        "problem": row.problem, "problem_id": row.problem_id, "method": row.method, "label": row.label,
        "passed": row.passed, "effective": row.effective, "seed": row.seed,
        "init": row.init,
    }  # fmt: skip
    if row.obstacles:
        return Judged(**facts, status="not_applicable", reason="; ".join(row.obstacles))
    reason = next((failed[key] for key in (row.model, row.observe, row.score) if key in failed), None)
    if reason is not None:
        return Judged(**facts, status="failed", reason=reason)
    assert row.model is not None and row.score is not None  # rows without obstacles have jobs
    record = read_json(store.folder(row.model) / "expunge.json")
    scores = [Score.model_validate(s) for s in read_json(store.folder(row.score) / "scores.json")]
    scores += attack_scores(row, store, failed)
    scores += _task_scores(row, graph, store, failed)
    scores += cost_scores(record.get("cost"))
    notes = record.get("notes", [])
    return Judged(
        **facts, model_id=record["fingerprint"], notes=notes, scores=scores, keeps_target=FILTERED in notes
    )


def attack_scores(row: Row, store: Store, failed: dict[str, str]) -> list[Score]:
    """What attacks on the row's model achieved; an attack that failed or cannot run leaves its reason."""
    scores: list[Score] = []
    for one in row.attacks:
        if one.job is None:
            scores += one.attack.unanswered("not_applicable", one.obstacle)
        elif one.job in failed:
            scores += one.attack.unanswered("failed", failed[one.job])
        else:
            scores += [Score.model_validate(s) for s in read_json(store.folder(one.job) / "scores.json")]
    return scores


def _task_scores(row: Row, graph: Graph, store: Store, failed: dict[str, str]) -> list[Score]:
    """Scores on tasks of the lm-eval harness, where the study asks for them; a failed job leaves its reason."""
    if row.tasks is None:
        return []
    if row.tasks in failed:
        tasks = graph.jobs[row.tasks].payload["lm_eval"]["tasks"]
        return unanswered_tasks(tasks, "failed", failed[row.tasks])
    return [Score.model_validate(s) for s in read_json(store.folder(row.tasks) / "scores.json")]


def cost_scores(cost: dict[str, Any] | None) -> list[Score]:
    """What a run of a method took, as scores on the split 'run'; empty where nothing was run."""
    if cost is None:
        return []
    scores = []
    for field, (unit, _) in COSTS.items():
        metric = field.replace("_", "-")
        if cost[field] is None:
            scores.append(_cost(metric, unit, None, "this system does not report peak memory"))
        elif field == "peak_bytes" and cost[field] < RESOLVED_BYTES:
            scores.append(
                _cost(
                    metric, unit, None, "below 4 MiB, which the resident memory of a process cannot resolve"
                )
            )
        else:
            scores.append(_cost(metric, unit, float(cost[field])))
    if "stored_bytes" in cost:  # records of earlier versions have none
        scores.append(_cost("stored-bytes", "bytes", float(cost["stored_bytes"])))
    if not cost["parameters"]:
        return [*scores, _cost("changed-share", "share of parameters", None, "the model has no parameters")]
    return [*scores, _cost("changed-share", "share of parameters", cost["changed"] / cost["parameters"])]


def _cost(metric: str, unit: str, value: float | None, reason: str = "") -> Score:
    status = "ok" if value is not None else "undefined"
    return Score(
        metric=metric, split="run", unit=unit, direction="lower", value=value, status=status, reason=reason
    )


def complete(name: str, problems: Sequence[dict[str, Any]], judged: Sequence[Judged]) -> ScoreFile:
    """Attach references, ratios, composites and verdicts to raw scores."""
    finished: list[Judged] = []
    verdicts: list[Verdict] = []
    claimed: list[Claim] = []
    for problem in problems:
        mine = [j for j in judged if j.problem == problem["name"]]
        retrained = [j for j in mine if j.method == "retrain" and j.status == "ok"]
        made = [
            _with_references(j, [r for r in retrained if r is not j]) if j.status == "ok" else j for j in mine
        ]
        finished += made
        verdicts += _verdicts(problem["name"], made)
        claimed += claims(problem, made)
    return ScoreFile(
        name=name,
        problems=list(problems),
        judged=finished,
        verdicts=verdicts,
        claims=claimed,
        environment=environment(),
    )


def _with_references(judged: Judged, retrained: Sequence[Judged]) -> Judged:
    scores = []
    for score in judged.scores:
        others = [found for r in retrained if (found := r.score(score.metric, score.split)) is not None]
        is_cost = score.split == "run"
        scores.append(score if is_cost else with_reference(score, others))
        if is_cost and score.metric.replace("-", "_") in COSTS:
            scores.append(_ratio(score, others or ([score] if judged.method == "retrain" else [])))
    composites = [average_gap(judged, retrained)]
    if judged.score("accuracy", "test") is not None:
        composites += [tow(judged, retrained), tow_mia(judged, retrained)]
    if judged.score("relearning-steps", "forget") is not None:
        composites.append(anamnesis_index(judged, retrained))
    return judged.model_copy(update={"scores": scores + composites})


def _ratio(score: Score, retrained: Sequence[Score]) -> Score:
    metric, unit = f"{score.metric}-ratio", "times retraining"
    values = [r.value for r in retrained if r.value is not None]
    if score.value is None:
        return _cost(metric, unit, None, score.reason)
    if not values or mean_of(values) == 0:
        return _cost(metric, unit, None, "there is no retrained model whose cost is known")
    return _cost(metric, unit, score.value / mean_of(values))


PROPERTIES = (
    *(("accuracy", split) for split in ("forget", "retain", "test")),
    *(("mae", split) for split in ("forget", "retain", "test")),
    *((metric, split) for metric in ("probability", "rouge-l-recall") for split in ("forget", "retain")),
    ("unlearning-accuracy", "concept"),
    ("concept-probability", "concept"),
    ("unlearning-accuracy", "earlier"),
    *((f"{domain}-domain-retain-accuracy", "test") for domain in ("in", "cross")),
    ("undesired-rate", "samples"),
    ("coverage", "test"),
    ("mia-loss-logistic", "forget"),
    ("mia-text-min-k", "forget"),
)
"""What a verdict is given on: behavior on what was forgotten and kept, and whether membership shows."""


def _verdicts(problem: str, judged: Sequence[Judged]) -> list[Verdict]:
    """One verdict per method and property; retraining is the yardstick and gets none."""
    retrained = [j for j in judged if j.method == "retrain" and j.status == "ok"]
    made = []
    for label in dict.fromkeys(j.label for j in judged if j.method != "retrain" and j.status == "ok"):
        mine = [j for j in judged if j.label == label and j.status == "ok"]
        for metric, split, margin in (*((m, s, None) for m, s in PROPERTIES), *_attacked(mine)):
            scores, references = _scores(mine, metric, split), _scores(retrained, metric, split)
            if scores and references:
                made.append(verdict(problem, label, scores, references, margin))
    return made


def _attacked(judged: Sequence[Judged]) -> list[tuple[str, str, float]]:
    """The measures of attacks that a verdict is given on: metric, split and margin."""
    names = dict.fromkeys(score.metric for j in judged for score in j.scores if score.attack)
    measures = [found[1] for name in names if (found := find_measure(name)) is not None]
    return [(m.name, m.split, m.margin) for m in measures if m.margin is not None]


def _scores(judged: Sequence[Judged], metric: str, split: str) -> list[Score]:
    return [s for j in judged if (s := j.score(metric, split)) is not None and s.status == "ok"]
