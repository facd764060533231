"""A discriminator of latents that lives in a run's kept tensors, so that checkpoints hold it and its optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.methods import distributed

BLOCKS, SLOPE, GROUPS = 4, 0.2, 8
BETAS, EPSILON = (0.5, 0.999), 1e-8


class Discriminator:
    """Logits of patches `[B, 1, h', w']` of latents `[B, C, h, w]`: 0 for the first kind, 1 for the second.

    Four convolutions 4 by 4 of stride 2, channels doubling, leaky ReLU 0.2, groups normalized in all but the first, and a
    last one to one channel. Where latents are down to two by two, the others are 3 by 3 of stride 1. Adam, betas 0.5
    and 0.999.
    """

    def __init__(self, kept: dict[str, Tensor], name: str) -> None:
        self.kept, self.name = kept, name

    def draw(self, shape: Sequence[int], width: int, generator: torch.Generator, device: str) -> None:
        """New weights for latents of this shape."""
        channels, side = shape[0], min(shape[1:])
        wide = -(-width // GROUPS) * GROUPS
        for block in range(BLOCKS):
            kernel = 4 if side > 2 else 3
            side = (side - 2) // 2 + 1 if kernel == 4 else side
            self._add(block, (wide * 2**block, channels, kernel, kernel), generator)
            channels = wide * 2**block
        self._add(BLOCKS, (1, channels, min(4, side + 2), min(4, side + 2)), generator)
        self.kept[f"{self.name}/steps"] = torch.zeros(())
        self.kept |= {f"{self.name}/{k}": torch.zeros(()) for k in ("loss", "right", "seen", "accuracy")}
        self._move(torch.device(device))

    def _move(self, device: torch.device) -> None:
        # A checkpoint is read to the CPU.
        self.kept |= {k: v.to(device) for k, v in self.kept.items() if k.startswith(f"{self.name}/")}

    def _add(self, block: int, shape: tuple[int, ...], generator: torch.Generator) -> None:
        fan_in = shape[1] * shape[2] * shape[3]
        drawn = {
            "weight": torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5,
            "bias": torch.zeros(shape[0]),
        }
        if 0 < block < BLOCKS:
            drawn |= {"scale": torch.ones(shape[0]), "shift": torch.zeros(shape[0])}
        for part, value in drawn.items():
            for kind, start in (
                ("value", value),
                ("gradient", 0 * value),
                ("first", 0 * value),
                ("second", 0 * value),
            ):
                self.kept[f"{self.name}/{kind}/{block}.{part}"] = start

    def _parts(self, kind: str) -> dict[str, Tensor]:
        prefix = f"{self.name}/{kind}/"
        return {k.removeprefix(prefix): v for k, v in self.kept.items() if k.startswith(prefix)}

    def __call__(self, latents: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        """Logits; gradients flow to the latents, and to `weights` where they are given instead of the kept ones."""
        w = {k: v.to(latents) for k, v in (weights or self._parts("value")).items()}
        x = latents
        for block in range(BLOCKS):
            stride = 2 if w[f"{block}.weight"].shape[-1] == 4 else 1
            x = F.conv2d(x, w[f"{block}.weight"], w[f"{block}.bias"], stride, 1)
            if block:
                x = F.group_norm(x, GROUPS, w[f"{block}.scale"], w[f"{block}.shift"])
            x = F.leaky_relu(x, SLOPE)
        return F.conv2d(x, w[f"{BLOCKS}.weight"], w[f"{BLOCKS}.bias"], 1, 1)

    def learn(self, first: Tensor, second: Tensor, weight: Tensor) -> None:
        """Add the gradient of ``sum_i weight_i (BCE(D(first_i), 0) + BCE(D(second_i), 1))``; `weight` is `[B]`."""
        self._move(first.device)
        weights = {k: v.detach().requires_grad_(True) for k, v in self._parts("value").items()}
        with torch.enable_grad():
            a, b = self(first.detach(), weights).flatten(1), self(second.detach(), weights).flatten(1)
            loss = ((F.softplus(a) + F.softplus(-b)).mean(1) * weight.to(a)).sum()
            found = torch.autograd.grad(loss, list(weights.values()))
        for name, gradient in zip(weights, found, strict=True):
            self.kept[f"{self.name}/gradient/{name}"] += gradient
        right = ((a < 0).float() + (b > 0).float()).mean(1) / 2
        self.kept[f"{self.name}/loss"] += loss.detach()
        self.kept[f"{self.name}/right"] += (right * weight.to(right)).sum()
        self.kept[f"{self.name}/seen"] += weight.to(right).sum()

    @property
    def loss(self) -> Tensor:
        """`[]` of what `learn` has seen since the last step."""
        return self.kept[f"{self.name}/loss"].clone()

    @property
    def accuracy(self) -> float:
        """Share of patches that were told right in the last step."""
        return float(self.kept[f"{self.name}/accuracy"])

    @torch.no_grad()
    def step(self, lr: float, device: str) -> None:
        """One step of Adam along what `learn` added up in all processes."""
        names = list(self._parts("gradient"))
        gradients = distributed.current(device).total([self.kept[f"{self.name}/gradient/{n}"] for n in names])
        self.kept[f"{self.name}/steps"] += 1
        n = self.kept[f"{self.name}/steps"]
        for name, g in zip(names, gradients, strict=True):
            first, second = (self.kept[f"{self.name}/{kind}/{name}"] for kind in ("first", "second"))
            first.lerp_(g, 1 - BETAS[0])
            second.lerp_(g.square(), 1 - BETAS[1])
            size = (second / (1 - BETAS[1] ** n)).sqrt() + EPSILON
            self.kept[f"{self.name}/value/{name}"] -= lr * first / (1 - BETAS[0] ** n) / size
            self.kept[f"{self.name}/gradient/{name}"].zero_()
        counts = {k: self.kept[f"{self.name}/{k}"] for k in ("loss", "right", "seen")}
        self.kept[f"{self.name}/accuracy"] = counts["right"] / counts["seen"].clamp(min=1e-12)
        for count in counts.values():
            count.zero_()
