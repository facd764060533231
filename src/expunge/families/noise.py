"""Forward noising in closed form, and what a denoiser is trained to say."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor

from expunge.errors import BadInput
from expunge.families.pipelines import diffusers

PREDICTIONS = ("epsilon", "sample", "v_prediction")


class NoiseSchedule:
    """Signal and noise by timestep, from a `diffusers` scheduler configuration.

    ``x_t = a_t x_0 + s_t e`` with ``a_t^2 + s_t^2 = 1``. Tensors are `[B, T, D]`, timesteps `[B, T]`.

    Args:
        config: of any diffusers scheduler with `num_train_timesteps` and a beta schedule.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = dict(config)
        scheduler = diffusers().DDIMScheduler.from_config(self.config)
        self.kind: str = scheduler.config.prediction_type
        if self.kind not in PREDICTIONS:
            raise BadInput(
                f"prediction type '{self.kind}' is not known; the scheduler must say {', '.join(PREDICTIONS)}"
            )
        self.steps = int(scheduler.config.num_train_timesteps)
        self._signal = scheduler.alphas_cumprod.double().sqrt().float()
        self._noise = (1 - scheduler.alphas_cumprod.double()).sqrt().float()

    def sampler(self, steps: int) -> Any:
        """A scheduler of its own for one deterministic (DDIM) sampling run; diffusers' schedulers keep state."""
        made = diffusers().DDIMScheduler.from_config(self.config)
        made.set_timesteps(steps)
        return made

    def signal(self, timesteps: Tensor) -> Tensor:
        """`a_t`, `[B, T, 1]`."""
        return self._signal.to(timesteps.device)[timesteps].unsqueeze(-1)

    def noise(self, timesteps: Tensor) -> Tensor:
        """`s_t`, `[B, T, 1]`."""
        return self._noise.to(timesteps.device)[timesteps].unsqueeze(-1)

    def noisy(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`x_t`."""
        return self.signal(timesteps) * clean + self.noise(timesteps) * noise

    def wanted(self, clean: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """What a denoiser has to say of `noisy` to end at `clean`: the noise, the clean latents, or ``a e - s x_0``."""
        if self.kind == "sample":
            return clean.expand_as(noisy)
        a, s = self.signal(timesteps), self.noise(timesteps)
        noise = (noisy - a * clean) / s
        return noise if self.kind == "epsilon" else a * noise - s * clean

    def clean(self, said: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The clean latents that a denoiser's answer means, the inverse of `wanted`; nothing is clamped.

        At a timestep of pure noise an answer in noise means none: the signal is then taken for 1e-4.
        """
        if self.kind == "sample":
            return said
        a, s = self.signal(timesteps), self.noise(timesteps)
        return a * noisy - s * said if self.kind == "v_prediction" else (noisy - s * said) / a.clamp(min=1e-4)

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio ``a_t^2 / s_t^2``, `[B, T]`."""
        return (self.signal(timesteps) / self.noise(timesteps)).square().squeeze(-1)


def row_seed(name: str) -> int:
    """A number that a row's id fixes."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def draw_timesteps(places: Tensor, steps: int, power: float) -> Tensor:
    """Timesteps from places in 0 to 1: ``floor(steps * u ^ power)``; a power below 1 prefers noisy ones."""
    return (steps * places.clamp(0, 1 - 1e-6) ** power).long().clamp(max=steps - 1)
