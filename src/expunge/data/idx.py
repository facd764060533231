"""The IDX format of MNIST and Fashion-MNIST, plain or gzipped.

A big-endian header (two zero bytes, a type, the number of dimensions, then 4 bytes per dimension) followed by
the values in row-major order (LeCun, Cortes & Burges, "The MNIST database of handwritten digits").
"""

from __future__ import annotations

import gzip
import math
import re
import struct
from pathlib import Path

import numpy as np
from datasets import Array2D, Array3D, ClassLabel, Dataset, Features

from expunge.errors import BadInput

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IMAGES = re.compile(r"(?P<name>.*)images(?P<mid>[-.])idx[34]-ubyte(?P<gz>\.gz)?")
FASHION_CLASSES: list[str] = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip


def read_idx(path: Path) -> np.ndarray:
    """The array in one IDX file."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise BadInput(f"no file '{path}'") from None
    except (OSError, EOFError) as error:
        raise BadInput(f"'{path}' cannot be unpacked: {error}; download it again") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES:
        raise BadInput(
            f"'{path}' is not an IDX file: it starts with {content[:4].hex(' ')}, not with 00 00 and a type"
        )
    dtype, n_dims = np.dtype(_TYPES[content[2]]), content[3]
    start = 4 + 4 * n_dims
    if len(content) < start:
        raise BadInput(f"'{path}' ends within its header; download it again")
    shape = struct.unpack(f">{n_dims}I", content[4:start])
    expected, found = math.prod(shape) * dtype.itemsize, len(content) - start
    if found != expected:
        raise BadInput(
            f"'{path}' announces shape {shape}, {expected} bytes, but holds {found}; download it again"
        )
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def find_images(folder: Path) -> Path | None:
    """The images file of `folder` (the training images where there are several), or None."""
    found = sorted(f for f in folder.iterdir() if _IMAGES.fullmatch(f.name))
    training = [f for f in found if f.name.startswith("train")]
    return next(iter(training or found), None)


def is_images(path: Path) -> bool:
    """Whether the file's name is that of an IDX images file."""
    return _IMAGES.fullmatch(path.name) is not None


def read_pair(images: Path) -> Dataset:
    """Columns image (uint8 array) and label, from ``…images-idx3-ubyte[.gz]`` and the labels file beside it.

    Class names are Fashion-MNIST's where the path says "fashion", else the numbers.
    """
    matched = _IMAGES.fullmatch(images.name)
    if matched is None:
        raise BadInput(
            f"'{images.name}' is not the name of an IDX images file, such as train-images-idx3-ubyte.gz"
        )
    stem = f"{matched['name']}labels{matched['mid']}idx1-ubyte"
    labels = next((p for end in ("", ".gz") if (p := images.with_name(stem + end)).exists()), None)
    if labels is None:
        raise BadInput(
            f"'{images}' has no labels beside it; put '{stem}' or '{stem}.gz' into the same folder"
        )
    pixels, classes = read_idx(images), read_idx(labels)
    if len(pixels) != len(classes):
        raise BadInput(f"'{images}' holds {len(pixels)} images, but '{labels}' holds {len(classes)} labels")
    if pixels.ndim not in (3, 4) or pixels.dtype != np.uint8:
        raise BadInput(f"'{images}' holds {pixels.dtype} values of shape {pixels.shape}, not uint8 images")
    fashion = "fashion" in str(images).lower() and classes.max(initial=0) < len(FASHION_CLASSES)
    names = FASHION_CLASSES if fashion else [str(i) for i in range(int(classes.max(initial=0)) + 1)]
    array = Array2D(pixels.shape[1:], "uint8") if pixels.ndim == 3 else Array3D(pixels.shape[1:], "uint8")
    return Dataset.from_dict(
        {"image": pixels, "label": classes.astype(np.int64)},
        features=Features({"image": array, "label": ClassLabel(names=names)}),
    )
