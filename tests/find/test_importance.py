"""Importances against loops of single backward passes, closed forms, and the clock."""

import time
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Array3D, Dataset, Features, Value
from torch import nn

from expunge.errors import BadInput
from expunge.families import Batches, Classifier, Images, Regressor, Table, Text, metered
from expunge.families.models import CNN, MLP
from expunge.find import importance
from expunge.find.importance import batch_importance, gradient_sum, sample_importance


def images(n: int, size: int = 8) -> Batches:
    rng = np.random.default_rng(0)
    features = Features(
        {"id": Value("string"), "image": Array3D((1, size, size), "float32"), "label": Value("int64")}
    )
    columns = {
        "id": [str(i) for i in range(n)],
        "image": rng.normal(size=(n, 1, size, size)).astype(np.float32),
        "label": rng.integers(3, size=n),
    }
    return Batches(Classifier(Images(), 3), Dataset.from_dict(columns, features=features))


def table(n: int) -> Dataset:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, 3))
    columns = {c: x[:, j] for j, c in enumerate("abc")}
    ids = [str(i) for i in range(n)]
    return Dataset.from_dict({"id": ids, **columns, "label": rng.integers(3, size=n), "y": x.sum(1)})


def texts() -> Batches:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "good", "bad", "film", "very", "a"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    rows = ["good film", "a very bad film", "very very good", "bad", "a film"]
    data = Dataset.from_dict({"id": list("vwxyz"), "text": rows, "label": [1, 0, 1, 0, 2]})
    return Batches(Classifier(Text(["text"], fast, 16), 3), data)


def slow(batches: Batches, model: nn.Module, power: int, loss=None) -> dict[str, torch.Tensor]:
    """One backward pass per example."""
    model.eval()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in range(len(batches)):
        batch = batches.take(torch.tensor([row]))
        outputs = batches.family.forward(model, batch)
        model.zero_grad()
        (loss or batches.family.nll)(outputs, batch).sum().backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                total[name] += p.grad.abs() ** power / len(batches)
    model.zero_grad()
    return total


def same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-8 + 1e-5 * value.abs().max().item())


def build(name: str) -> tuple[Batches, Any]:
    import transformers as hf

    torch.manual_seed(0)
    small: dict[str, Any] = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "num_labels": 3,
    }
    if name == "cnn":
        return images(20), CNN(1, 8, 3)
    if name == "cnn with batch norm":
        model = CNN(1, 8, 3, batchnorm=True)
        model(torch.randn(16, 1, 8, 8))  # statistics unlike the initial ones
        return images(20), model
    if name == "regressor":
        return Batches(Regressor(Table(["a", "b", "c"]), "y"), table(20)), MLP(3, 1, [6])
    if name == "vit":
        config = hf.ViTConfig(image_size=8, patch_size=4, num_channels=1, **small)
        return images(6), hf.ViTForImageClassification(config)
    if name == "resnet":
        stages: dict[str, Any] = {"hidden_sizes": [4], "depths": [1], "layer_type": "basic", "num_labels": 3}
        config = hf.ResNetConfig(num_channels=1, embedding_size=4, **stages)
        return images(6), hf.ResNetForImageClassification(config)
    config = hf.BertConfig(vocab_size=7, max_position_embeddings=16, **small)
    return texts(), hf.BertForSequenceClassification(config)


MODELS = ["cnn", "cnn with batch norm", "regressor", "vit", "resnet", "bert"]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_sample_importance_equals_single_backward_passes(name, power):
    batches, model = build(name)
    same(sample_importance(batches.family, model, batches, 7, power=power), slow(batches, model, power))


def test_another_loss():
    batches, model = build("cnn")

    def norm(outputs, batch):
        return outputs.prediction.square().sum((1, 2))

    found = sample_importance(batches.family, model, batches, 64, norm, power=1)
    same(found, slow(batches, model, 1, norm))


def test_chunks_bound_the_memory_and_not_the_result(monkeypatch):
    batches, model = build("cnn")
    whole = sample_importance(batches.family, model, batches, 64)
    sizes = []
    monkeypatch.setattr(importance, "CHUNK_BYTES", 3 * 4 * sum(p.numel() for p in model.parameters()))
    monkeypatch.setattr(Batches, "sequential", _noting(Batches.sequential, sizes))
    same(sample_importance(batches.family, model, batches, 64), whole)
    assert sizes == [3]


def _noting(sequential, sizes):
    def noted(self, batch_size):
        sizes.append(batch_size)
        return sequential(self, batch_size)

    return noted


@pytest.mark.parametrize("size", [1, 6, 20, 50])
@pytest.mark.parametrize("power", [1, 2])
def test_batch_importance_equals_a_slow_version(size, power):
    batches, model = build("cnn")
    x = torch.cat([b.inputs["pixel_values"] for _, b in batches.sequential(64)])
    y = torch.cat([b.targets[:, 0] for _, b in batches.sequential(64)])
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    parts = [slice(start, start + size) for start in range(0, 20, size)]
    for part in parts:
        gradients = torch.autograd.grad(F.cross_entropy(model(x[part]), y[part]), list(model.parameters()))
        for name, g in zip(expected, gradients, strict=True):
            expected[name] += g.abs() ** power / len(parts)
    same(batch_importance(batches.family, model, batches, size, power=power), expected)


def test_with_batches_of_one_both_importances_agree():
    batches, model = build("cnn with batch norm")
    same(
        batch_importance(batches.family, model, batches, 1),
        sample_importance(batches.family, model, batches, 64),
    )


def test_gradient_sum_adds_batch_means_with_their_signs():
    batches, model = build("cnn")
    x = torch.cat([b.inputs["pixel_values"] for _, b in batches.sequential(64)])
    y = torch.cat([b.targets[:, 0] for _, b in batches.sequential(64)])
    parts = [slice(0, 8), slice(8, 16), slice(16, 20)]
    total = torch.stack([F.cross_entropy(model(x[part]), y[part]) for part in parts]).sum()
    gradients = torch.autograd.grad(total, list(model.parameters()))
    found = gradient_sum(batches.family, model, batches, 8)
    for name, expected in zip(found, gradients, strict=True):
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)


def test_fisher_of_a_linear_softmax_in_closed_form():
    """Row c of each gradient is (p_c - 1{c = y}) x."""
    data: Any = table(30)
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    batches = Batches(Classifier(Table(["a", "b", "c"]), 3), data)
    x = torch.tensor([[row[c] for c in "abc"] for row in data], dtype=torch.float32)
    residual = (model(x).softmax(-1) - F.one_hot(torch.tensor(data["label"]), 3)).detach()
    found = sample_importance(batches.family, model, batches, 64)
    expected = {"weight": (residual.square().T @ x.square()) / 30, "bias": residual.square().mean(0)}
    same(found, expected)


def test_frozen_parameters_are_left_out_and_modes_restored():
    batches, model = build("cnn with batch norm")
    model.train()
    model.convs[0].eval()
    model.hidden.weight.requires_grad_(False)
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    for measure in (batch_importance, sample_importance, gradient_sum):
        assert set(measure(batches.family, model, batches, 8)) == set(dict(model.named_parameters())) - {
            "hidden.weight"
        }
    assert model.training
    assert not model.convs[0].training
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())


def test_half_precision_accumulates_in_float32():
    batches, model = build("regressor")
    wide = sample_importance(batches.family, model, batches, 64)
    assert {value.dtype for value in wide.values()} == {torch.float32}
    model.double()
    found = batch_importance(Doubled(Table(["a", "b", "c"]), "y"), model, batches, 1)
    assert {value.dtype for value in found.values()} == {torch.float64}
    same({k: v.float() for k, v in found.items()}, wide)


class Doubled(Regressor):
    def predict(self, model, batch):
        from dataclasses import replace

        return super().predict(model, replace(batch, inputs={k: v.double() for k, v in batch.inputs.items()}))


def test_every_example_is_counted_once():
    batches, model = build("cnn")
    for measure in (batch_importance, sample_importance, gradient_sum):
        with metered() as meter:
            measure(batches.family, model, batches, 8)
        assert meter.examples == 20


def test_a_fault_of_the_model_is_not_hidden():
    batches, _ = build("cnn")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        sample_importance(batches.family, nn.Sequential(nn.Flatten(), nn.Linear(5, 3)), batches, 8)


def test_nothing_to_measure_is_refused():
    batches, model = build("cnn")
    empty = Batches(batches.family, table(3).select([]))
    for measure in (batch_importance, sample_importance, gradient_sum):
        with pytest.raises(BadInput, match="over an empty data set"):
            measure(batches.family, model, empty, 8)


def test_vectorized_is_four_times_as_fast_as_single_backward_passes():
    batches, model = images(64), CNN(1, 8, 3)
    sample_importance(batches.family, model, batches, 64)  # warm up

    def fastest(run, *args) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            run(*args)
            times.append(time.perf_counter() - start)
        return min(times)

    # One by one, but otherwise as lean as the vectorized version.
    single = fastest(batch_importance, batches.family, model, batches, 1)
    vectorized = fastest(sample_importance, batches.family, model, batches, 64)
    assert single > 4 * vectorized
