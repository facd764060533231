"""Image inputs, prepared as the model's own processor does it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from expunge.errors import BadInput
from expunge.families.base import Rows
from expunge.families.inputs import Inputs, refuse_nan

if TYPE_CHECKING:
    from datasets import Dataset


class Images(Inputs):
    """One column of images, as ``(pixel * rescale - mean) / std`` per channel, `[B, channels, H, W]`.

    Pictures and uint8 arrays (`[H, W]` or `[H, W, 3]`) are converted to `channels`, resized and
    center-cropped; float arrays (`[H, W]` or `[C, H, W]`) are taken as they are.

    Args:
        column: where the images are.
        size: (height, width) to resize to; an int resizes the shorter edge and keeps the aspect ratio; None
            keeps sizes.
        crop: (height, width) of the center that is kept after resizing; None keeps all.
        channels: 1 (grey) or 3 (RGB).
        mean: by channel, in rescaled units.
        std: by channel, in rescaled units.
        rescale: factor of the raw pixel values, 1/255 for pictures.
        resample: PIL's number of the interpolation (2 bilinear, 3 bicubic).
        argument: keyword of the model that takes the pixels.
    """

    kind = "images"

    def __init__(
        self,
        column: str = "image",
        size: tuple[int, int] | int | None = None,
        crop: tuple[int, int] | None = None,
        channels: int = 1,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        rescale: float = 1.0,
        resample: int = 2,
        argument: str = "pixel_values",
    ) -> None:
        self.column, self.size, self.crop, self.channels = column, size, crop, channels
        self.mean, self.std, self.rescale = list(mean), list(std), rescale
        self.resample, self.argument = resample, argument

    @classmethod
    def from_processor(cls, folder: Path | str, column: str, channels: int) -> Images:
        """Read size, crop, mean and scale from the ``preprocessor_config.json`` of a folder or hub id.

        What was read is compared with the processor itself on one picture, so that a step this class does
        not know (padding, tiling, ...) is an error and not another input than the model was trained on.
        """
        from transformers import AutoImageProcessor

        processor: Any = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        size, crop = _size(processor.size) if processor.do_resize else None, None
        share = getattr(processor, "crop_pct", None)
        if share and isinstance(size, int):
            # ConvNeXt and ResNet: small images lose a border, large ones are squeezed.
            size, crop = (int(size / share), (size, size)) if size < 384 else ((size, size), None)
        if getattr(processor, "do_center_crop", None):
            crop = _pair(_size(processor.crop_size))
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0], [1.0])
        if len(mean) not in (1, channels):
            raise BadInput(
                f"'{folder}' normalizes {len(mean)} color channels, but its model reads {channels}; "
                f"give image_mean and image_std {channels} values in preprocessor_config.json"
            )
        rescale = float(processor.rescale_factor) if processor.do_rescale else 1.0
        made = cls(column, size, crop, channels, mean, std, rescale, int(processor.resample))
        made._compare_with(processor)
        return made

    def _compare_with(self, processor: Any) -> None:
        from PIL import Image

        height, width = _pair(self.crop or self.size or (24, 20))
        pixels = np.random.default_rng(0).integers(0, 256, (2 * height + 7, width + 20, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels if self.channels == 3 else pixels[..., 0])
        # A grey picture is shown to the processor with a channel axis; most refuse to guess one.
        shown = np.asarray(picture).reshape(*pixels.shape[:2], self.channels)
        theirs = processor(shown, return_tensors="np", input_data_format="channels_last")["pixel_values"]
        ours = self.encode({self.column: [picture]})[self.argument].numpy()
        if theirs.shape != ours.shape or not np.allclose(theirs, ours, atol=1e-4):
            raise BadInput(
                f"the image processor {type(processor).__name__} does more than resize, center-crop, rescale "
                "and normalize; prepare the images yourself and pass the model as package.module:factory"
            )

    @property
    def columns(self) -> Sequence[str]:  # noqa: D102
        return [self.column]

    def encode(self, rows: Rows) -> dict[str, Tensor]:  # noqa: D102
        pixels = [self._pixels(value) for value in rows[self.column]]
        shapes = {p.shape for p in pixels}
        if len(shapes) > 1:
            raise BadInput(
                f"the images in '{self.column}' differ in shape ({', '.join(map(str, sorted(shapes)[:3]))}); "
                "resize them to one size"
            )
        mean = np.asarray(self.mean, dtype=np.float32).reshape(1, -1, 1, 1)
        std = np.asarray(self.std, dtype=np.float32).reshape(1, -1, 1, 1)
        scaled = (np.stack(pixels).astype(np.float32) * np.float32(self.rescale) - mean) / std
        return {self.argument: torch.from_numpy(np.ascontiguousarray(scaled))}

    def _pixels(self, value: Any) -> np.ndarray:
        """One image as `[C, H, W]`."""
        from PIL import Image

        if isinstance(value, dict):  # an undecoded picture
            value = Image.open(io.BytesIO(value["bytes"]) if value.get("bytes") else value["path"])
        if isinstance(value, Image.Image):
            return self._picture(value)
        array = np.asarray(value)
        if array.dtype == np.uint8 and not self._fits(array):
            return self._picture(Image.fromarray(array))
        if array.ndim == 2:
            return np.repeat(array[None], self.channels, axis=0)
        if array.shape[-1] in (1, 3) and array.shape[0] not in (1, 3):
            return array.transpose(2, 0, 1)
        return array

    def _fits(self, array: np.ndarray) -> bool:
        """Whether a uint8 array needs neither another size nor other channels."""
        if array.ndim == 3 and self.channels not in (array.shape[0], array.shape[-1]):
            return False
        spatial = array.shape[1:] if array.ndim == 3 and array.shape[0] == self.channels else array.shape[:2]
        return self.size in (None, spatial) and self.crop in (None, spatial)

    def _picture(self, picture: Any) -> np.ndarray:
        picture = picture.convert("L" if self.channels == 1 else "RGB")
        width, height = picture.size
        if isinstance(self.size, int):
            short, long = sorted((height, width))
            other = int(self.size * long / short)
            target = (self.size, other) if height <= width else (other, self.size)
        else:
            target = self.size or (height, width)
        if target != (height, width):
            picture = picture.resize((target[1], target[0]), resample=self.resample)
        array = np.asarray(picture)
        if self.crop is not None:
            top, left = (target[0] - self.crop[0]) // 2, (target[1] - self.crop[1]) // 2
            if min(top, left) < 0:
                raise BadInput(
                    f"an image of {target} pixels is smaller than the crop {self.crop}; leave it out"
                )
            array = array[top : top + self.crop[0], left : left + self.crop[1]]
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)

    def check(self, dataset: Dataset, name: str) -> None:  # noqa: D102
        super().check(dataset, name)
        if "Image" in type(dataset.features[self.column]).__name__:
            column: Any = dataset.with_format("arrow")[:][self.column]
            missing = column.is_null().to_pylist()
            if any(missing):
                first = dataset["id"][missing.index(True)]
                raise BadInput(
                    f"{name} has {sum(missing)} rows without an image (first: id '{first}'); drop them"
                )
            return
        feature: Any = dataset.features[self.column]
        # The numpy format widens whole numbers to eight bytes, so that the values do not tell.
        if getattr(feature, "dtype", None) != "uint8":
            values = np.asarray(dataset.with_format("numpy")[self.column][:])
            refuse_nan(values, dataset, name, self.column)

    @classmethod
    def restore(cls, description: dict[str, Any]) -> Images:  # noqa: D102
        pairs = {k: tuple(v) for k in ("size", "crop") if isinstance(v := description[k], list)}
        return cls(**{**description, **pairs})

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {
            "kind": self.kind,
            "column": self.column,
            "size": list(self.size) if isinstance(self.size, tuple) else self.size,
            "crop": None if self.crop is None else list(self.crop),
            "channels": self.channels,
            "mean": self.mean,
            "std": self.std,
            "rescale": self.rescale,
            "resample": self.resample,
            "argument": self.argument,
        }


def _size(size: Any) -> tuple[int, int] | int:
    """A processor's size: (height, width), or the shorter edge."""
    if size.get("height") and size.get("width"):
        return int(size["height"]), int(size["width"])
    if size.get("shortest_edge"):
        return int(size["shortest_edge"])
    raise BadInput(
        f"the image processor's size {dict(size)} gives neither height and width nor the shortest edge"
    )


def _pair(size: tuple[int, int] | int) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
