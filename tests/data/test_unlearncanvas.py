"""UnlearnCanvas from folders in the published form, in small: pictures, a Stable Diffusion folder, and two judges."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from expunge.cli import main
from expunge.data.benchmarks.unlearncanvas import OBJECTS, PHOTOGRAPHS, STYLES, UnlearnCanvas
from expunge.data.checkpoints import load_diffusion
from expunge.data.specification import ProblemSpec
from expunge.errors import BadInput, Missing
from expunge.problem import Problem

MADE_STYLES, MADE_OBJECTS, IMAGES = ["Crayon", PHOTOGRAPHS, "Van_Gogh"], ["Cats", "Dogs"], 2
SIDE = 8


@pytest.fixture(scope="module")
def canvas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``STYLE/OBJECT/NUMBER.jpg``."""
    folder, random = tmp_path_factory.mktemp("canvas"), np.random.default_rng(0)
    for style in MADE_STYLES:
        for thing in MADE_OBJECTS:
            (folder / style / thing).mkdir(parents=True)
            for i in range(IMAGES):
                pixels = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / style / thing / f"{i + 1}.jpg")
    return folder


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One of styles as timm saves it, one of objects as `transformers` does."""
    from transformers import ViTConfig, ViTForImageClassification

    folder = tmp_path_factory.mktemp("judges")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "image_size": SIDE,
        "patch_size": 4,
    }  # fmt: skip
    ViTForImageClassification(ViTConfig(**sizes, num_labels=len(MADE_OBJECTS))).save_pretrained(
        folder / "objects"
    )
    (folder / "objects" / "preprocessor_config.json").write_text(
        json.dumps({
            "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": SIDE, "width": SIDE},
            "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        })
    )  # fmt: skip
    shapes = {
        "cls_token": (1, 1, 64), "pos_embed": (1, 5, 64), "patch_embed.proj.weight": (64, 3, 4, 4),
        "patch_embed.proj.bias": (64,),
        "norm.weight": (64,), "norm.bias": (64,), "head.weight": (len(MADE_STYLES), 64), "head.bias": (len(MADE_STYLES),),
        "blocks.0.norm1.weight": (64,), "blocks.0.norm1.bias": (64,), "blocks.0.norm2.weight": (64,),
        "blocks.0.norm2.bias": (64,), "blocks.0.attn.qkv.weight": (192, 64), "blocks.0.attn.qkv.bias": (192,),
        "blocks.0.attn.proj.weight": (64, 64), "blocks.0.attn.proj.bias": (64,), "blocks.0.mlp.fc1.weight": (8, 64),
        "blocks.0.mlp.fc1.bias": (8,), "blocks.0.mlp.fc2.weight": (64, 8), "blocks.0.mlp.fc2.bias": (64,),
    }  # fmt: skip
    torch.save({"model_state_dict": {k: torch.randn(s) for k, s in shapes.items()}}, folder / "style.pth")
    return folder / "style.pth", folder / "objects"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))


def options(canvas: Path, judges: tuple[Path, Path], **more: Any) -> dict[str, Any]:
    return {
        "data_dir": str(canvas), "style_judge": str(judges[0]), "object_judge": str(judges[1]), "allow_pickle": True,
        "styles": MADE_STYLES, "objects": MADE_OBJECTS, "images": IMAGES, "answers": 2, "steps": 2, **more,
    }  # fmt: skip


def build(canvas: Path, judges: tuple[Path, Path], stable_diffusion: Path, **more: Any) -> Problem:
    spec = ProblemSpec(
        benchmark="unlearncanvas", model=str(stable_diffusion), options=options(canvas, judges, **more)
    )
    return spec.build()


def test_rows_are_latents_of_the_pictures_and_anchors_are_the_photographs(
    canvas: Path, judges: tuple[Path, Path], stable_diffusion: Path
):
    problem = build(canvas, judges, stable_diffusion)
    assert {k: len(v) for k, v in problem.splits.items()} == {
        "forget": 4,
        "retain": 8,
        "test": 8,
        "concept": 4,
    }
    assert problem.recipe is None and problem.family.concept == {"style": "Van_Gogh"}  # pyright: ignore
    rows = {row["id"]: row for row in problem.train.with_format(None)}  # pyright: ignore
    row, photograph = rows["train-Van_Gogh-Dogs-01"], rows[f"train-{PHOTOGRAPHS}-Dogs-01"]
    assert row["prompt"] == "A Dogs image in Van Gogh style."
    assert row["anchor_prompt"] == "A Dogs image in Seed Images style."
    assert row["anchor_latents"] == photograph["latents"] != row["latents"]
    picture = Image.open(canvas / "Van_Gogh" / "Dogs" / "2.jpg").resize(
        (SIDE, SIDE), Image.Resampling.BILINEAR
    )
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    from diffusers import StableDiffusionPipeline

    vae = StableDiffusionPipeline.from_pretrained(stable_diffusion, safety_checker=None).vae
    with torch.no_grad():
        theirs = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
    assert np.allclose(np.asarray(row["latents"]), theirs.flatten().numpy(), atol=1e-5)


def test_a_run_of_the_study(
    canvas: Path,
    judges: tuple[Path, Path],
    stable_diffusion: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    given = options(canvas, judges)
    given.pop("data_dir")
    changes = [f"--set={k}={json.dumps(v)}" for k, v in {**given, "model": str(stable_diffusion)}.items()]
    few = json.dumps(["uce", {"name": "random-labeling", "epochs": 1}])
    arguments = [
        "run",
        "unlearncanvas",
        f"--data-dir={canvas}",
        f"--runs={tmp_path / 'runs'}",
        "--workers=0",
        *changes,
    ]
    monkeypatch.setattr(sys, "argv", ["expunge", *arguments, f"--set=methods={few}"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    scores = json.loads((tmp_path / "runs" / "unlearncanvas" / "scores.json").read_text())
    found = {
        (m["problem"], m["label"], s["metric"], s["split"]): s["value"] for m in scores["judged"] for s in m["scores"]
    }  # fmt: skip
    for problem in ("style", "object"):
        for metric, split in (("unlearning-accuracy", "concept"), ("in-domain-retain-accuracy", "test"),
                              ("cross-domain-retain-accuracy", "test"), ("cross-domain-retain-accuracy-script", "test"),
                              ("frechet-distance", "test"), ("seconds", "run"), ("stored-bytes", "run")):  # fmt: skip
            assert found[problem, "uce", metric, split] is not None
    # Random weights: what a pair has in common with no judge's column is undefined, not 0.
    assert found["pair", "uce", "cross-domain-retain-accuracy", "test"] is None
    assert found["pair", "uce", "unlearning-accuracy", "concept"] is not None
    # Relabeling trains the whole denoiser and nothing else, in float32.
    weights = load_diffusion(str(stable_diffusion)).model.unet.parameters()  # pyright: ignore
    kept = found["style", "random-labeling (epochs=1)", "stored-bytes", "run"]
    assert kept == 4 * sum(w.numel() for w in weights)


def test_published_counts(monkeypatch: pytest.MonkeyPatch, judges: tuple[Path, Path], stable_diffusion: Path):
    """A style is 100 of 5,100 images, an object 255, and a pair 5."""
    latents = {style: np.zeros((len(OBJECTS), 256), np.float32) for style in STYLES}
    monkeypatch.setattr(UnlearnCanvas, "_latents", lambda self, model: latents)
    monkeypatch.setattr(UnlearnCanvas, "_judge", lambda self, column, given, classes: _named(column, classes))
    checkpoint = load_diffusion(str(stable_diffusion))
    sizes = {
        what: {k: len(v) for k, v in UnlearnCanvas(forget=what, images=1).about(checkpoint).probes.items()}  # pyright: ignore
        for what in ("where:style == Monet", "where:object == Sea", "where:style == Monet and object == Sea")
    }
    assert [s["concept"] for s in sizes.values()] == [100, 255, 5]
    assert [s["test"] for s in sizes.values()] == [5000, 4845, 5095]
    later = UnlearnCanvas(forget="where:style == Monet", earlier=["Winter"], images=1).about(checkpoint)  # pyright: ignore
    assert {k: len(v) for k, v in later.splits.items()} == {
        "forget": 20, "retain": 980, "test": 4900, "concept": 100, "earlier": 100,
    }  # fmt: skip


def _named(column: str, classes: list[str]) -> Any:
    from expunge.families.judges import Judge

    return Judge(column, "nowhere", classes)


def test_what_is_missing_is_said(
    canvas: Path, judges: tuple[Path, Path], stable_diffusion: Path, tmp_path: Path
):
    with pytest.raises(Missing, match="give a Stable Diffusion folder as model"):
        UnlearnCanvas().problem()
    for change, error, said in (
        ({"allow_pickle": False}, BadInput, "is a pickle file"),
        ({"data_dir": None}, Missing, "the images are not part of expunge; .*data_dir"),
        ({"style_judge": None}, Missing, "no judge of the style is given; set style_judge"),
        ({"style_judge": str(tmp_path / "x")}, BadInput, "no judge of the style at"),
        ({"styles": [*MADE_STYLES, "Monet"]}, BadInput, "no folder of 1 of 4 styles \\(first: 'Monet'\\)"),
        ({"images": 3}, BadInput, "pictures are not there"),
        ({"forget": "fraction=0.5"}, BadInput, "is no style, no object and no pair"),
        ({"earlier": ["Monet"]}, BadInput, "no style is called 'Monet'"),
    ):
        with pytest.raises(error, match=said):
            build(canvas, judges, stable_diffusion, **change)
