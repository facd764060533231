"""Experts of which a selector asks one for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.models import Architecture, Composed, Past, architecture_of, call


class Routed(Composed):
    """Models of the same outputs, and one that says by its largest logit which of them answers a row; the first is the base.

    A row goes through the selector and through one expert.
    """

    def __init__(self, selector: nn.Module, experts: Sequence[nn.Module]) -> None:
        super().__init__()
        if not experts:
            raise BadInput("a selector needs experts to choose from")
        self.selector, self.experts = selector, nn.ModuleList(experts)

    @property
    def base(self) -> nn.Module:  # noqa: D102
        return self.experts[0]

    @property
    def members(self) -> Sequence[nn.Module]:  # noqa: D102
        return [*self.experts, self.selector]

    def chosen(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """`[B]` number of the expert for each row."""
        return call(self.selector, inputs).argmax(-1)

    def logits(  # noqa: D102
        self, inputs: Mapping[str, Tensor], keep: int | None, past: Past | None = None
    ) -> Tensor:
        chosen = self.chosen(inputs)
        order: list[Tensor] = []
        made: list[Tensor] = []
        for number, expert in enumerate(self.experts):
            rows = torch.nonzero(chosen == number).flatten()
            if len(rows):
                order.append(rows)
                made.append(call(expert, {k: v.index_select(0, rows) for k, v in inputs.items()}))
        return torch.cat(made)[torch.cat(order).argsort()]

    def architecture(self, known: Architecture | None) -> Architecture | None:  # noqa: D102
        experts = [architecture_of(expert, known) for expert in self.experts]
        selector = getattr(self.selector, "built_by", None)
        if selector is None or any(expert is None for expert in experts):
            return None
        described = [expert.model_dump(mode="json") for expert in experts if expert is not None]
        return Architecture(
            kind="composed", name="routed", options={"selector": selector, "experts": described}
        )

    @classmethod
    def rebuilt(cls, options: Mapping[str, Any]) -> Routed:  # noqa: D102
        experts = [Architecture(**expert).with_drawn_weights() for expert in options["experts"]]
        return cls(selector_of(options["selector"]), experts)


def selector_of(options: Mapping[str, Any]) -> nn.Module:
    """A selector with weights from the global random state: a fully connected network on the flattened rows."""
    made = Architecture(kind="builtin", name="mlp", options=dict(options)).with_drawn_weights()
    made.built_by = dict(options)  # pyright: ignore[reportArgumentType]
    return made
