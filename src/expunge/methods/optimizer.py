"""What stands between gradients and weights: the update rule, and weights that must not move."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from expunge.problem import Training


def make_optimizer(training: Training, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that `training` names. Weight decay is decoupled for adamw, L2 for the others.

    RMSprop (decay 0.99) is Adam without momentum, which games of two players need.
    """
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay
        )
    if training.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=training.lr, weight_decay=training.weight_decay)
    cls = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return cls(parameters, lr=training.lr, weight_decay=training.weight_decay)


class Held:
    """Keeps masked-out weights bitwise where they were, against momentum and weight decay too."""

    def __init__(self, parameters: list[tuple[str, nn.Parameter]], mask: dict[str, Tensor] | None) -> None:
        self._held = (
            []
            if mask is None
            else [(p, mask[n].to(p.device), p.detach().clone()) for n, p in parameters if n in mask]
        )

    def mask_gradients(self) -> None:
        """Zero the gradients of masked-out weights."""
        for parameter, mask, _ in self._held:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    @torch.no_grad()
    def restore(self) -> None:
        """Put masked-out weights back."""
        for parameter, mask, original in self._held:
            parameter.copy_(torch.where(mask, parameter, original))
