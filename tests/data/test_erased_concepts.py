"""Erasing a concept named in words from a Stable Diffusion folder, and reading the result with plain diffusers."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from expunge.cli import main
from expunge.data.concepts import TEMPLATES, named_concept
from expunge.data.specification import ProblemSpec
from expunge.errors import BadInput
from expunge.families import Diffusion
from expunge.families.pipelines import load_pipeline, save_pipeline_adapter


def images(folder: Path, prompt: str) -> torch.Tensor:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, feature_extractor=None)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        prompt, num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt", height=8, width=8
    )  # fmt: skip
    return made.images


@dataclass
class Result:
    exit_code: int
    output: str
    error: str


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def run(folder: Path, out: Path, *more: str) -> Result:
        arguments = ["forget", "--model", str(folder), "--concept", "red", "--out", str(out), *more]
        monkeypatch.setattr(sys, "argv", ["expunge", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        return Result(int(caught.value.code or 0), said.out, said.err)

    return run


FEW = {
    "esd": ["epochs=1", "lr=0.01"],
    "spm": ["epochs=2", "lr=0.1", "anchors=1"],
    "doco": ["epochs=1", "lr=0.01", "n_images=4", "discriminator_steps=2", "width=8"],
    "advunlearn": ["epochs=2", "lr=0.01", "attack_steps=2", "latents=once", "clean=0"],
}
"""Settings of quick runs."""


def settings(method: str) -> list[str]:
    return [part for value in FEW.get(method, []) for part in ("--set", value)]


@pytest.mark.parametrize("method", ["uce", "rece", "esd", "doco", "advunlearn"])
def test_a_concept_is_erased_and_plain_diffusers_reads_the_rest(
    stable_diffusion: Path, tmp_path: Path, forget: Callable[..., Result], method: str
) -> None:
    result = forget(
        stable_diffusion,
        tmp_path / "out",
        "--anchor",
        "green",
        "--method",
        method,
        "--json",
        *settings(method),
    )
    assert result.exit_code == 0, result.error
    assert json.loads(result.output)["problem"]["scope"] == "the concept 'red'"
    made = tmp_path / "out" / "pipeline"
    torch.testing.assert_close(images(made, "red"), images(made, "red"))
    assert not torch.allclose(images(made, "red"), images(stable_diffusion, "red"))
    model, _, _ = load_pipeline(made)
    from expunge.families.weights import load_folder

    again, _, record = load_folder(tmp_path / "out")
    assert record["method"] == method
    for name, value in model.unet.state_dict().items():
        torch.testing.assert_close(again.state_dict()[f"unet.{name}"], value)
    # AdvUnlearn hands on an encoder, and the others a denoiser, with everything else bitwise as it was.
    before, moved = load_pipeline(stable_diffusion)[0].state_dict(), set[str]()
    for name, value in model.state_dict().items():
        if not torch.equal(before[name], value):
            moved.add(name.partition(".")[0])
    assert moved == {"text_encoder" if method == "advunlearn" else "unet"}


def with_adapter(base: Path, adapter: Path, prompt: str, weight: float = 1.0) -> torch.Tensor:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, feature_extractor=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(adapter, adapter_name="erased")
    pipe.set_adapters(["erased"], [weight])
    made = pipe(
        prompt, num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt", height=8, width=8
    )  # fmt: skip
    return made.images


@pytest.mark.parametrize(
    ("method", "lora"), [("spm", []), ("esd", ["--lora", "r=2,alpha=6,targets=to_k+to_v+proj_in"])]
)
def test_a_saved_adapter_gives_the_merged_models_images(
    stable_diffusion: Path, tmp_path: Path, forget: Callable[..., Result], method: str, lora: list[str]
) -> None:
    more = ["--set", "part=all"] if method == "esd" else []
    result = forget(stable_diffusion, tmp_path / "out", "--method", method, *settings(method), *lora, *more)
    assert result.exit_code == 0, result.error
    adapter, merged = tmp_path / "out" / "adapter", tmp_path / "out" / "pipeline"
    for prompt in ("red", "blue left"):
        plain = images(stable_diffusion, prompt)
        torch.testing.assert_close(
            with_adapter(stable_diffusion, adapter, prompt), images(merged, prompt), atol=1e-4, rtol=0
        )
        torch.testing.assert_close(
            with_adapter(stable_diffusion, adapter, prompt, 0.0), plain, atol=1e-5, rtol=0
        )
        assert not torch.allclose(images(merged, prompt), plain, atol=1e-3)


def test_adapters_of_the_text_encoder_are_read_too(stable_diffusion: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        stable_diffusion, safety_checker=None, feature_extractor=None
    )
    random, pairs = torch.Generator().manual_seed(0), {}
    for name, layer in pipe.text_encoder.named_modules():
        if isinstance(layer, torch.nn.Linear):
            down, up = (
                torch.randn(2, layer.in_features, generator=random),
                torch.randn(layer.out_features, 2, generator=random),
            )
            pairs[f"text_encoder.{name}"] = down, up
    save_pipeline_adapter(pairs, tmp_path)
    ids = torch.tensor([[0, 2, 1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        before = pipe.text_encoder(ids)[0]
        merged = copy.deepcopy(pipe.text_encoder)
        for name, (down, up) in pairs.items():
            merged.get_parameter(f"{name.removeprefix('text_encoder.')}.weight").add_(up @ down)
        pipe.load_lora_weights(tmp_path)
        torch.testing.assert_close(pipe.text_encoder(ids)[0], merged(ids)[0], atol=1e-4, rtol=0)
        assert not torch.allclose(merged(ids)[0], before, atol=1e-2)


def test_gates_of_a_saved_model_are_those_of_a_pipeline_with_that_weight(
    stable_diffusion: Path, tmp_path: Path, forget: Callable[..., Result]
) -> None:
    """What the model in OUT draws of a prompt is what diffusers draws with the adapter at the gate's weight."""
    from expunge.families import restore_family
    from expunge.families.denoising import sample_latents
    from expunge.families.membranes import Permeable
    from expunge.families.weights import load_folder

    assert forget(stable_diffusion, tmp_path / "out", "--method", "spm", *settings("spm")).exit_code == 0
    model, _, record = load_folder(tmp_path / "out")
    family = restore_family(record["family"])
    assert isinstance(model, Permeable) and isinstance(family, Diffusion)
    ids, noise = (
        family.tokens(["blue left"]),
        torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)),
    )
    weight = float(model.admitted(ids, model.encode(ids)))
    assert 0 < weight < 1
    family.steps = 3
    ours = sample_latents(family, model.eval(), ids, noise)[0]
    theirs = drawn_latents(stable_diffusion, tmp_path / "out" / "adapter", "blue left", weight, noise)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def drawn_latents(base: Path, adapter: Path, prompt: str, weight: float, noise: torch.Tensor) -> torch.Tensor:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, feature_extractor=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(adapter, adapter_name="erased")
    pipe.set_adapters(["erased"], [weight])
    return pipe(prompt, num_inference_steps=3, latents=noise, output_type="latent", height=8, width=8).images


def test_words_that_the_tokenizer_does_not_tell_apart_are_refused(
    stable_diffusion: Path, tmp_path: Path, forget: Callable[..., Result]
) -> None:
    # Both are unknown words to it.
    result = forget(
        stable_diffusion, tmp_path / "out", "--concept", "lion", "--anchor", "tiger", "--method", "doco"
    )
    assert (
        result.exit_code == 2 and "to this tokenizer the anchor 'tiger' is the same as 'lion'" in result.error
    )


def test_what_is_changed_while_drawing_is_no_pipeline(
    stable_diffusion: Path, tmp_path: Path, forget: Callable[..., Result]
) -> None:
    few = [part for name in ("images=2", "epochs=1", "expansion=2", "k=2") for part in ("--set", name)]
    result = forget(stable_diffusion, tmp_path / "out", "--anchor", "green", "--method", "saeuron", *few)
    assert result.exit_code == 0, result.error
    assert (
        "a plain pipeline of diffusers cannot hold" in result.output and "for diffusers:" not in result.output
    )
    assert not (tmp_path / "out" / "pipeline").exists()
    from expunge.families import Diffusion
    from expunge.families.denoising import sample, starting_noise
    from expunge.families.models import innermost
    from expunge.families.weights import load_folder

    model, _, record = load_folder(tmp_path / "out")
    base, _, _ = load_pipeline(stable_diffusion)
    for name, value in base.state_dict().items():
        assert torch.equal(innermost(model).state_dict()[name], value)
    family = Diffusion.restore(record["family"])
    assert sample(family, model, ["red"], starting_noise(family, ["one"])).shape == (1, 3, 8, 8)
    assert any("diffusers cannot hold" in note for note in record["notes"])


def test_the_concept_comes_to_say_what_its_anchor_says(
    stable_diffusion: Path, tmp_path: Path, forget: Callable[..., Result]
) -> None:
    result = forget(stable_diffusion, tmp_path / "out", "--anchor", "green", "--method", "uce", "--set", "ridge=1e-6",
                    "--set", "tokens=all")  # fmt: skip
    assert result.exit_code == 0, result.error
    assert "for diffusers:" in result.output
    made = tmp_path / "out" / "pipeline"
    # With as good as no ridge every position of "red" is answered as "green" was, and "green" as before.
    torch.testing.assert_close(images(made, "red"), images(stable_diffusion, "green"), atol=2e-2, rtol=0)
    torch.testing.assert_close(images(made, "green"), images(stable_diffusion, "green"), atol=2e-2, rtol=0)


def test_what_cannot_be_meant_is_refused(
    stable_diffusion: Path, tmp_path: Path, forget: Callable[..., Result]
) -> None:
    same = forget(stable_diffusion, tmp_path / "out", "--anchor", "red", "--method", "uce")
    assert same.exit_code == 2 and "the anchor is the concept 'red' itself" in same.error
    lost = forget(tmp_path / "nowhere", tmp_path / "out", "--method", "uce")
    assert lost.exit_code == 2 and "no Stable Diffusion pipeline" in lost.error
    images_needed = forget(
        stable_diffusion, tmp_path / "out", "--method", "concept-ablation", "--anchor", "green"
    )
    assert images_needed.exit_code == 2 and "images of the concept" in images_needed.error
    with pytest.raises(BadInput, match="the concept has no name"):
        named_concept("  ")
    with pytest.raises(BadInput, match="'anchor' and 'preserve' go with a 'concept'"):
        ProblemSpec(model="x", data="y", forget="class=1", anchor="green")
    with pytest.raises(BadInput, match="'data' describes rows"):
        ProblemSpec(model="x", data="y", concept="red")


def test_prompts_of_a_concept() -> None:
    concept = named_concept("Van Gogh", "a painting", ["a dog"])
    assert concept.prompts == tuple(t.format("Van Gogh") for t in TEMPLATES)
    assert concept.anchors[0] == "a painting" and {"a dog", "", "a painting"} <= set(concept.preserve)
    assert set(named_concept("Van Gogh").anchors) == {""}


def test_a_pipeline_without_text_encoder_is_refused(stable_diffusion: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(stable_diffusion, broken)
    shutil.rmtree(broken / "text_encoder")
    index = json.loads((broken / "model_index.json").read_text())
    index["text_encoder"] = [None, None]
    (broken / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match="no text encoder|no Stable Diffusion pipeline"):
        load_pipeline(broken)


def test_a_safety_checker_is_said_to_be_left_out(stable_diffusion: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checked"
    shutil.copytree(stable_diffusion, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    said: list[str] = []
    spec = ProblemSpec(model=str(folder), concept="red", anchor="green")
    assert spec.build(notice=said.append).model is not None
    assert len(said) == 1 and "safety_checker" in said[0] and "neither edited nor saved" in said[0]
    spec.replace(model=str(stable_diffusion)).build(notice=said.append)
    assert len(said) == 1
