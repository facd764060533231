"""O3: one low-rank adapter per request, in directions of its own, let in by a detector of what is to be forgotten."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.base import count_examples
from expunge.families.gated import Gate, Gated, Request, visible_means
from expunge.families.models import clone, innermost
from expunge.methods.answers import answered
from expunge.methods.base import Method, Workplace
from expunge.methods.loop import Loop
from expunge.methods.lora import Adapters, LoRA, SavedAdapter
from expunge.methods.objective import Objective, State, Step
from expunge.methods.prune_then_unlearn import stage
from expunge.parameters import param
from expunge.problem import Problem, Training


class O3(Method, Training):
    """Requests to forget that come one after another, each answered by an adapter; needs no retain set.

    A problem is one request. Where its target is what an earlier request left, the new adapter joins those.
    ``min mean_forget( -ln p(y'|x) ) + lambda * sum over layers and earlier requests k of |A_k A_t^T|_F^2``: the adapter
    ``B_t A_t`` learns other answers y' to the forgotten questions, from input directions that earlier ones do not use. The
    weights stay as they are. `expunge.families.gated.Gated` serves them: a gate decides at each token how much of the
    adapter is let in, by how near the text before it is to the forgotten texts in the target's own hidden states. That
    removes nothing: the target's weights are served.

    Half of the forget rows, drawn at random, fit the gate; the other half set its width. Of them means, covariances
    and layer weights are kept, which still describe the forgotten texts, but no single one.

    Deviations from the reference code: hidden states of the target, at every token, instead of a RoBERTa trained for the
    purpose on whole texts, and no store of their features with its nearest-neighbor term; shrunken covariances; a
    monotone gate that is 0 far away; an adapter for each request instead of one that is trained on, each with its own gate
    instead of the largest of all; no data of the test set.
    """

    name = "o3"
    paper = "Gao et al., ICLR 2025, arXiv:2407.10223"
    claims = "suppression"
    kind = "edit"
    families = frozenset({"causal_lm"})
    composes = True

    orthogonality: float = param(
        0.1, "weight lambda of the overlap with earlier adapters", source="reference code: 0.1", ge=0
    )
    labels: Literal["shuffled", "tokens"] = param(
        "shuffled",
        "what is answered instead: the answer of another forget row, drawn once, or tokens drawn anew in each step",
        source="reference code: another option of the same question, drawn at random",
    )
    lora: LoRA = param(
        LoRA(r=8, alpha=16), "the adapters",
        source="reference code: r 8, alpha 16 (its dropout of 0.05 is left out: results are then repeatable to rounding)",
    )  # fmt: skip
    gate_layers: int = param(
        12,
        "most blocks of the target that the gate looks at, evenly spaced",
        source="reference code: 12",
        ge=1,
    )
    nu: float = param(
        0.1, "share of forget tokens that the one-class SVM may leave out", source="reference code: 0.1", gt=0, le=1
    )  # fmt: skip
    epochs: int = param(15, "passes over the forget set", source="reference code: 15", ge=0)
    lr: float = param(1e-3, "learning rate", source="ours: small models; reference code, 7B: 3e-4", ge=0)
    batch_size: int = param(16, "examples per optimizer step", source="ours; reference code: 128", ge=1)
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = param(
        "adamw", "update rule", source="reference code: AdamW"
    )
    weight_decay: float = param(0.0, "L2 coefficient (decoupled for adamw)", source="ours", ge=0)

    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:  # noqa: D102
        served = model if isinstance(model, Gated) else Gated(model, self._watched(problem, model), [])
        gate = self._gate(problem, served, workplace)
        settings = {k: getattr(self, k) for k in Training.model_fields}
        objective = _Relabeled(
            orthogonality=self.orthogonality, labels=self.labels, lora=self.lora, **settings
        )
        place = stage(workplace, "adapter")
        Loop(objective, problem, clone(served.target), place).run()
        if place.adapter is not None:
            served.adapted.append(_request(place.adapter, gate).to(workplace.device))
        return served

    def _watched(self, problem: Problem, model: nn.Module) -> list[str]:
        blocks = [name for name in problem.family.layers(model) if name.rsplit(".", 1)[-1].isdigit()]
        if not blocks:
            raise BadInput(
                f"method 'o3' reads the hidden states of repeated blocks, of which {type(innermost(model)).__name__} has "
                "none; take another method"
            )
        n = min(self.gate_layers, len(blocks))
        return [blocks[round(i * (len(blocks) - 1) / max(1, n - 1))] for i in range(n)]

    def _gate(self, problem: Problem, served: Gated, workplace: Workplace) -> Gate:
        n = len(problem.forget_rows)
        if n < 2:
            raise BadInput(
                f"method 'o3' fits its gate on one half of the forget rows and sets its width on the other; there is {n}"
            )
        found = hidden_of(problem, served, workplace, "forget")
        order = torch.randperm(n, generator=workplace.generator(11)).tolist()
        halves = [torch.cat([found[row] for row in part]) for part in (order[: n // 2], order[n // 2 :])]
        gate = Gate.fitted(halves[0], halves[1], self.nu)
        workplace.notes.append(
            f"on forget rows that did not fit it, the gate lets in {float(gate(halves[1]).mean()):.2f} of the adapter"
        )
        return gate


class _Relabeled(Objective):
    """Learn other answers, in directions that earlier adapters do not use."""

    orthogonality: float
    labels: Literal["shuffled", "tokens"]

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:
        if isinstance(problem.target, Gated):
            for number, request in enumerate(problem.target.requests):
                for name in request.names:
                    down = request.adapter(name)[0].detach().clone()
                    state.kept[f"{number}:{name}"] = down.to(state.workplace.device)
        if self.labels == "shuffled":
            said = problem.family.generate(model, problem.forget, ["answer_text"], 1)["answer_text"]
            answers = others(said, state.workplace.generator(12))
            state.attach("relabeled", answered(problem, [[answer] for answer in answers]))

    def start_adapters(self, problem: Problem, adapters: Adapters, state: State) -> None:
        # Requests of one seed would all start from the same directions, which is what they are to avoid.
        generator = state.workplace.generator(13, len(state.kept))
        for layer in adapters.layers().values():
            down = layer.lora_A["default"].weight
            drawn = torch.empty(down.shape)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            down.copy_(drawn)

    def loss(self, step: Step) -> dict[str, Tensor]:
        if self.labels == "shuffled":
            terms = {"relabeled": step.nll("relabeled")}
        else:
            wrong = step.family.nll(step.outputs("forget"), step.relabeled("forget", "random"))
            terms = {"relabeled": step.per_position("forget", wrong)}
        if step.state.kept:
            weights = dict(getattr(step.model, "module", step.model).named_parameters())
            shared = overlap(
                (weights[f"{key.partition(':')[2]}.lora_A.default.weight"], earlier)
                for key, earlier in step.state.kept.items()
            )
            terms["overlap"] = step.once(self.orthogonality * shared)
        return terms


def overlap(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum of ``|A_k A_t^T|_F^2`` over pairs of A_t `[r, d]` and A_k `[s, d]`: 0 where all rows are orthogonal."""
    return torch.stack([(earlier @ new.T).square().sum() for new, earlier in pairs]).sum()


def others(said: Sequence[str], generator: torch.Generator) -> list[str]:
    """For each row what another one says: the rows are shuffled into a ring, and each gets the next one's."""
    ring = torch.randperm(len(said), generator=generator).tolist()
    following = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    return [str(said[following[row]]) for row in range(len(said))]


def hidden_of(problem: Problem, served: Gated, workplace: Workplace, split: str) -> list[Tensor]:
    """Per row of `split`, `[m, layers, d]`: what the gate reads at the m tokens that predict its completion."""
    found = []
    for _, batch in workplace.batches(problem, split).sequential(16):
        count_examples(len(batch))
        means = visible_means(served.target, served.layers, batch.inputs)
        span = means[:, -batch.targets.shape[1] - 1 : -1]
        found += [row[mask] for row, mask in zip(span, batch.mask, strict=True)]
    return found


def _request(adapter: SavedAdapter, gate: Gate) -> Request:
    scale = adapter.config["lora_alpha"] / adapter.config["r"]
    parts: dict[str, Mapping[str, Tensor]] = {
        part: {
            name: adapter.weights[f"base_model.model.{name}.lora_{part}.weight"] for name in adapter.layers
        }
        for part in "AB"
    }
    return Request(parts["A"], {name: scale * up for name, up in parts["B"].items()}, gate)
