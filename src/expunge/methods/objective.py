"""Objectives: methods that only write a loss.

An objective says which passes it makes over the data and what its loss is on one step; the shared loop
(`expunge.methods.loop`) does the rest.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, final

import torch
from datasets import Dataset
from torch import Tensor, nn

from expunge.errors import ExpungeError
from expunge.families.base import Batch, Outputs
from expunge.families.batches import Batches
from expunge.methods.base import Method, Workplace
from expunge.methods.frozen import Frozen, Split
from expunge.methods.lora import Adapters, LoRA
from expunge.parameters import param
from expunge.problem import Problem, Training


@dataclass(frozen=True)
class Pass:
    """One traversal of the data within an epoch."""

    over: Split
    """Which rows are visited, each once. `train` visits forget and retain rows mixed."""
    paired: Split | None = None
    """Rows drawn alongside, batch by batch, cycled when they run out."""
    name: str = ""
    """What `Step.phase` says during this pass."""
    batch_size: int | None = None
    """Where it differs from the objective's."""
    retain_fraction: float = 1.0
    """Share of the retain rows that a pass over `train` visits; the same rows in every epoch."""
    retain_per_forget: float | None = None
    """Most retain rows per forget row that a pass over `train` visits."""


@dataclass
class State:
    """What an objective keeps during one run; the method object itself holds hyperparameters only."""

    problem: Problem
    sources: dict[Split, Batches]
    workplace: Workplace
    rows_per_pass: int = 256
    """Rows of one forward pass in training."""
    frozen: dict[str, Frozen] = field(default_factory=dict)
    attached: dict[str, tuple[Split, int]] = field(default_factory=dict)
    """Splits made by `attach`: the split whose rows they belong to, and how many they are for each."""
    kept: dict[str, Tensor] = field(default_factory=dict)
    """Tensors that must survive an interruption; saved with every checkpoint."""
    stopped: str | None = None
    """Why the run ends before its plan does; None while it goes on."""

    def freeze(
        self,
        name: str,
        model: nn.Module,
        splits: Sequence[Split],
        hidden: Sequence[str] = (),
        likelihoods: Sequence[Split] = (),
    ) -> None:
        """Register a frozen model whose outputs `Step.frozen(name, ...)` will give."""
        family = self.problem.family
        self.frozen[name] = Frozen(
            model,
            family,
            self.sources,
            splits,
            hidden,
            likelihoods,
            # What is asked anew at every visit cannot be answered beforehand.
            precompute=self.workplace.reference == "precompute" and not family.redraws,
            # Sequences are long: a pass that stores must not need more memory than one that trains.
            batch_size=min(256, self.rows_per_pass) if family.sequences else 256,
        )

    def attach(self, name: Split, dataset: Dataset, of: Split = "forget") -> None:
        """Register further rows as a split of its own: for each row of `of` the same number, e.g. other answers.

        Row i of `of` owns the rows ``K i .. K i + K - 1`` of `dataset`. In each step that visits `of`, one of the K is
        drawn for every row, and `name` serves wherever a split does, `reference_on` and `likelihood_on` included.
        """
        # A run of zero epochs visits no split.
        n = len(self.sources[of] if of in self.sources else self.problem.splits[of])
        if not n or len(dataset) % n or not len(dataset):
            raise ExpungeError(
                f"{len(dataset)} rows of '{name}' cannot be shared out evenly to {n} rows of '{of}'"
            )
        self.sources[name] = Batches(self.problem.family, dataset, self.workplace.device)
        self.attached[name] = (of, len(dataset) // n)

    def stop(self, reason: str) -> None:
        """End the run; a note gives the reason. From `loss` and `combine` it leaves out the step at hand, too."""
        self.stopped = reason


class Turn:
    """One optimizer step: its rows from each split, and the randomness that belongs to it."""

    def __init__(
        self, state: State, rows: dict[Split, Tensor], phase: str, epoch: int, progress: float, *purpose: int
    ) -> None:
        self.state, self.phase, self.epoch, self.progress = state, phase, epoch, progress
        self._purpose = purpose
        self.rows = dict(rows)
        for number, (name, (of, each)) in enumerate(state.attached.items()):
            if of in rows:
                generator = state.workplace.generator(*purpose, number)
                self.rows[name] = rows[of] * each + torch.randint(each, rows[of].shape, generator=generator)
        self.batches: dict[Split, Batch] = {
            s: state.sources[s].take(chosen) for s, chosen in self.rows.items()
        }
        if (family := state.problem.family).redraws:
            for number, (split, batch) in enumerate(self.batches.items()):
                generator = state.workplace.generator(*purpose, 1009 + number)
                self.batches[split] = family.redraw(batch, generator)
        self._relabeled: dict[tuple[Split, str], Batch] = {}
        self._positions: dict[Split, Tensor] = {}

    @cached_property
    def generator(self) -> torch.Generator:
        """Fixed by seed, epoch, pass and step, so that an interrupted run needs no saved state."""
        return self.state.workplace.generator(*self._purpose)

    def positions(self, split: Split) -> Tensor:
        """Valid positions of all rows of `split` together, at least 1."""
        if split not in self._positions:
            self._positions[split] = self.state.problem.family.terms(self.batches[split]).sum().clamp(min=1)
        return self._positions[split]

    def relabeled(self, split: Split, how: str) -> Batch:
        """All rows of `split` with other targets, drawn once."""
        key = (split, how)
        if key not in self._relabeled:
            self._relabeled[key] = self.state.problem.family.relabel(self.batches[split], how, self.generator)
        return self._relabeled[key]


class Step:
    """What an objective sees of one forward pass: batches, cached outputs, frozen outputs.

    With micro-batches one optimizer step is several `Step`s. `nll`, `mean`, `per_position` and `once` scale so that their
    sum is exactly the loss over the whole batch.
    """

    def __init__(
        self, model: nn.Module, turn: Turn, piece: dict[Split, Tensor] | None = None, share: float = 1.0
    ) -> None:
        self.model, self.state, self.family = model, turn.state, turn.state.problem.family
        self.phase, self.epoch, self.progress = turn.phase, turn.epoch, turn.progress
        self._turn, self._piece, self._share = turn, piece, share
        whole = turn.batches
        self._batches: dict[Split, Batch] = (
            whole if piece is None else {s: b.select(piece[s]) for s, b in whole.items()}
        )
        self._outputs: dict[tuple[Split, tuple[str, ...]], Outputs] = {}

    @property
    def generator(self) -> torch.Generator:
        """Randomness of this optimizer step."""
        return self._turn.generator

    @property
    def splits(self) -> Collection[Split]:
        """The splits that this step has rows of."""
        return self._batches.keys()

    @property
    def forget(self) -> Batch:
        """The forget rows of this step."""
        return self._batches["forget"]

    @property
    def retain(self) -> Batch:
        """The retain rows of this step."""
        return self._batches["retain"]

    def batch(self, split: Split) -> Batch:
        """The rows of this step from `split`."""
        return self._batches[split]

    @property
    def is_forget(self) -> Tensor:
        """`[B]` bool: which rows of a pass over `train` are to be forgotten."""
        flags = torch.from_numpy(self.state.problem.forget_mask)
        return flags[self._rows("train")].to(self._batches["train"].mask.device)

    def outputs(self, split: Split, hidden: Sequence[str] = ()) -> Outputs:
        """Outputs of the model on this step's rows of `split`; one forward pass however often they are asked for.

        A pass that was made with more layers serves for fewer, so whoever needs the most should ask first.
        """
        for (made, layers), outputs in self._outputs.items():
            if made == split and set(hidden) <= set(layers):
                return outputs
        key = (split, tuple(hidden))
        self._outputs[key] = self.family.forward(self.model, self._batches[split], hidden)
        return self._outputs[key]

    def frozen(self, name: str, split: Split) -> Outputs:
        """Outputs of a frozen model on the same rows."""
        return self.state.frozen[name].outputs(split, self._rows(split), self._batches[split])

    def reference(self, split: Split) -> Outputs:
        """Outputs of the target, as it was before the run."""
        return self.frozen("reference", split)

    def reference_nll(self, split: Split) -> Tensor:
        """`[B]` negative log-likelihood of this step's rows of `split` under the target, nats."""
        return self.state.frozen["reference"].nll(split, self._rows(split), self._batches[split])

    def positions(self, split: Split) -> Tensor:
        """Valid positions of all rows of the optimizer step from `split`, whatever the micro-batches; at least 1."""
        return self._turn.positions(split)

    def relabeled(self, split: Split, how: str) -> Batch:
        """This step's rows with other targets; drawn once for the whole batch, whatever the micro-batches."""
        batch = self._turn.relabeled(split, how)
        return batch if self._piece is None else batch.select(self._piece[split])

    def nll(self, split: Split) -> Tensor:
        """This piece's part of the negative log-likelihood of this step's rows of `split`, nats per position."""
        return self.per_position(split, self.family.nll(self.outputs(split), self.batch(split)))

    def per_position(self, split: Split, values: Tensor, where: Tensor | None = None) -> Tensor:
        """This piece's part of the sum of `values` (`[B]`) divided by all valid positions of the step's rows of `split`.

        So a long answer weighs more than a short one, and a term does not grow with the length of the answers, as is
        customary for language models. Where every example has one position it is `mean`.
        """
        if not self.family.sequences:
            return self.mean(split, values, where)
        if where is not None:
            values = torch.where(where, values, torch.zeros_like(values))
        return values.sum() / self._turn.positions(split)

    def mean(self, split: Split, values: Tensor, where: Tensor | None = None) -> Tensor:
        """This piece's part of the mean of `values` (`[B]`) over the optimizer step's rows of `split`.

        With `where` (`[B]` bool), only those rows count in the sum; the divisor stays the number of all rows.
        """
        if where is not None:
            values = torch.where(where, values, torch.zeros_like(values))
        if self._piece is None:
            return values.mean()
        return values.sum() / len(self._turn.rows[split])

    def once(self, value: Tensor) -> Tensor:
        """This piece's part of a term that does not depend on data, such as a weight penalty."""
        return value * self._share

    def _rows(self, split: Split) -> Tensor:
        rows = self._turn.rows[split]
        return rows if self._piece is None else rows[self._piece[split]]


def same_draws(step: Step) -> torch.Generator:
    """Randomness of this optimizer step that begins anew in every micro-batch, for what all rows share."""
    return torch.Generator().manual_seed(step.generator.initial_seed())


class Objective(Method, Training):
    """A method that is a loss. Override `loss`, and `passes` where the default (one pass over forget) is wrong."""

    kind = "objective"
    reference_on: ClassVar[tuple[Split, ...]] = ()
    """Splits on which `Step.reference` will be asked for."""
    likelihood_on: ClassVar[tuple[Split, ...]] = ()
    """Splits on which only `Step.reference_nll` will be: one stored number per row instead of whole outputs."""
    adapters: ClassVar[bool] = True
    """Whether it can train low-rank adapters: it cannot where it chooses, keeps or counts the weights themselves."""

    opens: ClassVar[bool] = False
    """Whether what `trainable` names is trained even where the target has it frozen."""

    epochs: int = param(5, "passes over the data", source="ours: enough on the embedded problems", ge=0)
    lr: float = param(0.01, "learning rate", source="Unlearn-Saliency's default", ge=0)
    shuffle: bool = param(True, "visit rows in a new random order in every epoch", source="customary")
    batchnorm: Literal["update", "freeze"] = param(
        "update",
        "what batch-norm statistics do during the run",
        source="reference codes leave models in train mode",
    )
    precision: Literal["no", "bf16", "fp16"] = param(
        "no", "mixed precision of the forward pass", source="ours"
    )
    lora: LoRA | None = param(
        None, "train low-rank adapters and merge them at the end; None trains the weights", source="ours"
    )

    def passes(self, epoch: int) -> Sequence[Pass]:
        """The passes of epoch `epoch` (from 0)."""
        return [Pass("forget")]

    def references(self) -> tuple[Split, ...]:
        """Splits on which `Step.reference` will be asked for with these hyperparameters."""
        return self.reference_on

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:
        """Make what the run needs (frozen teachers, importances); `model` is the target in eval mode."""

    def reference_hidden(self, problem: Problem, model: nn.Module) -> Sequence[str]:
        """Layers whose activations `Step.reference` will be asked for."""
        return ()

    @abstractmethod
    def loss(self, step: Step) -> dict[str, Tensor]:
        """Named terms, each a scalar; the loop adds and logs them."""

    def combine(
        self, gradients: dict[str, list[Tensor]], lr: float, state: State, terms: dict[str, Tensor]
    ) -> list[Tensor]:
        """One gradient out of those of the terms, where that is not their sum; called under no_grad.

        An objective that overrides it has each term differentiated by itself, exactly over micro-batches.
        Masks, clipping by `clip`, momentum and weight decay follow.

        Args:
            gradients: by term, one tensor for each trainable parameter, in the order of `model.parameters()`.
            lr: learning rate of this step.
            state: of the run; `state.stop(reason)` ends it without this step.
            terms: value of each term; what is added here is logged with them.
        """
        return [torch.stack(parts).sum(0) for parts in zip(*gradients.values(), strict=True)]

    def trainable(self, problem: Problem, model: nn.Module, state: State) -> Collection[str] | None:
        """Names of the only parameters that are trained, of those that are open (or all, where `opens`); None means all.

        Put back at the end.
        """
        return None

    def start_adapters(self, problem: Problem, adapters: Adapters, state: State) -> None:
        """Called under no_grad once low-rank adapters are in place, before the first step: their initial values."""

    def mask(self, problem: Problem, model: nn.Module, state: State) -> dict[str, Tensor] | None:
        """Per parameter, True where it may change; None means everywhere. Elsewhere weights stay bitwise as they were."""
        return None

    def after_step(self, model: nn.Module, state: State, progress: float) -> None:
        """Called after every optimizer step, under no_grad."""

    def after_epoch(self, model: nn.Module, state: State, epoch: int) -> None:
        """Called after every epoch, under no_grad, in eval mode."""

    def finish(self, problem: Problem, model: nn.Module, state: State) -> None:
        """Called once at the end, under no_grad, in eval mode."""

    def learning_rate(self, epoch: int, progress: float) -> float:
        """Learning rate in epoch `epoch` at `progress` (0 to 1) of the run."""
        if progress < self.warmup:
            return self.lr * progress / self.warmup
        left = (1 - progress) / (1 - self.warmup)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 - math.cos(math.pi * left))
        return self.lr * left if self.schedule == "linear" else self.lr

    def order(self, over: Split, n: int, epoch: int, generator: torch.Generator) -> Tensor:
        """`[n]` positions in the order of visit; for `train` they count the forget rows first, then the retain rows."""
        return torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)

    @final
    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:  # noqa: D102
        from expunge.methods.loop import (
            Loop,  # the loop knows objectives; importing it above would be a circle
        )

        return Loop(self, problem, model, workplace).run()
