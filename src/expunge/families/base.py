"""The interface that carries everything: how one kind of model reads a batch.

A method, a metric or an attack written against `Family` works for every family that has the quantities it needs.
Shapes: `B` examples, `T` positions (1 for a plain classifier, tokens for text generation), `C` classes, vocabulary or
values.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from expunge.errors import BadInput, did_you_mean
from expunge.families.models import innermost

if TYPE_CHECKING:
    from datasets import Dataset

Rows = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Batch:
    """Some examples, ready for the model; moves between devices as one thing."""

    ids: list[str]
    inputs: dict[str, Tensor]
    """What the model is called with, each `[B, ...]`."""
    targets: Tensor
    """`[B, T]` class or token numbers, or `[B, T, C]` values."""
    mask: Tensor
    """`[B, T]` bool: the positions that count."""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Batch:
        """The same examples on `device`."""
        return replace(
            self,
            inputs={k: v.to(device) for k, v in self.inputs.items()},
            targets=self.targets.to(device),
            mask=self.mask.to(device),
        )

    def select(self, rows: Tensor) -> Batch:
        """The examples numbered `rows` (`[b]`, long), in that order."""
        return Batch(
            [self.ids[i] for i in rows.tolist()],
            {k: v.index_select(0, rows) for k, v in self.inputs.items()},
            self.targets.index_select(0, rows),
            self.mask.index_select(0, rows),
        )


@dataclass(frozen=True)
class Outputs:
    """What one forward pass gave."""

    prediction: Tensor
    """`[B, T, C]`: logits, predicted values, predicted noise, ..."""
    hidden: dict[str, Tensor] = field(default_factory=dict)
    """Activations by layer, each `[B, positions, d]`."""

    def select(self, rows: Tensor) -> Outputs:
        """The outputs of the examples numbered (or masked by) `rows`."""
        return Outputs(self.prediction[rows], {k: v[rows] for k, v in self.hidden.items()})

    def detach(self) -> Outputs:
        """The same numbers, cut off from the graph."""
        return Outputs(self.prediction.detach(), {k: v.detach() for k, v in self.hidden.items()})


@dataclass
class Meter:
    """Counts the examples that went through models inside `metered()`."""

    examples: int = 0


_METERS: ContextVar[tuple[Meter, ...]] = ContextVar("expunge_meters", default=())


@contextlib.contextmanager
def metered() -> Iterator[Meter]:
    """Count forward passes, example by example, of everything that runs inside the block."""
    meter = Meter()
    token = _METERS.set((*_METERS.get(), meter))
    try:
        yield meter
    finally:
        _METERS.reset(token)


def count_examples(n: int) -> None:
    """Tell the running meters that `n` examples went through a model outside `Family.forward`."""
    for meter in _METERS.get():
        meter.examples += n


class Family(ABC):
    """How one kind of model reads a batch. Instances hold only how to read, never a model."""

    name: ClassVar[str]
    likelihood: ClassVar[Literal["exact", "bound", "none"]]
    """What `nll` means. Methods and metrics that need an exact one say so."""
    gradients: ClassVar[bool] = True
    """Whether models are differentiable and have layers. Others are fitted in one go by `learn`."""
    like: ClassVar[frozenset[str]] = frozenset()
    """Families whose quantities mean the same here, for metrics that are defined for those by name."""
    sequences: ClassVar[bool] = False
    """Whether examples have different numbers of positions, so that batches show different parts of them."""
    redraws: ClassVar[bool] = False
    """Whether part of what the model is asked is random and drawn anew at every visit of a row in training."""
    quantities: ClassVar[Mapping[str, str]]
    """What one evidence pass can yield: name to definition."""
    generated: ClassVar[frozenset[str]] = frozenset()
    """Those of them that come from `generate`, such as texts and images, instead of the forward pass."""
    repeated: ClassVar[frozenset[str]] = frozenset()
    """Those of them that take several passes: more than one answer to each row."""
    relabelings: ClassVar[Mapping[str, str]]
    """Which `how` `relabel` knows: name to definition."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Everything that `restore` needs, as plain JSON; part of every fingerprint."""

    @abstractmethod
    def collate(self, rows: Rows) -> Batch:
        """Rows of a data set (columns of equal length) to a batch on the CPU."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """`[B, T, C]` predictions; differentiable. Called through `forward`."""

    @abstractmethod
    def nll(self, outputs: Outputs, batch: Batch) -> Tensor:
        """`[B]` negative log-likelihood in nats, float32 or wider: the SUM over valid positions."""

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`[B]` terms that training brings down, by name: the mean negative log-likelihood of a row's positions.

        Where models are trained otherwise, the gradient of the terms' sum is what training follows.
        """
        return {"nll": self.nll(self.forward(model, batch), batch) / self.terms(batch).clamp(min=1)}

    @abstractmethod
    def divergence(self, p: Outputs, q: Outputs, batch: Batch, temperature: float = 1.0) -> Tensor:
        """`[B]` divergence D(p‖q) in nats, summed over valid positions, of both distributions raised to 1/temperature."""

    @abstractmethod
    def relabel(self, batch: Batch, how: str, generator: torch.Generator) -> Batch:
        """The batch with other targets, by one of `relabelings`."""

    @abstractmethod
    def observe(self, outputs: Outputs, batch: Batch, quantities: Sequence[str]) -> dict[str, Tensor]:
        """The asked quantities, each `[B]` or `[B, d]`, computed in float32 or wider.

        Names that begin with ``token_`` are per position: `[B, T]`, of which the evidence keeps what the mask marks.
        """

    @abstractmethod
    def check(self, dataset: Dataset, name: str) -> None:
        """Refuse data that this family cannot read: NaN features, labels out of range, missing columns."""

    def groups(self, dataset: Dataset) -> np.ndarray | None:
        """`[n]` group of each example for breakdowns (class by default), or None where there are none."""
        return None

    def terms(self, batch: Batch) -> Tensor:
        """`[B]` valid positions of each example, so that a mean is `nll / terms`, never hidden in a reduction."""
        return batch.mask.sum(-1)

    def trim(self, batch: Batch) -> Batch:
        """The batch without positions that are padding in all its examples."""
        return batch

    def view(self, dataset: Dataset, quantities: Sequence[str]) -> Family:
        """What reads `dataset` for `quantities`: usually the family itself, else one that reads more columns."""
        return self

    def generate(
        self, model: nn.Module, dataset: Dataset, quantities: Sequence[str], batch_size: int
    ) -> dict[str, Any]:
        """The asked quantities of `generated`, texts or an array `[n]` or `[n, d]`; `model` is in eval mode."""
        raise BadInput(f"{self.name} generates nothing")

    def redraw(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with what is random drawn anew, where `redraws`."""
        return batch

    def arrange(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Activations of one layer, `[B, positions, d]`, of what was caught: `[N, positions, d]`, where N is not B."""
        return hidden

    def learn(self, model: nn.Module, dataset: Dataset) -> None:
        """Fit `model` afresh to all rows of `dataset`; only families without gradients do."""
        raise BadInput(f"models of family {self.name} are trained by gradient")

    def at_once(self, positions: int) -> int | None:
        """Most examples of `positions` positions each that a pass without gradients takes at once; None: any number."""
        return None

    def positions(self, batch: Batch) -> int | None:
        """Positions of the batch's hidden activations, where `sequences`; None where every batch has the same."""
        return None

    @final
    def forward(self, model: nn.Module, batch: Batch, hidden: Sequence[str] = ()) -> Outputs:
        """One forward pass, with the activations of the layers named in `hidden`."""
        count_examples(len(batch))
        # Many models cannot be called without rows, and a micro-batch may have none of a split.
        asked = batch if len(batch) else _one_row(batch)
        if not hidden:
            outputs = Outputs(self.predict(model, asked))
        else:
            with captured(model, hidden) as caught:
                prediction = self.predict(model, asked)
            outputs = Outputs(prediction, {k: self.arrange(v, asked) for k, v in caught.items()})
        return outputs if len(batch) else outputs.select(torch.arange(0))

    def layers(self, model: nn.Module) -> list[str]:
        """Addressable layers, in forward order: repeated blocks as one layer each, then what has weights besides."""
        return block_names(innermost(model))

    def compared_layers(self, model: nn.Module) -> list[str]:
        """Layers whose activations are kept as evidence; by default all."""
        return self.layers(model)

    def head(self, model: nn.Module) -> str:
        """Name of the last linear layer."""
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise BadInput(f"{type(model).__name__} has no linear layer that could be its head")
        return linear[-1]


def _one_row(empty: Batch) -> Batch:
    """A made-up row in the shape of a batch that has none."""
    return Batch(
        ["none"],
        {name: value.new_ones((1, *value.shape[1:])) for name, value in empty.inputs.items()},
        empty.targets.new_zeros((1, *empty.targets.shape[1:])),
        empty.mask.new_zeros((1, *empty.mask.shape[1:])),
    )


def block_names(model: nn.Module) -> list[str]:
    """Names of repeated blocks (members of module lists) and of weighted modules outside them, in definition order."""
    names: list[str] = []

    def visit(module: nn.Module, prefix: str) -> None:
        children = list(module.named_children())
        if isinstance(module, nn.ModuleList):
            for name, child in children:
                # A stage that holds a list of its own is one layer per inner block.
                if any(isinstance(inner, nn.ModuleList) for inner in child.modules()):
                    visit(child, f"{prefix}{name}.")
                else:
                    names.append(f"{prefix}{name}")
            return
        if not children:
            if any(True for _ in module.parameters(recurse=False)):
                names.append(prefix.removesuffix("."))
            return
        for name, child in children:
            visit(child, f"{prefix}{name}.")

    visit(model, "")
    return names


@contextlib.contextmanager
def captured(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Catch the outputs of the named modules, of a composed model those of its base, as `[B, positions, d]`."""
    caught: dict[str, Tensor] = {}

    def catch(layer: str) -> Callable[[Tensor], None]:
        return lambda activation: caught.update({layer: activation})

    with _watched(model, {layer: catch(layer) for layer in layers}):
        yield caught


Change = Callable[[Tensor], Tensor]
"""What is made of a layer's activations, `[B, positions, d]` both."""


@contextlib.contextmanager
def altered(model: nn.Module, changes: Mapping[str, Change]) -> Iterator[None]:
    """Inside the block the named modules, of a composed model those of its base, give what `changes` make of their output."""
    with _watched(model, changes):
        yield


@contextlib.contextmanager
def _watched(model: nn.Module, seen: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Show the named modules' outputs, as `[B, positions, d]`, to functions that may answer with other ones."""
    modules = dict(innermost(model).named_modules())
    handles = []
    try:
        for layer, see in seen.items():
            if layer not in modules:
                raise BadInput(f"the model has no layer '{layer}'{did_you_mean(layer, block_names(model))}")

            def hook(_module: nn.Module, _inputs: object, output: Any, see: Any = see) -> Any:
                tensor = output if isinstance(output, Tensor) else output[0]
                other = see(as_positions(tensor))
                if other is None:
                    return None
                other = _shaped_as(tensor, other)
                return other if isinstance(output, Tensor) else (other, *output[1:])

            handles.append(modules[layer].register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def as_positions(activation: Tensor) -> Tensor:
    """`[B, d]` to `[B, 1, d]`; images `[B, d, H, W]` to `[B, H*W, d]`; sequences stay as they are."""
    if activation.dim() == 2:
        return activation.unsqueeze(1)
    if activation.dim() == 4:
        return activation.flatten(2).transpose(1, 2)
    return activation


def _shaped_as(activation: Tensor, positions: Tensor) -> Tensor:
    """The inverse of `as_positions`, to the shape of `activation`."""
    if activation.dim() == 4:
        positions = positions.transpose(1, 2)
    return positions.reshape(activation.shape)


def where_finite(value: Tensor, of: Tensor) -> Tensor:
    """`value` (`[B]`), NaN where `of` (`[B]`) is; in its own type unless that is somewhere.

    For what is always a number, such as the place of the largest logit, though logits that are not finite say nothing.
    """
    lost = of.isnan()
    return value.double().masked_fill(lost, math.nan) if bool(lost.any()) else value


def wide(tensor: Tensor) -> Tensor:
    """float32 at least: sums of log-probabilities in half precision lose their digits."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
