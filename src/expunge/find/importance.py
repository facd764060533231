"""Parameter importance: how strongly the loss on some examples depends on each weight.

All functions work in eval mode, accumulate in float32 or wider, look at trainable parameters only (a tied
parameter once), and return one tensor per parameter name, of the parameter's shape. `loss` maps outputs and
batch to one value per example (`[B]`); by default it is the family's negative log-likelihood in nats.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from expunge.errors import BadInput
from expunge.families import Batch, Batches, Family, Outputs
from expunge.families.base import count_examples

Loss = Callable[[Outputs, Batch], Tensor]
Importance = dict[str, Tensor]

CHUNK_BYTES = 256 << 20
"""Per-sample gradients held at once: rows times parameters times their size stays below this."""


def batch_importance(
    family: Family,
    model: nn.Module,
    batches: Batches,
    batch_size: int,
    loss: Loss | None = None,
    power: Literal[1, 2] = 2,
) -> Importance:
    """Mean over batches of the batch-mean gradient's magnitude.

    ``(1/K) sum_k |d/d theta mean_{i in batch k} loss_i| ** power`` over K consecutive batches in the data's
    order. As gradients cancel within a batch, the value depends on the batch size and on which rows share a
    batch; the last, smaller batch counts like the others.
    """
    total = _zeros(model)
    n_batches = 0
    for gradients in _batch_gradients(family, model, batches, batch_size, loss):
        n_batches += 1
        for name, gradient in gradients.items():
            total[name] += gradient.abs().pow(power)
    return {name: value / n_batches for name, value in total.items()}


def gradient_sum(
    family: Family, model: nn.Module, batches: Batches, batch_size: int, loss: Loss | None = None
) -> Importance:
    """Sum over batches of the (signed) batch-mean gradient: ``sum_k d/d theta mean_{i in batch k} loss_i``.

    A smaller last batch weighs more per row.
    """
    total = _zeros(model)
    for gradients in _batch_gradients(family, model, batches, batch_size, loss):
        for name, gradient in gradients.items():
            total[name] += gradient
    return total


def sample_importance(
    family: Family,
    model: nn.Module,
    batches: Batches,
    batch_size: int,
    loss: Loss | None = None,
    power: Literal[1, 2] = 2,
) -> Importance:
    """Mean over examples of each one's own gradient magnitude: ``(1/n) sum_i |d loss_i / d theta| ** power``.

    With ``power=2`` and the negative log-likelihood it is the diagonal of the empirical Fisher information.
    At most `batch_size` examples, and at most `CHUNK_BYTES` of gradients, are held at a time; neither
    changes the result.

    Gradients are vectorized over examples. A forward pass that branches on tensor values (the padding masks
    of text transformers) cannot be; there the examples are taken one by one, which gives the same numbers
    more slowly.
    """
    total = _zeros(model)
    if not len(batches):
        raise BadInput("importance was asked over an empty data set; pass at least one example")
    parameter_bytes = sum(value.numel() * value.element_size() for value in total.values())
    chunk = max(1, min(batch_size, CHUNK_BYTES // max(parameter_bytes, 1)))
    loss = loss or family.nll
    with _evaluating(model):
        per_example = _vectorized(family, model, loss)
        vectorizes: bool | None = None
        for rows, batch in batches.sequential(chunk):
            gradients: Importance = {}
            if vectorizes is not False:
                try:
                    gradients = per_example(batch)
                    vectorizes = True
                except RuntimeError:
                    if vectorizes:
                        raise
                    vectorizes = False  # a genuine fault of the model shows up again one by one
            if vectorizes:
                count_examples(len(batch))
                for name, gradient in gradients.items():
                    total[name] += gradient.to(total[name].dtype).abs().pow(power).sum(0)
                continue
            for row in rows.split(1):
                for name, gradient in _gradient(family, model, batches.take(row), loss).items():
                    total[name] += gradient.abs().pow(power)
    return {name: value / len(batches) for name, value in total.items()}


def _batch_gradients(
    family: Family, model: nn.Module, batches: Batches, batch_size: int, loss: Loss | None
) -> Iterator[Importance]:
    if not len(batches):
        raise BadInput("importance was asked over an empty data set; pass at least one example")
    with _evaluating(model):
        for _, batch in batches.sequential(batch_size):
            yield _gradient(family, model, batch, loss or family.nll)


def _gradient(family: Family, model: nn.Module, batch: Batch, loss: Loss) -> Importance:
    """Gradient of the mean loss over `batch`; zero where the loss does not reach a parameter."""
    named = _trainable(model)
    with torch.enable_grad():
        value = loss(family.forward(model, batch), batch).mean()
        found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p, dtype=_wide(p)) if g is None else g.to(_wide(p))
        for (name, p), g in zip(named.items(), found, strict=True)
    }


class _Reading(nn.Module):
    """`Family.predict` as a module, so that `functional_call` can swap the weights beneath it."""

    def __init__(self, family: Family, model: nn.Module) -> None:
        super().__init__()
        self.family, self.model = family, model

    def forward(self, batch: Batch) -> Tensor:
        return self.family.predict(self.model, batch)


def _vectorized(family: Family, model: nn.Module, loss: Loss) -> Callable[[Batch], Importance]:
    """A function from a batch to `[B, *shape]` gradients, one per example."""
    reading = _Reading(family, model)
    weights = {name: p.detach() for name, p in _trainable(model).items()}
    rest = {f"model.{n}": p.detach() for n, p in model.named_parameters() if n not in weights}
    rest |= {f"model.{n}": b for n, b in model.named_buffers()}

    def loss_of_one(weights: Importance, inputs: dict[str, Tensor], targets: Tensor, mask: Tensor) -> Tensor:
        one = Batch(
            [""], {k: v.unsqueeze(0) for k, v in inputs.items()}, targets.unsqueeze(0), mask.unsqueeze(0)
        )
        swapped = {f"model.{n}": w for n, w in weights.items()} | rest
        return loss(Outputs(functional_call(reading, swapped, (one,))), one).squeeze(0)

    over_examples = vmap(grad(loss_of_one), in_dims=(None, 0, 0, 0))
    return lambda batch: over_examples(weights, batch.inputs, batch.targets, batch.mask)


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _zeros(model: nn.Module) -> Importance:
    return {name: torch.zeros_like(p, dtype=_wide(p)) for name, p in _trainable(model).items()}


def _wide(tensor: Tensor) -> torch.dtype:
    """float32 at least: squared gradients of a well-fitted model underflow in half precision."""
    return torch.promote_types(tensor.dtype, torch.float32)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    were_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in were_training:
            module.training = True
