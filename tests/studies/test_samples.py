"""Images of evidence as PNG, and which of a run's the report shows."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from expunge.errors import Missing
from expunge.evidence.pictures import as_png, square_image
from expunge.studies.samples import MOST_IMAGES, image_samples, is_retrained, loss_samples


def read(address: str) -> np.ndarray:
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"))))
    )


def test_a_recorded_image_comes_back_pixel_by_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    address = as_png(square_image(pixels.transpose(2, 0, 1).flatten()))
    assert (read(address) == pixels).all()
    assert read(as_png(square_image(pixels.transpose(2, 0, 1).flatten()), side=3)).shape == (3, 3, 3)
    with pytest.raises(Missing, match="not square"):
        square_image(np.zeros(10, np.uint8))


class Kept:
    """The part of a `Store` that is asked: evidence by job."""

    def __init__(self, images: dict[str, np.ndarray]) -> None:
        self.images = images

    def has(self, job: str) -> bool:
        return job in self.images

    def evidence(self, job: str, split: str) -> Any:
        columns = ["id", "image"] if split == "concept" else ["id"]

        class Found:
            table = SimpleNamespace(column_names=columns)
            __len__ = lambda _: len(self.images[job])  # noqa: E731
            __getitem__ = lambda _, name: self.images[job]  # noqa: E731

        return Found()


def test_the_first_seeds_images_of_evenly_spaced_rows_are_shown():
    n = 20
    rows = Dataset.from_dict({"id": [str(i) for i in range(n)], "prompt": [f"thing {i}" for i in range(n)]})
    shades = {f"job{k}": np.repeat(np.arange(n, dtype=np.uint8)[:, None], 12, 1) + 100 * k for k in range(2)}
    problem = SimpleNamespace(splits={"concept": rows, "forget": rows}, family=None)

    def row(method: str, seed: int, job: str | None) -> SimpleNamespace:
        return SimpleNamespace(problem="p", method=method, label=method, seed=seed, observe=job)

    listed = [row("retrain", 3, "job0"), row("uce", 3, "job1"), row("uce", 4, "job1"), row("esd", 3, None)]
    graph: Any = SimpleNamespace(rows=listed, problems={"p": problem})
    found = image_samples(graph, Kept(shades))  # pyright: ignore[reportArgumentType]
    assert list(found) == ["p"] and list(found["p"]) == ["concept"]
    assert list(found["p"]["concept"]) == ["retrained", "uce"]
    ours = found["p"]["concept"]["uce"]
    assert [asked for asked, _ in ours] == [f"thing {i}" for i in (0, 3, 5, 8, 11, 14, 16, 19)]
    assert len(ours) == MOST_IMAGES
    assert [int(read(png)[0, 0, 0]) - 100 for _, png in ours] == [0, 3, 5, 8, 11, 14, 16, 19]


def test_losses_of_the_first_seed_and_of_every_retrained_model():
    class Measured:
        def has(self, job: str) -> bool:
            return job != "lost"

        def evidence(self, job: str, split: str) -> Any:
            if split == "concept":
                return None

            class Found:
                table = SimpleNamespace(column_names=["id", "loss"])
                __len__ = lambda _: 2  # noqa: E731
                __getitem__ = lambda _, name: np.array([float(job), 7.0])  # noqa: E731

            return Found()

    def row(method: str, seed: int, job: str) -> SimpleNamespace:
        return SimpleNamespace(problem="p", method=method, label=method, seed=seed, observe=job)

    listed = [row("retrain", 4, "2"), row("uce", 3, "3"), row("uce", 4, "4"), row("retrain", 3, "1"), row("retrain", 5, "5"),
              row("retrain", 6, "lost")]  # fmt: skip
    problem = SimpleNamespace(splits={"concept": None, "forget": None})
    graph: Any = SimpleNamespace(rows=listed, problems={"p": problem})
    found = loss_samples(graph, Measured())  # pyright: ignore[reportArgumentType]
    assert found == {
        "p": {
            "uce": {"forget": [3.0, 7.0]}, "retrained": {"forget": [1.0, 7.0]}, "retrained 2": {"forget": [2.0, 7.0]},
            "retrained 3": {"forget": [5.0, 7.0]},
        }
    }  # fmt: skip
    assert [
        is_retrained(label) for label in ("retrained", "retrained 12", "retrained (lr=1)", "retrain")
    ] == [True, True, False, False]
