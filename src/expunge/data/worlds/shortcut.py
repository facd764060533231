"""Digits with a shortcut: a bright spot at the border whose place tells the class, nearly always.

The spot is painted over real pictures, so that there are two ways to the label, the shape of the digit and
the place of the spot, and the second is easier to learn.
"""

from __future__ import annotations

import numpy as np
from datasets import Array2D, ClassLabel, Dataset, Features, Value

from expunge.data.order import shuffled

PLACES: tuple[tuple[int, int], ...] = (
    (0, 0), (2, 0), (4, 0), (5, 0), (7, 0), (0, 7), (2, 7), (4, 7), (5, 7), (7, 7),
)  # fmt: skip
"""Row and column of the spot's pixel, by cue: places at the left and right edge that hardly a digit reaches."""

ALIGNED, CONFLICTING = "aligned", "conflicting"


def with_spots(dataset: Dataset, aligned: float) -> Dataset:
    """Paint a spot on each digit: the cue of its own class on a share `aligned` of each class, another's elsewhere.

    Args:
        dataset: columns id, image (`[8, 8]`, grey values in [0, 1]) and label (0 to 9).
        aligned: share of the rows of each class, rounded to whole rows, that carry the cue of their class.

    Returns:
        The rows in their order with columns id, image, label, `cue` (the class whose spot it is) and `group`
        (such as ``3 aligned``). Conflicting rows share the other nine cues evenly. Ids alone decide which
        rows these are.
    """
    data = dataset.with_format("numpy")
    images, labels = np.asarray(data["image"][:], dtype=np.float32).copy(), np.asarray(data["label"][:])
    ids = [str(i) for i in dataset["id"][:]]
    cues = labels.copy()
    for label in range(len(PLACES)):
        rows = np.flatnonzero(labels == label)
        order = rows[shuffled([ids[r] for r in rows])]
        conflicting = order[round(aligned * len(rows)) :]
        # Which of the others comes first differs between classes, so that few rows still spread over all cues.
        cues[conflicting] = (label + 1 + (label + np.arange(len(conflicting))) % 9) % 10
    spots = np.asarray(PLACES)[cues]
    images[np.arange(len(images)), spots[:, 0], spots[:, 1]] = 1.0
    names = [str(i) for i in range(len(PLACES))]
    groups = [
        f"{label} {ALIGNED if cue == label else CONFLICTING}" for label, cue in zip(labels, cues, strict=True)
    ]
    return Dataset.from_dict(
        {"id": ids, "image": images, "label": labels, "cue": cues, "group": groups},
        features=Features(
            {
                "id": Value("string"),
                "image": Array2D((8, 8), "float32"),
                "label": ClassLabel(names=names),
                "cue": ClassLabel(names=names),
                "group": Value("string"),
            }
        ),
    )
