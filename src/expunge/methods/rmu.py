"""RMU: steer what the model makes of forget text, inside, towards a random direction."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.errors import BadInput, did_you_mean
from expunge.families.base import Batch
from expunge.methods.frozen import Split
from expunge.methods.objective import State, Step
from expunge.methods.retain_term import RetainTerm
from expunge.parameters import param
from expunge.problem import Problem

DOWN_PROJECTION = re.compile(r"(down_proj|dense_4h_to_h|fc2|fc_out|mlp\.c_proj|w2)(\.weight)?$")
"""How architectures call the matrix that leads out of the feed-forward layer; sparse ones have no module for it."""


class RMU(RetainTerm):
    """Push the residual stream of forget text to a fixed random vector; hold that of retain text where it was.

    With h(x) `[T, d]` what block l gives for text x, h_0 the same of the target, and u a random unit vector drawn once:
    ``min mean_forget 1/(T d) sum_t || h_t(x) - c u ||^2 + alpha * mean_retain 1/(T d) sum_t || h_t(x) - h_0,t(x) ||^2``,
    where only the matrices that lead out of the feed-forward layers of blocks l - 2 .. l are trained. Later layers can
    then make nothing of forget text. With ``retain_loss`` "nll" or "kl" the retain term is one of outputs instead.

    With `adaptive` the length c is ``scale * || h_0,t(x) ||``, of each token for itself (Dang et al., AAAI 2025,
    arXiv:2408.06223): one number for all layers and models. Otherwise c is `steering`, which has to be several times the
    usual length of h.

    What comes from before RMU was renamed (CUT) is not here: its target was built from keywords. Deviations: means are
    taken over tokens that are seen, never over padding, and rows weigh equally whatever their length. The knowledge is
    misdirected, not removed: probes of the layers below and a few steps of relearning bring much of it back.
    """

    name = "rmu"
    paper = "Li et al., ICML 2024, arXiv:2403.03218"
    claims = "suppression"
    families = frozenset({"causal_lm"})
    needs = frozenset({"retain"})

    steering: float = param(
        20.0, "length c of the target vector", source="reference code, Zephyr-7B: 20", gt=0
    )
    adaptive: bool = param(
        False, "let the length follow the target's own activations", source="Dang et al. 2025; RMU: no"
    )
    scale: float = param(
        5.0, "with adaptive: c as a multiple of || h_0 ||", source="Dang et al. 2025: 5", gt=0
    )
    layer: int | None = param(
        None,
        "block l whose output is steered, from 0; None takes the end of the first quarter",
        source="reference code: 7 of 32",
        ge=0,
    )
    train: Literal["down-projections", "all"] = param(
        "down-projections",
        "what is trained: the matrices out of the feed-forward layers of blocks l - 2 .. l, or everything",
        source="reference code; open-unlearning's configuration for TOFU trains everything",
    )
    positions: Literal["attended", "completion"] = param(
        "attended",
        "tokens that count: all of the text, or those of the completion",
        source="reference code: all (and padding); open-unlearning: completion",
    )
    skip_first: bool = param(
        False, "leave out the first token, whose activation is far longer than the others", source="ours"
    )
    direction: Literal["uniform", "gaussian"] = param(
        "uniform",
        "distribution of u before it is normalized; uniform on [0, 1) has a large common part",
        source="reference code: uniform",
    )
    alpha: float = param(100.0, "weight of the retain term", source="reference code: 100", ge=0)
    retain_loss: Literal["activations", "nll", "kl"] = param(  # pyright: ignore[reportIncompatibleVariableOverride]
        "activations", "what holds the retain set", source="reference code: activations"
    )
    lr: float = param(5e-5, "learning rate", source="reference code: 5e-5", ge=0)
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = param(
        "adamw", "update rule", source="reference code"
    )
    batch_size: int = param(4, "examples per optimizer step", source="reference code: 4", ge=1)

    def references(self) -> tuple[Split, ...]:
        """Forget where lengths are adaptive; retain where anything is compared with the target there."""
        compared = self.alpha > 0 and self.retain_loss != "nll"
        return ("forget",) * self.adaptive + ("retain",) * compared

    def reference_hidden(self, problem: Problem, model: nn.Module) -> Sequence[str]:  # noqa: D102
        return [self.steered(problem, model)]

    def blocks(self, problem: Problem, model: nn.Module) -> list[str]:
        """Names of the model's repeated blocks, in order."""
        return [name for name in problem.family.layers(model) if re.search(r"\.\d+$", name)]

    def steered(self, problem: Problem, model: nn.Module) -> str:
        """Name of block l.

        Raises:
            BadInput: the model has no such block.
        """
        blocks = self.blocks(problem, model)
        if not blocks:
            raise BadInput(
                f"method 'rmu': {type(model).__name__} has no repeated blocks whose output could be steered"
            )
        chosen = max(min(1, len(blocks) - 1), len(blocks) // 4 - 1) if self.layer is None else self.layer
        if chosen >= len(blocks):
            raise BadInput(
                f"method 'rmu': layer {chosen} is none of the model's {len(blocks)} blocks (from 0)"
            )
        return blocks[chosen]

    def trainable(self, problem: Problem, model: nn.Module, state: State) -> Collection[str] | None:  # noqa: D102
        if self.train == "all":
            return None
        blocks = self.blocks(problem, model)
        last = blocks.index(self.steered(problem, model))
        inside = tuple(f"{name}." for name in blocks[max(0, last - 2) : last + 1])
        found = [n for n, _ in model.named_parameters() if n.startswith(inside) and DOWN_PROJECTION.search(n)]
        if not found:
            names = sorted({n.removeprefix(blocks[last] + ".") for n, _ in model.named_parameters()})
            hint = did_you_mean("down_proj", names)
            raise BadInput(
                f"method 'rmu' knows no down-projection in {type(model).__name__}{hint}; set train to 'all'"
            )
        return found

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:  # noqa: D102
        layer = self.steered(problem, model)
        first = state.workplace.batches(problem, "forget").take(torch.zeros(1, dtype=torch.long))
        with torch.no_grad():
            hidden = problem.family.forward(model, first, [layer]).hidden[layer]
        generator = state.workplace.generator(6)
        draw = torch.rand if self.direction == "uniform" else torch.randn
        state.kept["direction"] = nn.functional.normalize(draw(hidden.shape[-1], generator=generator), dim=0)
        state.workplace.notes.append(f"steered: the output of {layer}")

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        layer = self.steered(step.state.problem, getattr(step.model, "module", step.model))
        hidden = step.outputs("forget", [layer]).hidden[layer].float()
        toward = step.state.kept["direction"].to(hidden)
        if self.adaptive:
            length = step.reference("forget").hidden[layer].to(hidden).norm(dim=-1, keepdim=True)
            wanted = self.scale * length * toward
        else:
            wanted = self.steering * toward
        terms = {"forget": step.mean("forget", self._distance(hidden, wanted, step.forget))}
        if self.alpha > 0 and self.retain_loss == "activations":
            own = step.outputs("retain", [layer]).hidden[layer].float()
            target = step.reference("retain").hidden[layer].to(own)
            terms["retain"] = self.alpha * step.mean("retain", self._distance(own, target, step.retain))
            return terms
        return {**terms, **self.retain_terms(step)}

    def _distance(self, hidden: Tensor, wanted: Tensor, batch: Batch) -> Tensor:
        """`[B]` squared distance per value, mean over the positions that count."""
        seen = batch.inputs["attention_mask"].bool()
        if self.positions == "completion":
            counts = torch.zeros_like(seen)
            counts[:, -batch.mask.shape[1] :] = batch.mask  # targets end with the sequence
            seen = counts
        if self.skip_first:
            seen = seen & (torch.arange(seen.shape[1], device=seen.device) > 0)
        squares = torch.where(seen, (hidden - wanted).square().mean(-1), 0.0)
        return squares.sum(-1) / seen.sum(-1).clamp(min=1)
