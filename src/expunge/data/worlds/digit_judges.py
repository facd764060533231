"""Judges of small handwritten digits: which digit, and how heavy its strokes are. Made once and kept in the cache."""

from __future__ import annotations

import numpy as np
from datasets import Dataset
from filelock import FileLock

from expunge.data.worlds.tables import digits
from expunge.families import Architecture, Classifier, Images
from expunge.families.judges import Judge
from expunge.families.weights import save_model
from expunge.files import CACHE, cached, digest, folder_atomic
from expunge.methods.base import Workplace
from expunge.methods.loop import fit
from expunge.problem import Problem, Training

STROKES = ("light", "heavy")
HEAVY = 0.335
"""Mean grey value, 0 to 1, from which strokes are heavy: a fifth of the images, of every digit some."""

_ARCHITECTURES = {
    "judge": {"widths": [16, 32], "hidden": 32},
    "guide": {"widths": [32], "hidden": 48},
}
_RECIPE = Training(
    epochs=15, lr=4e-3, batch_size=64, optimizer="adamw", weight_decay=0.01, schedule="cosine", warmup=0.1
)  # fmt: skip


def with_strokes(dataset: Dataset) -> Dataset:
    """The data set with a column `stroke`: light or heavy, by the image's mean grey value."""
    ink = np.asarray(dataset.with_format("numpy")["image"][:]).mean((1, 2))
    return dataset.add_column("stroke", [STROKES[int(v >= HEAVY)] for v in ink])  # pyright: ignore


def judge(column: str, train: Dataset, role: str = "judge") -> Judge:
    """The classifier of `label` or `stroke`, fitted to `train`; seconds the first time.

    The guide, whom methods ask, has other layers and another seed than the judge, who scores.
    """
    classes: list[str] = [str(i) for i in range(10)] if column == "label" else list(STROKES)
    options = {**_ARCHITECTURES[role], "channels": 1, "size": 8, "batchnorm": True, "outputs": len(classes)}
    architecture = Architecture(kind="builtin", name="cnn", options=options)
    facts = {
        "column": column, "recipe": _RECIPE.model_dump(mode="json"), "ids": list(train["id"][:]), "heavy": HEAVY,
        "architecture": architecture.model_dump(mode="json"),
    }  # fmt: skip
    name = f"{CACHE}digits/{role}-{digest(facts)}"
    path = cached(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            values = [classes.index(str(v)) for v in train[column][:]]
            images = train.with_format("numpy")["image"][:]
            rows = Dataset.from_dict({"id": train["id"][:], "image": list(images), "label": values})
            problem = Problem(
                "judge",
                Classifier(Images("image"), classes),
                rows,
                (rows["id"][0],),
                architecture=architecture,
            )
            seed = ("guide", "judge").index(role)
            model = fit(problem, problem.fresh_model(seed), "train", _RECIPE, Workplace(seed))
            with folder_atomic(path) as folder:
                save_model(model, folder, architecture, problem.family.describe(), {"judge": column})
    return Judge(column, name, classes)


def all_digits() -> Dataset:
    """The digits with `stroke`."""
    return with_strokes(digits())
