"""Layers, heads, architectures and weights of the built-in and the transformers models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from expunge.errors import BadInput, Missing
from expunge.families import Architecture, Batch, Classifier, Images, Table, metered
from expunge.families.base import as_positions, block_names
from expunge.families.models import call, clone, fingerprint
from expunge.families.weights import load_folder, load_weights, read_weights, save_model, save_weights

IMAGE, TEXT = "image-classification", "sequence-classification"
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_labels": 3,
}
VIT = {"model_type": "vit", "image_size": 8, "patch_size": 4, "num_channels": 1, **SIZES}
BERT = {"model_type": "bert", "vocab_size": 50, "max_position_embeddings": 16, **SIZES}
RESNET = {
    "model_type": "resnet",
    "num_channels": 1,
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [2, 1],
    "layer_type": "basic",
    "num_labels": 3,
}
MLP = {"inputs": 64, "outputs": 3, "hidden": [8, 4]}
MODELS = {
    "mlp": Architecture(kind="builtin", name="mlp", options=MLP),
    "cnn": Architecture(kind="builtin", name="cnn", options={"channels": 1, "size": 8, "outputs": 3}),
    "vit": Architecture(kind="transformers", name=IMAGE, options=VIT),
    "resnet": Architecture(kind="transformers", name=IMAGE, options=RESNET),
    "bert": Architecture(kind="transformers", name=TEXT, options=BERT),
}
LAYERS = {
    "mlp": ["layers.0", "layers.1", "head"],
    "cnn": ["convs.0", "convs.1", "hidden", "head"],
    "vit": [
        "vit.embeddings.patch_embeddings.projection",
        "vit.layers.0",
        "vit.layers.1",
        "vit.layernorm",
        "classifier",
    ],
    "resnet": [
        "resnet.embedder.embedder.convolution",
        "resnet.embedder.embedder.normalization",
        "resnet.encoder.stages.0",
        "resnet.encoder.stages.1",
        "classifier.1",
    ],
    "bert": [
        "bert.embeddings.word_embeddings",
        "bert.embeddings.position_embeddings",
        "bert.embeddings.token_type_embeddings",
        "bert.embeddings.LayerNorm",
        "bert.encoder.layer.0",
        "bert.encoder.layer.1",
        "bert.pooler.dense",
        "classifier",
    ],
}
HEADS = {"mlp": "head", "cnn": "head", "vit": "classifier", "resnet": "classifier.1", "bert": "classifier"}
FAMILY = Classifier(Images("image"), 3)


def batch(kind: str, n: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(0)
    if kind == "bert":
        ids = torch.randint(1, 50, (n, 5), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    else:
        inputs = {"pixel_values": torch.rand(n, 1, 8, 8, generator=generator)}
    return Batch(
        [str(i) for i in range(n)],
        inputs,
        torch.zeros(n, 1, dtype=torch.long),
        torch.ones(n, 1, dtype=torch.bool),
    )


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_layers_and_head_by_hand(kind: str) -> None:
    model = MODELS[kind].build(0)
    assert block_names(model) == LAYERS[kind] and FAMILY.head(model) == HEADS[kind]


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_every_layer_can_be_read_and_leads_to_the_same_prediction(kind: str) -> None:
    model = MODELS[kind].build(0).eval()
    seen = FAMILY.forward(model, batch(kind), LAYERS[kind])
    assert set(seen.hidden) == set(LAYERS[kind])
    assert all(h.dim() == 3 for h in seen.hidden.values())
    assert torch.equal(seen.prediction, FAMILY.forward(model, batch(kind)).prediction)
    # The head's own output is the prediction: an independent route to the same numbers.
    assert torch.equal(seen.hidden[HEADS[kind]], seen.prediction)
    assert not any(module._forward_hooks for module in model.modules())


def test_positions_of_activations() -> None:
    image = torch.arange(24.0).reshape(1, 2, 3, 4)
    positions = as_positions(image)
    assert positions.shape == (1, 12, 2) and positions[0, 5].tolist() == image[0, :, 1, 1].tolist()
    assert as_positions(torch.zeros(2, 5)).shape == (2, 1, 5) and as_positions(
        torch.zeros(2, 7, 5)
    ).shape == (2, 7, 5)


def test_forward_passes_are_counted() -> None:
    model = MODELS["cnn"].build(0)
    with metered() as outer:
        FAMILY.forward(model, batch("cnn", 5))
        with metered() as inner:
            FAMILY.forward(model, batch("cnn", 3), ["hidden"])
    assert (outer.examples, inner.examples) == (8, 3)


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_seeds_fix_fresh_weights_and_leave_the_global_state(kind: str) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, same, other = (MODELS[kind].build(s) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert fingerprint(first) == fingerprint(same) != fingerprint(other)


@pytest.mark.parametrize("kind", ["vit", "resnet", "bert"])
def test_architecture_of_a_loaded_model_builds_the_same_one(kind: str) -> None:
    model = MODELS[kind].build(0)
    again = Architecture.of_transformers(model, MODELS[kind].name)
    assert fingerprint(again.build(0)) == fingerprint(model) and Architecture(**again.model_dump()) == again


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_saved_folder_gives_the_same_model(tmp_path: Path, kind: str) -> None:
    model = MODELS[kind].build(7)
    save_model(model, tmp_path, MODELS[kind], FAMILY.describe(), {"seed": 7})
    again, architecture, record = load_folder(tmp_path)
    assert fingerprint(again) == fingerprint(model) == record["fingerprint"]
    assert architecture == MODELS[kind] and record["family"] == FAMILY.describe() and record["seed"] == 7


def test_clone_shares_nothing() -> None:
    model = MODELS["mlp"].build(0)
    copy = clone(model)
    before = fingerprint(model)
    with torch.no_grad():
        next(copy.parameters()).add_(1)
    assert fingerprint(model) == before != fingerprint(copy)


def test_models_are_called_as_they_expect() -> None:
    mlp, vit = MODELS["mlp"].build(0), MODELS["vit"].build(0).eval()
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(call(mlp, {"anything": x}), mlp(x))
    assert torch.equal(call(vit, {"pixel_values": x}), vit(pixel_values=x).logits)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="unknown built-in model 'cnnn'; did you mean 'cnn'"):
        Architecture(kind="builtin", name="cnnn").build(0)
    with pytest.raises(BadInput, match=r"model 'mlp' cannot be built from \{'inputs': 3\}: .*missing"):
        Architecture(kind="builtin", name="mlp", options={"inputs": 3}).build(0)
    with pytest.raises(BadInput, match="images of 2 pixels cannot be halved 2 times; give fewer widths"):
        Architecture(kind="builtin", name="cnn", options={"channels": 1, "size": 2, "outputs": 2}).build(0)
    with pytest.raises(
        BadInput, match="unknown transformers task 'image-clasification'; did you mean 'image-classification'"
    ):
        Architecture(kind="transformers", name="image-clasification").build(0)
    with pytest.raises(BadInput, match="the model has no layer 'hiden'; did you mean 'hidden'"):
        FAMILY.forward(MODELS["cnn"].build(0), batch("cnn"), ["hiden"])
    with pytest.raises(BadInput, match="ReLU has no linear layer that could be its head"):
        Classifier(Table(["x"]), 2).head(nn.ReLU())
    with pytest.raises(Missing, match="holds no expunge.json; was the run that writes it finished"):
        load_folder(tmp_path)


def test_refused_weights(tmp_path: Path) -> None:
    model = MODELS["mlp"].build(0)
    save_weights(model, tmp_path / "w.safetensors")
    weights = read_weights(tmp_path / "w.safetensors")
    load_weights(MODELS["mlp"].build(1), weights, "w")
    less = {k: v for k, v in weights.items() if k != "head.bias"}
    with pytest.raises(
        BadInput, match=r"of 'w' do not fit the model: the file lacks 'head.bias' \(1 missing, 0 unexpected\)"
    ):
        load_weights(model, less, "w")
    with pytest.raises(
        BadInput, match=r"the file has 'extra', which the model does not \(0 missing, 1 unexpected\)"
    ):
        load_weights(model, {**weights, "extra": torch.zeros(1)}, "w")
    with pytest.raises(BadInput, match=r"'head.bias' has shape \(2,\), the model expects \(3,\)"):
        load_weights(model, {**weights, "head.bias": torch.zeros(2)}, "w")
    with pytest.raises(BadInput, match="no weights at"):
        read_weights(tmp_path / "absent.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(BadInput, match="is not a readable safetensors file"):
        read_weights(tmp_path / "broken.safetensors")
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(BadInput, match="is a pickle checkpoint, which can run code when it is read"):
        read_weights(tmp_path / "w.pt")
    assert torch.equal(read_weights(tmp_path / "w.pt", allow_pickle=True)["head.bias"], weights["head.bias"])
