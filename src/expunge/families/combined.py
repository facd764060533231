"""Several models that answer as one: rules that make one row of logits of several."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from expunge.errors import BadInput, did_you_mean
from expunge.families.base import wide
from expunge.families.models import Architecture, Composed, Past, architecture_of, call, call_language_model
from expunge.parameters import Parameters


class Rule(Parameters):
    """How the logits of several models over the same `C` classes or tokens become those of one."""

    how: ClassVar[str]
    """Its name in saved models."""
    parts: ClassVar[int | None] = None
    """How many models it takes; None means any number from 1."""

    @abstractmethod
    def __call__(self, logits: Sequence[Tensor]) -> Tensor:
        """`[..., C]` logits out of the parts', each `[..., C]`; float32 or wider."""


class Mean(Rule):
    """The mean of the logits: the normalized geometric mean of the distributions."""

    title = "rule mean"
    how = "mean"

    def __call__(self, logits: Sequence[Tensor]) -> Tensor:  # noqa: D102
        return torch.stack([wide(part) for part in logits]).mean(0)


class Probabilities(Rule):
    """The mean of the probabilities: logits are its logarithm."""

    title = "rule probabilities"
    how = "probabilities"

    def __call__(self, logits: Sequence[Tensor]) -> Tensor:  # noqa: D102
        stacked = torch.stack([F.log_softmax(wide(part), -1) for part in logits])
        return stacked.logsumexp(0) - math.log(len(logits))


class Vote(Rule):
    """The share of the votes, one per model for its likeliest class (the lowest number of several).

    Half a vote more is shared out by the mean of the probabilities. It decides ties, for the class that is likelier on
    average, it can never outweigh a vote, and no class has probability 0. Logits are the logarithm of the shares.
    """

    title = "rule vote"
    how = "vote"

    def __call__(self, logits: Sequence[Tensor]) -> Tensor:  # noqa: D102
        parts = torch.stack([wide(part) for part in logits])
        votes = F.one_hot(parts.argmax(-1), parts.shape[-1]).sum(0)
        mean = parts.softmax(-1).mean(0)
        # Of a class without votes the probability may be 0 in floating point.
        shares = (votes + 0.5 * mean).clamp_min(torch.finfo(mean.dtype).tiny)
        return shares.log() - math.log(len(logits) + 0.5)


class OneClass(Rule):
    """How usual each class's own model finds a row: the likeliest class is the one whose model finds it most usual.

    The last model is a random network, which the others learned to imitate on the rows of one class each. The distance of
    model c to it, ``d_c(x) = ||f_c(x) - f(x)||^2``, is small for rows like those. Logits are
    ``-(ln d_c(x) - mean_c) / deviation_c``; a class without a model has the lowest of them less 20.
    """

    title = "rule one-class"
    how = "one-class"

    classes: tuple[int, ...] = Field(min_length=1, description="class of each model but the last")
    mean: tuple[float, ...] = Field(description="mean of ln d over rows of the class, for each model")
    deviation: tuple[float, ...] = Field(description="standard deviation of ln d over them, above 0")

    def __call__(self, logits: Sequence[Tensor]) -> Tensor:  # noqa: D102
        distance = self.log_distance(logits)
        scores = (distance.new_tensor(self.mean) - distance) / distance.new_tensor(self.deviation)
        lowest = scores.amin(-1, keepdim=True) - 20
        every = lowest.expand_as(logits[-1]).clone()
        every[..., list(self.classes)] = scores
        return every

    @staticmethod
    def log_distance(logits: Sequence[Tensor]) -> Tensor:
        """`[..., models]` ln d of each model but the last to the last."""
        *parts, drawn = (wide(part) for part in logits)
        distance = (torch.stack(parts, -2) - drawn.unsqueeze(-2)).square().sum(-1)
        return distance.clamp_min(torch.finfo(distance.dtype).tiny).log()


class Generic(Rule):
    """What a model would say that had not seen the text: ``v_b - alpha * ReLU(v_r - v_b)``, element by element.

    v_b are the baseline's logits and v_r those of a reinforced model, which was trained further on the text: what it
    makes more likely is taken down. Logits mean the same up to a constant at each position, which the ReLU does not
    know: with `normalized` both are log-probabilities first, so that a shift of either changes nothing.

    Eldan & Russinovich, 2023, arXiv:2310.02238, write it with raw logits.
    """

    title = "rule generic"
    how = "generic"
    parts = 2

    alpha: float = Field(default=1.0, ge=0, description="strength")
    normalized: bool = Field(default=True, description="subtract log-probabilities instead of raw logits")

    def __call__(self, logits: Sequence[Tensor]) -> Tensor:  # noqa: D102
        base, reinforced = (wide(part) for part in logits)
        if self.normalized:
            base, reinforced = F.log_softmax(base, -1), F.log_softmax(reinforced, -1)
        return base - self.alpha * (reinforced - base).relu()


class Difference(Rule):
    """The base's logits plus `weight` times an assistant's, where the base finds a token likely: ``z_b + w z_a``.

    A token is kept whose probability is at least `rho` times the largest, or that is among the ``int(rho * C)`` (at
    least one) most likely. The others have the base's logit, but at most that of the least likely kept token less one, so
    that no greedy answer holds them. Published code scores texts without this cap and forbids those tokens in generation,
    so that texts are scored and generated under two distributions; here it is one. ``rho = 0`` keeps all.

    Ji et al., NeurIPS 2024, arXiv:2406.08607.
    """

    title = "rule difference"
    how = "difference"
    parts = 2

    weight: float = Field(
        default=-0.8, description="what the assistant's logits are multiplied by; below 0 subtracts"
    )
    rho: float = Field(default=0.01, ge=0, lt=1, description="share of the largest probability that is kept")

    def __call__(self, logits: Sequence[Tensor]) -> Tensor:  # noqa: D102
        base, assistant = (wide(part) for part in logits)
        mixed = base + self.weight * assistant
        if self.rho == 0:
            return mixed
        kept = self.kept(base)
        least, was = (z.masked_fill(~kept, math.inf).amin(-1, keepdim=True) for z in (mixed, base))
        return torch.where(kept, mixed, base + (least - was).clamp(max=0))

    def kept(self, base: Tensor) -> Tensor:
        """`[..., C]` bool: the tokens that `base`, logits `[..., C]`, finds likely enough."""
        nth = base.topk(max(1, int(self.rho * base.shape[-1])), -1).values
        return base >= torch.minimum(nth[..., :1] + math.log(self.rho), nth[..., -1:])


class Recall(Rule):
    """An executive and its memories: ``(1 - w) p_0 + w * mean of the other p``; logits are its logarithm."""

    title = "rule recall"
    how = "recall"

    weight: float = Field(default=0.9, gt=0, le=1, description="(w) how much the memories count")

    def __call__(self, logits: Sequence[Tensor]) -> Tensor:  # noqa: D102
        executive, *memories = (F.log_softmax(wide(part), -1) for part in logits)
        if not memories:
            return executive
        recalled = torch.stack(memories).logsumexp(0) - math.log(len(memories) / self.weight)
        if self.weight == 1:
            return recalled
        return torch.logaddexp(executive + math.log1p(-self.weight), recalled)


RULES: dict[str, type[Rule]] = {
    rule.how: rule for rule in (Mean, Probabilities, Vote, OneClass, Generic, Difference, Recall)
}


class Combined(Composed):
    """Models over the same classes or vocabulary whose logits a rule makes one; the first is the base.

    Every call goes through every part: time and memory add up. Whoever holds the weights can take the base alone.
    """

    def __init__(self, parts: Sequence[nn.Module], rule: Rule) -> None:
        super().__init__()
        if not parts or rule.parts not in (None, len(parts)):
            raise BadInput(f"rule '{rule.how}' combines {rule.parts or '1 or more'} models, got {len(parts)}")
        self.parts, self.rule = nn.ModuleList(parts), rule

    @property
    def base(self) -> nn.Module:  # noqa: D102
        return self.parts[0]

    @property
    def members(self) -> Sequence[nn.Module]:  # noqa: D102
        return list(self.parts)

    def logits(  # noqa: D102
        self, inputs: Mapping[str, Tensor], keep: int | None, past: Past | None = None
    ) -> Tensor:
        made = [
            call(part, inputs)
            if keep is None
            else call_language_model(part, inputs, keep, None if past is None else past.part(str(number)))
            for number, part in enumerate(self.parts)
        ]
        sizes = [part.shape[-1] for part in made]
        if len(set(sizes)) > 1:
            raise BadInput(
                f"models of {' and '.join(map(str, sizes))} logits cannot be combined; they must share one vocabulary"
            )
        return self.rule(made)

    def architecture(self, known: Architecture | None) -> Architecture | None:  # noqa: D102
        parts = [architecture_of(part, known) for part in self.parts]
        if any(part is None for part in parts):
            return None
        described = [part.model_dump(mode="json") for part in parts if part is not None]
        return Architecture(
            kind="composed",
            name="combined",
            options={"how": self.rule.how, "rule": self.rule.model_dump(mode="json"), "parts": described},
        )

    @classmethod
    def rebuilt(cls, options: Mapping[str, Any]) -> Combined:  # noqa: D102
        how = options["how"]
        if how not in RULES:
            raise BadInput(f"unknown rule '{how}' for several models{did_you_mean(how, RULES)}")
        parts = [Architecture(**part).with_drawn_weights() for part in options["parts"]]
        return cls(parts, RULES[how](**options["rule"]))
