"""CLIP and Inception as they look at generated images, on networks of random weights."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from expunge.errors import BadInput, Missing
from expunge.evidence import collect
from expunge.families import Diffusion, restore_family
from expunge.families.viewers import ClipViewer, InceptionViewer, bytes_of
from expunge.metrics import METRICS, standard_metrics
from expunge.metrics.erasure import frechet_distance
from expunge.problem import Problem
from expunge.testing.pictures import tokenizer
from expunge.testing.problems import tiny_problem

OPTIONAL = {"clip-score", "inception-frechet-distance"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model of random weights with tokenizer and image processor, as transformers saves it."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    text = {
        "vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 4, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
    vision = {
        "image_size": 12, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32,
    }  # fmt: skip
    made = tmp_path_factory.mktemp("clip")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(made)
    tokenizer(4).save_pretrained(made)  # pyright: ignore
    size = {"shortest_edge": 12}
    CLIPImageProcessorPil(size=size, crop_size={"height": 12, "width": 12}).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def viewed(folder: Path) -> Problem:
    problem = tiny_problem("diffusion")
    described = problem.family.describe()
    return replace(problem, family=restore_family({**described, "clip": str(folder)}))


def test_similarity_is_what_clip_itself_says(folder: Path) -> None:
    from transformers import AutoImageProcessor, CLIPModel

    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    prompts = ["red left", "blue", "green right and much that is cut off"]
    found = ClipViewer(str(folder)).similarity(images, prompts)
    model = CLIPModel.from_pretrained(folder).eval()
    pictures = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in bytes_of(images)]
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(pictures, return_tensors="pt")[
        "pixel_values"
    ]
    words = tokenizer(4)(prompts, padding="max_length", truncation=True, max_length=4, return_tensors="pt")  # pyright: ignore
    with torch.no_grad():
        said = model(
            pixel_values=pixels, input_ids=words["input_ids"], attention_mask=words["attention_mask"]
        )
    cosine = (said.logits_per_image / model.logit_scale.exp()).diagonal().detach().numpy()
    np.testing.assert_allclose(found, cosine, atol=1e-5)


def test_the_score_is_measured_where_a_model_is_named(viewed: Problem, folder: Path) -> None:
    assert isinstance(viewed.family, Diffusion)
    plain = tiny_problem("diffusion").family
    assert not OPTIONAL & {m.name for m in standard_metrics(plain)}
    assert OPTIONAL & {m.name for m in standard_metrics(viewed.family)} == {"clip-score"}
    assert restore_family(viewed.family.describe()).describe() == viewed.family.describe()
    evidence = collect(viewed.family, viewed.target, viewed.splits["test"], ["clip_score", "image"])
    pixels = torch.from_numpy(evidence["image"].reshape(-1, 3, 8, 8).copy())
    by_hand = ClipViewer(str(folder)).similarity(pixels / 127.5 - 1, viewed.splits["test"]["prompt"][:])
    score = METRICS["clip-score"]("test", {("model", "test"): [evidence]})
    assert score.value == pytest.approx(100 * np.maximum(by_hand, 0).mean(), abs=1e-4)
    assert score.unit == "100 x cosine" and score.n == len(evidence)


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.zeros(1, 3, 8, 8)
    with pytest.raises(BadInput, match="there is no CLIP model at"):
        ClipViewer(str(tmp_path)).similarity(image, ["red"])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(BadInput, match="is no CLIP model"):
        ClipViewer(str(tmp_path)).similarity(image, ["red"])
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(Missing, match=r"pip install 'expunge\[fid\]'"):
        InceptionViewer("weights.safetensors").features(image)


def test_inception_features_are_those_of_torch_fidelity(tmp_path: Path) -> None:
    library = pytest.importorskip("torch_fidelity")
    from safetensors.torch import save_file

    bare = library.FeatureExtractorInceptionV3
    with pytest.raises(BadInput, match="there are no Inception weights"):
        InceptionViewer(str(tmp_path / "weights.pth")).features(torch.zeros(1, 3, 8, 8))
    module = sys.modules[bare.__module__]
    loaded, module.load_state_dict_from_url = module.load_state_dict_from_url, lambda *a, **k: {}  # pyright: ignore
    load, bare.load_state_dict = bare.load_state_dict, lambda self, state: None
    try:
        torch.manual_seed(0)
        network = bare("inception-v3-compat", ["2048"])
    finally:
        module.load_state_dict_from_url, bare.load_state_dict = loaded, load  # pyright: ignore
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = InceptionViewer(str(tmp_path / "weights.safetensors")).features(images)
    assert found.shape == (3, 2048)
    np.testing.assert_allclose(found, network(bytes_of(images))[0].numpy(), atol=1e-5)
    problem = tiny_problem("diffusion")
    family = restore_family({**problem.family.describe(), "inception": str(tmp_path / "weights.safetensors")})
    assert "inception-frechet-distance" in {m.name for m in standard_metrics(family)}
    few = problem.splits["test"].select(range(3))
    evidence = collect(family, problem.target, few, ["inception_features", "inception_image_features"])
    score = METRICS["inception-frechet-distance"]("test", {("model", "test"): [evidence]})
    by_hand = frechet_distance(evidence["inception_features"], evidence["inception_image_features"])
    assert score.value == pytest.approx(by_hand)
