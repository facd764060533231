"""Handwritten digits seen by several cameras: real data in domains that a known change of the picture makes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from datasets import Array2D, ClassLabel, Dataset, Features, Value
from scipy import ndimage

from expunge.data.order import shuffled
from expunge.data.worlds.tables import digits

TRAINED: dict[str, float] = {"upright": 0.5, "left": 0.25, "faint": 0.15, "noisy": 0.1}
"""Domains that models are trained on, and their shares of the rows: some cameras send few pictures."""
UNSEEN: dict[str, float] = {"right": 0.5, "blurred": 0.5}
"""Domains that models only meet when they are tested."""


def camera_digits(n_unseen: int) -> tuple[Dataset, Dataset]:
    """The 1,797 digits, each seen by one camera: rows of the trained domains, and `n_unseen` of the unseen ones.

    Columns id, image (float32, 8x8, 0 to 1), label and domain. Which row goes where is fixed by the ids.
    """
    data = digits().with_format("numpy")
    ids = [str(i) for i in data["id"][:]]
    # An order of its own: the first rows of the common one are what `split` trains on.
    order = np.asarray(shuffled([f"camera:{i}" for i in ids]))
    images, labels = np.asarray(data["image"][:]), np.asarray(data["label"][:])

    def seen(rows: np.ndarray, shares: dict[str, float]) -> Dataset:
        ends = np.round(np.cumsum(list(shares.values())) * len(rows)).astype(int)
        cameras = [list(shares)[i] for i in np.searchsorted(ends, np.arange(len(rows)), side="right")]
        made = {
            "id": [ids[row] for row in rows],
            "image": np.stack(
                [CAMERAS[c](images[row], ids[row]) for row, c in zip(rows, cameras, strict=True)]
            ),
            "label": labels[rows],
            "domain": cameras,
        }
        return Dataset.from_dict(made, features=_FEATURES)

    return seen(order[n_unseen:], TRAINED), seen(order[:n_unseen], UNSEEN)


def _turned(degrees: float) -> Callable[[np.ndarray, str], np.ndarray]:
    return lambda image, _: ndimage.rotate(image, degrees, reshape=False, order=1)


def _noisy(image: np.ndarray, key: str) -> np.ndarray:
    """Uniform noise of up to half the range, from a hash: the same on every machine and in every version."""
    grain = np.frombuffer(hashlib.shake_256(f"noise {key}".encode()).digest(4 * image.size), dtype=">u4")
    return image + (grain / 2.0**32 - 0.5).reshape(image.shape)


CAMERAS: dict[str, Callable[[np.ndarray, str], np.ndarray]] = {
    "upright": lambda image, _: image,
    "left": _turned(30),
    "right": _turned(-30),
    "faint": lambda image, _: 0.6 - 0.4 * image,
    "noisy": lambda image, key: np.clip(_noisy(image, key), 0, 1),
    "blurred": lambda image, _: ndimage.gaussian_filter(image, 0.8),
}
"""What each camera does to a picture (`[8, 8]`, 0 to 1), given the row's id."""

_FEATURES = Features(
    {
        "id": Value("string"),
        "image": Array2D((8, 8), "float32"),
        "label": ClassLabel(names=[str(i) for i in range(10)]),
        "domain": Value("string"),
    }
)
