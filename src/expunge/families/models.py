"""Models: building them fresh, loading and saving them, calling them."""

from __future__ import annotations

import inspect
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.errors import BadInput, did_you_mean
from expunge.families.generators import GAN
from expunge.files import state_digest
from expunge.parameters import Parameters
from expunge.registry import load_object


class MLP(nn.Module):
    """Fully connected network with ReLU."""

    def __init__(self, inputs: int, outputs: int, hidden: list[int]) -> None:
        super().__init__()
        sizes = [inputs, *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(sizes[-1], outputs)

    def forward(self, features: Tensor) -> Tensor:
        """`[B, ...]` to `[B, outputs]`."""
        x = features.flatten(1)
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


class CNN(nn.Module):
    """Small convolutional network: 3x3 convolutions, each halved by max-pooling, one hidden linear layer."""

    def __init__(
        self,
        channels: int,
        size: int,
        outputs: int,
        widths: list[int] | None = None,
        hidden: int = 32,
        batchnorm: bool = False,
    ) -> None:
        super().__init__()
        widths = widths or [8, 16]
        steps = [channels, *widths]
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1),
                *([nn.BatchNorm2d(b)] if batchnorm else []),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )
            for a, b in pairwise(steps)
        )
        side = size // 2 ** len(widths)
        if side < 1:
            raise BadInput(f"images of {size} pixels cannot be halved {len(widths)} times; give fewer widths")
        self.hidden = nn.Linear(widths[-1] * side * side, hidden)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`[B, channels, size, size]` to `[B, outputs]`."""
        x = pixel_values
        for conv in self.convs:
            x = conv(x)
        return self.head(self.hidden(x.flatten(1)).relu())


BUILTIN: dict[str, type[nn.Module]] = {"mlp": MLP, "cnn": CNN, "gan": GAN}

AUTO_CLASSES = {
    "image-classification": "AutoModelForImageClassification",
    "sequence-classification": "AutoModelForSequenceClassification",
    "causal-lm": "AutoModelForCausalLM",
}


class Architecture(Parameters):
    """How to build a model with fresh weights, as plain data."""

    kind: Literal["builtin", "transformers", "diffusers", "module", "composed", "estimator"] = Field(
        description="where the class comes from"
    )
    name: str = Field(
        description="builtin: mlp, cnn or gan; transformers: a task such as image-classification; "
        "diffusers: text-to-image; module: package.module:factory; composed: ablated, combined, gated, permeable or "
        "routed; "
        "estimator: dare, gaussian-nb, ridge, ... or package.module:Class of scikit-learn's kind"
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="keyword arguments of the factory, the transformers configuration, or the parts of a composed model",
    )

    def build(self, seed: int) -> nn.Module:
        """A model with fresh weights; the global random state is left as it was."""
        if self.kind == "estimator":
            from expunge.families.fitted import FittedModel

            return FittedModel.build(self.name, self.options, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.with_drawn_weights()

    def with_drawn_weights(self) -> nn.Module:
        """A model with fresh weights, drawn from the global random state."""
        if self.kind == "builtin":
            if self.name not in BUILTIN:
                raise BadInput(f"unknown built-in model '{self.name}'{did_you_mean(self.name, BUILTIN)}")
            try:
                return BUILTIN[self.name](**self.options)
            except TypeError as error:
                raise BadInput(f"model '{self.name}' cannot be built from {self.options}: {error}") from None
        if self.kind == "module":
            factory = load_object(self.name)
            if not callable(factory):
                raise BadInput(
                    f"'{self.name}' is a {type(factory).__name__}, not something that builds a model"
                )
            model = factory(**self.options)
            if not isinstance(model, nn.Module):
                raise BadInput(
                    f"'{self.name}' returned a {type(model).__name__}; it must return a torch.nn.Module"
                )
            return model
        if self.kind == "composed":
            return _rebuilt(self.name, self.options)
        if self.kind == "diffusers":
            from expunge.families.pipelines import DiffusionModel

            return DiffusionModel.build(**self.options)
        if self.kind == "estimator":
            return self.build(int(torch.randint(2**31, ())))
        import transformers

        if self.name not in AUTO_CLASSES:
            raise BadInput(f"unknown transformers task '{self.name}'{did_you_mean(self.name, AUTO_CLASSES)}")
        options = {k: v for k, v in self.options.items() if k != "transformers_version"}
        config = transformers.AutoConfig.for_model(**options)
        return getattr(transformers, AUTO_CLASSES[self.name]).from_config(config)

    @classmethod
    def of_transformers(cls, model: nn.Module, task: str) -> Architecture:
        """The architecture of a loaded `transformers` model."""
        options = json.loads(model.config.to_json_string(use_diff=False))  # pyright: ignore
        drop = ("_name_or_path", "transformers_version", "architectures")
        return cls(
            kind="transformers", name=task, options={k: v for k, v in options.items() if k not in drop}
        )


class Answer(NamedTuple):
    """What a composed model returns, with the name that `transformers` gives it."""

    logits: Tensor


class Past:
    """Keys and values of the tokens that a language model has read; a composed model has one for each call of a part.

    A cache is wrong for any other model, and for the same one with other adapters: so each has its own.
    """

    def __init__(self) -> None:
        self.kept: Any = None
        """What the model left of the tokens so far; None before the first call."""
        self._parts: dict[str, Past] = {}

    def part(self, name: str) -> Past:
        """That of one part."""
        return self._parts.setdefault(name, Past())


class Composed(nn.Module):
    """A model made of others, which answers as one; called by keyword, as the models of `transformers` are."""

    @property
    @abstractmethod
    def base(self) -> nn.Module:
        """The part whose answers the others change; layers are addressed in it."""

    @property
    @abstractmethod
    def members(self) -> Sequence[nn.Module]:
        """All models that it is made of, the base first."""

    @abstractmethod
    def logits(self, inputs: Mapping[str, Tensor], keep: int | None, past: Past | None = None) -> Tensor:
        """`[B, C]` logits, or `[B, keep, V]` of the last `keep` positions of a language model.

        With `past` the inputs are the tokens that follow those of earlier calls, as in `call_language_model`.
        """

    @abstractmethod
    def architecture(self, known: Architecture | None) -> Architecture | None:
        """What builds such a model afresh, where the parts say; `known` is the architecture of the target."""

    @classmethod
    @abstractmethod
    def rebuilt(cls, options: Mapping[str, Any]) -> Composed:
        """A model with the options of `architecture` and fresh weights."""

    def forward(
        self,
        use_cache: bool = False,
        logits_to_keep: int | None = None,
        past: Past | None = None,
        **inputs: Tensor,
    ) -> Answer:  # `use_cache` is part of the call and has no effect
        """The logits that all parts together give."""
        return Answer(self.logits(inputs, logits_to_keep, past))


def innermost(model: nn.Module) -> nn.Module:
    """The base of a composed model, of whatever depth; any other model itself."""
    while isinstance(model, Composed):
        model = model.base
    return model


def _rebuilt(name: str, options: Mapping[str, Any]) -> nn.Module:
    from expunge.families.combined import Combined
    from expunge.families.gated import Gated
    from expunge.families.membranes import Permeable
    from expunge.families.routed import Routed
    from expunge.families.sparse_features import Ablated

    known: dict[str, type[Composed]] = {
        "ablated": Ablated,
        "combined": Combined,
        "gated": Gated,
        "permeable": Permeable,
        "routed": Routed,
    }
    if name not in known:
        raise BadInput(f"unknown composed model '{name}'{did_you_mean(name, known)}")
    return known[name].rebuilt(options)


def architecture_of(model: nn.Module, known: Architecture | None) -> Architecture | None:
    """What builds `model` afresh: read off the model where it says so, else `known`."""
    if isinstance(model, Composed):
        return model.architecture(known)
    if is_pretrained(type(model)):
        # A part may have fewer layers than the target has.
        task = known.name if known is not None and known.kind == "transformers" else "causal-lm"
        return Architecture.of_transformers(model, task)
    return known


def call(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Call a `transformers` or composed model by keyword, any other by position; return its logits or values."""
    inner = getattr(model, "module", model)  # accelerate wraps models for distributed training
    if _by_keyword(type(inner)):
        return model(**inputs).logits
    return model(*inputs.values())


def call_language_model(
    model: nn.Module, inputs: Mapping[str, Tensor], keep: int, past: Past | None = None
) -> Tensor:
    """Logits `[B, keep, V]` of the last `keep` positions; those before are not computed where the model can skip them.

    With `past`, for models of which `keeps_past` is true, ``input_ids`` and ``position_ids`` `[B, T]` are those of the
    tokens that follow earlier calls with it, and ``attention_mask`` `[B, all tokens so far]` is that of all.
    """
    inner = getattr(model, "module", model)
    if past is not None and isinstance(inner, Composed):
        return inner.logits(inputs, keep, past)
    if past is not None:
        fewer = {"logits_to_keep": keep} if _skips_logits(type(inner)) else {}
        name = _cache(type(inner))
        answer = inner(**inputs, use_cache=True, **{name: past.kept}, **fewer)
        past.kept = getattr(answer, name)
        return answer.logits[:, -keep:]
    if _skips_logits(type(inner)):
        return model(**inputs, use_cache=False, logits_to_keep=keep).logits
    return call(model, inputs)[:, -keep:]


def keeps_past(model: nn.Module) -> bool:
    """Whether a language model can go on from tokens that it has read, padded on the left or not (`Past`)."""
    if isinstance(model, Composed):
        return all(keeps_past(part) for part in model.members)
    return bool(_cache(type(model)))


@cache
def _cache(kind: type[nn.Module]) -> str:
    """What a model calls its keys and values, as an argument and in its answer; empty where it needs something else."""
    taken = inspect.signature(kind.forward).parameters
    if not is_pretrained(kind) or not {"input_ids", "attention_mask", "position_ids"} <= set(taken):
        return ""
    # `transformers` renamed it in the course of version 5.
    return next((name for name in ("cache", "past_key_values") if name in taken), "")


@cache
def _skips_logits(kind: type[nn.Module]) -> bool:
    return _by_keyword(kind) and "logits_to_keep" in inspect.signature(kind.forward).parameters


def _by_keyword(kind: type[nn.Module]) -> bool:
    return issubclass(kind, Composed) or is_pretrained(kind)


@cache  # called in every step, and finding the class takes longer than a small layer
def is_pretrained(kind: type[nn.Module]) -> bool:
    """Whether a class is a model of `transformers`."""
    # By name, because importing the class takes seconds, which models of other kinds need not spend.
    return any(
        c.__name__ == "PreTrainedModel" and c.__module__.startswith("transformers.") for c in kind.__mro__
    )


def fingerprint(model: nn.Module) -> str:
    """Fingerprint of the weights and buffers."""
    return state_digest(model.state_dict())


def clone(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with `model`."""
    import copy

    return copy.deepcopy(model)
