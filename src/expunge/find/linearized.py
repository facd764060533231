"""A model to first order in its weights: what forgetting would do if predictions were linear in them.

For small models or few weights (a head): Jacobians of all examples are held in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, vmap

from expunge.errors import BadInput
from expunge.families import Batch, Batches, Family, Outputs
from expunge.families.base import count_examples
from expunge.find.importance import CHUNK_BYTES, _evaluating, _Reading

LARGEST_BYTES = 4 << 30
"""What Jacobians and curvature may take together."""


@dataclass(frozen=True)
class Linearized:
    """``f(x; theta + u) ~ f(x; theta) + J(x) u`` for P chosen weights theta and n examples; all float64 on the CPU."""

    family: Family
    batch: Batch
    """Targets and mask of the n examples; inputs are not needed any more."""
    prediction: Tensor
    """`[n, T, C]` at theta."""
    jacobian: Tensor
    """`[n, K, P]` with K = T C outputs per example."""
    weights: Tensor
    """`[P]` theta."""
    names: tuple[str, ...]
    """Parameters that theta is made of, in order, each flattened."""

    @classmethod
    def of(
        cls, family: Family, model: nn.Module, batches: Batches, names: Sequence[str] | None = None
    ) -> Linearized:
        """Linearize in eval mode.

        Args:
            family: how the model reads a batch.
            model: left as it is.
            batches: the examples.
            names: parameters to vary; default: all trainable ones.
        """
        chosen = dict(model.named_parameters())
        names = [n for n, p in chosen.items() if p.requires_grad] if names is None else list(names)
        if not len(batches) or not names:
            raise BadInput(
                f"{len(batches)} examples and {len(names)} parameters leave nothing to linearize; pass some of both"
            )
        size = sum(chosen[n].numel() for n in names)
        first = _predicted(family, model, batches.take(torch.tensor([0])))
        outputs = first[0].numel()
        rows = len(batches) * outputs
        needed = 8 * (rows * size + min(size, rows) ** 2)
        if needed > LARGEST_BYTES:
            raise BadInput(
                f"Jacobians of {len(batches)} examples x {outputs} outputs x {size} weights take "
                f"{needed / 2**30:.1f} GiB, more than {LARGEST_BYTES >> 30} GiB; vary fewer weights, such as the head"
            )
        predictions, jacobians, targets, masks, ids = [], [], [], [], []
        chunk = max(1, CHUNK_BYTES // (8 * outputs * size))
        for _, batch in batches.sequential(chunk):
            count_examples(len(batch))
            predictions.append(_predicted(family, model, batch).double().cpu())
            jacobians.append(jacobian(family, model, batch, names).double().cpu())
            targets.append(batch.targets.cpu())
            masks.append(batch.mask.cpu())
            ids += batch.ids
        weights = torch.cat([chosen[n].detach().flatten() for n in names]).double().cpu()
        batch = Batch(ids, {}, torch.cat(targets), torch.cat(masks))
        return cls(family, batch, torch.cat(predictions), torch.cat(jacobians), weights, tuple(names))

    def __len__(self) -> int:
        return len(self.jacobian)

    def predict(self, change: Tensor) -> Tensor:
        """`[n, T, C]` predictions after the weights change by `change` (`[P]`)."""
        return self.prediction + (self.jacobian @ change).reshape(self.prediction.shape)

    def select(self, rows: Tensor) -> Linearized:
        """The examples numbered `rows`."""
        batch = self.batch.select(rows)
        return replace(self, batch=batch, prediction=self.prediction[rows], jacobian=self.jacobian[rows])

    def moved(self, change: Tensor) -> Linearized:
        """The same linear model about theta + change."""
        return replace(self, prediction=self.predict(change), weights=self.weights + change)

    def without(self, rows: np.ndarray) -> Linearized:
        """The examples but those numbered `rows`."""
        return self.select(torch.from_numpy(np.setdiff1d(np.arange(len(self)), rows)))

    def derivatives(self, change: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`loss_derivatives` at theta + change: `[n, K]` and `[n, K, K]`."""
        prediction = self.prediction if change is None else self.predict(change)
        return loss_derivatives(self.family, prediction, self.batch)

    def minimize(self, decay: float, steps: int = 50, tolerance: float = 1e-10) -> Tensor:
        """`[P]` change u that minimizes ``mean_i nll_i(theta + u) + decay / 2 ||theta + u||^2`` by Newton's method.

        The Hessian of the linearized loss is the Gauss-Newton matrix, so that for squared error one step is
        exact. Steps that do not lower the loss are halved. `tolerance` is on the norm of the gradient.
        """
        change = torch.zeros_like(self.weights)
        value = self._objective(change, decay)
        for _ in range(steps):
            slope, curvature = self.derivatives(change)
            gradient = self.pull(slope).mean(0) + decay * (self.weights + change)
            if gradient.norm() <= tolerance:
                break
            move = -self.solve(curvature, gradient * len(self), decay * len(self))
            # Newton's method overshoots where softmax saturates.
            for _ in range(30):
                if self._objective(change + move, decay) <= value + 1e-12 * abs(value):
                    break
                move = move / 2
            change = change + move
            value = self._objective(change, decay)
        return change

    def _objective(self, change: Tensor, decay: float) -> float:
        losses = self.family.nll(Outputs(self.predict(change)), self.batch)
        return float(losses.mean() + decay / 2 * (self.weights + change).square().sum())

    def pull(self, outputs: Tensor) -> Tensor:
        """`[n, P]`: J_i' v_i for vectors v (`[n, K]`) over each example's outputs."""
        return torch.einsum("nkp,nk->np", self.jacobian, outputs)

    def solve(self, curvature: Tensor, right: Tensor, damping: float) -> Tensor:
        """``(sum_i J_i' M_i J_i + damping I)^-1 right`` for M (`[n, K, K]`, positive semidefinite), right `[P]` or `[P, m]`.

        In the space of weights or of outputs, whichever is smaller.
        """
        if damping <= 0 and len(self.weights) > self.jacobian.shape[0] * self.jacobian.shape[1]:
            raise BadInput(
                f"{len(self.weights)} weights and fewer outputs leave the curvature singular; give a weight decay above 0"
            )
        vector = right.dim() == 1
        right = right.unsqueeze(1) if vector else right
        n, outputs, size = self.jacobian.shape
        # A root of M, so that M = root root'; Cholesky would fail on the singular M of a softmax.
        values, vectors = torch.linalg.eigh(curvature)
        root = vectors * values.clamp(min=0).sqrt().unsqueeze(1)
        rows = (root.transpose(1, 2) @ self.jacobian).reshape(n * outputs, size)
        if size <= n * outputs:
            matrix = rows.T @ rows
            matrix.diagonal().add_(damping)
            solved = _positive_solve(matrix, right)
        else:
            matrix = rows @ rows.T
            matrix.diagonal().add_(damping)
            solved = (right - rows.T @ _positive_solve(matrix, rows @ right)) / damping
        return solved.squeeze(1) if vector else solved

    @torch.no_grad()
    def add_to(self, model: nn.Module, change: Tensor) -> None:
        """Add `change` to the parameters of `model`, in place."""
        parameters = dict(model.named_parameters())
        for name, part in zip(
            self.names, change.split([parameters[n].numel() for n in self.names]), strict=True
        ):
            parameters[name].add_(part.reshape(parameters[name].shape).to(parameters[name]))


def _positive_solve(matrix: Tensor, right: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        raise BadInput(
            "the curvature of the loss is singular, as some direction changes no prediction; give a larger weight decay"
        )
    return torch.cholesky_solve(right, factor)


def loss_derivatives(family: Family, prediction: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Of each example's loss with respect to its outputs: gradient `[B, K]` and Hessian `[B, K, K]`.

    For a classifier they are p - onehot(y) and diag(p) - p p'; for a regressor the error and the identity.
    """

    def loss_of_one(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        one = Batch([""], {}, targets.unsqueeze(0), mask.unsqueeze(0))
        return family.nll(Outputs(outputs.unsqueeze(0)), one).squeeze(0)

    inputs = (prediction, batch.targets, batch.mask)
    n, outputs = len(prediction), prediction[0].numel()
    slope = vmap(grad(loss_of_one))(*inputs).reshape(n, outputs)
    return slope, vmap(hessian(loss_of_one))(*inputs).reshape(n, outputs, outputs)


def fisher_diagonal(family: Family, model: nn.Module, batches: Batches) -> dict[str, Tensor]:
    """Diagonal of the Fisher information of the trainable parameters, float64 in each one's shape.

    ``F_i = mean_x E_{y ~ p(.|x)} (d/d theta_i -ln p(y|x))^2``, the expectation over the model's own answers and
    in closed form: ``diag(J' M J)`` with M the Hessian of the loss in the outputs, which for logits and for
    Gaussian means does not depend on y. In eval mode, example by example.
    """
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    size = sum(p.numel() for p in named.values())
    total = torch.zeros(size, dtype=torch.float64, device=batches.device)
    outputs = _predicted(family, model, batches.take(torch.tensor([0]))).numel()
    for _, batch in batches.sequential(max(1, CHUNK_BYTES // (16 * outputs * size))):
        count_examples(len(batch))
        # In float64: p - p^2 of a confident answer is a small difference.
        _, curvature = loss_derivatives(family, _predicted(family, model, batch).double(), batch)
        rows = jacobian(family, model, batch, list(named)).double()
        total += (rows * (curvature @ rows)).sum((0, 1))
    parts = (total / len(batches)).split([p.numel() for p in named.values()])
    return {n: part.reshape(p.shape) for (n, p), part in zip(named.items(), parts, strict=True)}


def head_parameters(family: Family, model: nn.Module) -> list[str]:
    """Names of the trainable parameters of the family's head."""
    head = family.head(model)
    return [n for n, p in model.named_parameters() if n.startswith(f"{head}.") and p.requires_grad]


def jacobian(family: Family, model: nn.Module, batch: Batch, names: Sequence[str]) -> Tensor:
    """`[B, K, P]` derivatives of each example's K = T C predictions in the named parameters, in eval mode.

    Vectorized over examples; one by one where the forward pass branches on tensor values.
    """
    reading = _Reading(family, model)
    weights = {n: p.detach() for n, p in model.named_parameters() if n in set(names)}
    rest = {f"model.{n}": p.detach() for n, p in model.named_parameters() if n not in weights}
    rest |= {f"model.{n}": b for n, b in model.named_buffers()}

    def predict_one(
        weights: dict[str, Tensor], inputs: dict[str, Tensor], targets: Tensor, mask: Tensor
    ) -> Tensor:
        one = Batch(
            [""], {k: v.unsqueeze(0) for k, v in inputs.items()}, targets.unsqueeze(0), mask.unsqueeze(0)
        )
        swapped = {f"model.{n}": w for n, w in weights.items()} | rest
        return functional_call(reading, swapped, (one,)).flatten()

    of_one = jacrev(predict_one)
    with _evaluating(model):
        try:
            made = vmap(of_one, in_dims=(None, 0, 0, 0))(weights, batch.inputs, batch.targets, batch.mask)
        except RuntimeError:
            rows = [
                of_one(weights, {k: v[i] for k, v in batch.inputs.items()}, batch.targets[i], batch.mask[i])
                for i in range(len(batch))
            ]
            made = {n: torch.stack([row[n] for row in rows]) for n in weights}
    return torch.cat([made[n].flatten(2) for n in names], 2)


def _predicted(family: Family, model: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad(), _evaluating(model):
        return family.forward(model, batch).prediction.detach()
