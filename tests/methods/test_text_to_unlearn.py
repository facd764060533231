"""Text-to-Unlearn: the direction on a linear world, its signs, a random CLIP, and what it does to a tiny GAN."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.errors import BadInput, Missing
from expunge.evidence import collect
from expunge.families import Architecture, Gan
from expunge.methods.base import Workplace
from expunge.methods.image_text import ClipEncoder, GuideEncoder
from expunge.methods.text_to_unlearn import SMALL, Latents, Mapper, TextToUnlearn, Way, against
from expunge.problem import Problem
from expunge.testing.problems import tiny_problem


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny_problem("gan")


def share(problem: Problem, model: nn.Module, quantity: str, split: str) -> float:
    return float(collect(problem.family, model, problem.splits[split], [quantity])[quantity].mean())


def test_it_stops_drawing_what_is_not_wanted_and_keeps_the_rest(problem: Problem) -> None:
    made = expunge.forget(problem, "text-to-unlearn", seed=3)
    assert share(problem, made.model, "undesired", "samples") < 0.05
    assert share(problem, problem.target, "undesired", "samples") > 0.15
    kept = share(problem, made.model, "covered", "test")
    assert kept > 0.7 * share(problem, problem.target, "covered", "test")
    assert "brings the concept nearer" in made.notes[0]
    # Nothing has moved at the first step, so that no angle is known yet.
    assert made.log[0]["direction"] == pytest.approx(0.2)
    before, after = problem.target.state_dict(), made.model.state_dict()
    still = [n for n in before if not n.startswith("generator.")]
    assert still and all(torch.equal(before[n], after[n]) for n in still)


def test_the_direction_of_a_linear_generator_is_exact(problem: Problem) -> None:
    """E the identity, G(w) = A w, M(w) = w + c: the direction is A c / |A c|."""
    a, c = torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, -1.0]]), torch.tensor([0.5, -1.0])

    class Side:
        before = None

        def draw(self, n: int, generator: torch.Generator, device: str) -> tuple[Tensor, None]:
            return torch.randn(n, 2, generator=generator), None

        def images(self, model: None, latent: Tensor, condition: None) -> Tensor:
            return latent @ a.T

    class Identity:
        def embed(self, images: Tensor) -> Tensor:
            return images

        def distance(self, images: Tensor) -> Tensor:
            return -images @ (a @ c)

    mapper = Mapper(2, 4)
    mapper.out.bias.data.copy_(c)
    way = TextToUnlearn().way(problem, cast(Latents, Side()), mapper, Identity(), Workplace())
    torch.testing.assert_close(way.unit, a @ c / (a @ c).norm())
    assert way.length == pytest.approx(float((a @ c).norm()), rel=1e-5)
    # Undone exactly, embeddings have gone the whole way against it, and nothing more is asked.
    w = torch.randn(5, 2)
    done = against(w @ a.T, (w + c) @ a.T, replace(way, length=way.length * 0.999))
    assert float(done.abs().sum()) == 0


def test_signs_and_the_angle_of_changes() -> None:
    way = Way(torch.tensor([1.0, 0.0]), 2.0, 0.0)
    before = torch.tensor([[0.3, 0.4]])
    now = before.clone().requires_grad_()
    loss = against(now, before, way)
    assert loss.item() == 1  # no change: no angle
    (gradient,) = torch.autograd.grad(loss, now)
    torch.testing.assert_close(
        gradient, torch.tensor([[1 / SMALL, 0.0]])
    )  # descent lowers the component along the way
    turned = replace(way, unit=-way.unit)
    (gradient,) = torch.autograd.grad(against(now, before, turned), now)
    assert float(gradient[0, 0]) < 0
    change = torch.tensor([[-0.3, 0.4], [0.3, 0.4], [-1.0, 0.0]])
    torch.testing.assert_close(against(before + change, before, way), torch.tensor([0.4, 1.6, 0.0]))
    assert float(against(before - torch.tensor([[2.1, 5.0]]), before, way)) == 0  # as far as the way is long


def test_the_mapper_begins_as_no_step() -> None:
    latent = torch.randn(4, 3)
    assert torch.equal(Mapper(3, 8)(latent), latent)


def test_where_the_guide_sees_the_concept(problem: Problem) -> None:
    family = problem.family
    assert isinstance(family, Gan) and family.guide is not None
    encoder = GuideEncoder(family.guide, "bright")
    images = torch.cat([torch.full((1, 1, 4, 4), 0.7), torch.full((1, 1, 4, 4), -0.7)])
    assert encoder.sees(images).tolist() == [True, False]
    near, far = encoder.distance(images)
    assert near < far
    torch.testing.assert_close(encoder.embed(images).norm(dim=1), torch.ones(2))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP of a few thousand weights, as `transformers` saves it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **small,
        "vocab_size": 6,
        "max_position_embeddings": 8,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(
            CLIPConfig(
                text_config=text, vision_config={**small, "image_size": 8, "patch_size": 4}, projection_dim=8
            )
        )
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    words = Tokenizer(
        WordLevel({w: i for i, w in enumerate(["<s>", "</s>", "a", "bright", "picture", "?"])}, unk_token="?")
    )
    words.pre_tokenizer = Whitespace()  # pyright: ignore
    words.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])  # pyright: ignore
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="?",
        model_max_length=8,
    ).save_pretrained(folder)
    return folder


def test_clip_is_read_as_transformers_reads_it(clip: Path) -> None:
    from transformers import CLIPModel

    encoder = ClipEncoder(str(clip), "a bright picture")
    theirs: Any = CLIPModel.from_pretrained(clip).eval()
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    pixels = ((images.expand(-1, 3, -1, -1) + 1) / 2 - encoder.mean) / encoder.std
    ids = torch.tensor([[0, 2, 3, 4, 1]])
    with torch.no_grad():
        said = theirs(input_ids=ids, pixel_values=pixels)
        torch.testing.assert_close(encoder.embed(images), said.image_embeds, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(encoder.prompt, said.text_embeds[0], atol=1e-5, rtol=1e-4)
        cosine = said.logits_per_image[:, 0] / theirs.logit_scale.exp()
        torch.testing.assert_close(encoder.distance(images), 1 - cosine, atol=1e-5, rtol=1e-4)


def test_words_can_guide_through_clip(problem: Problem, clip: Path) -> None:
    method = TextToUnlearn(
        clip=str(clip),
        prompt="a bright picture",
        neutral="a picture",
        steps=5,
        mapper_steps=60,
        shift=0.0,
        mapper_lr=0.02,
    )
    made = method.forget(problem, Workplace(seed=1))
    assert "the cosine of that direction and the one in words is" in made.notes[0]
    assert made.cost.changed > 0


def test_faults_are_named(problem: Problem, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="clip needs a prompt"):
        TextToUnlearn(clip=str(clip)).forget(problem)
    with pytest.raises(BadInput, match="a prompt needs clip"):
        TextToUnlearn(prompt="a bright picture").forget(problem)
    with pytest.raises(Missing, match="there is no CLIP model at"):
        TextToUnlearn(clip=str(tmp_path), prompt="bright").forget(problem)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BadInput, match="holds a model of type 'bert'"):
        TextToUnlearn(clip=str(tmp_path), prompt="bright").forget(problem)
    options = {**problem.architecture.options, "mapping": 0}  # pyright: ignore[reportOptionalMemberAccess]
    plain = problem.with_model(Architecture(kind="builtin", name="gan", options=options).build(0))
    with pytest.raises(BadInput, match="the GAN has no mapping, so there is no latent behind one"):
        TextToUnlearn(space="w").forget(plain)
    assert isinstance(problem.family, Gan)
    blind = Gan.restore({**problem.family.describe(), "guide": None})
    with pytest.raises(BadInput, match="needs a guide, .* or give clip and prompt"):
        TextToUnlearn().forget(replace(problem, family=blind))
    with pytest.raises(BadInput, match="the mapper found no way to the concept"):
        TextToUnlearn(mapper_lr=1e-12, mapper_steps=1).forget(problem)
