"""What single examples say: the per-example losses that finished runs hold, as tables of methods by examples."""

from __future__ import annotations

from collections.abc import Iterable
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
    places = _places(stores, wanted)
    tables = []
    for problem in scores.problems:
        mine = [j for j in scores.judged if j.problem == problem["name"] and j.status == "ok"]
        losses = {s: _losses(mine, problem["fingerprint"], s, places) for s in SPLITS}
        forget = _near_retrained(mine, losses["forget"])
        kept = "test" if losses["test"] else "retain"
        for split, values in (
            ("forget", forget),
            (kept, {k: -v for k, v in _means(mine, losses[kept]).items()}),
        ):
            if len(values) > 1:
                tables.append(InstanceTable(problem["name"], split, _finite(values)))
    return tables


Losses = dict[int, np.ndarray]
"""By the number of the model: `[n]` nats."""


def _places(stores: Iterable[Path], wanted: set[str]) -> dict[tuple[str, str], list[Path]]:
    """Folders with evidence, by the fingerprints of problem and model."""
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


def _losses(
    judged: list[Judged], fingerprint: str, split: str, places: dict[tuple[str, str], list[Path]]
) -> Losses:
    found: Losses = {}
    ids: list[str] | None = None
    for number, one in enumerate(judged):
        folders = places.get((fingerprint, one.model_id or ""), [])
        file = next((f for folder in folders if (f := folder / f"{split}.parquet").exists()), None)
        if file is None:
            continue
        evidence = Evidence.read(file)
        if "loss" not in evidence.table.column_names:
            continue
        ids = ids or evidence.ids
        if evidence.ids == ids:  # the same examples in the same order, as a problem's are
            loss = evidence["loss"].astype(np.float64)
            found[number] = loss[:: max(1, len(loss) // MOST)]
    return found


def _near_retrained(judged: list[Judged], losses: Losses) -> dict[str, np.ndarray]:
    """Minus the distance to the mean loss of the retrained models, other than itself."""
    retrained = [n for n in losses if judged[n].method == "retrain"]
    gaps: Losses = {}
    for number, loss in losses.items():
        others = [losses[n] for n in retrained if n != number]
        if others:
            gaps[number] = -np.abs(loss - np.mean(others, axis=0))
    return _means(judged, gaps)


def _means(judged: list[Judged], values: Losses) -> dict[str, np.ndarray]:
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
