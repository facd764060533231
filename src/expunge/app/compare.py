"""Two models beside each other: groups, layers, features, answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from expunge.app.examples import (
    Chosen,
    Evidence,
    Matrix,
    Residuals,
    evidence,
    paired,
    prediction_matrix,
    residuals,
)
from expunge.app.runs import Runs
from expunge.app.views import Bands
from expunge.errors import BadInput, ExpungeError, Missing
from expunge.extras import load_extra
from expunge.metrics.cka import linear_cka
from expunge.record import Judged, Record, ScoreFile
from expunge.report.content import MAIN
from expunge.report.tables import range_of, title_of
from expunge.report.vega import natural

MOST_POINTS = 2000
"""Examples of an embedding; an evenly spaced part of more."""
SIMILARITIES = (("cka-to-target", "target"), ("cka-to-retrained", "retrained"))
"""Metrics that compare representations layer by layer, and whom a model is compared with."""


class GroupBars(Record):
    """One metric by group."""

    metric: str
    title: str
    unit: str
    groups: list[str]
    a: list[float | None]
    b: list[float | None]
    retrained: Bands = Field(description="where the retrained models lie, by group")


class LayerLine(Record):
    """Similarity of two models' representations, layer by layer."""

    name: str = Field(description="which two models")
    layers: list[str]
    values: list[float | None] = Field(
        description="linear CKA; None where the features of a layer do not vary"
    )


class LayerBand(Bands):
    """Similarity of the retrained models to others, layer by layer."""

    name: str = Field(description="which two kinds of models")
    layers: list[str]


class Contrast(Record):
    """Two models on one split. What cannot be shown carries its reason."""

    split: str
    splits: list[str]
    n: int | None
    bars: list[GroupBars]
    layers: list[LayerLine]
    layer_bands: list[LayerBand] = Field(description="of the similarities that the run measured")
    matrices: list[Matrix] | None
    residuals: list[Residuals] | None
    embeddable: list[str] = Field(description="layers whose features were collected of both")
    texts: bool = Field(description="whether the models' answers were collected")
    images: bool = Field(description="whether the images that the models make were collected")
    missing: dict[str, str] = Field(description="by view: why there is none")


def contrast(runs: Runs, run: str, problem: str, a: Chosen, b: Chosen, split: str) -> Contrast:
    """Everything of two models on a split that is not a table of examples."""
    scores = runs.scores(run)
    first, second = (judged(scores, problem, m) for m in (a, b))
    missing: dict[str, str] = {}
    bars = group_bars(scores, problem, first, second, split)
    if not bars:
        missing["bars"] = f"no metric on '{split}' is broken down by group"
    both: tuple[Evidence, Evidence | None] | None = None
    try:
        both = paired(runs, run, problem, a, b, split)
        splits = runs.splits(run, problem, a.label, a.seed)
    except ExpungeError as error:
        splits = sorted({s.split for s in first.scores if s.split != "run"})
        for view in ("examples", "matrices", "residuals", "embedding", "texts"):
            missing[view] = str(error)
    pair = (both[0], both[1]) if both is not None and both[1] is not None else None
    layers = _recorded_layers(first, second, a, b, split)
    embeddable: list[str] = []
    if pair is not None:
        embeddable = [
            n.removeprefix("features:")
            for n in pair[0].names
            if n.startswith("features:") and n in pair[1].names
        ]
        embeddable.sort(key=natural)
        if embeddable:
            layers.insert(0, _direct(pair, embeddable, a, b))
        else:
            missing["embedding"] = (
                f"no features were collected on '{split}'; they are on forget and test in standard studies"
            )
    if not layers:
        missing["layers"] = missing.get("embedding", f"no similarity of layers was measured on '{split}'")
    family = next((p.get("family", "") for p in scores.problems if p["name"] == problem), "")
    matrices, values = _by_family(runs, run, problem, a, pair, family, missing)
    return Contrast(
        split=split, splits=splits, n=None if pair is None else len(pair[0]), bars=bars, layers=layers,
        layer_bands=_layer_bands(scores, problem, split), matrices=matrices, residuals=values, embeddable=embeddable,
        texts=pair is not None and all("text" in e.names for e in pair),
        images=pair is not None and all("image" in e.names for e in pair), missing=missing,
    )  # fmt: skip


def _by_family(
    runs: Runs, run: str, problem: str, a: Chosen, pair: tuple[Evidence, Evidence] | None, family: str, missing: dict[str, str]
) -> tuple[list[Matrix] | None, list[Residuals] | None]:  # fmt: skip
    if pair is None:
        return None, None
    try:
        if family == "classifier":
            described = runs.model_record(run, problem, a.label, a.seed).get("family", {})
            return [prediction_matrix(e, described.get("classes", [])) for e in pair], None
        if family == "regressor":
            return None, [residuals(e) for e in pair]
    except (ExpungeError, IndexError) as error:
        missing["matrices" if family == "classifier" else "residuals"] = str(error)
    return None, None


def judged(scores: ScoreFile, problem: str, model: Chosen) -> Judged:
    """The record of a model.

    Raises:
        Missing: there is none.
    """
    found = next(
        (j for j in scores.judged if (j.problem, j.label, j.seed) == (problem, model.label, model.seed)), None
    )
    if found is None:
        raise Missing(f"there is no model '{model.label}' with seed {model.seed} on '{problem}'")
    return found


def group_bars(scores: ScoreFile, problem: str, a: Judged, b: Judged, split: str) -> list[GroupBars]:
    """Every metric on the split that both models have by group, layers excepted; those of the report's main table first."""
    retrained = _retrained(scores, problem)
    made = []
    for score in a.scores:
        other = b.score(score.metric, split)
        if (
            score.split != split
            or not score.groups
            or other is None
            or not other.groups
            or score.metric.startswith("cka")
        ):
            continue
        groups = sorted({*score.groups, *other.groups}, key=natural)
        yardsticks = [s.groups for r in retrained if (s := r.score(score.metric, split)) is not None]
        made.append(
            GroupBars(
                metric=score.metric,
                title=title_of(score.metric),
                unit=score.unit,
                groups=groups,
                a=[score.groups.get(g) for g in groups],
                b=[other.groups.get(g) for g in groups],
                retrained=Bands(
                    **Bands.ends([[y[g] for y in yardsticks if g in y] for g in groups], *range_of(score))
                ),
            )
        )
    main = [metric for metric, _ in MAIN]
    return sorted(made, key=lambda bars: main.index(bars.metric) if bars.metric in main else len(main))


def _retrained(scores: ScoreFile, problem: str) -> list[Judged]:
    return [j for j in scores.judged if (j.problem, j.method, j.status) == (problem, "retrain", "ok")]


def _layer_bands(scores: ScoreFile, problem: str, split: str) -> list[LayerBand]:
    made = []
    for metric, other in SIMILARITIES:
        found = [
            s for j in _retrained(scores, problem) if (s := j.score(metric, split)) is not None and s.groups
        ]
        if found:
            layers = sorted({k for s in found for k in s.groups}, key=natural)
            values = [[s.groups[k] for s in found if k in s.groups] for k in layers]
            ends = Bands.ends(values, *range_of(found[0]))
            made.append(LayerBand(name=f"retrained to {other}", layers=layers, **ends))
    return made


def _recorded_layers(first: Judged, second: Judged, a: Chosen, b: Chosen, split: str) -> list[LayerLine]:
    made = []
    for metric, other in SIMILARITIES:
        for record, model in ((first, a), (second, b)):
            score = record.score(metric, split)
            if score is not None and score.groups:
                layers = sorted(score.groups, key=natural)
                values: list[float | None] = [score.groups[k] for k in layers]
                made.append(
                    LayerLine(name=f"{model.label}@{model.seed} to {other}", layers=layers, values=values)
                )
    return made


def _direct(pair: tuple[Evidence, Evidence], layers: Sequence[str], a: Chosen, b: Chosen) -> LayerLine:
    values: list[float | None] = []
    for layer in layers:
        of_a, of_b = (_features(e, layer)[0] for e in pair)
        cka = (
            linear_cka(of_a, of_b)
            if np.isfinite(of_a).all() and np.isfinite(of_b).all() and len(of_a) > 2
            else np.nan
        )
        values.append(float(cka) if np.isfinite(cka) else None)
    return LayerLine(name=f"{a.label}@{a.seed} to {b.label}@{b.seed}", layers=list(layers), values=values)


def _features(found: Evidence, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """`[n, d]` features of an evenly spaced part of the rows, and which rows these are."""
    rows = np.arange(len(found))[:: max(1, -(-len(found) // MOST_POINTS))]
    values = found.array(f"features:{layer}").astype(np.float64)
    return values.reshape(len(values), -1)[rows], rows


class Point(Record):
    """An example in both models."""

    id: str
    group: str | None
    a: tuple[float, float]
    b: tuple[float, float]
    correct_a: bool | None = None
    correct_b: bool | None = None


class Embedding(Record):
    """Features of two models in one plane, so that positions can be compared."""

    layer: str
    method: Literal["pca", "umap"]
    aligned: bool
    explained: list[float] | None = Field(description="PCA: share of the variance along each axis")
    similarity: float | None = Field(
        description="linear CKA of the two models at this layer, on the rows drawn"
    )
    points: list[Point]
    n: int = Field(
        description="rows of the split; an evenly spaced part is drawn where there are more than 2,000"
    )


def embedding(
    pair: tuple[Evidence, Evidence], layer: str, method: Literal["pca", "umap"] = "pca", aligned: bool = True
) -> Embedding:
    """Both models' features, embedded together.

    Both are centered. `aligned` turns and reflects B's features onto A's first (orthogonal Procrustes): a model that was
    trained on its own numbers its units differently, and without that two equal representations would lie apart. PCA
    then is of both models' rows together; UMAP (extra `umap`; 15 neighbors, seed 0) too.
    """
    (of_a, rows), (of_b, _) = (_features(e, layer) for e in pair)
    if of_a.shape[1] != of_b.shape[1]:
        raise Missing(
            f"layer '{layer}' has {of_a.shape[1]} units in one model and {of_b.shape[1]} in the other"
        )
    if not (np.isfinite(of_a).all() and np.isfinite(of_b).all()):
        raise Missing(f"the features of layer '{layer}' are not all finite; a model has diverged")
    if len(of_a) < 3:
        raise Missing(f"an embedding needs 3 or more examples, there are {len(of_a)}")
    cka = linear_cka(of_a, of_b)
    centered_a, centered_b = of_a - of_a.mean(0), of_b - of_b.mean(0)
    if aligned:
        left, _, right = np.linalg.svd(centered_b.T @ centered_a, full_matrices=False)
        centered_b = centered_b @ left @ right
    both = np.concatenate([centered_a, centered_b])
    explained: list[float] | None = None
    if method == "pca":
        from sklearn.decomposition import PCA

        if both.shape[1] == 1:
            both = np.column_stack([both, np.zeros(len(both))])
        pca = PCA(2, svd_solver="randomized" if both.shape[1] > 64 else "full", random_state=0)
        flat = pca.fit_transform(both)
        explained = [float(v) if np.isfinite(v) else 0.0 for v in pca.explained_variance_ratio_]
    elif method == "umap":
        umap = load_extra("umap", "umap", "the UMAP embedding")
        flat = umap.UMAP(n_neighbors=min(15, len(both) - 1), random_state=0).fit_transform(both)
    else:
        raise BadInput(f"there is no embedding '{method}'; there are pca and umap")
    ids, groups = pair[0].table["id"].to_pylist(), None
    if "group" in pair[0].table.column_names:
        groups = pair[0].table["group"].to_pylist()
    correct = [e.table["correct"].to_numpy() if "correct" in e.quantities else None for e in pair]
    n = len(rows)
    points = [
        Point.model_construct(
            id=str(ids[row]), group=None if groups is None else str(groups[row]),
            a=(round(float(flat[i, 0]), 4), round(float(flat[i, 1]), 4)),
            b=(round(float(flat[n + i, 0]), 4), round(float(flat[n + i, 1]), 4)),
            correct_a=_right(correct[0], row),
            correct_b=_right(correct[1], row),
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip
    return Embedding.model_construct(
        layer=layer, method=method, aligned=aligned, explained=explained,
        similarity=float(cka) if np.isfinite(cka) else None, points=points, n=len(pair[0]),
    )  # fmt: skip


def _right(correct: np.ndarray | None, row: int) -> bool | None:
    return None if correct is None or np.isnan(correct[row]) else bool(correct[row])


__all__ = ["Contrast", "Embedding", "contrast", "embedding", "evidence"]
