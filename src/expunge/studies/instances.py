"""What single examples say: the per-example losses that finished runs hold, as tables of methods by examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from expunge.evidence import Evidence
from expunge.files import read_json
from expunge.record import Judged, ScoreFile
from expunge.studies.standings import InstanceTable

SPLITS = ("forget", "test", "retain")
MOST = 2000
"""Examples of one split that are looked at, evenly spaced."""


def instance_tables(scores: ScoreFile, stores: Iterable[Path]) -> list[InstanceTable]:
    """How each example orders the methods: on the forget set by how near its loss is to the retrained models' mean, on test (or
    retain, where there is no test set) by how low it is; over seeds the mean of either.

    Args:
        scores: the merged scores, whose models are looked for by the fingerprints of their weights.
        stores: ``runs/store`` folders. Models whose evidence is in none of them are left out.
    """
    wanted = {j.model_id for j in scores.judged if j.model_id}
    places = places_of(stores, wanted)
    tables = []
    for problem in scores.problems:
        mine = [j for j in scores.judged if j.problem == problem["name"] and j.status == "ok"]
        found = {s: evidence_of(mine, problem["fingerprint"], s, places) for s in SPLITS}
        losses = {s: _losses(e) for s, e in found.items()}
        forget = _near_retrained(mine, losses["forget"])
        kept = "test" if losses["test"] else "retain"
        for split, values in (
            ("forget", forget),
            (kept, {k: -v for k, v in _means(mine, losses[kept]).items()}),
        ):
            if len(values) > 1:
                groups = next(iter(found[split].values())).groups
                clusters = None if groups is None else groups[:: _every(len(groups))]
                tables.append(InstanceTable(problem["name"], split, _finite(values), clusters))
    return tables


Losses = dict[int, np.ndarray]
"""By the number of the model: `[n]` nats."""
Places = dict[tuple[str, str], list[Path]]
"""Folders with evidence, by the fingerprints of problem and model."""


def places_of(stores: Iterable[Path], wanted: set[str]) -> Places:
    """Where evidence of the models in `wanted` (fingerprints) lies."""
    found: dict[tuple[str, str], list[Path]] = {}
    for store in stores:
        models: dict[str, tuple[str, str]] = {}
        looks: list[tuple[str, Path]] = []
        for file in sorted((store / "jobs").glob("*/job.json")):
            job = read_json(file)
            if job["kind"] == "observe":
                looks.append((job["model"], file.parent))
            elif job["kind"] in ("target", "forget"):
                record = read_json(file.parent / "expunge.json")
                if record["fingerprint"] in wanted:
                    models[file.parent.name] = (record["problem"]["fingerprint"], record["fingerprint"])
        for model, folder in looks:
            if model in models:
                found.setdefault(models[model], []).append(folder)
    return found


def evidence_of(
    judged: Sequence[Judged], fingerprint: str, split: str, places: Places
) -> dict[int, Evidence]:
    """By the number of the model, what it was seen to do on `split`: of those that were asked the same examples."""
    found: dict[int, Evidence] = {}
    ids: list[str] | None = None
    for number, one in enumerate(judged):
        folders = places.get((fingerprint, one.model_id or ""), [])
        file = next((f for folder in folders if (f := folder / f"{split}.parquet").exists()), None)
        if file is None:
            continue
        evidence = Evidence.read(file)
        ids = ids or evidence.ids
        if evidence.ids == ids:  # the same examples in the same order, as a problem's are
            found[number] = evidence
    return found


def _losses(found: Mapping[int, Evidence]) -> Losses:
    return {
        number: evidence["loss"].astype(np.float64)[:: _every(len(evidence))]
        for number, evidence in found.items()
        if "loss" in evidence.table.column_names
    }


def _every(n: int) -> int:
    """Distance of the rows that are looked at."""
    return max(1, n // MOST)


def _near_retrained(judged: Sequence[Judged], losses: Losses) -> dict[str, np.ndarray]:
    """Minus the distance to the mean loss of the retrained models, other than itself."""
    retrained = [n for n in losses if judged[n].method == "retrain"]
    gaps: Losses = {}
    for number, loss in losses.items():
        others = [losses[n] for n in retrained if n != number]
        if others:
            gaps[number] = -np.abs(loss - np.mean(others, axis=0))
    return _means(judged, gaps)


def _means(judged: Sequence[Judged], values: Losses) -> dict[str, np.ndarray]:
    """By label the mean over seeds; without the target, and without retraining where it is a single model."""
    by_label: dict[str, list[np.ndarray]] = {}
    for number, value in values.items():
        one = judged[number]
        if one.method != "target" and (
            one.method != "retrain" or sum(j.method == "retrain" for j in judged) > 1
        ):
            by_label.setdefault(one.label, []).append(value)
    return {label: np.mean(found, axis=0) for label, found in by_label.items()}


def _finite(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Losses of a model that diverged lie below all others, rather than being missing."""
    lowest = min((v[np.isfinite(v)].min(initial=0.0) for v in values.values()), default=0.0)
    return {
        label: np.nan_to_num(v, nan=lowest - 1, posinf=lowest - 1, neginf=lowest - 1)
        for label, v in values.items()
    }
