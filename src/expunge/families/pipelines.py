"""Text-to-image diffusion models: the parts of a `diffusers` pipeline as one module that training can work on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.extras import load_extra
from expunge.families.weights import read_weights
from expunge.files import cached

if TYPE_CHECKING:
    from expunge.families.diffusion import Diffusion

PURPOSE = "a diffusion model"


def diffusers() -> Any:
    """The package `diffusers`, or an error that names the extra."""
    return load_extra("diffusers", "diffusion", PURPOSE)


class DiffusionModel(nn.Module):
    """Denoiser, text encoder and, where there is one, the decoder of latents to images.

    Only the denoiser is called under gradients of the noise; the text encoder is called once per distinct prompt of a
    batch. The decoder (a VAE, or `LinearCodec`) is never trained.
    """

    def __init__(self, unet: nn.Module, text_encoder: nn.Module, vae: nn.Module | None = None) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.vae = unet, text_encoder, vae
        if vae is not None:
            vae.requires_grad_(False)

    def forward(self, noisy: Tensor, timesteps: Tensor, input_ids: Tensor) -> Tensor:
        """`[B, T, C, h, w]` noisy latents at `timesteps` (`[B, T]`) under one prompt a row (`[B, L]`): `[B, T, C, h, w]`."""
        embedded = self.encode(input_ids).repeat_interleave(noisy.shape[1], 0)
        flat = self.denoise(noisy.flatten(0, 1), timesteps.flatten(), embedded)
        return flat.unflatten(0, noisy.shape[:2])

    def encode(self, input_ids: Tensor) -> Tensor:
        """`[B, L]` token ids to `[B, L, d]` embeddings; every distinct prompt is encoded once."""
        distinct, row = torch.unique(input_ids, dim=0, return_inverse=True)
        # All positions count, padding included, as in diffusers' pipelines: no attention mask.
        return self.text_encoder(distinct)[0][row]

    def admitted(self, input_ids: Tensor, embedded: Tensor) -> Tensor | None:
        """`[N, K]` how much of each of its gated adapters a prompt lets in; None: this model has none."""
        return None

    def denoise(
        self, noisy: Tensor, timesteps: Tensor, embedded: Tensor, admitted: Tensor | None = None
    ) -> Tensor:
        """What the denoiser says of `[N, C, h, w]` at `[N]` under the embeddings `[N, L, d]`."""
        return self.unet(noisy, timesteps, encoder_hidden_states=embedded, return_dict=False)[0]

    def positions(self, embedded: Tensor) -> Tensor:
        """What cross-attention reads of embeddings: all of their positions."""
        return embedded

    def decode(self, latents: Tensor) -> Tensor:
        """`[N, C, h, w]` latents to `[N, 3, H, W]` images in -1 to 1."""
        if self.vae is None:
            raise BadInput("the model has no decoder, so no images can be made of its latents")
        if isinstance(self.vae, LinearCodec):
            return self.vae.decode(latents)
        return self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]  # pyright: ignore

    def encode_images(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` images in -1 to 1 to `[N, C, h, w]` latents; of a variational encoder the mean."""
        if self.vae is None:
            raise BadInput("the model has no encoder, so images cannot be turned into its latents")
        if isinstance(self.vae, LinearCodec):
            return self.vae.encode(images)
        weight = next(self.vae.parameters())
        coded = self.vae.encode(images.to(weight)).latent_dist.mean  # pyright: ignore
        return coded * self.vae.config.scaling_factor  # pyright: ignore

    @property
    def side(self) -> int:
        """Pixels of an image's side."""
        latent = int(self.unet.config.sample_size)  # pyright: ignore
        if isinstance(self.vae, LinearCodec):
            return latent * self.vae.patch
        factor = 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)  # pyright: ignore
        return latent * factor

    @property
    def config(self) -> dict[str, Any]:
        """Configurations of the parts, as plain data; what `build` makes the same architecture of."""
        made = {"unet": plain_config(self.unet.config), "text_encoder": self.text_encoder.config.to_dict()}  # pyright: ignore
        if isinstance(self.vae, LinearCodec):
            return {**made, "codec": self.vae.shape}
        return made if self.vae is None else {**made, "vae": plain_config(self.vae.config)}

    @classmethod
    def build(
        cls,
        unet: dict[str, Any],
        text_encoder: dict[str, Any],
        vae: dict[str, Any] | None = None,
        codec: dict[str, Any] | None = None,
        embedding_scale: float = 1.0,
        second_encoder: dict[str, Any] | None = None,
        second_pad: int = 0,
        blank_is_zero: bool = True,
    ) -> DiffusionModel:
        """Fresh weights from configurations; `embedding_scale` multiplies the initial token embeddings.

        With a `second_encoder` it is a Stable Diffusion XL (`expunge.families.two_encoders`).
        """
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        library = diffusers()
        encoder = CLIPTextModel(CLIPTextConfig(**text_encoder))
        with torch.no_grad():
            encoder.get_input_embeddings().weight.mul_(embedding_scale)  # pyright: ignore
        decoder: nn.Module | None = None
        if codec is not None:
            decoder = LinearCodec(**codec)
        elif vae is not None:
            decoder = library.AutoencoderKL.from_config(vae)
        denoiser = library.UNet2DConditionModel.from_config(unet)
        if second_encoder is None:
            return cls(denoiser, encoder, decoder)
        from expunge.families.two_encoders import TwoEncoderModel, TwoEncoders

        second = CLIPTextModelWithProjection(CLIPTextConfig(**second_encoder))
        both = TwoEncoders(encoder, second, second_pad, blank_is_zero=blank_is_zero)
        return TwoEncoderModel(denoiser, both, decoder)


def plain_config(config: Any) -> dict[str, Any]:
    """A diffusers configuration without what only says where it came from."""
    return {k: v for k, v in dict(config).items() if not k.startswith("_")}


class LinearCodec(nn.Module):
    """A fixed linear map between images and latents: patches, of which the first principal components are kept.

    `weights` names the file of a codec that was fitted before; without it, `fit` has to be called.

    One scale makes all latents together unit variance; components are not whitened one by one, which would blow up the
    noise of the smallest.
    """

    def __init__(self, patch: int, channels: int, keep: int, weights: str | None = None) -> None:
        super().__init__()
        self.shape: dict[str, Any] = {"patch": patch, "channels": channels, "keep": keep}
        self.patch = patch
        width = channels * patch * patch
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("components", torch.zeros(keep, width))
        self.register_buffer("scale", torch.ones(()))
        if weights is not None:
            self.shape["weights"] = weights
        if weights is not None and not self.scale.is_meta:  # a model that is only counted has no values
            self.load_state_dict(read_weights(cached(weights)))

    @torch.no_grad()
    def fit(self, images: Tensor) -> LinearCodec:
        """Take mean, components and scale from `[N, C, H, W]` images in -1 to 1; float64 inside."""
        patches = self._patches(images).double()
        mean = patches.mean(0)
        covariance = (patches - mean).T @ (patches - mean) / len(patches)
        values, vectors = torch.linalg.eigh(covariance)
        components = vectors.T.flip(0)[: self.shape["keep"]]
        # A sign of its own for each component, so that every machine gives the same latents.
        components = components * components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
        kept = values.flip(0)[: self.shape["keep"]]
        self.mean.copy_(mean)  # pyright: ignore
        self.components.copy_(components)  # pyright: ignore
        self.scale.copy_(kept.mean().sqrt())  # pyright: ignore
        return self

    def encode(self, images: Tensor) -> Tensor:
        """`[N, C, H, W]` images to `[N, keep, H / patch, W / patch]` latents."""
        n, _, height, width = images.shape
        latents = (self._patches(images) - self.mean) @ self.components.T / self.scale  # pyright: ignore
        return latents.reshape(n, height // self.patch, width // self.patch, -1).permute(0, 3, 1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse of `encode`, up to the components that were dropped."""
        values = latents.permute(0, 2, 3, 1) * self.scale  # pyright: ignore
        patches = values @ self.components + self.mean  # pyright: ignore
        return nn.functional.pixel_shuffle(patches.permute(0, 3, 1, 2), self.patch)

    def _patches(self, images: Tensor) -> Tensor:
        return nn.functional.pixel_unshuffle(images, self.patch).permute(0, 2, 3, 1).flatten(0, 2)


PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
"""Pipelines of diffusers that are read, and written again."""


def load_pipeline(location: str | Path) -> tuple[DiffusionModel, Any, dict[str, Any]]:
    """Model, tokenizer and scheduler configuration of a Stable Diffusion folder or hub id, as `diffusers` saves it.

    Safety checkers are left out: they are filters around a model, not part of it. Only safetensors are read.
    """
    library = diffusers()
    library.utils.logging.disable_progress_bar()
    try:
        kind = library.DiffusionPipeline.load_config(location)["_class_name"]
        if kind not in PIPELINES:
            raise BadInput(f"'{location}' is a {kind}; expunge reads {' and '.join(PIPELINES)}")
        without = {} if kind == PIPELINES[1] else {"safety_checker": None, "feature_extractor": None}
        pipe = getattr(library, kind).from_pretrained(location, use_safetensors=True, **without)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"'{location}' is no Stable Diffusion pipeline: {str(error).splitlines()[0]}"
        ) from None
    if pipe.text_encoder is None or pipe.tokenizer is None:
        raise BadInput(f"'{location}' has no text encoder, so no prompt reaches its denoiser")
    if not cross_attention(pipe.unet):
        raise BadInput(f"the denoiser of '{location}' has no cross-attention, so no prompt reaches it")
    if kind == PIPELINES[0]:
        model = DiffusionModel(pipe.unet, pipe.text_encoder, pipe.vae)
    else:
        model = _with_two_encoders(pipe, location)
    # As published: of these checkpoints only the denoiser is edited, unless a method says otherwise.
    model.text_encoder.requires_grad_(False)
    return model.eval(), pipe.tokenizer, plain_config(pipe.scheduler.config)


def filters_of(location: str | Path) -> list[str]:
    """Parts of a pipeline that filter its images, such as ``safety_checker``; empty where they cannot be told."""
    try:
        parts = diffusers().DiffusionPipeline.load_config(location)
    except (OSError, ValueError):
        return []
    return [name for name in ("safety_checker",) if (parts.get(name) or [None])[0]]


def _with_two_encoders(pipe: Any, location: str | Path) -> DiffusionModel:
    from expunge.families.two_encoders import TwoEncoderModel, TwoEncoders

    if pipe.text_encoder_2 is None or pipe.tokenizer_2 is None:
        raise BadInput(f"'{location}' has no second text encoder, without which its denoiser cannot be asked")
    if pipe.tokenizer.get_vocab() != pipe.tokenizer_2.get_vocab():
        raise BadInput(
            f"the two tokenizers of '{location}' have different vocabularies, which expunge does not read"
        )
    both = TwoEncoders(
        pipe.text_encoder, pipe.text_encoder_2, pipe.tokenizer_2.pad_token_id,
        blank_is_zero=bool(pipe.config.force_zeros_for_empty_prompt),
    )  # fmt: skip
    return TwoEncoderModel(pipe.unet, both, pipe.vae)


def save_pipeline(model: nn.Module, family: Diffusion, folder: Path) -> None:
    """Write what ``from_pretrained`` of the pipeline reads, as safetensors, with a deterministic sampler (DDIM).

    A linear codec is no part of diffusers: the pipeline then has no decoder, and gives latents.
    """
    from expunge.families.two_encoders import TwoEncoderModel

    library = diffusers()
    assert isinstance(model, DiffusionModel)
    parts: dict[str, Any] = {
        "vae": None if isinstance(model.vae, LinearCodec) else model.vae,
        "tokenizer": family.tokenizer,
        "unet": model.unet,
        "scheduler": library.DDIMScheduler.from_config(family.noise.config),
        "feature_extractor": None,
        "image_encoder": None,
    }
    if isinstance(model, TwoEncoderModel):
        both, second = model.text_encoder, copy.deepcopy(family.tokenizer)
        second.pad_token = second.convert_ids_to_tokens(both.second_pad)
        pipe = library.StableDiffusionXLPipeline(
            **parts, text_encoder=both.first, text_encoder_2=both.second, tokenizer_2=second,
            force_zeros_for_empty_prompt=both.blank_is_zero, add_watermarker=False,
        )  # fmt: skip
    else:
        pipe = library.StableDiffusionPipeline(
            **parts, text_encoder=model.text_encoder, safety_checker=None, requires_safety_checker=False
        )
    pipe.save_pretrained(folder, safe_serialization=True)


def save_pipeline_adapter(pairs: Mapping[str, tuple[Tensor, Tensor]], folder: Path) -> None:
    """Write adapters as ``pytorch_lora_weights.safetensors``, which ``pipe.load_lora_weights(folder)`` of diffusers reads.

    Args:
        pairs: A and B by layer of a `DiffusionModel`, such as ``unet.mid_block.attentions.0.proj_in``, their scale in B.
        folder: to write into.
    """
    layers: dict[str, dict[str, Tensor]] = {"unet": {}, "text_encoder": {}}
    for name, pair in pairs.items():
        part, _, layer = name.partition(".")
        for letter, value in zip("AB", pair, strict=True):
            layers[part][f"{layer}.lora_{letter}.weight"] = value.contiguous()
    diffusers().StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=layers["unet"], text_encoder_lora_layers=layers["text_encoder"]
    )


def cross_attention(unet: nn.Module, *parts: str) -> dict[str, nn.Module]:
    """Cross-attention modules (``attn2``) of a denoiser by name, or the named parts of each, such as ``to_k``."""
    endings = tuple(f"attn2.{part}" for part in parts) or ("attn2",)
    return {name: module for name, module in unet.named_modules() if name.endswith(endings)}
