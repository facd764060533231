"""Models that users bring: from `transformers`, from a folder that expunge wrote, or from a factory."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from expunge.errors import BadInput, Missing
from expunge.extras import load_extra
from expunge.families import Architecture, Classifier, Diffusion, Family, Regressor, restore_family
from expunge.families.fitted import Answers, FittedModel, answers_of, json_options, unpickled
from expunge.families.models import AUTO_CLASSES, fingerprint
from expunge.families.pipelines import load_pipeline
from expunge.families.weights import load_folder, load_weights, read_weights
from expunge.files import read_json
from expunge.parameters import Parameters

_TASKS = {
    "ForImageClassification": "image-classification",
    "ForSequenceClassification": "sequence-classification",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
}


class FactoryModel(Parameters):
    """A model that the user's own code builds."""

    title = "model"

    factory: str = Field(
        description="package.module:factory or ./file.py:factory; its code is imported and run"
    )
    weights: str | None = Field(
        default=None, description="safetensors file; without it the model is trained here"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the factory")


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a model before the data is looked at."""

    architecture: Architecture
    model: nn.Module | None
    """None where only an architecture was given."""
    family: Family | None = None
    """How the model reads a batch, where its folder says so."""
    location: str = ""
    """Folder or hub id with the tokenizer or image processor; '' for other than `transformers` models."""
    config: Any = None
    """The `transformers` configuration."""

    @property
    def answers(self) -> Answers | None:
        """What an estimator says of a row; None for other models."""
        if self.architecture.kind != "estimator":
            return None
        model = self.model if self.model is not None else self.architecture.build(0)
        return answers_of(model.estimator) if isinstance(model, FittedModel) else None

    @property
    def labels(self) -> list[str]:
        """What a fitted estimator of another library calls the classes; empty where it does not say."""
        if not isinstance(self.model, FittedModel):
            return []
        return [str(label) for label in getattr(self.model.estimator, "classes_", [])]


def fitting(checkpoint: Checkpoint, family: Family) -> Checkpoint:
    """The checkpoint of an estimator with as many outputs as `family` has classes or values; any other as it is."""
    if checkpoint.architecture.kind != "estimator" or not isinstance(family, (Classifier, Regressor)):
        return checkpoint
    classes = family.classes if isinstance(family, Classifier) else []
    outputs = len(classes) if isinstance(family, Classifier) else len(family.targets)
    model, options = checkpoint.model, {**checkpoint.architecture.options, "outputs": outputs}
    if isinstance(model, FittedModel) and checkpoint.family is None:
        model = FittedModel(model.estimator, outputs, classes or None, bool(options.get("allow_pickle")))
    return replace(checkpoint, model=model, architecture=checkpoint.architecture.replace(options=options))


def load_checkpoint(
    reference: str | FactoryModel | Architecture,
    base: Path,
    *,
    allow_pickle: bool = False,
    notice: Callable[[str], None] = lambda _: None,
    under: str | None = None,
) -> Checkpoint:
    """Load the model that `reference` names; relative paths start from `base`.

    A folder with low-rank adapters gives the model that they belong to with the adapters merged: the one that the folder
    names, or `under`. `notice` is told before any code of the user is imported. Code that comes with a model on the hub is
    never run, and pickle files are refused unless `allow_pickle`.
    """
    if isinstance(reference, Architecture):
        if reference.kind == "module" or (reference.kind == "estimator" and ":" in reference.name):
            notice(f"importing and running '{reference.name}' to build the model")
        return Checkpoint(_anchored(reference, base), None)
    if isinstance(reference, FactoryModel):
        notice(f"importing and running '{reference.factory}' to build the model")
        architecture = Architecture(kind="module", name=reference.factory, options=reference.options)
        architecture = _anchored(architecture, base)
        if reference.weights is None:
            return Checkpoint(architecture, None)
        model = architecture.build(0)
        load_weights(
            model, read_weights(base / reference.weights, allow_pickle=allow_pickle), reference.weights
        )
        return Checkpoint(architecture, model.eval())
    folder = base / Path(reference).expanduser()
    if (folder / "adapter_config.json").is_file():
        named = _beneath(folder, under)
        below = load_checkpoint(named, base, allow_pickle=allow_pickle, notice=notice)
        return replace(below, model=_adapted(below.model, named, folder, allow_pickle))
    if (folder / "expunge.json").is_file():
        model, architecture, record = load_folder(folder, allow_pickle=allow_pickle)
        return Checkpoint(architecture, model.eval(), restore_family(record["family"]))
    if (folder / "model_index.json").is_file():
        return load_diffusion(str(folder))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BadInput(
                f"'{folder}' holds neither expunge.json, model_index.json (diffusers) nor config.json (transformers); "
                "give a model's folder, a hub id, or {factory: package.module:function, weights: FILE}"
            )
        return _transformers(str(folder), allow_pickle)
    if folder.is_file() and folder.suffix in PICKLED:
        return _pickled(folder, allow_pickle)
    if folder.exists() or reference.startswith((".", "/", "~")) or reference.count("/") > 1:
        raise BadInput(f"'{folder}' is no folder with a model; give a model's folder or a hub id")
    return _transformers(reference, allow_pickle)


def beneath_adapters(
    reference: str, base: Path, *, allow_pickle: bool = False, under: str | None = None
) -> nn.Module | None:
    """The model that the low-rank adapters in the folder `reference` belong to, as it is without them; None where it has none."""
    folder = base / Path(reference).expanduser()
    if not (folder / "adapter_config.json").is_file():
        return None
    return load_checkpoint(_beneath(folder, under), base, allow_pickle=allow_pickle).model


def _beneath(folder: Path, under: str | None) -> str:
    named = under or read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not named:
        raise BadInput(f"the adapter '{folder}' does not say which model it belongs to; name it with --base")
    return named


PICKLED = (".pkl", ".pickle", ".joblib")


def _pickled(file: Path, allow_pickle: bool) -> Checkpoint:
    """A fitted estimator of another library."""
    estimator = unpickled(file.read_bytes(), str(file), allow_pickle=allow_pickle)
    kind = type(estimator)
    architecture = Architecture(
        kind="estimator", name=f"{kind.__module__}:{kind.__qualname__}",
        options={**json_options(estimator), "allow_pickle": True},
    )  # fmt: skip
    return Checkpoint(architecture, FittedModel(estimator, 1, allow_pickle=True).eval())


def _adapted(model: nn.Module | None, named: str, folder: Path, allow_pickle: bool) -> nn.Module:
    """The model `named` with the adapters in `folder` merged, in place."""
    if model is None:
        raise AssertionError("a folder or hub id always comes with weights")
    if not (folder / "adapter_model.safetensors").is_file() and not allow_pickle:
        raise BadInput(
            f"'{folder}' has no safetensors weights, and pickle can run code when it is read; "
            "convert them to safetensors, or pass --allow-pickle if you trust where they come from"
        )
    record = read_json(folder / "expunge.json") if (folder / "expunge.json").is_file() else {}
    if record.get("base_id", fingerprint(model)) != fingerprint(model):
        raise BadInput(
            f"'{named}' is not the model that the adapter '{folder}' was trained on; name that one with --base"
        )
    peft = load_extra("peft", "lora", "reading low-rank adapters")
    is_open = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            merged = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (ValueError, RuntimeError, AttributeError, UserWarning) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(f"the adapter '{folder}' cannot be merged into '{named}': {reason}") from None
    for name, parameter in merged.named_parameters():
        parameter.requires_grad_(is_open.get(name, True))
    return merged.eval()


def _anchored(architecture: Architecture, base: Path) -> Architecture:
    """The same architecture, with a ``./file.py:factory`` reference that starts from `base`."""
    module, _, function = architecture.name.rpartition(":")
    if architecture.kind != "module" or not module.endswith(".py"):
        return architecture
    return architecture.replace(name=f"{(base / Path(module).expanduser()).resolve()}:{function}")


def _transformers(location: str, allow_pickle: bool) -> Checkpoint:
    import transformers

    with _readable(location):
        config = transformers.AutoConfig.from_pretrained(location, trust_remote_code=False)
    classes = list(getattr(config, "architectures", None) or [])
    task = next((t for suffix, t in _TASKS.items() for c in classes if c.endswith(suffix)), None)
    if task is None:
        raise BadInput(
            f"'{location}' is a {' or '.join(classes) or 'model without a head'}; "
            "expunge reads models for image classification, sequence classification and causal language modeling"
        )
    if Path(location).is_dir() and not any(Path(location).glob("*.safetensors")) and not allow_pickle:
        raise BadInput(
            f"'{location}' has no safetensors weights, and pickle can run code when it is read; "
            "convert them to safetensors, or pass --allow-pickle if you trust where they come from"
        )
    with _readable(location):
        model, report = getattr(transformers, AUTO_CLASSES[task]).from_pretrained(
            location,
            config=config,
            trust_remote_code=False,
            use_safetensors=None if allow_pickle else True,
            dtype=torch.float32,  # losses and small updates drown in half precision
            output_loading_info=True,
        )
    if report["missing_keys"]:
        # transformers would fill them with random numbers and go on.
        absent = sorted(report["missing_keys"])
        raise BadInput(
            f"the weights of '{location}' do not fit the model: '{absent[0]}' is missing "
            f"({len(absent)} in all); save the fine-tuned model whole"
        )
    return Checkpoint(
        Architecture.of_transformers(model, task), model.eval(), location=location, config=config
    )


def load_diffusion(location: str) -> Checkpoint:
    """A Stable Diffusion pipeline, folder or hub id; sampled as its pipeline does by default unless told otherwise."""
    model, tokenizer, schedule = load_pipeline(location)
    config = model.config["unet"]
    side = int(config["sample_size"])
    longest = int(model.config["text_encoder"]["max_position_embeddings"])
    family = Diffusion(
        tokenizer,
        schedule,
        (int(config["in_channels"]), side, side),
        min(int(tokenizer.model_max_length), longest),
    )
    architecture = Architecture(kind="diffusers", name="text-to-image", options=model.config)
    return Checkpoint(architecture, model, family, location)


@contextlib.contextmanager
def _readable(location: str) -> Iterator[None]:
    """Turn what `transformers` raises about a folder or hub id into one sentence; no progress bars."""
    from huggingface_hub.errors import HfHubHTTPError
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, HfHubHTTPError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        if not Path(location).is_dir() and ("connect" in reason.lower() or "offline" in reason.lower()):
            raise Missing(
                f"'{location}' is no folder here, and the Hugging Face hub cannot be reached to look there; "
                "check the path, or connect and run the same command again"
            ) from None
        raise BadInput(f"the model '{location}' cannot be loaded: {reason}") from None
    finally:
        if bars:
            logging.enable_progress_bar()
