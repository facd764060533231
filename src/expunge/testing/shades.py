"""The tiny problem of the family `gan`: 4x4 pixels of one shade, dark to bright, and a GAN of a few thousand weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from datasets import Dataset

from expunge.families import Architecture, Classifier, Gan, Images
from expunge.families.judges import Judge
from expunge.families.weights import save_model
from expunge.methods.base import Workplace
from expunge.methods.loop import fit
from expunge.problem import Problem, Training

SHADES = ["dark", "middle", "bright"]
SIDE = 4


def _rows(n: int, seed: int) -> Dataset:
    """Shades spread evenly, one side of the image a little brighter than the other."""
    random = np.random.default_rng(seed)
    shade = (random.permutation(n) + random.random(n)) / n
    slope = random.uniform(-0.2, 0.2, (n, 1, 1)) * np.linspace(-1, 1, SIDE)
    image = 0.1 + 0.8 * shade[:, None, None] + slope + random.normal(0, 0.02, (n, SIDE, SIDE))
    return Dataset.from_dict(
        {
            "id": [f"g{seed}-{i}" for i in range(n)],
            "image": np.clip(image, 0, 1).astype(np.float32).tolist(),
            "label": (shade * 3).astype(int).tolist(),
        }
    )


_KEPT = tempfile.TemporaryDirectory(prefix="expunge-tiny-")
"""Goes with the process."""


def _judge(seed: int) -> Judge:
    options = {"channels": 1, "size": SIDE, "outputs": 3, "widths": [8], "hidden": 8}
    architecture = Architecture(kind="builtin", name="cnn", options=options)
    recipe = Training(epochs=6, batch_size=16, lr=0.02, optimizer="adamw", weight_decay=0.0)
    train = _rows(192, 9)
    problem = Problem(
        "judge", Classifier(Images("image"), SHADES), train, (train["id"][0],), architecture=architecture
    )
    model = fit(problem, problem.fresh_model(seed), "train", recipe, Workplace(seed))
    folder = Path(_KEPT.name) / str(seed)
    save_model(model, folder, architecture, problem.family.describe(), {})
    return Judge("label", str(folder), SHADES)


def tiny_gan(*, conditional: bool = False) -> Problem:
    """Everything bright is to be forgotten; the target is not trained yet."""
    train, test = _rows(48, 0), _rows(36, 2)
    bright = np.asarray(test["label"][:]) == 2
    samples = Dataset.from_dict({"id": [f"s-{i}" for i in range(48)], "label": [i % 3 for i in range(48)]})
    family = Gan(
        Images("image", channels=1, mean=[0.5], std=[0.5]), (1, SIDE, SIDE), 4, SHADES, conditional=conditional,
        judges=[_judge(0)], guide=_judge(1), concept=("label", "bright"), draws=48, neighbors=3,
    )  # fmt: skip
    options = {"size": SIDE, "latent": 4, "width": 8, "critic_width": 4, "mapping": 1}
    return Problem(
        "tiny-gan", family, train, tuple(i for i, c in zip(train["id"], train["label"], strict=True) if c == 2),
        _rows(24, 1),
        {
            "test": test.select(np.flatnonzero(~bright)),
            "concept": test.select(np.flatnonzero(bright)),
            "samples": samples,
        },
        architecture=Architecture(kind="builtin", name="gan", options=options | ({"classes": 3} if conditional else {})),
        recipe=Training(
            epochs=150, batch_size=48, lr=5e-3, optimizer="rmsprop", weight_decay=0.0, schedule="linear", warmup=0.1
        ),
        scope="everything bright",
    )  # fmt: skip
