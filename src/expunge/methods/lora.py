"""LoRA: low-rank adapters that are trained in place of the weights, and merged into them at the end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from expunge.errors import BadInput
from expunge.extras import load_extra
from expunge.parameters import Parameters

_PREFIX = "base_model.model."
"""What ``peft`` puts before the name of a layer."""


class LoRA(Parameters):
    """Low-rank adaptation: ``W x + (alpha / r) B A x`` with W frozen, A `[r, d_in]` random and B `[d_out, r]` zero.

    Hu et al., ICLR 2022, arXiv:2106.09685; the layers are those of the ``peft`` package.
    """

    title = "lora"

    r: int = Field(default=16, ge=1, description="rank of the adapters")
    alpha: float | None = Field(
        default=None, gt=0, description="scale of the adapters times r; None means 2 r"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on what enters an adapter")
    targets: tuple[str, ...] | None = Field(
        default=None,
        description="names (or ends of names) of the linear layers, or convolutions, that get an adapter; None means all "
        "linear layers but the head",
    )

    @property
    def scaling(self) -> float:
        """alpha / r."""
        return (2 * self.r if self.alpha is None else self.alpha) / self.r

    @classmethod
    def parse(cls, text: str) -> LoRA:
        """From ``r=16,alpha=32,dropout=0.05,targets=q_proj+v_proj``; what is left out keeps its default."""
        values: dict[str, Any] = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            key, equals, value = part.partition("=")
            if not equals:
                raise BadInput(
                    f"lora: '{part}' is not of the form key=value, such as r=16,targets=q_proj+v_proj"
                )
            values[key] = tuple(value.split("+")) if key == "targets" else value
        return cls(**values)

    def __str__(self) -> str:
        given = {
            k: v for k in type(self).model_fields if (v := getattr(self, k)) is not None and (v or k == "r")
        }
        return ",".join(f"{k}={'+'.join(v) if k == 'targets' else v}" for k, v in given.items())


class Adapters:
    """The adapters on one model, which is changed in place: its linear layers are wrapped until `merge`."""

    def __init__(self, model: nn.Module, lora: LoRA, head: str) -> None:
        peft = load_extra("peft", "lora", "training low-rank adapters")
        self.model, self.lora = model, lora
        self.targets = target_names(model, lora, head)
        self._open = {name: p.requires_grad for name, p in model.named_parameters()}
        config = peft.LoraConfig(
            r=lora.r,
            lora_alpha=lora.scaling * lora.r,
            lora_dropout=lora.dropout,
            target_modules=self.targets,
            fan_in_fan_out=_transposed(model.get_submodule(self.targets[0])),
        )
        self._peft = peft.get_peft_model(model, config)

    def layers(self) -> dict[str, Any]:
        """The wrapped layers by name: `base_layer`, `lora_A`, `lora_B` (each by adapter name, ``default``)."""
        return {name: self.model.get_submodule(name) for name in self.targets}

    @contextlib.contextmanager
    def off(self) -> Iterator[nn.Module]:
        """Inside the block the model is what it was before, in eval mode."""
        was_training = self.model.training
        self.model.eval()
        # Not `disable_adapter` of peft, which looks through the whole model in every step to report its state.
        self._peft.base_model.disable_adapter_layers()
        try:
            yield self.model
        finally:
            self._peft.base_model.enable_adapter_layers()
            self.model.train(was_training)

    def save(self) -> SavedAdapter:
        """Config and weights in the format of ``peft``, to be applied to the weights as they were."""
        peft = load_extra("peft", "lora", "saving low-rank adapters")
        config = self._peft.peft_config["default"].to_dict()
        weights = peft.get_peft_model_state_dict(self._peft)
        return SavedAdapter(config, {k: v.detach().cpu().clone() for k, v in weights.items()})

    def merge(self) -> nn.Module:
        """Add the adapters to the weights and take them away; the model has its own layers again."""
        merged = self._peft.merge_and_unload()
        for name, parameter in merged.named_parameters():
            parameter.requires_grad_(self._open[name])
        return merged


@dataclass(frozen=True)
class SavedAdapter:
    """What is left of adapters that were merged: enough to apply them again, or to write a ``peft`` folder."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    """``base_model.model.LAYER.lora_A.weight`` `[r, d_in]` and ``...lora_B.weight`` `[d_out, r]`, on the CPU; of convolutions
    `[r, d_in, h, w]` and `[d_out, r, 1, 1]`."""

    def pair(self, layer: str) -> tuple[Tensor, Tensor]:
        """A and B of one layer, alpha / r multiplied into B."""
        a, b = (self.weights[f"{_PREFIX}{layer}.lora_{part}.weight"] for part in "AB")
        return a, b * (self.config["lora_alpha"] / self.config["r"])

    def delta(self, model: nn.Module, layer: str) -> Tensor:
        """What merging adds to the weight of `layer` of `model`, in the layout of that weight."""
        a, b = self.pair(layer)
        # A of a convolution has its kernel's size, and B is 1 by 1.
        product = (b.flatten(1) @ a.flatten(1)).unflatten(1, a.shape[1:])
        if _transposed(model.get_submodule(layer)):
            product = product.T
        return product

    @property
    def layers(self) -> list[str]:
        """Names of the adapted layers."""
        end = ".lora_A.weight"
        return [k.removeprefix(_PREFIX).removesuffix(end) for k in self.weights if k.endswith(end)]

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Add the adapters to the weights of `model`, in place."""
        for layer in self.layers:
            weight = model.get_parameter(f"{layer}.weight")
            weight += self.delta(model, layer).to(weight)

    @torch.no_grad()
    def explains(self, before: nn.Module, after: nn.Module) -> bool:
        """Whether `before` with these adapters is `after`, up to rounding.

        It is not where something else moved too, such as a base that was altered to start the adapters, or the running
        statistics of batch norm; then the adapter must not be given away as if it belonged to `before`.
        """
        adapted = {f"{layer}.weight": layer for layer in self.layers}
        after_state = after.state_dict()
        for name, value in before.state_dict().items():
            now, expected = after_state[name].cpu(), value.cpu()
            if name not in adapted:
                if not torch.equal(now, expected):
                    return False
                continue
            expected = expected + self.delta(before, adapted[name]).to(expected)
            rounding = 8 * torch.finfo(now.dtype).eps * now.abs().max()
            if (now - expected).abs().max() > rounding:
                return False
        return True

    def write(self, folder: Path, base: str | None) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``, as ``peft`` does, into `folder`.

        `base` says where the model is that the adapter belongs to: a hub id or a folder.
        """
        folder.mkdir(parents=True, exist_ok=True)
        config = {**self.config, "base_model_name_or_path": base, "inference_mode": True}
        plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
        (folder / "adapter_config.json").write_text(json.dumps(plain, indent=2, sort_keys=True))
        weights = {k: v.contiguous() for k, v in self.weights.items()}
        save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})


def target_names(model: nn.Module, lora: LoRA, head: str) -> list[str]:
    """Full names of the layers that get an adapter: those that are open to training, and by default not the head.

    Convolutions get one where they are named.

    Raises:
        BadInput: there is none, or a name that was asked for fits none, or a weight that was asked for serves another
            layer too, into which an adapter could not be merged.
    """
    linear = {name: m for name, m in model.named_modules() if _adaptable(m)}
    if lora.targets is not None:
        linear |= {
            name: m
            for name, m in model.named_modules()
            if isinstance(m, nn.Conv2d) and m.groups == 1 and any(_is(name, w) for w in lora.targets)
        }
    if lora.targets is None:
        chosen = [name for name in linear if name != head]
    else:
        for wanted in lora.targets:
            if not any(_is(name, wanted) for name in linear):
                known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
                raise BadInput(f"lora: the model has no linear layer '{wanted}'; it has {known}")
        chosen = [name for name in linear if any(_is(name, wanted) for wanted in lora.targets)]
    if not chosen:
        raise BadInput(
            f"lora: {type(model).__name__} has no linear layer besides its head; train it without lora"
        )
    # An adapter on a frozen weight would change it after all.
    trained = [name for name in chosen if linear[name].weight.requires_grad]
    if not trained:
        raise BadInput(
            f"lora: '{chosen[0]}' and every other layer that could get an adapter is frozen; name others as targets"
        )
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    for layer in trained:
        others = [o for o in owners[id(linear[layer].weight)] if o != layer]
        if others:
            raise BadInput(
                f"lora: '{layer}' shares its weight with '{others[0]}', so that no adapter can be merged into it; leave it "
                "out of targets"
            )
    return trained


def _adaptable(module: nn.Module) -> bool:
    # The output layer of torch's own attention is read by its weight alone, past any adapter.
    plain = isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)
    return plain or _transposed(module)


def _transposed(module: nn.Module) -> bool:
    # GPT-2 and its kin store linear layers transposed, in a class of their own.
    return type(module).__name__ == "Conv1D"


def _is(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith("." + wanted)
