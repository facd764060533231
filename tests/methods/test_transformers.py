"""Every method that forgets runs on models of the transformers library: BERT, ViT, ResNet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Array3D, Dataset, Features, Value

from expunge.families import Architecture, Classifier, Images, Regressor, Text
from expunge.methods import METHODS
from expunge.methods.base import Workplace
from expunge.problem import Problem

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
OPTIONS = {
    "bert": {"model_type": "bert", "vocab_size": 7, "max_position_embeddings": 16, **SMALL},
    "vit": {"model_type": "vit", "image_size": 8, "patch_size": 4, "num_channels": 1, **SMALL},
    "resnet": {
        "model_type": "resnet", "num_channels": 1, "embedding_size": 4, "hidden_sizes": [4, 8],
        "depths": [1, 1], "layer_type": "basic",
    },
}  # fmt: skip
TASKS = {"bert": "sequence-classification", "vit": "image-classification", "resnet": "image-classification"}


def _texts() -> Text:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "good", "bad", "film", "very", "a"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return Text(
        ["text"],
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"),
        16,
    )


@pytest.fixture(scope="module", params=["bert", "vit", "resnet", "bert regressor"])
def problem(request: pytest.FixtureRequest) -> Problem:
    kind, _, values = request.param.partition(" ")
    rng = np.random.default_rng(0)
    label = rng.integers(3, size=12)
    columns: dict[str, Any] = {
        "id": [str(i) for i in range(12)],
        "label": label,
        "y": label + rng.normal(size=12),
    }
    features: dict[str, Any] = {"id": Value("string"), "label": Value("int64"), "y": Value("float64")}
    if kind == "bert":
        words = ["good film", "a very bad film", "very very good", "bad"]
        columns["text"], features["text"] = [words[i % 4] for i in range(12)], Value("string")
        inputs = _texts()
    else:
        columns["image"] = rng.normal(size=(12, 1, 8, 8)).astype(np.float32)
        features["image"] = Array3D((1, 8, 8), "float32")
        inputs = Images()
    train = Dataset.from_dict(columns, features=Features(features))
    family = Regressor.fit(inputs, train, "y") if values else Classifier(inputs, 3)
    options = {**OPTIONS[kind], "num_labels": 1 if values else 3}
    architecture = Architecture(kind="transformers", name=TASKS[kind], options=options)
    return Problem(
        request.param, family, train, tuple("01234"), architecture=architecture, model=architecture.build(0)
    )


FORGETTING = sorted(name for name, method in METHODS.items() if method.kind != "exact")


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", FORGETTING)
def test_runs_and_gives_a_changed_finite_model(name: str, problem: Problem) -> None:
    method = METHODS[name]
    if obstacles := method.obstacles(problem):
        pytest.skip(f"{name}: {'; '.join(obstacles)}")
    known = method.model_fields
    settings = {k: v for k, v in {"epochs": 1, "batch_size": 5, "lr": 1e-2}.items() if k in known}
    settings |= {"alpha": 0.1, "lam": 0.05} if "lam" in known else {}
    if "importance" in known:
        settings["importance"] = "sample"
    if "noise_size" in known:
        settings["noise_size"] = 4
    made = method(**settings).forget(problem, Workplace(seed=1))
    assert made.cost.changed > 0
    assert all(torch.isfinite(p).all() for p in made.model.parameters())
    assert made.cost.examples >= len(problem.forget_rows)
