"""What says of an image how much it shows a concept, differentiably: CLIP with words, or a classifier with a class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.errors import BadInput, Missing
from expunge.families.judges import Judge
from expunge.files import read_json

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Encoder(Protocol):
    """Where images lie, and how near that is to the concept."""

    def embed(self, images: Tensor) -> Tensor:
        """`[B, d]` unit vectors of `[B, C, H, W]` images in -1 to 1."""
        ...

    def distance(self, images: Tensor) -> Tensor:
        """`[B]` how far images are from showing the concept; smaller is nearer."""
        ...


class GuideEncoder:
    """A classifier: embeddings are what its last layer reads, the distance is ``-ln p(concept)``."""

    def __init__(self, guide: Judge, value: str) -> None:
        self.guide, self.number = guide, guide.number(value)

    def embed(self, images: Tensor) -> Tensor:  # noqa: D102
        return F.normalize(self.guide.look(images)[1], dim=1)

    def distance(self, images: Tensor) -> Tensor:  # noqa: D102
        return -torch.log_softmax(self.guide.look(images)[0], 1)[:, self.number]

    def sees(self, images: Tensor) -> Tensor:
        """`[B]` bool: where the concept is the most likely class."""
        return self.guide.look(images)[0].argmax(1) == self.number


class ClipEncoder:
    """A `CLIPModel` folder of `transformers` and a prompt: the distance is 1 minus the cosine of image and prompt."""

    def __init__(self, folder: str, prompt: str, neutral: str | None = None) -> None:
        from transformers import AutoTokenizer, CLIPModel

        path = Path(folder)
        if not (path / "config.json").is_file():
            raise Missing(
                f"there is no CLIP model at '{folder}'; give a folder that transformers reads as a CLIPModel"
            )
        kind = read_json(path / "config.json").get("model_type")
        if kind != "clip":
            raise BadInput(f"'{folder}' holds a model of type '{kind}'; give one of type 'clip'")
        self.model: Any = CLIPModel.from_pretrained(folder, use_safetensors=True).eval().requires_grad_(False)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.size = int(self.model.config.vision_config.image_size)
        found: Mapping[str, Any] = {}
        if (path / "preprocessor_config.json").is_file():
            found = read_json(path / "preprocessor_config.json")
        self.mean = torch.tensor(found.get("image_mean", CLIP_MEAN)).view(1, 3, 1, 1)
        self.std = torch.tensor(found.get("image_std", CLIP_STD)).view(1, 3, 1, 1)
        self.prompt = self.words(prompt)
        self.neutral = None if neutral is None else self.words(neutral)

    def words(self, prompt: str) -> Tensor:
        """`[d]` unit vector of a prompt."""
        encoded = self.tokenizer([prompt], return_tensors="pt", truncation=True)
        text = self.model.text_model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])
        return F.normalize(self.model.text_projection(text.pooler_output), dim=1)[0]

    def embed(self, images: Tensor) -> Tensor:  # noqa: D102
        self.model.to(images.device)
        colors = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        pixels = F.interpolate((colors + 1) / 2, size=(self.size, self.size), mode="bicubic", antialias=True)
        pixels = (pixels.clamp(0, 1) - self.mean.to(images)) / self.std.to(images)
        seen = self.model.vision_model(pixel_values=pixels).pooler_output
        return F.normalize(self.model.visual_projection(seen), dim=1)

    def distance(self, images: Tensor) -> Tensor:  # noqa: D102
        return 1 - self.embed(images) @ self.prompt.to(images)
