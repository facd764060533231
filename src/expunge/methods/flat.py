"""FLAT: loss adjustment with only forget data, by an f-divergence between another answer and the true one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from expunge.families.likelihoods import log_likelihoods
from expunge.methods.answers import ALTERNATIVE, OtherAnswers, language
from expunge.methods.frozen import Split
from expunge.methods.objective import State, Step
from expunge.parameters import param


class FLAT(OtherAnswers):
    """Tell another answer from the true one by as large an f-divergence as possible; no retain set, no reference.

    P(y) is the probability (not its logarithm) of a token of answer y, averaged over the answer's positions. With e the
    other answer (a refusal, or what `answers_column` holds) and f the true one,

    ``min -g(P_e) + f*( g(P_f) )``

    is minus the variational lower bound of the divergence D_f: f* is the convex conjugate of f, and g maps a number
    into its domain, rising with it. So every loss falls with P_e and rises with P_f, and is bounded because P is: no
    ascent without end. By ``v = P``:

    - total-variation: ``g = tanh(v) / 2``, ``f*(g) = tanh(v) / 2``
    - kl: ``g = v``, ``f*(g) = exp(v - 1)``
    - reverse-kl: ``g = -exp(-v)``, ``f*(g) = v - 1``
    - jeffrey: ``g = v``, ``f*(g) = w + 1/w + v - 2`` with ``w + ln w = 1 - v``
    - jensen-shannon: ``g = ln 2 - ln(1 + exp(-v))``, ``f*(g) = v + ln(1 + exp(-v)) - ln 2``
    - pearson: ``g = v``, ``f*(g) = v + v**2 / 4``
    - neyman: ``g = 1 - exp(-v)``, ``f*(g) = 2 - 2 exp(-v / 2)``
    - squared-hellinger: ``g = 1 - exp(-v)``, ``f*(g) = exp(v) - 1``

    Deviations from the released code. There reverse-kl, neyman and squared-hellinger hold exp(+v) where the conjugates
    ask for exp(-v), so that their loss rises with P_e; here all eight are derived anew. Jeffrey is exact, not its
    third-order series. P counts valid positions only: the released mean takes in prompt and padding, which makes
    it, and the gradient, smaller by (answer length / context length); that is ``denominator = "context"``, to be used
    with a learning rate as much larger.

    ``over = "batch"``: P_e and P_f are means over the batch before g and f*, as published, the same weight for all rows;
    ``sequence``: the loss of each row, averaged, as the theory has it. Tokens of small probability are let go: dP
    is p dlog p. Nothing but the other answers protects the rest of what the model can do.
    """

    name = "flat"
    paper = "Wang et al., ICLR 2025, arXiv:2410.11143"

    divergence: Literal[
        "total-variation",
        "kl",
        "reverse-kl",
        "jeffrey",
        "jensen-shannon",
        "pearson",
        "neyman",
        "squared-hellinger",
    ] = param("total-variation", "the f-divergence", source="reference code: total variation")
    denominator: Literal["valid", "context"] = param(
        "valid",
        "positions that P is a mean over: the answer's, or the whole context",
        source="ours; reference code: context",
    )
    over: Literal["batch", "sequence"] = param(
        "batch", "whether P is averaged over rows before the divergence or the divergence after", source="the paper"
    )  # fmt: skip

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        other, true = self._probability(step, ALTERNATIVE), self._probability(step, "forget")
        if self.over == "sequence":
            chosen = DIVERGENCES[self.divergence]
            other, true = -chosen.g(other), chosen.conjugate_of_g(true)
        return {"other": step.mean("forget", other), "true": step.mean("forget", true)}

    def combine(  # noqa: D102
        self, gradients: dict[str, list[Tensor]], lr: float, state: State, terms: dict[str, Tensor]
    ) -> list[Tensor]:
        if self.over == "sequence":
            return super().combine(gradients, lr, state, terms)
        # The means over the batch are known only here, once all micro-batches are in: the rest is the chain rule.
        chosen = DIVERGENCES[self.divergence]
        with torch.enable_grad():
            other, true = (terms[name].detach().requires_grad_() for name in ("other", "true"))
            loss = chosen.loss(other, true)
            slopes = torch.autograd.grad(loss, [other, true])
        terms["loss"] = loss.detach()
        pairs = zip(gradients["other"], gradients["true"], strict=True)
        return [slopes[0] * a + slopes[1] * b for a, b in pairs]

    def _probability(self, step: Step, split: Split) -> Tensor:
        """`[B]` mean probability of the target tokens."""
        batch = step.batch(split)
        logp = log_likelihoods(step.outputs(split).prediction, batch.targets, batch.mask)
        total = torch.where(batch.mask, logp, -math.inf).exp().sum(-1)
        if self.denominator == "valid":
            return total / step.family.terms(batch)
        return total / (language(step.state.problem).max_length - 1)


@dataclass(frozen=True)
class Divergence:
    """An f-divergence in variational form: D_f(p, q) = max over v of E_p[ g(v) ] - E_q[ f*(g(v)) ]."""

    g: Callable[[Tensor], Tensor]
    """From any number into the domain of f*, strictly rising."""
    conjugate: Callable[[Tensor], Tensor]
    """f*(t), the largest value of ``u t - f(u)`` over ``u > 0``."""

    def conjugate_of_g(self, v: Tensor) -> Tensor:
        """f*(g(v))."""
        return self.conjugate(self.g(v))

    def loss(self, other: Tensor, true: Tensor) -> Tensor:
        """``-g(other) + f*(g(true))``."""
        return -self.g(other) + self.conjugate_of_g(true)


def _jeffrey(t: Tensor) -> Tensor:
    """w + 1/w + t - 2 where w + ln w = 1 - t, found by Newton's method in ln w; exact to rounding for t in [-5, 5]."""
    x = torch.zeros_like(t)  # ln w, which is 0 at t = 0
    for _ in range(8):
        x = x - (x.exp() + x - 1 + t) / (x.exp() + 1)
    return x.exp() + (-x).exp() + t - 2


DIVERGENCES: Mapping[str, Divergence] = {
    "total-variation": Divergence(lambda v: torch.tanh(v) / 2, lambda t: t),
    "kl": Divergence(lambda v: v, lambda t: torch.exp(t - 1)),
    "reverse-kl": Divergence(lambda v: -torch.exp(-v), lambda t: -1 - torch.log(-t)),
    "jeffrey": Divergence(lambda v: v, _jeffrey),
    "jensen-shannon": Divergence(
        lambda v: math.log(2) - torch.log1p(torch.exp(-v)), lambda t: -torch.log(2 - t.exp())
    ),
    "pearson": Divergence(lambda v: v, lambda t: t.square() / 4 + t),
    "neyman": Divergence(lambda v: -torch.expm1(-v), lambda t: 2 - 2 * torch.sqrt(1 - t)),
    "squared-hellinger": Divergence(lambda v: -torch.expm1(-v), lambda t: t / (1 - t)),
}
"""f in the same order: |u - 1| / 2, u ln u, -ln u, (u - 1) ln u, u ln u - (u + 1) ln((u + 1) / 2), (u - 1)**2,
(1 - u)**2 / u, (sqrt(u) - 1)**2."""
