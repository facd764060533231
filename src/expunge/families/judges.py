"""Judges: image classifiers that say what a generated image shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.errors import BadInput
from expunge.families.images import Images
from expunge.families.models import call
from expunge.files import cached


class Judgment(NamedTuple):
    """What a judge says of images."""

    logp: np.ndarray
    """`[n, C]` log-probability of each class."""
    features: np.ndarray
    """`[n, d]` what enters the judge's last linear layer."""


class Judge:
    """An image classifier in a folder, of expunge or of `transformers`, that names one attribute of an image.

    A classifier of `transformers` sees 8-bit pixels through its own processor.

    Args:
        column: the attribute; rows of data name its true value in the column of this name.
        folder: where the classifier is; ``cache:NAME`` for one that expunge made and keeps.
        classes: names of its outputs, in order.
    """

    def __init__(self, column: str, folder: str, classes: list[str]) -> None:
        self.column, self.folder, self.classes = column, folder, list(classes)

    def describe(self) -> dict[str, Any]:
        """Everything that makes the same judge again, its weights by fingerprint."""
        return {"column": self.column, "folder": self.folder, "classes": self.classes}

    @cached_property
    def _loaded(self) -> tuple[torch.nn.Module, Any]:
        # The loaders know all families, this one included.
        from expunge.families import Classifier, restore_family
        from expunge.families.weights import load_folder

        folder = cached(self.folder)
        if (folder / "config.json").is_file():
            model = _of_transformers(folder, len(self.classes))
            family = Classifier(Images.from_processor(folder, "image", channels=3), self.classes)
            return model.eval().requires_grad_(False), family
        if not (folder / "expunge.json").is_file():
            raise BadInput(f"there is no judge of '{self.column}' at '{folder}'; make the problem anew")
        with torch.inference_mode(False):  # whoever asks first may have it on, and others differentiate
            model, _, record = load_folder(folder)
        family = restore_family(record["family"])
        if not isinstance(family, Classifier):
            raise BadInput(f"'{self.folder}' holds a {family.name}; a judge is a classifier of images")
        return model.eval().requires_grad_(False), family

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and what enters the last linear layer, `[n, d]`, of `[n, C, H, W]` images in -1 to 1; differentiable.

        What a classifier's own processor does to pictures is done by torch, so the last digits differ from `judge`.
        """
        model, family = self._loaded
        inputs: Images = family.inputs
        model.to(images.device)
        pixels = (images.clamp(-1, 1) + 1) / 2 * (255 if inputs.rescale < 1 else 1)
        if inputs.crop is not None or isinstance(inputs.size, int):
            raise BadInput(
                f"the judge at '{self.folder}' crops images; one that only resizes can be differentiated"
            )
        if inputs.size is not None:
            pixels = F.interpolate(pixels, size=inputs.size, mode="bilinear", antialias=True)
        mean, std = (images.new_tensor(v).view(1, -1, 1, 1) for v in (inputs.mean, inputs.std))
        return self._answer(model, family, {inputs.argument: (pixels * inputs.rescale - mean) / std})

    def judge(self, images: Tensor, batch_size: int = 256) -> Judgment:
        """What it says of `[n, C, H, W]` images in -1 to 1; NaN of images with pixels that are not finite."""
        model, family = self._loaded
        pixels = ((images.clamp(-1, 1) + 1) / 2).float().cpu().nan_to_num()
        logp, seen = list[Tensor](), list[Tensor]()
        with torch.inference_mode():
            for part in pixels.split(batch_size):
                shown = part.numpy()
                if family.inputs.rescale < 1:  # made for 8-bit pictures
                    shown = (shown * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
                encoded = family.inputs.encode({family.inputs.column: list(shown)})
                logits, features = self._answer(model.cpu(), family, encoded)
                logp.append(torch.log_softmax(logits.float(), -1))
                seen.append(features)
        lost = ~images.flatten(1).isfinite().all(1).cpu()
        told = (torch.cat(values).masked_fill(lost[:, None], math.nan).numpy() for values in (logp, seen))
        return Judgment(*told)

    def _answer(
        self, model: torch.nn.Module, family: Any, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        head = model.get_submodule(family.head(model))
        handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(1)))
        try:
            return call(model, inputs), seen[0]
        finally:
            handle.remove()

    def number(self, name: str) -> int:
        """Position of the class `name`."""
        if name not in self.classes:
            raise BadInput(
                f"the judge of '{self.column}' does not know '{name}'; it knows {', '.join(self.classes)}"
            )
        return self.classes.index(name)


def _of_transformers(folder: Path, outputs: int) -> torch.nn.Module:
    """An image classifier as `transformers` saves it, in safetensors."""
    from transformers import AutoModelForImageClassification

    try:
        model = AutoModelForImageClassification.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        raise BadInput(
            f"'{folder}' is no image classifier in safetensors: {str(error).splitlines()[0]}"
        ) from None
    if model.config.num_labels != outputs:
        raise BadInput(
            f"the judge at '{folder}' has {model.config.num_labels} classes, but {outputs} are to be told apart"
        )
    return model
