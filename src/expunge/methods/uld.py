"""ULD: an assistant that knows only the forget set, subtracted from the target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families import Outputs
from expunge.families.base import wide
from expunge.families.combined import Combined, Difference
from expunge.methods.answers import answered, given, language
from expunge.methods.base import Method, Workplace
from expunge.methods.loop import Loop
from expunge.methods.lora import LoRA
from expunge.methods.objective import Objective, Pass, State, Step
from expunge.methods.prune_then_unlearn import stage
from expunge.parameters import param
from expunge.problem import Problem, Training


class ULD(Method, Training):
    """Unlearning from logit difference: train the opposite of what is wanted, and subtract it.

    The assistant is the first K blocks of the target with its embedding, final norm and head. It learns the forget set
    by heart and to be uninformative elsewhere: ``min NLL(forget and paraphrases) + lambda * U(retain and perturbed)``,
    ``U = KL(uniform || p) = -ln V - (1/V) sum_v ln p(v)`` per token, 0 for a uniform p. Neither term is unbounded,
    and the target is not touched. Answers are ``z_target + w z_assistant`` with ``w < 0``, for tokens that the target
    finds likely (`expunge.families.combined.Difference` has the filter): where the assistant is uniform it changes
    nothing.

    ``form = inference``, as published, serves both models; the time is that of the target and K of its blocks. That
    removes nothing: the target's weights are part of it. ``form = distill`` (ours) trains the target to answer on
    forget and retain rows as both do together, ``min KL( p_both || p )`` per token, so that the weights change and one
    model is served.

    Paraphrases and perturbed answers are read from the columns that the template names, where the data has them; in each
    step one of them is drawn for each forget row. A perturbed answer is a wrong one to the same question: it tells the
    assistant facts from form. U counts tokens of completions; published code counts prompts and padding, too. A batch of
    as many retain rows goes with every batch of forget rows, all of them in turn, where the reference code draws a fixed
    400 or fewer.
    """

    name = "uld"
    paper = "Ji et al., NeurIPS 2024, arXiv:2406.08607"
    claims = "suppression"
    kind = "edit"
    needs = frozenset({"retain", "labels"})
    families = frozenset({"causal_lm"})
    composes = True

    form: Literal["inference", "distill"] = param(
        "inference",
        "serve target and assistant, or teach the target what they say",
        source="the paper: inference",
    )
    blocks: int | None = param(
        None, "blocks K of the assistant; None means a quarter of the target's, at least one",
        source="reference code: 8 of 32", ge=1,
    )  # fmt: skip
    uniform: float = param(5.0, "weight lambda of the retain term", source="reference code: 5", ge=0)
    weight: float = param(
        -0.8, "what the assistant's logits are multiplied by", source="reference code, TOFU: -0.8", le=0
    )
    rho: float = param(
        0.01, "share of the largest probability above which a token is filtered", source="reference code, scripts: 0.01",
        ge=0, lt=1,
    )  # fmt: skip
    distilling_epochs: int = param(5, "passes over the forget set when distilling", source="ours", ge=0)
    distilling_lr: float = param(1e-3, "learning rate of the distillation", source="ours: small models", ge=0)
    lora: LoRA | None = param(
        LoRA(r=16, alpha=32), "adapters that train the assistant; None trains its weights",
        source="reference code: r 16, alpha 32 (its dropout of 0.05 is left out: results are then repeatable to rounding)",
    )  # fmt: skip
    epochs: int = param(10, "passes of the assistant over the forget set", source="reference code: 10", ge=0)
    lr: float = param(1e-3, "learning rate of the assistant", source="reference code, TOFU: 1e-3", ge=0)
    batch_size: int = param(
        16, "examples per optimizer step", source="reference code: 8, accumulated twice", ge=1
    )
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = param(
        "adamw", "update rule", source="reference code: AdamW"
    )
    weight_decay: float = param(
        0.01, "L2 coefficient (decoupled for adamw)", source="reference code: 0.01", ge=0
    )
    warmup: float = param(
        0.1, "share of training over which the learning rate rises linearly from 0", source="reference code: 0.1",
        ge=0, lt=1,
    )  # fmt: skip

    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:  # noqa: D102
        if self.form == "inference":
            return self.with_assistant(problem, model, workplace)
        settings = {k: getattr(self, k) for k in Training.model_fields}
        settings |= {"epochs": self.distilling_epochs, "lr": self.distilling_lr}
        return Loop(_Distillation(uld=self, **settings), problem, model, stage(workplace, "distill")).run()

    def with_assistant(self, problem: Problem, model: nn.Module, workplace: Workplace) -> Combined:
        """`model` and an assistant that is trained here, answering together."""
        settings = {k: getattr(self, k) for k in Training.model_fields}
        objective = _Opposite(uniform=self.uniform, lora=self.lora, **settings)
        assistant = first_blocks(model, self.blocks)
        trained = Loop(objective, problem, assistant, stage(workplace, "assistant")).run()
        return Combined([model, trained], Difference(weight=self.weight, rho=self.rho))


class _Opposite(Objective):
    """Remember the forget set, know nothing of the retain set."""

    uniform: float

    def passes(self, epoch: int) -> Sequence[Pass]:
        return [Pass("forget", paired="retain")]

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:
        template = language(problem).template
        for name, column in (("paraphrased", template.paraphrase), ("perturbed", template.perturbed)):
            if template.kind != "text" and column in problem.forget.column_names:
                state.attach(name, answered(problem, given(problem, column)))

    def loss(self, step: Step) -> dict[str, Tensor]:
        known = [s for s in ("forget", "paraphrased") if s == "forget" or s in step.state.attached]
        unknown = [s for s in ("retain", "perturbed") if s == "retain" or s in step.state.attached]
        terms = {f"nll_{name}": step.nll(name) / len(known) for name in known}
        for name in unknown:
            values = from_uniform(step.outputs(name), step.batch(name).mask)
            terms[f"uniform_{name}"] = self.uniform * step.per_position(name, values) / len(unknown)
        return terms


class _Distillation(Objective):
    """Learn what the target and its assistant say together."""

    uld: ULD

    def passes(self, epoch: int) -> Sequence[Pass]:
        return [Pass("forget", paired="retain")]

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:
        both = self.uld.with_assistant(problem, model, state.workplace)
        state.freeze("both", both, ("forget", "retain"))

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = {}
        for split in ("forget", "retain"):
            taught = step.family.divergence(
                step.frozen("both", split), step.outputs(split), step.batch(split)
            )
            terms[split] = step.per_position(split, taught)
        return terms


def from_uniform(outputs: Outputs, mask: Tensor) -> Tensor:
    """`[B]` nats: KL(uniform || p) over the vocabulary, summed over the positions where `mask` (`[B, T]`)."""
    logp = F.log_softmax(wide(outputs.prediction), -1)
    return torch.where(mask, -logp.mean(-1) - math.log(logp.shape[-1]), 0.0).sum(-1)


def first_blocks(model: nn.Module, n_blocks: int | None = None) -> nn.Module:
    """A copy of the first `n_blocks` blocks of a `transformers` model, with its embedding, final norm and head.

    None means a quarter of the blocks, at least one. Blocks have the same names in a shorter model, so that its weights
    are those of the longer one by name.

    Raises:
        BadInput: the model has no configuration that says its number of blocks, or fewer blocks.
    """
    config = getattr(model, "config", None)
    total = getattr(config, "num_hidden_layers", None)
    if config is None or total is None:
        raise BadInput(
            f"method 'uld' cuts its assistant out of a model of transformers, not of a {type(model).__name__}; "
            "take another method"
        )
    n_blocks = max(1, total // 4) if n_blocks is None else n_blocks
    if n_blocks > total:
        raise BadInput(f"method 'uld': blocks is {n_blocks}, the model has {total}; give at most {total}")
    short = type(config).from_dict(config.to_dict())
    for name, value in config.to_dict().items():
        # Some configurations list a kind of attention for each block.
        if isinstance(value, list) and len(value) == total:
            setattr(short, name, value[:n_blocks])
    short.num_hidden_layers = n_blocks
    made = type(model)(short)
    weights = model.state_dict()
    made.load_state_dict({name: weights[name] for name in made.state_dict()})
    first = next(model.parameters())
    return made.to(device=first.device, dtype=first.dtype).eval()
