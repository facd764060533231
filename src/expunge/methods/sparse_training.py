"""Training a sparse autoencoder on activations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.families.sparse_features import SparseAutoencoder


@dataclass(frozen=True)
class SparseRecipe:
    """How an autoencoder is trained."""

    features: int
    k: int
    epochs: int
    lr: float
    batch_size: int
    auxiliary: float
    """Weight of the loss that wakes features up which have not been active for a whole pass."""


def fit_autoencoder(
    x: Tensor, recipe: SparseRecipe, generator: torch.Generator
) -> tuple[SparseAutoencoder, list[dict[str, float]]]:
    """An autoencoder of `x` (`[n, d]`), and its losses by epoch.

    The loss is ``sum |x - x^|^2 / sum |x - mean|^2`` over a batch, the share of variance that is not explained, plus
    `auxiliary` times the share of what is left over that the d / 2 largest dead features explain. In training the
    ``k * batch`` largest activations of a whole batch are kept (BatchTopK, Bussmann et al. 2024, arXiv:2412.06410), later
    the k largest of each position. Adam, learning rate falling linearly to 0; decoder rows are scaled back to length 1
    after every step. b starts as the mean, W_e as W_d times what fits best.
    """
    width, device = x.shape[1], x.device
    made = SparseAutoencoder(width, recipe.features, recipe.k)
    with torch.no_grad():
        made.scale.copy_((x - x.mean(0)).square().mean().sqrt().clamp(min=1e-12))
        made.center.copy_((x / made.scale.to(device)).mean(0))
        drawn = torch.randn(recipe.features, width, generator=generator)
        made.decoder.copy_(F.normalize(drawn, dim=-1))
        made.encoder.weight.copy_(made.decoder)
        made.encoder.bias.zero_()
        made = made.to(device)
        # Directions overlap, so that a sum of k of them is too long at first.
        first = x[: recipe.batch_size]
        centered = first / made.scale - made.center
        said = largest(made.activations(first), recipe.k * len(first)) @ made.decoder
        made.encoder.weight.mul_((said * centered).sum() / said.square().sum().clamp(min=1e-12))
    optimizer = torch.optim.Adam(made.parameters(), recipe.lr)
    silent = torch.zeros(recipe.features, device=device)
    steps, done, log = -(-len(x) // recipe.batch_size) * recipe.epochs, 0, []
    for _ in range(recipe.epochs):
        lost, active = 0.0, 0.0
        for rows in torch.randperm(len(x), generator=generator).split(recipe.batch_size):
            optimizer.param_groups[0]["lr"] = recipe.lr * (1 - done / steps)
            done += 1
            inputs = x[rows.to(device)]
            every = made.activations(inputs)
            z = largest(every, recipe.k * len(inputs))
            unexplained = inputs - made.decode(z)
            loss = unexplained.square().sum() / (inputs - inputs.mean(0)).square().sum().clamp(min=1e-12)
            silent = torch.where((z > 0).any(0), 0, silent + len(inputs))
            dead = silent > len(x)
            total = loss
            if recipe.auxiliary and dead.any():
                left = unexplained.detach()
                few = largest(every * dead, min(int(dead.sum()), max(1, width // 2)) * len(inputs))
                missed = (left - made.scale * (few @ made.decoder)).square().sum()
                total = loss + recipe.auxiliary * missed / left.square().sum().clamp(min=1e-12)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            with torch.no_grad():
                made.decoder.copy_(F.normalize(made.decoder, dim=-1))
            lost += float(loss.detach()) * len(inputs)
            active += float((z > 0).sum())
        log.append(
            {"unexplained": lost / len(x), "active": active / len(x), "dead": float((silent > len(x)).float().mean())}
        )  # fmt: skip
    return made.eval(), log


def largest(values: Tensor, n: int) -> Tensor:
    """`values` (0 or more), all but the `n` largest set to 0."""
    if n >= values.numel():
        return values
    least = values.detach().flatten().topk(n, sorted=False).values.amin()
    return torch.where(values >= least, values, 0)
