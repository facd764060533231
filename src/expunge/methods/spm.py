"""SPM: a rank-one adapter that turns a concept away, anchored elsewhere, and let in by prompts that are like the concept."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families import Batch, Diffusion
from expunge.families.base import Outputs
from expunge.families.denoising import denoiser, part_drawn, under
from expunge.families.membranes import Membrane, Permeable, PromptGate
from expunge.families.models import clone
from expunge.families.pipelines import DiffusionModel, cross_attention
from expunge.methods.base import Method, Workplace
from expunge.methods.concept_words import names_concept, require_concept, require_words
from expunge.methods.loop import Loop
from expunge.methods.lora import LoRA, SavedAdapter
from expunge.methods.objective import Objective, Step, same_draws
from expunge.methods.prune_then_unlearn import stage
from expunge.parameters import param
from expunge.problem import Problem, Training


class SPM(Method, Training):
    """Concept semi-permeable membrane: a low-rank adapter on the linear and convolution layers of the denoiser's transformers.

    ``L_era = mean | eps_M(x_t, c) - [eps_0(x_t, n) - eta (eps_0(x_t, c) - eps_0(x_t, n))] |^2`` with eps_0 the frozen
    target, eps_M the target with the adapter, c the prompts of forget rows, n the empty prompt (``surrogate: anchor``:
    each row's anchor). Latent anchoring adds ``lambda mean_i | eps_M(x_t, a_i) - eps_0(x_t, a_i) |^2`` over embeddings a_i
    of nothing in particular: ``a = s |c| z / |z|``, z normal of c's shape, accepted with probability 1 - cos(c, z), s uniform
    in [0.8, 1.2]. x_t is what the model with the adapter has drawn of c after a random number of steps with guidance.

    The model that comes out lets the adapter in by how like a prompt is to the concept (facilitated transport,
    `expunge.families.membranes.PromptGate`); several adapters add up, each with its own weight. The target's weights stand
    in it, and it removes nothing. ``transport: always`` merges the adapter into the weights instead. The adapter by
    itself is saved in both cases, and fits other fine-tunes of the same denoiser.

    Nearly all random z are orthogonal to c, so that hardly any is refused. ``anchors_from: preserve`` anchors at the
    concept's prompts to preserve instead.

    Deviations from the reference code: k anchors instead of half of them beside two empty prompts, which its batching
    leaves; weights of several adapters apply to each adapter's product (`gate_power` 2 has a single one act as there, by the
    square); errors are weighted by timestep as the model was trained; sampling has the family's steps, and prompts of one
    batch share how many of them are made.
    """

    name = "spm"
    paper = "Lyu et al., CVPR 2024, arXiv:2312.16145"
    claims = "suppression"
    kind = "edit"
    families = frozenset({"diffusion"})
    needs = frozenset({"concept"})
    composes = True

    rank: int = param(1, "rank of the adapter; its scale alpha / rank is 1", source="the paper", ge=1)
    eta: float = param(1.0, "strength of the guidance away from the concept", source="the paper", ge=0)
    surrogate: Literal["empty", "anchor"] = param(
        "empty", "the prompt n to answer by: none, or the row's anchor", source="the paper calls both; it erases by none"
    )  # fmt: skip
    anchoring: float = param(1000.0, "weight lambda of latent anchoring", source="the paper", ge=0)
    anchors: int = param(4, "embeddings a_i of each step", source="reference code", ge=1)
    anchors_from: Literal["noise", "preserve"] = param(
        "noise", "what they are: random directions, or prompts to preserve", source="the paper; preserve is ours"
    )  # fmt: skip
    start: Literal["sample", "data"] = param(
        "sample", "where noisy latents come from: drawn, or forget images under noise", source="the paper"
    )  # fmt: skip
    guidance: float = param(3.0, "guidance under which they are drawn", source="reference code", ge=1)
    transport: Literal["cosine", "centered", "always"] = param(
        "cosine",
        "what lets the adapter in: likeness of a prompt by the cosine of embeddings, by that of their differences from the "
        "empty prompt's, or nothing: it is merged",
        source="the paper: cosine",
    )
    phrases: tuple[str, ...] | None = param(
        None, "what prompts are compared with; None means the name of the concept", source="reference code"
    )
    gate_power: int = param(
        1, "power of the likeness; 2 is what reference code does to a single adapter", source="the paper", ge=1, le=2
    )  # fmt: skip
    epochs: int = param(5, "passes over the forget rows", source="ours; reference code: 3000 steps", ge=0)
    lr: float = param(1e-4, "learning rate", source="reference code", ge=0)
    batch_size: int = param(16, "forget rows per optimizer step", source="ours; reference code: 1", ge=1)
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = param(
        "adamw", "update rule", source="reference code"
    )
    weight_decay: float = param(0.01, "L2 coefficient (decoupled for adamw)", source="reference code", ge=0)

    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:  # noqa: D102
        assert problem.concept is not None
        family = cast(Diffusion, problem.family)
        base = model.base if isinstance(model, Permeable) else model
        if not isinstance(base, DiffusionModel):
            raise BadInput(
                f"method 'spm' puts adapters on the denoiser itself, and the target is a {type(base).__name__}; take the model "
                "that it was made of"
            )
        phrases = self.phrases or (problem.concept.name,)
        require_words(family, phrases)
        require_concept(problem, anchored=self.surrogate == "anchor")
        layers = transformer_layers(base)
        trained = clone(base)
        for layer in layers:  # an adapter is trained whatever of the target is frozen
            trained.get_parameter(f"{layer}.weight").requires_grad_(True)
        same = {k: getattr(self, k) for k in (*Training.model_fields, *Anchored.__annotations__)}
        objective = Anchored(**same, lora=LoRA(r=self.rank, alpha=self.rank, targets=tuple(layers)))
        place = stage(workplace, "membrane")
        Loop(objective, problem, trained, place).run()
        if place.adapter is None:
            workplace.notes.append("no epochs, so no adapter")
            return model
        if not isinstance(model, Permeable):
            workplace.adapter = place.adapter
        if self.transport == "always":
            place.adapter.apply(base)
            return model
        empty = family.tokens([""])[0].to(workplace.device)
        asked = family.tokens(phrases).to(workplace.device)
        gate = PromptGate.fitted(base, asked, empty, self.transport, self.gate_power)
        made = model if isinstance(model, Permeable) else Permeable(base, [])
        made.adapted.append(membrane(place.adapter, gate).to(workplace.device))
        workplace.notes.append(let_in(problem, base, gate))
        return made


class Anchored(Objective):
    """Erase a concept and anchor what is not it, by low-rank adapters."""

    eta: float
    surrogate: Literal["empty", "anchor"]
    anchoring: float
    anchors: int
    anchors_from: Literal["noise", "preserve"]
    start: Literal["sample", "data"]
    guidance: float
    reference_on = ("forget",)

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        family, random = cast(Diffusion, step.family), same_draws(step)
        batch, target = step.forget, step.state.frozen["reference"]
        if self.start == "sample":
            until = int(torch.randint(1, max(2, family.steps), (), generator=random))
            batch = part_drawn(family, step.model, batch, until, self.guidance)
        ids = batch.inputs["anchor_ids"]
        if self.surrogate == "empty":
            ids = family.tokens([""]).to(ids).expand_as(ids)
        named = target.ask(batch).prediction
        neutral = target.ask(replace(batch, inputs={**batch.inputs, "input_ids": ids})).prediction
        wanted = Outputs(neutral - self.eta * (named - neutral))
        erased = family.divergence(wanted, family.forward(step.model, batch), batch)
        terms = {"erase": step.mean("forget", erased, names_concept(step.forget))}
        if self.anchoring:
            terms["anchor"] = self.anchoring * step.mean("forget", self.strayed(step, batch, random))
        return terms

    def strayed(self, step: Step, batch: Batch, random: torch.Generator) -> Tensor:
        """`[B]` mean distance of model and target at the anchors of this step, at each row's latents."""
        family, target = cast(Diffusion, step.family), step.state.frozen["reference"]
        with target.calling() as model:
            anchors = self.embeddings(step.state.problem, model, random)
            rows = torch.arange(len(batch)).repeat_interleave(len(anchors)).to(batch.targets.device)
            each, shown = batch.select(rows), anchors.repeat(len(batch), 1, 1)
            before = under(family, model, each, shown)
        after = under(family, step.model, each, shown)
        return family.divergence(before, after, each).view(len(batch), -1).mean(1)

    def embeddings(self, problem: Problem, model: nn.Module, random: torch.Generator) -> Tensor:
        """`[k, L, d]` anchors of one step."""
        assert problem.concept is not None
        family, inner = cast(Diffusion, problem.family), denoiser(model)
        device = next(inner.parameters()).device
        if self.anchors_from == "preserve":
            known = problem.concept.preserve or ("",)
            chosen = torch.randint(len(known), (self.anchors,), generator=random).tolist()
            return inner.encode(family.tokens([known[i] for i in chosen]).to(device))
        prompts = problem.concept.prompts
        one = prompts[int(torch.randint(len(prompts), (), generator=random))]
        return latent_anchors(inner.encode(family.tokens([one]).to(device))[0], self.anchors, random)


def latent_anchors(concept: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """`[n, L, d]` random embeddings of about the length of `concept` (`[L, d]`), fewer in its direction (`SPM`)."""
    length, made = concept.norm(), []
    while len(made) < n:
        drawn = torch.randn(concept.shape, generator=generator).to(concept)
        direction = drawn / drawn.norm()
        accepted = torch.rand((), generator=generator).item() < 1 - float(
            (direction * concept).sum() / length
        )
        if accepted:
            made.append((0.8 + 0.4 * torch.rand((), generator=generator).item()) * length * direction)
    return torch.stack(made)


def transformer_layers(model: DiffusionModel) -> list[str]:
    """Names of the linear and convolution layers inside the denoiser's transformers.

    Raises:
        BadInput: there are none, or none that reads a prompt.
    """
    modules = dict(model.unet.named_modules())
    inside = tuple(f"{name}." for name, m in modules.items() if type(m).__name__ == "Transformer2DModel")
    found = [
        f"unet.{name}"
        for name, m in modules.items()
        if isinstance(m, (nn.Linear, nn.Conv2d)) and name.startswith(inside)
    ]
    if not inside or not found or not cross_attention(model.unet):
        raise BadInput("the denoiser has no transformers with cross-attention, so no prompt reaches it")
    return found


def membrane(adapter: SavedAdapter, gate: PromptGate) -> Membrane:
    """The adapter behind a gate."""
    pairs = {name: adapter.pair(name) for name in adapter.layers}
    return Membrane({k: a for k, (a, _) in pairs.items()}, {k: b for k, (_, b) in pairs.items()}, gate)


@torch.no_grad()
def let_in(problem: Problem, model: DiffusionModel, gate: PromptGate) -> str:
    """How much of the adapter the concept's prompts let in, and those to be preserved, in words."""
    assert problem.concept is not None
    said = []
    for what, prompts in (
        ("the concept", problem.concept.prompts),
        ("what is kept", problem.concept.preserve),
    ):
        if prompts:
            ids = cast(Diffusion, problem.family).tokens(prompts).to(gate.phrases.device)
            weights = gate(model.encode(ids), ids)
            said.append(f"prompts for {what} {float(weights.min()):.2f} to {float(weights.max()):.2f}")
    return f"of the adapter {' and '.join(said)} are let in"
