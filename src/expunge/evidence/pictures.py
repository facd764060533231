"""Images that evidence holds, as PNG."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from expunge.errors import Missing

if TYPE_CHECKING:
    from PIL import Image


def as_png(value: Any, side: int | None = None) -> str:
    """A picture as a data address: a PIL image, or numbers `[h, w]`, `[c, h, w]` or `[h, w, c]`, least to largest.

    One that is larger than `side` pixels is made smaller.
    """
    from PIL import Image

    if not isinstance(value, Image.Image):
        pixels = np.asarray(value, dtype=np.float64)
        if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
            pixels = np.moveaxis(pixels, 0, -1)
        if pixels.ndim == 3 and pixels.shape[-1] == 1:
            pixels = pixels[..., 0]
        low, high = float(np.nanmin(pixels)), float(np.nanmax(pixels))
        scaled = (pixels - low) / (high - low) if high > low else np.zeros_like(pixels)
        value = Image.fromarray((255 * np.nan_to_num(scaled)).round().astype(np.uint8))
    value = value.convert("RGB" if value.mode not in ("L", "RGB") else value.mode)
    if side is not None and max(value.size) > side:
        value.thumbnail((side, side))
    out = io.BytesIO()
    value.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def square_image(recorded: Sequence[int] | np.ndarray) -> Image.Image:
    """The image that evidence keeps as `[3 * H * H]` bytes, plane by plane."""
    from PIL import Image

    flat = np.asarray(recorded, np.uint8)
    side = math.isqrt(len(flat) // 3)
    if 3 * side * side != len(flat):
        raise Missing(f"the images are not square: {len(flat)} values do not make three equal planes")
    return Image.fromarray(flat.reshape(3, side, side).transpose(1, 2, 0))
