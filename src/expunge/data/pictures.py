"""Files of pictures as one array."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from expunge.errors import BadInput


def read_pictures(files: list[Path], side: int) -> np.ndarray:
    """`[n, side, side, 3]` uint8, each picture resized (bilinear) to a square.

    Raises:
        BadInput: files are absent (says how many, and the first), or one is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    absent = [f for f in files if not f.is_file()]
    if absent:
        raise BadInput(
            f"{len(absent)} of {len(files)} pictures are not there (first: '{absent[0]}'); unpack all of them"
        )
    made = np.empty((len(files), side, side, 3), np.uint8)
    for row, file in enumerate(files):
        try:
            with Image.open(file) as picture:
                picture.draft("RGB", (2 * side, 2 * side))  # lets a JPEG be decoded at a fraction of its size
                made[row] = np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))
        except (UnidentifiedImageError, OSError) as error:
            raise BadInput(f"'{file}' is not a readable picture: {error}; download it again") from None
    return made
