"""Which concepts carry a class: concept directions, a sparse concept model, and integrated gradients.

A concept is a direction c in the space of the features phi that a model's last linear layer reads, with the
activation ``a(x) = (<phi(x), c> + b) / |c|``. A post-hoc concept bottleneck (Yuksekgonul et al., ICLR 2023,
arXiv:2205.15480) is a sparse linear classifier on the activations of several concepts; it explains the model,
it does not replace it. Concept activation vectors: Kim et al., ICML 2018, arXiv:1711.11279. Integrated
gradients: Sundararajan et al., ICML 2017, arXiv:1703.01365.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families import Batch, Family

DUPLICATE = 0.9
"""Concepts whose directions have a larger cosine than this, whatever its sign, are one concept."""
SAMPLES = 100
"""Rows with and without a concept that its direction is learned from, at most."""


@dataclass(frozen=True)
class Bank:
    """Concepts: ``a = phi directions^T + offsets``."""

    names: list[str]
    directions: Tensor
    """`[N, d]`, float64."""
    offsets: Tensor
    """`[N]`"""

    @classmethod
    def principal(cls, embedded: Tensor, n: int) -> Bank:
        """Up to `n` principal directions of `embedded` (`[rows, d]`), the strongest first."""
        mean = embedded.mean(0)
        _, singular, v = torch.linalg.svd(embedded - mean, full_matrices=False)
        v = v[:n][singular[:n] > 1e-6 * singular[0]]
        # Signs are arbitrary; the largest entry is made positive, so that every machine finds the same.
        v = v * v.gather(1, v.abs().argmax(1, keepdim=True)).sign()
        return cls([f"direction {i + 1}" for i in range(len(v))], v, -v @ mean)

    @classmethod
    def labeled(cls, embedded: Tensor, present: dict[str, np.ndarray]) -> Bank:
        """Concept activation vectors, by name; near-duplicates of an earlier one are left out.

        Args:
            embedded: `[rows, d]`, float64.
            present: by concept, `[rows]` bool: which rows have it; both must occur.
        """
        names, directions, offsets = [], [], []
        for name, rows in present.items():
            normal, offset = separating(embedded, rows)
            if any(abs(normal @ other) > DUPLICATE for other in directions):
                continue
            names.append(name)
            directions.append(normal)
            offsets.append(offset)
        return cls(names, torch.stack(directions), torch.stack(offsets))

    def activations(self, embedded: Tensor) -> Tensor:
        """`[rows, N]` from `[rows, d]`."""
        return embedded @ self.directions.T.to(embedded) + self.offsets.to(embedded)

    def standardized(self, embedded: Tensor) -> Bank:
        """The same concepts with activations of mean 0 and standard deviation 1 over `embedded`."""
        activations = self.activations(embedded)
        scale = activations.std(0, correction=0).clamp(min=1e-12)
        return Bank(
            self.names, self.directions / scale[:, None], (self.offsets - activations.mean(0)) / scale
        )


@dataclass(frozen=True)
class ConceptModel:
    """A sparse linear classifier on concept activations."""

    bank: Bank
    weight: Tensor
    """`[C, N]`"""
    contributions: Tensor
    """`[C, N]`: weight times the mean activation in the class; 0 for a class without rows."""
    accuracy: float
    """Share of the training rows that it gets right."""
    majority: float
    """Share of the most frequent class."""

    @classmethod
    def fit(cls, bank: Bank, embedded: Tensor, labels: Tensor, sparsity: float, mix: float) -> ConceptModel:
        """Fit on embedded rows (`[n, d]`) with `labels` (`[n]`)."""
        a = bank.activations(embedded)
        n_classes = int(labels.max()) + 1
        weight, bias = elastic_net(a, labels, sparsity / (a.shape[1] * n_classes), mix)
        given = F.one_hot(labels, n_classes).to(a)
        means = given.T @ a / given.sum(0).clamp(min=1)[:, None]
        accuracy = ((a @ weight.T + bias).argmax(1) == labels).double().mean()
        return cls(bank, weight, weight * means, float(accuracy), float(given.mean(0).max()))

    def top(self, label: int, k: int) -> Tensor:
        """Up to `k` concepts that contribute most to a class, the strongest first."""
        return self.contributions[label].abs().argsort(descending=True, stable=True)[:k]

    def confused(self, label: int, k: int, among: Tensor) -> int:
        """The class, another one, whose contributions are most like those of `label` over its top `k` concepts."""
        others = among[among != label]
        if not len(others):
            raise BadInput(
                f"no class can be confused with class {label}: there are rows of it only; keep rows of another class"
            )
        shape = self.contributions[:, self.top(label, k)]
        likeness = F.cosine_similarity(shape[others], shape[label][None], dim=1)
        return int(others[likeness.argmax()])

    def score(self, embedded: Tensor, label: int, concepts: Tensor) -> Tensor:
        """`[rows]`: what the numbered concepts add to the logit of a class; differentiable."""
        weight = self.weight[label, concepts].to(embedded)
        return self.bank.activations(embedded)[:, concepts.to(embedded.device)] @ weight


def embed(family: Family, model: nn.Module, batch: Batch) -> Tensor:
    """`[B, d]`: the inputs of the last linear layer, averaged over positions where there are several."""
    caught: list[Tensor] = []

    def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        caught.append(inputs[0])

    handle = model.get_submodule(family.head(model)).register_forward_pre_hook(hook)
    try:
        family.forward(model, batch)
    finally:
        handle.remove()
    features = caught[-1]
    return features if features.dim() == 2 else features.flatten(1, -2).mean(1)


def separating(embedded: Tensor, present: np.ndarray) -> tuple[Tensor, Tensor]:
    """Unit normal `[d]` and offset of the plane of a linear support vector machine (C = 0.1)."""
    rows = np.concatenate([np.flatnonzero(present)[:SAMPLES], np.flatnonzero(~present)[:SAMPLES]])
    machine = LinearSVC(C=0.1, random_state=0, max_iter=10_000).fit(embedded.numpy()[rows], present[rows])
    normal = torch.from_numpy(machine.coef_[0])
    offset = torch.tensor(machine.intercept_).reshape(())
    length = normal.norm().clamp(min=1e-12)
    return normal / length, offset / length


def elastic_net(
    a: Tensor, labels: Tensor, strength: float, mix: float, steps: int = 2000, tolerance: float = 1e-7
) -> tuple[Tensor, Tensor]:
    """Softmax regression: ``min mean CE(a W^T + b, y) + strength (mix |W|_1 + (1 - mix) |W|^2)``.

    By accelerated proximal gradient steps (FISTA) from 0.

    Args:
        a: `[n, N]`, float64.
        labels: `[n]` class numbers.
        strength: weight of the penalty, which does not apply to b.
        mix: share of the l1 norm.
        steps: largest number of steps.
        tolerance: largest change of a weight at which it stops.

    Returns:
        W (`[C, N]`) and b (`[C]`).
    """
    x = torch.cat([a, torch.ones_like(a[:, :1])], 1)
    given = F.one_hot(labels).to(a)
    ridge = torch.full((1, x.shape[1]), 2 * strength * (1 - mix), dtype=a.dtype)
    lasso = torch.full((1, x.shape[1]), strength * mix, dtype=a.dtype)
    ridge[:, -1] = lasso[:, -1] = 0
    # The Hessian of the softmax is at most 1/2.
    rate = 1 / (0.5 * torch.linalg.matrix_norm(x, 2) ** 2 / len(x) + ridge.max())
    weight = ahead = x.new_zeros(given.shape[1], x.shape[1])
    momentum = 1.0
    for _ in range(steps):
        slope = ((ahead @ x.T).softmax(0).T - given).T @ x / len(x) + ridge * ahead
        moved = ahead - rate * slope
        new = moved.sign() * (moved.abs() - rate * lasso).clamp(min=0)
        faster = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = new + (momentum - 1) / faster * (new - weight)
        change, weight, momentum = (new - weight).abs().max(), new, faster
        if change < tolerance:
            break
    return weight[:, :-1], weight[:, -1]


def integrated_gradients(
    score: Callable[[dict[str, Tensor]], Tensor],
    inputs: dict[str, Tensor],
    baseline: dict[str, Tensor],
    steps: int,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """``(x_j - x'_j) mean_s dF/dx_j(x' + (s - 1/2) / steps (x - x'))``, s = 1 .. steps, by input.

    Also what these leave out of the difference they explain, ``F(x) - F(x') - sum_j``, and that difference
    itself, `[B]` each: the first goes to 0 as the number of steps grows (completeness).
    """
    total = {name: torch.zeros_like(value) for name, value in inputs.items()}
    for s in range(steps):
        at = {
            name: (baseline[name] + (s + 0.5) / steps * (value - baseline[name])).requires_grad_()
            for name, value in inputs.items()
        }
        with torch.enable_grad():
            slopes = torch.autograd.grad(score(at).sum(), list(at.values()))
        for name, slope in zip(at, slopes, strict=True):
            total[name] += slope / steps
    made = {name: (value - baseline[name]) * total[name] for name, value in inputs.items()}
    with torch.no_grad():
        difference = score(inputs) - score(baseline)
    explained = torch.stack([value.flatten(1).sum(1) for value in made.values()]).sum(0)
    return made, difference - explained, difference
