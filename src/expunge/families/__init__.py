"""Families: how each kind of model reads a batch."""

from __future__ import annotations

from typing import Any

from expunge.errors import BadInput, did_you_mean
from expunge.families.base import Batch, Family, Outputs, metered
from expunge.families.batches import Batches
from expunge.families.causal_lm import CausalLM
from expunge.families.classifier import Classifier
from expunge.families.diffusion import Diffusion
from expunge.families.estimator import Estimator
from expunge.families.gan import Gan
from expunge.families.generation import Generation
from expunge.families.images import Images
from expunge.families.inputs import Inputs, Table, Text
from expunge.families.models import Architecture
from expunge.families.prompts import Template
from expunge.families.regressor import Regressor

FAMILIES: dict[
    str, type[Classifier] | type[Regressor] | type[CausalLM] | type[Diffusion] | type[Gan] | type[Estimator]
] = {f.name: f for f in (Classifier, Regressor, CausalLM, Diffusion, Gan, Estimator)}


def restore_family(description: dict[str, Any]) -> Family:
    """The inverse of `Family.describe`."""
    name = description["family"]
    if name not in FAMILIES:
        raise BadInput(f"unknown family '{name}'{did_you_mean(name, FAMILIES)}")
    return FAMILIES[name].restore(description)


__all__ = [
    "FAMILIES",
    "Architecture",
    "Batch",
    "Batches",
    "CausalLM",
    "Classifier",
    "Diffusion",
    "Estimator",
    "Family",
    "Gan",
    "Generation",
    "Images",
    "Inputs",
    "Outputs",
    "Regressor",
    "Table",
    "Template",
    "Text",
    "metered",
    "restore_family",
]
