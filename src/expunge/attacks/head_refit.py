"""Head re-fitting: what comes back when only the output layer is trained again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.attacks.base import Scene
from expunge.attacks.states import PER_BATCH
from expunge.attacks.tampering import Tampering, divided, recovery_measures, some_rows
from expunge.families import Batch, Batches, Family
from expunge.families.models import clone, innermost
from expunge.parameters import param


class HeadRefit(Tampering):
    """Fit the output layer afresh on retained rows and a few forgotten ones, and ask about the other forgotten rows.

    Everything before the head stays as it is. The head starts at zero and minimizes ``(L_retain + L_forget) / 2 + decay
    |W|^2 / 2``, L the mean negative log-likelihood per position and `decay` a small penalty that makes the minimum unique,
    by L-BFGS. Where only the head was edited, or trained not to answer, the features still hold the answers. Fitted with
    no, half and all of the forgotten rows that the attacker holds; the best is taken.

    A head that shares its weights with the embeddings gets its own. Of models that are composed of several, the base is
    fitted and asked.
    """

    name = "head-refit"
    families = frozenset({"classifier", "regressor", "causal_lm"})
    paper = (
        "Kirichenko et al., ICLR 2023, arXiv:2204.02937 (last-layer re-training); a read-out of what the weights hold, as "
        "in Golatkar et al., CVPR 2020, arXiv:1911.04933"
    )
    threat_model = "weights, and the right to train the output layer; retained rows and a few forgotten rows with their answers"
    trains = True
    over = "forgotten rows that are trained on"
    measures = recovery_measures(name, "fitting the output layer again")

    share: float = param(
        0.25, "share of the forgotten rows that the attacker holds", source="ours: few", gt=0, lt=1
    )
    decay: float = param(1e-3, "coefficient of the L2 penalty", source="ours", gt=0)
    iterations: int = param(50, "most iterations of L-BFGS", source="ours", ge=1)

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {
            "iterations": self.iterations,
            "retained rows": self.rows,
            "share of forgotten rows": self.share,
        }

    def asked(self, scene: Scene) -> Batches:  # noqa: D102
        return divided(scene, self.share)[1]

    def variants(self, scene: Scene) -> Iterator[tuple[float, nn.Module]]:  # noqa: D102
        held, retain = divided(scene, self.share)[0], some_rows(scene, "retain", self.rows)
        for count in sorted({0, len(held) // 2, len(held)}):
            some = Batches(held.family, held.dataset.select(np.arange(count)), held.device) if count else None
            yield float(count), self.refitted(scene, [retain] if some is None else [retain, some])

    def refitted(self, scene: Scene, sources: list[Batches]) -> nn.Module:
        """The model with a new head, each of `sources` counting the same."""
        family = scene.problem.family
        model = innermost(clone(scene.model)).to(scene.workplace.device).eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        read = [
            [(_stand_in(family, model, batch), batch) for _, batch in rows.sequential(PER_BATCH)]
            for rows in sources
        ]
        head = model.get_submodule(family.head(model))
        for name, parameter in list(head.named_parameters()):
            setattr(head, name, nn.Parameter(torch.zeros_like(parameter)))
        weights = list(head.parameters())
        optimizer = torch.optim.LBFGS(weights, max_iter=self.iterations, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            total = 0.5 * self.decay * torch.stack([w.square().sum() for w in weights]).sum()
            total.backward()
            total = total.detach()
            for parts in read:
                terms = sum(float(family.terms(batch).sum()) for _, batch in parts)
                for answering, batch in parts:
                    part = family.nll(family.forward(answering, batch), batch).sum() / (terms * len(sources))
                    part.backward()
                    total = total + part.detach()
            return total

        with torch.enable_grad():
            optimizer.step(loss)  # pyright: ignore[reportArgumentType]
        return model


class _BeforeHead(nn.Module):
    """Stands in for a model on one batch: its head, reading what it read there."""

    def __init__(self, head: nn.Module, inputs: tuple[Any, ...]) -> None:
        super().__init__()
        self.head, self.inputs = head, inputs

    def forward(self, *_: Tensor) -> Tensor:
        return self.head(*self.inputs)


def _stand_in(family: Family, model: nn.Module, batch: Batch) -> nn.Module:
    """What spares the passes through everything that stays as it is; `model` where its answers are not just its head's."""
    caught: list[tuple[Any, ...]] = []
    head = model.get_submodule(family.head(model))
    hook = head.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs))
    try:
        with torch.no_grad():
            whole = family.predict(model, batch)
    finally:
        hook.remove()
    if len(caught) != 1:
        return model
    made = _BeforeHead(head, caught[0])
    with torch.no_grad():
        same = torch.equal(family.predict(made, batch), whole)
    return made if same else model
