"""A small GAN for images of few pixels: an optional mapping, a generator and a discriminator in one module."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import BadInput

SLOPE = 0.2
"""Of leaky rectifiers, customary in GANs."""


class Mapping(nn.Module):
    """Fully connected layers from the latent z to the intermediate latent w of the same width, as in StyleGAN."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, latent: Tensor) -> Tensor:
        """`[B, L]` to `[B, L]`; z is scaled to unit mean square first."""
        x = latent * latent.square().mean(1, keepdim=True).add(1e-8).rsqrt()
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
        return x


class Generator(nn.Module):
    """A linear layer to half the image's side, a convolution there, another at full size, and one to the channels."""

    def __init__(self, latent: int, size: int, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.side, self.width = size // 2, width
        self.start = nn.Linear(latent + classes, width * self.side**2)
        self.coarse = nn.Conv2d(width, width, 3, padding=1)
        self.fine = nn.Conv2d(width, max(width // 2, 1), 3, padding=1)
        self.image = nn.Conv2d(max(width // 2, 1), channels, 3, padding=1)

    def forward(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        """`[B, channels, size, size]` in -1 to 1, of `[B, L]` and, where there are classes, `[B, classes]`."""
        read = latent if condition is None else torch.cat([latent, condition], 1)
        x = F.leaky_relu(self.start(read), SLOPE).unflatten(1, (self.width, self.side, self.side))
        x = F.interpolate(F.leaky_relu(self.coarse(x), SLOPE), scale_factor=2.0)
        return self.image(F.leaky_relu(self.fine(x), SLOPE)).tanh()


class Discriminator(nn.Module):
    """A convolution, two more that halve the side each, and two linear layers; classes by projection (Miyato & Koyama 2018)."""

    def __init__(self, size: int, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.whole = nn.Conv2d(channels, width, 3, padding=1)
        self.halved = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.quartered = nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1)
        self.hidden = nn.Linear(4 * width * (size // 4) ** 2, 4 * width)
        self.score = nn.Linear(4 * width, 1)
        self.embedding = nn.Linear(classes, 4 * width, bias=False) if classes else None

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """`[B]` scores, high where an image looks real."""
        x = images
        for layer in (self.whole, self.halved, self.quartered):
            x = F.leaky_relu(layer(x), SLOPE)
        x = F.leaky_relu(self.hidden(x.flatten(1)), SLOPE)
        score = self.score(x).squeeze(1)
        if self.embedding is None or condition is None:
            return score
        return score + (self.embedding(condition) * x).sum(1) / x.shape[1] ** 0.5


class GAN(nn.Module):
    """Generator and discriminator that answer for one another, and a mapping where `mapping` layers are asked for.

    There are no batch statistics, so that an image depends on its latent alone.
    """

    def __init__(
        self,
        size: int = 8,
        channels: int = 1,
        latent: int = 16,
        width: int = 32,
        critic_width: int = 16,
        mapping: int = 0,
        classes: int = 0,
    ) -> None:
        super().__init__()
        if size % 4:
            raise BadInput(f"images of {size} pixels cannot be halved twice, as this discriminator does")
        self.mapping = Mapping(latent, mapping) if mapping else None
        self.generator = Generator(latent, size, channels, width, classes)
        self.discriminator = Discriminator(size, channels, critic_width, classes)

    def forward(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        """Images of latents `[B, L]` and, where there are classes, one-hot `[B, classes]`."""
        return self.generator(latent if self.mapping is None else self.mapping(latent), condition)
