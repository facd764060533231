"""What the world of styles and objects needs besides images: a codec, and judges. Made once and kept in the cache."""

from __future__ import annotations

import inspect

import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock

from expunge.data.worlds import canvas
from expunge.data.worlds.canvas import OBJECTS, SIDE, STYLES, cells, render
from expunge.families import Architecture, Classifier, Images
from expunge.families.judges import Judge
from expunge.families.pipelines import LinearCodec
from expunge.families.weights import save_model, save_weights
from expunge.files import CACHE, cached, digest, folder_atomic
from expunge.methods.base import Workplace
from expunge.methods.loop import fit
from expunge.problem import Problem, Training

PATCH, KEEP = 4, 32
"""Pixels of a patch's side, and how many of its 48 components a latent keeps; judges see no difference after decoding."""

_CODEC_SEED, _JUDGE_SEED = 101, 202
"""Streams of images that no problem trains on."""

_RECIPE = Training(
    epochs=8, lr=4e-3, batch_size=128, optimizer="adamw", weight_decay=0.01, schedule="cosine", warmup=0.1
)  # fmt: skip


def _place(kind: str, **facts: object) -> str:
    """Name in the cache; another world, another name."""
    return f"{CACHE}canvas/{kind}-{digest({'world': inspect.getsource(canvas), **facts})}"


def codec() -> LinearCodec:
    """The codec of the world, from images of all its cells that nothing else uses."""
    name = _place("codec", patch=PATCH, keep=KEEP) + "/codec.safetensors"
    path = cached(name)
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path.parent}.lock"):
        if not path.exists():
            images = np.concatenate([render(s, o, 40, _CODEC_SEED) for s, o in cells(STYLES, OBJECTS)])
            made = LinearCodec(PATCH, 3, KEEP).fit(torch.from_numpy(images))
            with folder_atomic(path.parent) as folder:
                save_weights(made, folder / path.name)
    return LinearCodec(PATCH, 3, KEEP, weights=name)


def judge(column: str, seed: int = 1) -> Judge:
    """The classifier that names the style or the object of an image, trained on images that vary more than the world's.

    Takes about half a minute the first time. Seed 1 scores; a second opinion has another seed.
    """
    classes = list({"style": STYLES, "object": OBJECTS}[column])
    name = _place("judge", column=column, seed=seed, recipe=_RECIPE.model_dump(mode="json"))
    path = cached(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            problem = _judge_problem(column, classes)
            assert problem.architecture is not None
            model = fit(problem, problem.fresh_model(seed), "train", _RECIPE, Workplace(seed))
            with folder_atomic(path) as folder:
                save_model(model, folder, problem.architecture, problem.family.describe(), {"judge": column})
    return Judge(column, name, classes)


def _judge_problem(column: str, classes: list[str]) -> Problem:
    pictures, labels = [], []
    for style, thing in cells(STYLES, OBJECTS):
        images = (render(style, thing, 120, _JUDGE_SEED, spread=2.0) + 1) / 2
        pictures += list(images)
        labels += [classes.index(style if column == "style" else thing)] * len(images)
    train = Dataset.from_dict({"id": [f"judge-{i}" for i in range(len(labels))], "label": labels})
    train = train.add_column("image", [p.tolist() for p in pictures])  # pyright: ignore
    architecture = Architecture(
        kind="builtin", name="cnn",
        options={"channels": 3, "size": SIDE, "outputs": len(classes), "widths": [24, 48, 96], "batchnorm": True, "hidden": 96},
    )  # fmt: skip
    family = Classifier(Images("image", channels=3), classes)
    return Problem("judge", family, train, (train["id"][0],), architecture=architecture, recipe=_RECIPE)
