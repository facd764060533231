"""Sparse features of one layer of a denoiser, and a denoiser in which some of them are ablated while it draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.base import altered
from expunge.families.models import Architecture, Composed, Past, architecture_of
from expunge.families.pipelines import DiffusionModel


class SparseAutoencoder(nn.Module):
    """Activations as sums of few directions: ``z = top k of ReLU(W_e (x / s - b) + b_e)``, ``x ~ s (z W_d + b)``.

    x is `[..., d]`, z `[..., features]`; the rows of W_d have length 1. s is one number, by which inputs are divided, so that
    learning rates mean the same for every layer. It is set once and not trained.
    """

    scale: Tensor

    def __init__(self, width: int, features: int, k: int) -> None:
        super().__init__()
        if not 0 < k <= features:
            raise BadInput(f"{k} features cannot be active of {features}; choose a smaller k")
        self.k = k
        self.encoder = nn.Linear(width, features)
        self.decoder = nn.Parameter(F.normalize(torch.randn(features, width), dim=-1))
        self.center = nn.Parameter(torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    def activations(self, x: Tensor) -> Tensor:
        """`[..., features]` before only the largest are kept: 0 or more."""
        return F.relu(self.encoder(x / self.scale - self.center))

    def encode(self, x: Tensor) -> Tensor:
        """`[..., features]` z: at most k are not 0."""
        every = self.activations(x)
        found = every.topk(self.k, -1)
        return torch.zeros_like(every).scatter(-1, found.indices, found.values)

    def decode(self, z: Tensor) -> Tensor:
        """`[..., d]` what z stands for."""
        return self.scale * (z @ self.decoder + self.center)


class Ablated(Composed):
    """A diffusion model that multiplies chosen sparse features of one layer while it denoises; its weights stay.

    At the step s of sampling whose timestep is nearest to the one asked about, at every position:
    ``z_j <- factor[s, j] z_j`` where ``z_j > threshold[s, j]``, and the layer hands on
    ``x + s (z' - z) W_d``: what the autoencoder cannot say of x stays, and x is bitwise the same where nothing is changed.
    It happens under every prompt, the empty one of guidance among them. Nothing is removed: whoever has the weights can
    leave the autoencoder out.

    Args:
        base: the model that draws.
        layer: its layer, such as ``unet.up_blocks.1.attentions.2``.
        autoencoder: of that layer's activations.
        timesteps: `[S]` timesteps of the steps of sampling.
        factor: `[S, features]` what features are multiplied by; 1 for those that stay.
        threshold: `[S, features]` only larger activations are changed.
    """

    timesteps: Tensor
    factor: Tensor
    threshold: Tensor

    def __init__(
        self, base: nn.Module, layer: str, autoencoder: SparseAutoencoder, timesteps: Tensor, factor: Tensor, threshold: Tensor
    ) -> None:  # fmt: skip
        super().__init__()
        self.drawing, self.layer, self.autoencoder = base, layer, autoencoder.requires_grad_(False)
        self.register_buffer("timesteps", timesteps)
        self.register_buffer("factor", factor)
        self.register_buffer("threshold", threshold)

    @property
    def base(self) -> nn.Module:  # noqa: D102
        return self.drawing

    @property
    def members(self) -> Sequence[nn.Module]:  # noqa: D102
        return [self.drawing]

    @property
    def _denoiser(self) -> DiffusionModel:
        return cast(DiffusionModel, self.drawing)  # or another of these

    def forward(self, noisy: Tensor, timesteps: Tensor, input_ids: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As `DiffusionModel`: `[B, T, C, h, w]` at `[B, T]` under `[B, L]`."""
        with self._editing(timesteps.flatten()):
            return self._denoiser(noisy, timesteps, input_ids)

    def encode(self, input_ids: Tensor) -> Tensor:
        """As `DiffusionModel`: no prompt is encoded otherwise."""
        return self._denoiser.encode(input_ids)

    def admitted(self, input_ids: Tensor, embedded: Tensor) -> Tensor | None:
        """As `DiffusionModel`."""
        return self._denoiser.admitted(input_ids, embedded)

    def denoise(self, noisy: Tensor, timesteps: Tensor, embedded: Tensor, *more: Any) -> Tensor:
        """What the edited denoiser says of `[N, C, h, w]` at `[N]` under the embeddings `[N, L, d]`."""
        with self._editing(timesteps):
            return self._denoiser.denoise(noisy, timesteps, embedded, *more)

    def decode(self, latents: Tensor) -> Tensor:
        """As `DiffusionModel`."""
        return self._denoiser.decode(latents)

    def _editing(self, timesteps: Tensor) -> Any:
        return altered(self.drawing, {self.layer: lambda x: self.edited(x, timesteps)})

    def edited(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """`[N, positions, d]` what the layer hands on for x of the same shape at timesteps `[N]`."""
        step = (timesteps.unsqueeze(1) - self.timesteps).abs().argmin(1)
        factor, threshold = (v[step].unsqueeze(1) for v in (self.factor, self.threshold))
        z = self.autoencoder.encode(x)
        changed = torch.where(z > threshold, factor * z, z)
        return x + self.autoencoder.scale * ((changed - z) @ self.autoencoder.decoder)

    def logits(self, inputs: Mapping[str, Tensor], keep: int | None, past: Past | None = None) -> Tensor:  # noqa: D102
        raise BadInput("a diffusion model has no logits; call it with noisy latents, timesteps and token ids")

    def architecture(self, known: Architecture | None) -> Architecture | None:  # noqa: D102
        base = architecture_of(self.drawing, known)
        if base is None:
            return None
        features, width = self.autoencoder.decoder.shape
        shape = {"width": width, "features": features, "k": self.autoencoder.k}
        options = {
            "base": base.model_dump(mode="json"),
            "layer": self.layer,
            "autoencoder": shape,
            "steps": len(self.timesteps),
        }
        return Architecture(kind="composed", name="ablated", options=options)

    @classmethod
    def rebuilt(cls, options: Mapping[str, Any]) -> Ablated:  # noqa: D102
        autoencoder = SparseAutoencoder(**options["autoencoder"])
        table = torch.zeros(options["steps"], options["autoencoder"]["features"])
        return cls(
            Architecture(**options["base"]).with_drawn_weights(), options["layer"], autoencoder,
            torch.zeros(options["steps"], dtype=torch.long), table, table.clone(),
        )  # fmt: skip
