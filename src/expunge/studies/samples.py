"""What a run's first seed holds example by example, for the report to draw: losses, and the images that models made."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from datasets import Dataset

from expunge.evidence.pictures import as_png, square_image
from expunge.families import Family, Gan
from expunge.studies.graph import Graph, Row
from expunge.studies.jobs import Store

LossSamples = dict[str, dict[str, dict[str, list[float]]]]
"""Per-example losses by problem, label and split; of retrained models the labels are those of `retrained_label`."""
ImageSamples = dict[str, dict[str, dict[str, list[list[str]]]]]
"""Pairs of what was asked for and a PNG, by problem, split and label; the same rows for every label."""

MOST_LOSSES = 2000
MOST_IMAGES = 8
"""Per model and split, evenly spaced."""
SIDE = 96
"""Pixels of a sample; larger images are made smaller."""


def retrained_label(number: int) -> str:
    """How records of samples call a retrained model: 'retrained', and the further ones 'retrained 2' and so on."""
    return "retrained" if number == 0 else f"retrained {number + 1}"


def is_retrained(label: str) -> bool:
    """Whether a label is one of `retrained_label`."""
    return re.fullmatch(r"retrained( \d+)?", label) is not None


def loss_samples(graph: Graph, store: Store) -> LossSamples:
    """Losses of the first seed's models, for the distributions in the report, and of the retrained models of every seed."""
    made: LossSamples = {}
    first = _first_seeds(graph)
    for row, observed in _looked_at(graph, store):
        if row.method != "retrain" and row.seed != first[row.problem]:
            continue
        found = {}
        for split in graph.problems[row.problem].splits:
            evidence = store.evidence(observed, split)
            if evidence is not None and "loss" in evidence.table.column_names:
                found[split] = (
                    evidence["loss"].astype(float)[:: max(1, len(evidence) // MOST_LOSSES)].tolist()
                )
        if found:
            mine = made.setdefault(row.problem, {})
            retrained = row.method == "retrain"
            mine[retrained_label(sum(map(is_retrained, mine))) if retrained else row.label] = found
    return made


def image_samples(graph: Graph, store: Store) -> ImageSamples:
    """Images that the first seed's models made, from the same starting noise of the same rows."""
    made: ImageSamples = {}
    first = _first_seeds(graph)
    for row, observed in _looked_at(graph, store):
        if row.seed != first[row.problem]:
            continue
        problem = graph.problems[row.problem]
        for split, rows in problem.splits.items():
            evidence = store.evidence(observed, split)
            if evidence is None or "image" not in evidence.table.column_names:
                continue
            chosen = np.unique(np.linspace(0, len(evidence) - 1, MOST_IMAGES).round().astype(int))
            images = evidence["image"][chosen]
            pairs = [
                [asked, as_png(square_image(image), SIDE)]
                for asked, image in zip(_asked(problem.family, rows, chosen), images, strict=True)
            ]
            made.setdefault(row.problem, {}).setdefault(split, {})[_shown(row)] = pairs
    return made


def _first_seeds(graph: Graph) -> dict[str, int]:
    """The first seed of each problem."""
    return {p: min(r.seed for r in graph.rows if r.problem == p) for p in {r.problem for r in graph.rows}}


def _looked_at(graph: Graph, store: Store) -> Iterator[tuple[Row, str]]:
    """Rows that were looked at, with the key of that look; by seed, so that the first seed's models come first."""
    for row in sorted(graph.rows, key=lambda r: r.seed):
        if row.observe is not None and store.has(row.observe):
            yield row, row.observe


def _shown(row: Row) -> str:
    return "retrained" if row.method == "retrain" else row.label


def _asked(family: Family, rows: Dataset, chosen: np.ndarray) -> list[str]:
    """What each chosen row asks a model to make; an unconditional GAN is asked for nothing."""
    if isinstance(family, Gan) and not family.conditional:
        return [""] * len(chosen)
    column = next((c for c in ("prompt", "label") if c in rows.column_names), "id")
    return [str(v) for v in rows[column][chosen.tolist()]] if column != "id" else [""] * len(chosen)
