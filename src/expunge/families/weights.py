"""Models on disk: weights as safetensors, and what is needed to build the model beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from expunge.errors import BadInput, Missing
from expunge.families.models import Architecture, Composed, fingerprint


def save_weights(model: nn.Module, path: Path) -> None:
    """Write all parameters and buffers as safetensors; tied tensors are written under each of their names."""
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}, path)


def read_weights(path: Path, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Read a safetensors file; pickle-based files run code when they are read and need `allow_pickle`."""
    if not path.exists():
        raise BadInput(f"no weights at '{path}'")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:
            raise BadInput(f"'{path}' is not a readable safetensors file: {error}") from None
    if path.suffix == ".py":
        raise BadInput(
            f"'{path}' is code, not weights; name the function in it that builds the model, as package.module:function or "
            "./file.py:function, and give its weights as a safetensors file (`expunge forget --weights`)"
        )
    if not allow_pickle:
        raise BadInput(
            f"'{path}' is a pickle checkpoint, which can run code when it is read; "
            "convert it to safetensors, or pass --allow-pickle if you trust where it comes from"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        # torch's own message runs over many lines; what matters is that it held more than tensors, or was broken.
        raise BadInput(
            f"'{path}' is damaged or holds more than tensors, which is never read; convert it to safetensors where it was made"
        ) from None
    return state.get("state_dict", state) if isinstance(state, dict) else state


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], source: str, *, allow_pickle: bool = False
) -> None:
    """Put `weights` into `model`, or say which names or shapes do not fit.

    What an estimator of another library has learned is a pickle, and read where `allow_pickle` says so.
    """
    from expunge.families.fitted import FittedModel

    if isinstance(model, FittedModel):
        model.restore(weights, source, allow_pickle=allow_pickle)
        return
    own = model.state_dict()
    missing, extra = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    if missing or extra:
        what = f"lacks '{missing[0]}'" if missing else f"has '{extra[0]}', which the model does not"
        raise BadInput(
            f"the weights of '{source}' do not fit the model: the file {what} "
            f"({len(missing)} missing, {len(extra)} unexpected); check the architecture's options"
        )
    for name, tensor in weights.items():
        if own[name].shape != tensor.shape:
            raise BadInput(
                f"the weights of '{source}' do not fit the model: '{name}' has shape {tuple(tensor.shape)}, "
                f"the model expects {tuple(own[name].shape)}"
            )
    model.load_state_dict(dict(weights))


def save_model(
    model: nn.Module,
    folder: Path,
    architecture: Architecture | None,
    family: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    """Write `model.safetensors` and `expunge.json` (architecture, family, facts) into `folder`.

    `architecture` is the target's; a composed model says its own.
    """
    if isinstance(model, Composed):
        architecture = model.architecture(architecture)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder / "model.safetensors")
    record = {
        "architecture": None if architecture is None else architecture.model_dump(mode="json"),
        "family": family,
        "fingerprint": fingerprint(model),
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
        **facts,
    }
    (folder / "expunge.json").write_text(json.dumps(record, indent=2, sort_keys=True))


def freeze(model: nn.Module, names: Iterable[str]) -> None:
    """Close the named parameters to training: a guard against relearning lives in this alone."""
    for name in names:
        model.get_parameter(name).requires_grad_(False)


def load_folder(
    folder: Path, *, allow_pickle: bool = False
) -> tuple[nn.Module, Architecture, dict[str, Any]]:
    """Load a model that `save_model` wrote: the model, its architecture, and the record beside it."""
    from expunge.files import read_json

    if not (folder / "expunge.json").exists():
        raise Missing(f"'{folder}' holds no expunge.json; was the run that writes it finished?")
    record = read_json(folder / "expunge.json")
    if record["architecture"] is None:
        raise BadInput(
            f"'{folder}' does not say its architecture; pass package.module:factory and the weights"
        )
    architecture = Architecture(**record["architecture"])
    if (
        architecture.kind == "estimator"
    ):  # whether pickles are read is for the reader to say, not for the folder
        architecture = architecture.replace(options={**architecture.options, "allow_pickle": allow_pickle})
    model = architecture.build(0)
    load_weights(model, read_weights(folder / "model.safetensors"), str(folder), allow_pickle=allow_pickle)
    freeze(model, record.get("frozen", []))
    return model, architecture, record
