"""Quantization: what comes back when weights are rounded."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from scipy.stats import norm
from torch import Tensor, nn

from expunge.attacks.base import Scene
from expunge.attacks.kernels import BITS, in_few_bits
from expunge.attacks.tampering import Tampering, recovery_measures, weight_matrices
from expunge.errors import BadInput
from expunge.families.models import clone
from expunge.metrics.base import Undefined
from expunge.parameters import param

Scheme = Literal["symmetric", "asymmetric", "nf4"]

NF4_BLOCK = 64
"""Weights that share one scale in NF4."""


class Quantization(Tampering):
    """Round the weights to few bits, and ask what the model knows.

    Unlearning with a small learning rate moves weights by less than the step of a coarse grid: rounded, they are the
    target's again. The grid is emulated: weights are rounded to it and stored as before, activations stay as they are.

    ``symmetric``: ``w' = s clip(round(w / s), -m, m)`` with ``m = 2^(bits-1) - 1``, ``s = max |w| / m``.
    ``asymmetric``: ``w' = s (clip(round(w / s) + z, 0, 2^bits - 1) - z)``, ``s = (max w - min w) / (2^bits - 1)``,
    ``z = round(-min w / s)``, 0 included in the range. Both with one scale per output channel, or per `group` weights of
    it. ``nf4``: 16 levels that are quantiles of the normal distribution, times the largest weight of each block of 64; it
    counts as 4 bits only. At each number of bits the scheme that recovers most is taken.

    With ``backend: bitsandbytes`` (extra ``bitsandbytes``) linear layers run in 8 bits (LLM.int8, outliers of the inputs above
    6 in full precision) and 4 bits (NF4, blocks of 64) by that library's kernels, as whoever loads the model with it would
    have them; `schemes`, `group` and `embeddings` have no say then, and other numbers of bits are left out.

    Rounded are linear and convolution layers, attention and experts; norms, biases and embeddings are not, nor an output
    layer that shares its weights with them. Deviations: LLM.int8 also keeps outlier columns of the activations in half
    precision, and libraries usually leave the output layer out; that of NF4 is to quantize the block scales too.
    """

    name = "quantization"
    paper = (
        "Zhang et al., ICLR 2025, arXiv:2410.16454 (attack); Dettmers et al., NeurIPS 2023, arXiv:2305.14314 (NF4); "
        "Jacob et al., CVPR 2018, arXiv:1712.05877 (rounding)"
    )
    threat_model = (
        "weights; no data, no training: whoever runs the model in few bits, even without meaning to"
    )
    over = "bits"
    measures = recovery_measures(name, "rounding the weights to few bits")

    bits: tuple[Annotated[int, Field(ge=2, le=16)], ...] = param(
        (8, 6, 4, 3), "bits per weight, each 2 to 16", source="the paper: 8 and 4; 6 and 3 ours", min_length=1
    )
    schemes: tuple[Scheme, ...] = param(
        ("symmetric", "asymmetric", "nf4"), "grids that are tried", source="ours", min_length=1
    )
    group: int | None = param(
        None, "weights that share a scale; None means an output channel", source="ours", ge=1
    )
    head: bool = param(True, "round the output layer too", source="ours: it may be where knowledge is hidden")
    embeddings: bool = param(False, "round embeddings too", source="bitsandbytes: not")
    backend: Literal["emulated", "bitsandbytes"] = param(
        "emulated", "round in PyTorch, or run the kernels of bitsandbytes", source="ours: runs everywhere"
    )

    @model_validator(mode="after")
    def _has_kernels(self) -> Self:
        if self.backend == "bitsandbytes" and not set(self.bits) & set(BITS):
            raise BadInput(
                f"quantization: bitsandbytes has kernels for 8 and 4 bits, not for {', '.join(map(str, self.bits))}"
            )
        return self

    def spends(self) -> dict[str, float]:  # noqa: D102
        if self.backend == "bitsandbytes":
            return {"models": len(set(self.bits) & set(BITS))}
        return {"models": sum(scheme != "nf4" or b == 4 for b in self.bits for scheme in self.schemes)}

    def variants(self, scene: Scene) -> Iterator[tuple[float, nn.Module]]:  # noqa: D102
        if self.backend == "bitsandbytes":
            yield from self._by_kernels(scene)
            return
        for bits in self.bits:
            for scheme in self.schemes:
                if scheme == "nf4" and bits != 4:
                    continue
                model = clone(scene.model)
                with torch.no_grad():
                    for module, name in weight_matrices(
                        scene.problem.family, model, head=self.head, embeddings=self.embeddings
                    ):
                        weight = module.get_parameter(name)
                        weight.copy_(
                            rounded(weight, bits, scheme, self.group, transposed=_transposed(module))
                        )
                yield float(bits), model

    def _by_kernels(self, scene: Scene) -> Iterator[tuple[float, nn.Module]]:
        for bits in (b for b in self.bits if b in BITS):
            model, layers = in_few_bits(
                scene.problem.family, scene.model, bits, scene.workplace.device, head=self.head
            )
            if not layers:
                raise Undefined("the model has no linear layer, which is all that bitsandbytes quantizes")
            yield float(bits), model


def rounded(
    weight: Tensor,
    bits: int,
    scheme: Scheme = "symmetric",
    group: int | None = None,
    *,
    transposed: bool = False,
) -> Tensor:
    """`weight` (`[out, ...]`; `[in, out]` where `transposed`) on the grid of `scheme`; of stacks of matrices, matrix by matrix.

    >>> rounded(torch.tensor([[-0.7, 0.36, 0.38, 0.7]]), 4)
    tensor([[-0.7000,  0.4000,  0.4000,  0.7000]])
    """
    if not 2 <= bits <= 16:
        raise BadInput(f"weights can be rounded to 2 to 16 bits, not {bits}")
    channels = weight.T if transposed else weight
    # Experts are stacks of matrices: their rows are channels. The kernel of a convolution is one channel.
    flat = channels.flatten(0, 1) if channels.dim() == 3 else channels.flatten(1)
    blocks = NF4_BLOCK if scheme == "nf4" else group or flat.shape[1]
    made = _in_blocks(flat.float(), min(blocks, flat.shape[1]), bits, scheme)
    made = made.reshape(channels.shape).to(weight)
    return made.T if transposed else made


def _in_blocks(flat: Tensor, size: int, bits: int, scheme: Scheme) -> Tensor:
    """`[channels, inputs]` rounded with one scale per `size` inputs; the last block of a channel may be smaller."""
    n, width = flat.shape
    # Zeros change no scale, neither the largest magnitude nor a range that holds 0.
    padded = nn.functional.pad(flat, (0, -width % size)).reshape(n, -1, size)
    if scheme == "asymmetric":
        low, high = padded.amin(-1, keepdim=True).clamp(max=0), padded.amax(-1, keepdim=True).clamp(min=0)
        step = _nonzero((high - low) / (2**bits - 1))
        zero = (-low / step).round()
        made = step * ((padded / step).round() + zero).clamp(0, 2**bits - 1).sub(zero)
    elif scheme == "symmetric":
        most = 2 ** (bits - 1) - 1
        step = _nonzero(padded.abs().amax(-1, keepdim=True) / most)
        made = step * (padded / step).round().clamp(-most, most)
    else:
        levels = torch.tensor(nf4_levels(), dtype=flat.dtype, device=flat.device)
        scale = _nonzero(padded.abs().amax(-1, keepdim=True))
        borders = (levels[1:] + levels[:-1]) / 2
        made = scale * levels[torch.bucketize((padded / scale).contiguous(), borders)]
    return made.reshape(n, -1)[:, :width]


def _nonzero(scale: Tensor) -> Tensor:
    """Scales to divide by; a block of zeros stays one whatever it is divided by."""
    return torch.where(scale > 0, scale, 1.0)


@cache
def nf4_levels() -> tuple[float, ...]:
    """The 16 levels of NF4: quantiles of the normal distribution, scaled to [-1, 1], with 0 among them.

    Eight of equal probability from 1/2 to ``1 - (1/30 + 1/32) / 2`` above 0, seven below, and 0 itself.
    """
    last = 1 - (1 / 30 + 1 / 32) / 2
    above, below = norm.ppf(np.linspace(last, 0.5, 9)[:-1]), norm.ppf(np.linspace(last, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([above, [0.0], -below]))
    return tuple(float(level) for level in levels / levels.max())


def _transposed(module: nn.Module) -> bool:
    # GPT-2 and its kin store linear layers as [in, out], in a class of their own.
    return type(module).__name__ == "Conv1D"
