"""Published networks that look at generated images: CLIP, for what a prompt asks, and Inception, for the usual distances."""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.errors import BadInput
from expunge.extras import load_extra
from expunge.families.images import Images
from expunge.families.weights import read_weights

BATCH = 64


def bytes_of(images: Tensor) -> Tensor:
    """`[n, 3, H, W]` in -1 to 1 as 8-bit pixels."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


class ClipViewer:
    """A CLIP model in a folder, as `transformers` saves it with its tokenizer and image processor.

    Args:
        folder: a local folder; nothing is fetched.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Images]:
        from transformers import AutoTokenizer, CLIPModel

        if not (Path(self.folder) / "config.json").is_file():
            raise BadInput(
                f"there is no CLIP model at '{self.folder}'; clip names a local folder with config.json, weights in "
                "safetensors, tokenizer and preprocessor_config.json"
            )
        try:
            model = CLIPModel.from_pretrained(self.folder, local_files_only=True, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            images = Images.from_processor(self.folder, "image", channels=3)
        except (OSError, ValueError) as error:
            raise BadInput(f"'{self.folder}' is no CLIP model: {str(error).splitlines()[0]}") from None
        return model.eval().requires_grad_(False), tokenizer, images

    def similarity(self, images: Tensor, prompts: list[str]) -> np.ndarray:
        """`[n]` cosine of each image (`[n, 3, H, W]` in -1 to 1, seen as 8-bit pixels) and its prompt, cut to CLIP's length."""
        model, tokenizer, reader = self._loaded
        longest = model.config.text_config.max_position_embeddings
        made = []
        with torch.inference_mode():
            for rows in torch.arange(len(prompts)).split(BATCH):
                shown = [pixels.permute(1, 2, 0).numpy() for pixels in bytes_of(images[rows])]
                said = [prompts[i] for i in rows.tolist()]
                words = tokenizer(
                    said, padding=True, truncation=True, max_length=longest, return_tensors="pt"
                )
                text = {k: v for k, v in words.items() if k in ("input_ids", "attention_mask")}
                both = model(**reader.encode({"image": shown}), **text)
                # Both are of unit length.
                made.append((both.image_embeds * both.text_embeds).sum(-1))
        return torch.cat(made).double().numpy()


class InceptionViewer:
    """The Inception network of Fréchet distances, from `torch-fidelity` (the weights of the original TensorFlow network).

    Args:
        weights: its state dict in a safetensors file.
    """

    def __init__(self, weights: str) -> None:
        self.weights = weights

    @cached_property
    def _loaded(self) -> torch.nn.Module:
        library = load_extra("torch_fidelity", "fid", "the Fréchet distance on Inception features")
        path = Path(self.weights)
        if path.suffix != ".safetensors" or not path.is_file():
            raise BadInput(
                f"there are no Inception weights at '{self.weights}'; inception names a local safetensors file with the state "
                "dict that torch-fidelity publishes as weights-inception-2015-12-05-6726825d.pth"
            )
        with tempfile.TemporaryDirectory() as folder:
            # Its constructor reads files of torch.save alone, or fetches one.
            copy = Path(folder) / "weights.pth"
            torch.save(read_weights(path), copy)
            return library.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(copy)
            )

    def features(self, images: Tensor) -> np.ndarray:
        """`[n, 2048]` pooled features of `[n, 3, H, W]` images in -1 to 1, seen as 8-bit pixels."""
        network = self._loaded
        with torch.inference_mode():
            return torch.cat([network(part)[0] for part in bytes_of(images).split(BATCH)]).numpy()
